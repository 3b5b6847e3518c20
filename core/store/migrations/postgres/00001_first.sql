-- +goose Up
CREATE TABLE api_keys (
  hash BYTEA PRIMARY KEY, app TEXT NOT NULL, scopes TEXT NOT NULL, created_at BIGINT NOT NULL
);
CREATE TABLE recipients (
  app TEXT NOT NULL, id TEXT NOT NULL, attributes BYTEA, locale TEXT NOT NULL, timezone TEXT NOT NULL,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (app, id)
);
CREATE TABLE endpoints (
  app TEXT NOT NULL, recipient TEXT NOT NULL, kind TEXT NOT NULL, address TEXT NOT NULL, position BIGINT NOT NULL,
  route TEXT NOT NULL, app_version TEXT NOT NULL, registered_at BIGINT NOT NULL,
  PRIMARY KEY (app, recipient, kind, address)
);
CREATE INDEX endpoints_address ON endpoints (app, kind, address);
CREATE TABLE templates (
  app TEXT NOT NULL, name TEXT NOT NULL, version BIGINT NOT NULL, source BYTEA NOT NULL, created_at BIGINT NOT NULL,
  PRIMARY KEY (app, name, version)
);
CREATE TABLE notifications (
  id BYTEA PRIMARY KEY, app TEXT NOT NULL, created_at BIGINT NOT NULL, send_at BIGINT NOT NULL, expires_at BIGINT NOT NULL,
  lane BIGINT NOT NULL, mode TEXT NOT NULL, category TEXT NOT NULL, collapse_key TEXT NOT NULL, unknown TEXT NOT NULL,
  template TEXT NOT NULL, metadata BYTEA, skipped BYTEA, cancelled_at BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX notifications_app ON notifications (app, id);
CREATE TABLE deliveries (
  id BYTEA PRIMARY KEY, notification_id BYTEA NOT NULL, batch_id BYTEA NOT NULL, app TEXT NOT NULL, channel TEXT NOT NULL,
  kind TEXT NOT NULL, route TEXT NOT NULL, recipient TEXT NOT NULL, address TEXT NOT NULL, name TEXT NOT NULL,
  page_id BYTEA, slot BIGINT NOT NULL, state BIGINT NOT NULL, attempts BIGINT NOT NULL, unknowns BIGINT NOT NULL,
  max_unknown BIGINT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL, provider_id TEXT NOT NULL,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, expires_at BIGINT NOT NULL,
  cancel_requested BIGINT NOT NULL DEFAULT 0, seen_at BIGINT NOT NULL DEFAULT 0, read_at BIGINT NOT NULL DEFAULT 0,
  clicked_at BIGINT NOT NULL DEFAULT 0, archived_at BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 75);
CREATE INDEX deliveries_notification ON deliveries (notification_id, id);
CREATE INDEX deliveries_batch ON deliveries (batch_id);
CREATE INDEX deliveries_recipient ON deliveries (app, recipient, id) WHERE recipient <> '';
CREATE INDEX deliveries_provider ON deliveries (route, provider_id) WHERE provider_id <> '';
CREATE TABLE pages (id BYTEA PRIMARY KEY, body BYTEA NOT NULL);
CREATE TABLE batches (
  id BYTEA PRIMARY KEY, app TEXT NOT NULL, route TEXT NOT NULL, lane BIGINT NOT NULL, state BIGINT NOT NULL,
  fence BIGINT NOT NULL, due_at BIGINT NOT NULL, run_at BIGINT NOT NULL, parent BYTEA, rounds BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 75);
CREATE INDEX batches_alarm ON batches (run_at) WHERE state < 4;
CREATE INDEX batches_due ON batches (route, lane, app, run_at) WHERE state < 3;
CREATE TABLE rounds (
  batch_id BYTEA NOT NULL, fence BIGINT NOT NULL, attempt BIGINT NOT NULL, worker TEXT NOT NULL, started_at BIGINT NOT NULL,
  finished_at BIGINT NOT NULL DEFAULT 0, results BYTEA, PRIMARY KEY (batch_id, fence)
);
CREATE TABLE late_rounds (
  id BYTEA PRIMARY KEY, batch_id BYTEA NOT NULL, fence BIGINT NOT NULL, worker TEXT NOT NULL, at BIGINT NOT NULL, results BYTEA
);
CREATE INDEX late_rounds_batch ON late_rounds (batch_id);
CREATE TABLE receipts (
  delivery_id BYTEA NOT NULL, event TEXT NOT NULL, code TEXT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (delivery_id, event)
);
CREATE TABLE idempotency (
  app TEXT NOT NULL, key TEXT NOT NULL, body_hash BYTEA NOT NULL, answer BYTEA NOT NULL, created_at BIGINT NOT NULL,
  PRIMARY KEY (app, key)
);
CREATE INDEX idempotency_created ON idempotency (created_at);
CREATE TABLE routes (name TEXT PRIMARY KEY, paused_at BIGINT NOT NULL);
