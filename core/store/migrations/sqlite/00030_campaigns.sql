-- +goose Up
CREATE TABLE campaigns (
  id BLOB PRIMARY KEY, app TEXT NOT NULL, parent BLOB, target BLOB, state BIGINT NOT NULL, fence BIGINT NOT NULL, run_at BIGINT NOT NULL,
  created_at BIGINT NOT NULL, spec BLOB NOT NULL, legs BLOB, live BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX campaigns_app ON campaigns (app, id);
CREATE INDEX campaigns_alarm ON campaigns (run_at) WHERE run_at > 0;
CREATE INDEX campaigns_parent ON campaigns (parent) WHERE parent IS NOT NULL;
CREATE INDEX campaigns_target ON campaigns (target) WHERE target IS NOT NULL;
-- A notification of each page. open is how many of its deliveries were pending as they were counted last, stale says that
-- they have to be counted again: some are pending, or a receipt came.
CREATE TABLE campaign_pages (
  notification_id BLOB PRIMARY KEY, campaign BLOB NOT NULL, open BIGINT NOT NULL, stale BIGINT NOT NULL, totals BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX campaign_pages_campaign ON campaign_pages (campaign, notification_id);
CREATE INDEX campaign_pages_stale ON campaign_pages (campaign) WHERE stale = 1;
ALTER TABLE batches ADD COLUMN campaign BLOB;
