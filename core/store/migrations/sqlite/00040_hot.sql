-- +goose Up
-- What failed or expired always has a code.
UPDATE deliveries SET code = CASE state WHEN 4 THEN 'failed' ELSE 'expired' END WHERE state IN (4, 5) AND code = '';
