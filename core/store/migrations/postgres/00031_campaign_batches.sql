-- +goose NO TRANSACTION
-- +goose Up
-- What a campaign has under way.
DROP INDEX CONCURRENTLY IF EXISTS batches_campaign;
CREATE INDEX CONCURRENTLY batches_campaign ON batches (campaign) WHERE campaign IS NOT NULL AND state < 4;
