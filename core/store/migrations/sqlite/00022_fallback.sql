-- +goose Up
-- What a fallback and quiet hours add to a delivery; all of it is empty where neither is used.
ALTER TABLE notifications ADD COLUMN fallback_after BIGINT NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN ladder BLOB;
ALTER TABLE deliveries ADD COLUMN step BIGINT NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN passed_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN quiet TEXT NOT NULL DEFAULT '';
ALTER TABLE deliveries ADD COLUMN held TEXT NOT NULL DEFAULT '';
ALTER TABLE deliveries ADD COLUMN held_till BIGINT NOT NULL DEFAULT 0;
