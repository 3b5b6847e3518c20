-- +goose Up
CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL);
