package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/carillon-notify/carillon/core"
)

// PutPreferences keeps what a recipient chose in place of what it chose before, creating the recipient if
// needed.
func (s *Store) PutPreferences(ctx context.Context, app, recipient string, p core.Preferences) error {
	return s.write(ctx, "keep a recipient's preferences", func(t tx) error {
		if _, err := t.exec(ctx, ensureRecipientSQL, app, recipient, micros(s.Now())); err != nil {
			return err
		}
		return s.setPreferences(ctx, t, app, recipient, p)
	})
}

// Unsubscribe turns off what an unsubscription names and leaves the recipient's other preferences. Who is not
// there any more is not brought back: core.ErrNotFound.
func (s *Store) Unsubscribe(ctx context.Context, u core.Unsubscription) error {
	return s.write(ctx, "unsubscribe a recipient", func(t tx) error {
		var x *core.Recipient
		err := t.query(ctx, "SELECT "+recipientColumns+" FROM recipients WHERE app = $1 AND id = $2"+t.forUpdate(), func(r row) (err error) {
			x, err = scanRecipient(r)
			return err
		}, u.App, u.Recipient)
		if err != nil {
			return err
		}
		if x == nil {
			return core.ErrNotFound
		}
		if x.Preferences == nil {
			x.Preferences = core.Preferences{}
		}
		if x.Preferences[u.Category] == nil {
			x.Preferences[u.Category] = map[string]bool{}
		}
		x.Preferences[u.Category][u.Channel] = false
		return s.setPreferences(ctx, t, u.App, u.Recipient, x.Preferences)
	})
}

func (s *Store) setPreferences(ctx context.Context, t tx, app, recipient string, p core.Preferences) error {
	var text []byte
	if len(p) > 0 {
		var err error
		if text, err = json.Marshal(p); err != nil {
			return fmt.Errorf("encode the preferences: %w", err)
		}
	}
	n, err := t.exec(ctx, "UPDATE recipients SET preferences = $3, updated_at = $4 WHERE app = $1 AND id = $2", app, recipient, raw(text), micros(s.Now()))
	if err == nil && n == 0 {
		err = core.ErrNotFound // erased in between
	}
	return err
}

// Secret returns the secret of a name that all processes of this store share; the first to ask for it
// keeps what it offers.
func (s *Store) Secret(ctx context.Context, name string, offer []byte) ([]byte, error) {
	var kept []byte
	err := s.write(ctx, "keep a secret", func(t tx) error {
		if _, err := t.exec(ctx, "INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING", name, offer); err != nil {
			return err
		}
		return t.query(ctx, "SELECT value FROM secrets WHERE name = $1", func(r row) error { return r.Scan(&kept) }, name)
	})
	return kept, err
}
