-- +goose Up
-- A batch is kept while another was split from it.
CREATE INDEX batches_parent ON batches (parent) WHERE parent IS NOT NULL;
