-- +goose NO TRANSACTION
-- +goose Up
-- A batch is kept while another was split from it. Built beside whoever writes; a build that was cut short
-- leaves an index that is of no use and is built anew.
DROP INDEX CONCURRENTLY IF EXISTS batches_parent;
CREATE INDEX CONCURRENTLY batches_parent ON batches (parent) WHERE parent IS NOT NULL;
