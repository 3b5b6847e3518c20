-- +goose Up
CREATE TABLE topic_recipients (
  app TEXT NOT NULL, topic TEXT NOT NULL, recipient TEXT NOT NULL, created_at BIGINT NOT NULL,
  PRIMARY KEY (app, topic, recipient)
);
CREATE INDEX topic_recipients_recipient ON topic_recipients (app, recipient);
ALTER TABLE recipients ADD COLUMN preferences BYTEA;
ALTER TABLE recipients ADD COLUMN quiet_hours TEXT NOT NULL DEFAULT '';
