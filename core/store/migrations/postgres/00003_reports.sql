-- +goose Up
CREATE TABLE route_reports (
  process TEXT NOT NULL, route TEXT NOT NULL, at BIGINT NOT NULL, report BYTEA NOT NULL, PRIMARY KEY (process, route)
);
