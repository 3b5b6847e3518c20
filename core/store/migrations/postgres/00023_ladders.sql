-- +goose NO TRANSACTION
-- +goose Up
-- Built beside whoever writes; a build that was cut short leaves an index of no use, and is done again.
DROP INDEX CONCURRENTLY IF EXISTS deliveries_ladder;
CREATE INDEX CONCURRENTLY deliveries_ladder ON deliveries (ladder) WHERE ladder IS NOT NULL;
