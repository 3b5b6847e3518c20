-- +goose Up
-- When a person's time zone last changed: a campaign by local time looks at its end for who moved, and not for everybody of
-- whom anything changed. 0: never, or by a version before this one.
ALTER TABLE recipients ADD COLUMN moved_at BIGINT NOT NULL DEFAULT 0;
