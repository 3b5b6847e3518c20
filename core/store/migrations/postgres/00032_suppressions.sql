-- +goose Up
-- Addresses that nothing is sent to any more, by a keyed hash.
CREATE TABLE suppressions (
  app TEXT NOT NULL, hash BYTEA NOT NULL, kind TEXT NOT NULL, channel TEXT NOT NULL, recipient TEXT NOT NULL, code TEXT NOT NULL, since BIGINT NOT NULL,
  PRIMARY KEY (app, hash)
);
CREATE INDEX suppressions_recipient ON suppressions (app, recipient) WHERE recipient <> '';
