-- +goose Up
CREATE TABLE secrets (name TEXT PRIMARY KEY, value BYTEA NOT NULL);
