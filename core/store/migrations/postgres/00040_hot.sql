-- +goose NO TRANSACTION
-- +goose Up
-- What settles a delivery must not touch an index, so that PostgreSQL may put the new row beside the old one (HOT):
-- deliveries_dead, whose predicate names the state, gives way to an index by the code, which what failed or
-- expired always has and what is sent never gets. And half of each page stays free for the rows' second version.
ALTER TABLE deliveries SET (fillfactor = 50);
UPDATE deliveries SET code = CASE state WHEN 4 THEN 'failed' ELSE 'expired' END WHERE state IN (4, 5) AND code = '';
DROP INDEX CONCURRENTLY IF EXISTS deliveries_code;
CREATE INDEX CONCURRENTLY deliveries_code ON deliveries (app, id) WHERE code <> '';
DROP INDEX CONCURRENTLY IF EXISTS deliveries_dead;
