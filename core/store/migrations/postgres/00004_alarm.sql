-- +goose Up
-- By state first: what lapsed is found without reading what is due.
DROP INDEX batches_alarm;
CREATE INDEX batches_alarm ON batches (state, run_at) WHERE state < 4;
