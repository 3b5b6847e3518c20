-- +goose Up
-- How many deliveries point at a page, so that it goes with the last of them. NULL: not counted.
ALTER TABLE pages ADD COLUMN refs BIGINT;
-- Notifications that were removed and were too large for one transaction: their deliveries go page by page.
CREATE TABLE retired (notification_id BYTEA PRIMARY KEY);
