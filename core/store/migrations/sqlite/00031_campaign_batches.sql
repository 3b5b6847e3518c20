-- +goose Up
-- What a campaign has under way.
CREATE INDEX batches_campaign ON batches (campaign) WHERE campaign IS NOT NULL AND state < 4;
