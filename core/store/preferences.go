package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// PutPreferences keeps what a recipient chose in place of what it chose before, creating the recipient if
// needed. What is pending for the recipient and by rules is wanted no more is cancelled with the code
// core.CodePreference, as by Cancel: a delivery in a round under way may still go.
func (s *Store) PutPreferences(ctx context.Context, app, recipient string, p core.Preferences, rules *core.Rules) error {
	return s.write(ctx, "keep a recipient's preferences", func(t tx) error {
		if _, err := t.exec(ctx, ensureRecipientSQL, app, recipient, micros(s.Now())); err != nil {
			return err
		}
		return s.setPreferences(ctx, t, &core.Recipient{App: app, ID: recipient, Preferences: p}, rules)
	})
}

// Unsubscribe turns off what an unsubscription names and leaves the recipient's other preferences. What is pending
// and wanted no more is cancelled as by PutPreferences. Who is not there any more is not brought back:
// core.ErrNotFound.
func (s *Store) Unsubscribe(ctx context.Context, u core.Unsubscription, rules *core.Rules) error {
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
		return s.setPreferences(ctx, t, x, rules)
	})
}

// setPreferences writes a recipient's preferences, and cancels what they rule out.
func (s *Store) setPreferences(ctx context.Context, t tx, x *core.Recipient, rules *core.Rules) error {
	var text []byte
	if len(x.Preferences) > 0 {
		var err error
		if text, err = json.Marshal(x.Preferences); err != nil {
			return fmt.Errorf("encode the preferences: %w", err)
		}
	}
	n, err := t.exec(ctx, "UPDATE recipients SET preferences = $3, updated_at = $4 WHERE app = $1 AND id = $2", x.App, x.ID, raw(text), micros(s.Now()))
	if err != nil {
		return err
	}
	if n == 0 {
		return core.ErrNotFound // erased in between
	}
	return s.ruleOut(ctx, t, x, rules)
}

// ruleOutPage is how many pending deliveries of a recipient are looked at at once.
const ruleOutPage = 500

// ruleOut cancels what is pending for a recipient and, by what it chose now, were skipped if it were accepted now.
// Fallbacks go on without the steps that this takes from them.
func (s *Store) ruleOut(ctx context.Context, t tx, rec *core.Recipient, rules *core.Rules) error {
	var ids [][]byte
	var ladders []core.ID
	for from := (core.ID{}); ; {
		seen := 0
		err := t.query(ctx, `SELECT d.id, d.channel, d.ladder, n.category FROM deliveries d JOIN notifications n ON n.id = d.notification_id
			WHERE d.app = $1 AND d.recipient = $2 AND d.recipient <> '' AND d.id > $3 AND d.state = 1 AND d.cancel_requested = 0
			ORDER BY d.id LIMIT $4`, func(r row) error {
			var id, ladder core.ID
			var channel string
			var n core.Notification
			err := r.Scan(key{&id}, &channel, key{&ladder}, &n.Category)
			seen, from = seen+1, id
			if rules.Decide(rec, &n, channel, time.Time{}).Skip != "" {
				if ids = append(ids, id[:]); !ladder.IsZero() {
					ladders = append(ladders, ladder)
				}
			}
			return err
		}, rec.App, rec.ID, from[:], int64(ruleOutPage))
		if err != nil {
			return fmt.Errorf("look what a recipient wants no more: %w", err)
		}
		if seen < ruleOutPage {
			break
		}
	}
	if len(ids) == 0 {
		return nil
	}
	now := s.Now()
	if _, err := cancelIDs(ctx, t, micros(now), core.CodePreference, ids); err != nil {
		return fmt.Errorf("cancel what a recipient wants no more: %w", err)
	}
	ladders = sorted(ladders)
	if err := lockLadders(ctx, t, ladders); err != nil {
		return err
	}
	_, err := s.advance(ctx, t, now, ladders)
	return err
}

// Secret returns the secret of a name that all processes of this store share; the first to ask for it
// keeps what it offers.
func (s *Store) Secret(ctx context.Context, name string, offer []byte) ([]byte, error) {
	return writeFor(ctx, s, "keep a secret", func(t tx) (kept []byte, err error) {
		if _, err := t.exec(ctx, "INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING", name, offer); err != nil {
			return nil, err
		}
		err = t.query(ctx, "SELECT value FROM secrets WHERE name = $1", func(r row) error { return r.Scan(&kept) }, name)
		return kept, err
	})
}
