-- +goose Up
CREATE TABLE route_reports (
  process TEXT NOT NULL, route TEXT NOT NULL, at INTEGER NOT NULL, report BLOB NOT NULL, PRIMARY KEY (process, route)
);
