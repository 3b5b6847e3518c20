-- +goose Up
-- The service's own id of a message whose service never says anything of it afterwards: it is shown, and looked for by
-- nobody. In provider_id it would cost an index entry, and the whole row a second one in every index.
ALTER TABLE deliveries ADD COLUMN service_id TEXT NOT NULL DEFAULT '';
