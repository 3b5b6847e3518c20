-- +goose Up
-- The migrations that a process has to know in order to work with this schema. One that older versions
-- cannot go on with inserts its number here; all others are compatible.
CREATE TABLE schema_needs (version INTEGER PRIMARY KEY);
