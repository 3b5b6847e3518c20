-- +goose Up
CREATE INDEX deliveries_dead ON deliveries (app, id) WHERE state IN (4, 5);
