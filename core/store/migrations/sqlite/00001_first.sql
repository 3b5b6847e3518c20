-- +goose Up
CREATE TABLE api_keys (
  hash BLOB PRIMARY KEY, app TEXT NOT NULL, scopes TEXT NOT NULL, created_at BIGINT NOT NULL
);
CREATE TABLE recipients (
  app TEXT NOT NULL, id TEXT NOT NULL, attributes BLOB, locale TEXT NOT NULL, timezone TEXT NOT NULL,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (app, id)
);
CREATE TABLE endpoints (
  app TEXT NOT NULL, recipient TEXT NOT NULL, kind TEXT NOT NULL, address TEXT NOT NULL, position BIGINT NOT NULL,
  route TEXT NOT NULL, app_version TEXT NOT NULL, registered_at BIGINT NOT NULL,
  PRIMARY KEY (app, recipient, kind, address)
);
CREATE INDEX endpoints_address ON endpoints (app, kind, address);
CREATE TABLE templates (
  app TEXT NOT NULL, name TEXT NOT NULL, version BIGINT NOT NULL, source BLOB NOT NULL, created_at BIGINT NOT NULL,
  PRIMARY KEY (app, name, version)
);
CREATE TABLE notifications (
  id BLOB PRIMARY KEY, app TEXT NOT NULL, created_at BIGINT NOT NULL, send_at BIGINT NOT NULL, expires_at BIGINT NOT NULL,
  lane BIGINT NOT NULL, mode TEXT NOT NULL, category TEXT NOT NULL, collapse_key TEXT NOT NULL, unknown TEXT NOT NULL,
  template TEXT NOT NULL, metadata BLOB, skipped BLOB, cancelled_at BIGINT NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX notifications_app ON notifications (app, id);
CREATE TABLE deliveries (
  id BLOB PRIMARY KEY, notification_id BLOB NOT NULL, batch_id BLOB NOT NULL, app TEXT NOT NULL, channel TEXT NOT NULL,
  kind TEXT NOT NULL, route TEXT NOT NULL, recipient TEXT NOT NULL, address TEXT NOT NULL, name TEXT NOT NULL,
  page_id BLOB, slot BIGINT NOT NULL, state BIGINT NOT NULL, attempts BIGINT NOT NULL, unknowns BIGINT NOT NULL,
  max_unknown BIGINT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL, provider_id TEXT NOT NULL,
  created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, expires_at BIGINT NOT NULL,
  cancel_requested BIGINT NOT NULL DEFAULT 0, seen_at BIGINT NOT NULL DEFAULT 0, read_at BIGINT NOT NULL DEFAULT 0,
  clicked_at BIGINT NOT NULL DEFAULT 0, archived_at BIGINT NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX deliveries_notification ON deliveries (notification_id, id);
CREATE INDEX deliveries_batch ON deliveries (batch_id);
CREATE INDEX deliveries_recipient ON deliveries (app, recipient, id) WHERE recipient <> '';
CREATE INDEX deliveries_provider ON deliveries (route, provider_id) WHERE provider_id <> '';
CREATE TABLE pages (id BLOB PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE batches (
  id BLOB PRIMARY KEY, app TEXT NOT NULL, route TEXT NOT NULL, lane BIGINT NOT NULL, state BIGINT NOT NULL,
  fence BIGINT NOT NULL, due_at BIGINT NOT NULL, run_at BIGINT NOT NULL, parent BLOB, rounds BIGINT NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX batches_alarm ON batches (run_at) WHERE state < 4;
CREATE INDEX batches_due ON batches (route, lane, app, run_at) WHERE state < 3;
CREATE TABLE rounds (
  batch_id BLOB NOT NULL, fence BIGINT NOT NULL, attempt BIGINT NOT NULL, worker TEXT NOT NULL, started_at BIGINT NOT NULL,
  finished_at BIGINT NOT NULL DEFAULT 0, results BLOB, PRIMARY KEY (batch_id, fence)
) WITHOUT ROWID;
CREATE TABLE late_rounds (
  id BLOB PRIMARY KEY, batch_id BLOB NOT NULL, fence BIGINT NOT NULL, worker TEXT NOT NULL, at BIGINT NOT NULL, results BLOB
);
CREATE INDEX late_rounds_batch ON late_rounds (batch_id);
CREATE TABLE receipts (
  delivery_id BLOB NOT NULL, event TEXT NOT NULL, code TEXT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (delivery_id, event)
) WITHOUT ROWID;
CREATE TABLE idempotency (
  app TEXT NOT NULL, key TEXT NOT NULL, body_hash BLOB NOT NULL, answer BLOB NOT NULL, created_at BIGINT NOT NULL,
  PRIMARY KEY (app, key)
);
CREATE INDEX idempotency_created ON idempotency (created_at);
CREATE TABLE routes (name TEXT PRIMARY KEY, paused_at BIGINT NOT NULL);
