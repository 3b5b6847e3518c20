package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/carillon-notify/carillon/core"
)

const recipientColumns = "app, id, attributes, locale, timezone, created_at, updated_at, preferences, quiet_hours, moved_at"

// moved is what an INSERT sets where the recipient is there already.
const moved = "moved_at = CASE WHEN recipients.timezone = excluded.timezone THEN recipients.moved_at ELSE excluded.updated_at END"

func scanRecipient(r row) (*core.Recipient, error) {
	x := &core.Recipient{}
	var attributes, preferences []byte
	var quiet string
	err := r.Scan(&x.App, &x.ID, &attributes, &x.Locale, &x.Timezone, stamp{&x.CreatedAt}, stamp{&x.UpdatedAt}, &preferences, &quiet, stamp{&x.MovedAt})
	x.Attributes = attributes
	if err == nil && len(preferences) > 0 {
		err = json.Unmarshal(preferences, &x.Preferences)
	}
	if err == nil && quiet != "" {
		err = json.Unmarshal([]byte(quiet), &x.QuietHours)
	}
	return x, err
}

// quietText is how quiet hours are kept: "" for none.
func quietText(q *core.QuietHours) (string, error) {
	if q == nil {
		return "", nil
	}
	text, err := json.Marshal(q)
	return string(text), err
}

const endpointColumns = "kind, address, route, app_version, registered_at"

func scanEndpoint(r row) (e core.Endpoint, err error) {
	err = r.Scan(&e.Kind, &e.Address, &e.Route, &e.AppVersion, stamp{&e.RegisteredAt})
	return e, err
}

func recipientsByID(ctx context.Context, q querier, app string, ids []string) (map[string]*core.Recipient, error) {
	out := make(map[string]*core.Recipient, len(ids))
	sets := make([][]any, len(ids))
	for i, id := range ids {
		sets[i] = []any{app, id}
	}
	err := q.queryMany(ctx, "SELECT "+recipientColumns+" FROM recipients WHERE app = $1 AND id = $2", sets, func(_ int, r row) error {
		x, err := scanRecipient(r)
		if err == nil {
			out[x.ID] = x
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	err = q.queryMany(ctx, "SELECT "+endpointColumns+" FROM endpoints WHERE app = $1 AND recipient = $2 ORDER BY position, kind, address", sets, func(i int, r row) error {
		e, err := scanEndpoint(r)
		if x := out[ids[i]]; x != nil && err == nil {
			x.Endpoints = append(x.Endpoints, e)
		}
		return err
	})
	return out, err
}

// unique returns each id once: a set of arguments per recipient.
func unique(ids []string) []string {
	seen := make(map[string]bool, len(ids))
	out := make([]string, 0, len(ids))
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	return out
}

// Recipients finds those of an app that exist, by id.
func (s *Store) Recipients(ctx context.Context, app string, ids []string) (map[string]*core.Recipient, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	out, err := recipientsByID(ctx, s.b, app, unique(ids))
	return out, s.fail("read recipients", err)
}

// Recipient returns one recipient, or core.ErrNotFound.
func (s *Store) Recipient(ctx context.Context, app, id string) (*core.Recipient, error) {
	found, err := s.Recipients(ctx, app, []string{id})
	if err != nil {
		return nil, err
	}
	if found[id] == nil {
		return nil, core.ErrNotFound
	}
	return found[id], nil
}

// ListRecipients lists an app's recipients by id; next is "" at the end.
func (s *Store) ListRecipients(ctx context.Context, app string, p core.Page) (out []core.Recipient, next string, err error) {
	limit := limitOf(p)
	var ids []string
	err = s.read(ctx, "list recipients", "SELECT id FROM recipients WHERE app = $1 AND id > $2 ORDER BY id LIMIT $3", func(r row) error {
		var id string
		err := r.Scan(&id)
		ids = append(ids, id)
		return err
	}, app, p.Cursor, int64(limit+1))
	if err != nil {
		return nil, "", err
	}
	if len(ids) > limit {
		ids = ids[:limit]
		next = ids[limit-1]
	}
	found, err := s.Recipients(ctx, app, ids)
	if err != nil {
		return nil, "", err
	}
	for _, id := range ids {
		if x := found[id]; x != nil {
			out = append(out, *x)
		}
	}
	return out, next, nil
}

// PutRecipient keeps a recipient as given, replacing what was there but its preferences, which are the
// person's own; its endpoints count as registered now. It sets CreatedAt, UpdatedAt and the endpoints' RegisteredAt.
func (s *Store) PutRecipient(ctx context.Context, x *core.Recipient) (created bool, err error) {
	return writeFor(ctx, s, "keep a recipient", func(t tx) (bool, error) {
		now := s.Now()
		for i := range x.Endpoints {
			x.Endpoints[i].RegisteredAt = now
		}
		return putRecipient(ctx, t, now, x)
	})
}

// UpdateRecipient lets change alter a recipient, a new one if it does not exist yet, in one transaction.
// Endpoints that change leaves as they were keep their registration; one that it adds, alters or gives
// a zero RegisteredAt counts as registered now. An error of change is returned as it is, and nothing is
// kept; change may be called more than once and must touch nothing but its argument.
func (s *Store) UpdateRecipient(ctx context.Context, app, id string, change func(*core.Recipient) error) (created bool, err error) {
	created, err = writeFor(ctx, s, "change a recipient", func(t tx) (bool, error) {
		now := s.Now()
		// The row first, whether it is there or not, so that two changes follow one another.
		fresh, err := t.exec(ctx, ensureRecipientSQL, app, id, micros(now))
		if err != nil {
			return false, err
		}
		if err := t.query(ctx, "SELECT 1 FROM recipients WHERE app = $1 AND id = $2"+t.forUpdate(), func(row) error { return nil }, app, id); err != nil {
			return false, err
		}
		found, err := recipientsByID(ctx, t, app, []string{id})
		if err != nil {
			return false, err
		}
		x := found[id]
		if x == nil {
			return false, core.ErrNotFound // erased in between
		}
		before := make(map[core.Endpoint]bool, len(x.Endpoints))
		for _, e := range x.Endpoints {
			before[e] = true
		}
		if err := change(x); err != nil {
			return false, refusal{err}
		}
		x.App, x.ID = app, id
		for i := range x.Endpoints {
			if !before[x.Endpoints[i]] {
				x.Endpoints[i].RegisteredAt = now
			}
		}
		_, err = putRecipient(ctx, t, now, x)
		return fresh > 0, err
	})
	return created, refused(err)
}

func putRecipient(ctx context.Context, t tx, now time.Time, x *core.Recipient) (created bool, err error) {
	was := time.Time{}
	err = t.query(ctx, "SELECT created_at FROM recipients WHERE app = $1 AND id = $2"+t.forUpdate(), func(r row) error { return r.Scan(stamp{&was}) }, x.App, x.ID)
	if err != nil {
		return false, err
	}
	x.CreatedAt, x.UpdatedAt = was, now
	if created = was.IsZero(); created {
		x.CreatedAt = now
	}
	quiet, err := quietText(x.QuietHours)
	if err != nil {
		return false, fmt.Errorf("encode the quiet hours: %w", err)
	}
	_, err = t.exec(ctx, `INSERT INTO recipients (app, id, attributes, locale, timezone, created_at, updated_at, quiet_hours) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT (app, id) DO UPDATE SET attributes = excluded.attributes, locale = excluded.locale, timezone = excluded.timezone,
		updated_at = excluded.updated_at, quiet_hours = excluded.quiet_hours, `+moved,
		x.App, x.ID, raw(x.Attributes), x.Locale, x.Timezone, micros(x.CreatedAt), micros(now), quiet)
	if err != nil {
		return false, fmt.Errorf("write the recipient: %w", err)
	}
	if _, err := t.exec(ctx, "DELETE FROM endpoints WHERE app = $1 AND recipient = $2", x.App, x.ID); err != nil {
		return false, fmt.Errorf("clear the endpoints: %w", err)
	}
	sets := make([][]any, len(x.Endpoints))
	for i, e := range x.Endpoints {
		sets[i] = []any{x.App, x.ID, e.Kind, e.Address, int64(i), e.Route, e.AppVersion, micros(e.RegisteredAt)}
	}
	if err := t.write(ctx, putEndpointSQL, sets); err != nil {
		return false, fmt.Errorf("write the endpoints: %w", err)
	}
	return created, nil
}

const putEndpointSQL = `INSERT INTO endpoints (app, recipient, kind, address, position, route, app_version, registered_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
	ON CONFLICT (app, recipient, kind, address) DO UPDATE SET route = excluded.route, app_version = excluded.app_version, registered_at = excluded.registered_at`

// PutEndpoint registers an endpoint of a recipient now, creating the recipient if needed. created says
// that the recipient did not have the endpoint.
func (s *Store) PutEndpoint(ctx context.Context, app, recipient string, e core.Endpoint) (created bool, err error) {
	_, err = s.UpdateRecipient(ctx, app, recipient, func(x *core.Recipient) error {
		created = true
		e.RegisteredAt = time.Time{}
		for i := range x.Endpoints {
			if x.Endpoints[i].Kind == e.Kind && x.Endpoints[i].Address == e.Address {
				x.Endpoints[i], created = e, false
				return nil
			}
		}
		x.Endpoints = append(x.Endpoints, e)
		return nil
	})
	return created && err == nil, err
}

// DeleteEndpoint drops an endpoint of a recipient; core.ErrNotFound if it has no such one.
func (s *Store) DeleteEndpoint(ctx context.Context, app, recipient, kind, address string) error {
	return s.write(ctx, "drop an endpoint", func(t tx) error {
		n, err := t.exec(ctx, "DELETE FROM endpoints WHERE app = $1 AND recipient = $2 AND kind = $3 AND address = $4", app, recipient, kind, address)
		if err == nil && n == 0 {
			err = core.ErrNotFound
		}
		return err
	})
}
