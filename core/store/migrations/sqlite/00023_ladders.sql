-- +goose Up
CREATE INDEX deliveries_ladder ON deliveries (ladder) WHERE ladder IS NOT NULL;
