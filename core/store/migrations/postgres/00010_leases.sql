-- +goose Up
-- Who leads what one process at a time does. A fence never goes back, so it is the time where that is greater.
CREATE TABLE leases (
  name TEXT PRIMARY KEY, holder TEXT NOT NULL, fence BIGINT NOT NULL, expires_at BIGINT NOT NULL
);
