package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/carillon-notify/carillon/core"
)

// DeleteRecipient erases a person: the recipient, its endpoints, preferences and topics; in its deliveries the
// recipient's id, address, name and content, and there and in the results of their rounds what services said in words;
// in notifications that skipped it, answers that idempotency keys give again and lists of campaigns' audiences the id.
// What was pending is
// cancelled. The deliveries' states and attempts stay, so that accepted remains the sum of the states. A page
// that held their contents alone is removed; one shared with others stays, without a reference from here.
// It is several transactions. Asked again it does what an error or a crash left undone, also where the recipient itself
// is gone, and then returns core.ErrNotFound.
func (s *Store) DeleteRecipient(ctx context.Context, app, id string) error {
	erased := s.write(ctx, "erase a recipient", func(t tx) error {
		n, err := t.exec(ctx, "DELETE FROM recipients WHERE app = $1 AND id = $2", app, id)
		if err != nil {
			return err
		}
		if n == 0 {
			return core.ErrNotFound
		}
		return s.eraseTraces(ctx, t, app, id)
	})
	if erased != nil && !errors.Is(erased, core.ErrNotFound) {
		return erased
	}
	// The recipient itself first: from then on nothing is recorded that names it as one who was read before. Lists
	// next, for a page of them skips who is unknown by name.
	for _, erase := range []func(context.Context, string, string) error{s.eraseAudiences, s.eraseSkips, s.eraseAnswers} {
		if err := erase(ctx, app, id); err != nil {
			return err
		}
	}
	return erased
}

func (s *Store) eraseTraces(ctx context.Context, t tx, app, id string) error {
	for _, table := range []string{"endpoints", "topic_recipients"} {
		if _, err := t.exec(ctx, "DELETE FROM "+table+" WHERE app = $1 AND recipient = $2", app, id); err != nil {
			return err
		}
	}
	if _, err := cancelWhere(ctx, t, micros(s.Now()), "d.app = $1 AND d.recipient = $2 AND d.recipient <> ''", app, id); err != nil {
		return err
	}
	if err := lockTraces(ctx, t, app, id); err != nil {
		return err
	}
	if err := eraseResults(ctx, t, app, id); err != nil {
		return err
	}
	shown := map[core.ID]int{}
	err := t.query(ctx, "SELECT page_id, count(*) FROM deliveries WHERE app = $1 AND recipient = $2 AND recipient <> '' AND page_id IS NOT NULL GROUP BY page_id", func(r row) error {
		var page core.ID
		var n int
		err := r.Scan(key{&page}, &n)
		shown[page] = n
		return err
	}, app, id)
	if err != nil {
		return err
	}
	if err := unref(ctx, t, shown); err != nil {
		return err
	}
	if _, err = t.exec(ctx, `UPDATE deliveries SET recipient = '', address = '', name = '', reason = '', provider_id = '', service_id = '', page_id = NULL, slot = 0, quiet = ''
		WHERE app = $1 AND recipient = $2 AND recipient <> ''`, app, id); err != nil {
		return err
	}
	// That an address is dead, or that its owner complained, outlives the person; whose it was does not. After the
	// deliveries: a settlement or a receipt that suppresses an address in this moment has it from those.
	_, err = t.exec(ctx, "UPDATE suppressions SET recipient = '' WHERE app = $1 AND recipient = $2 AND recipient <> ''", app, id)
	return err
}

// naming is how a list of who was skipped, as it is kept, names a recipient.
func naming(id string) ([]byte, error) {
	name, err := json.Marshal(id)
	if err != nil {
		return nil, fmt.Errorf("encode an id: %w", err)
	}
	return append([]byte(`"recipient":`), name...), nil
}

// erasePage is how many notifications are looked at at once.
const erasePage = 500

// eraseSkips takes an id out of what notifications skipped. No index says which those are: it reads all of
// the app's that skipped anybody, a page at a time, and holds nobody up while it looks.
func (s *Store) eraseSkips(ctx context.Context, app, id string) error {
	named, err := naming(id)
	if err != nil {
		return err
	}
	for from := (core.ID{}); ; {
		var found []core.ID
		seen := 0
		err := s.read(ctx, "look who was skipped", "SELECT id, skipped FROM notifications WHERE app = $1 AND id > $2 AND skipped IS NOT NULL ORDER BY id LIMIT $3", func(r row) error {
			var n core.ID
			var text []byte
			err := r.Scan(key{&n}, &text)
			if from = n; bytes.Contains(text, named) {
				found = append(found, n)
			}
			seen++
			return err
		}, app, from[:], int64(erasePage))
		if err != nil {
			return err
		}
		for _, n := range found {
			if err := s.eraseSkip(ctx, n, id); err != nil {
				return err
			}
		}
		if seen < erasePage {
			return nil
		}
	}
}

func (s *Store) eraseSkip(ctx context.Context, notification core.ID, id string) error {
	return s.write(ctx, "erase who was skipped", func(t tx) error {
		var text []byte
		err := t.query(ctx, "SELECT skipped FROM notifications WHERE id = $1"+t.forUpdate(), func(r row) error { return r.Scan(&text) }, notification[:])
		if err != nil || len(text) == 0 {
			return err
		}
		var skipped []core.Skip
		if err := json.Unmarshal(text, &skipped); err != nil {
			return fmt.Errorf("decode what was skipped: %w", err)
		}
		for i := range skipped {
			if skipped[i].Recipient == id {
				skipped[i].Recipient = ""
			}
		}
		if text, err = json.Marshal(skipped); err != nil {
			return fmt.Errorf("encode what was skipped: %w", err)
		}
		_, err = t.exec(ctx, "UPDATE notifications SET skipped = $2 WHERE id = $1", notification[:], text)
		return err
	})
}
