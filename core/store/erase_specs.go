package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/carillon-notify/carillon/core"
)

// eraseAnswers takes an id out of the answers that idempotency keys give again, which name who was skipped. As
// with eraseSkips no index says which those are.
func (s *Store) eraseAnswers(ctx context.Context, app, id string) error {
	named, err := naming(id)
	if err != nil {
		return err
	}
	for from := ""; ; {
		var found []string
		seen := 0
		err := s.read(ctx, "look whom answers name", "SELECT key, answer FROM idempotency WHERE app = $1 AND key > $2 ORDER BY key LIMIT $3", func(r row) error {
			var answer []byte
			err := r.Scan(&from, &answer)
			if bytes.Contains(answer, named) {
				found = append(found, from)
			}
			seen++
			return err
		}, app, from, int64(erasePage))
		if err != nil {
			return err
		}
		for _, k := range found {
			err := s.write(ctx, "erase whom an answer names", func(t tx) error {
				var answer []byte
				err := t.query(ctx, "SELECT answer FROM idempotency WHERE app = $1 AND key = $2"+t.forUpdate(), func(r row) error { return r.Scan(&answer) }, app, k)
				if err != nil || answer == nil {
					return err
				}
				_, err = t.exec(ctx, "UPDATE idempotency SET answer = $3 WHERE app = $1 AND key = $2", app, k, bytes.ReplaceAll(answer, named, []byte(`"recipient":""`)))
				return err
			})
			if err != nil {
				return err
			}
		}
		if seen < erasePage {
			return nil
		}
	}
}

// eraseAudiences takes an id out of the lists of campaigns' audiences, and of those that topics leave out.
func (s *Store) eraseAudiences(ctx context.Context, app, id string) error {
	const page = 50 // a list has up to core.MaxListed ids
	for from := (core.ID{}); ; {
		var found []core.ID
		seen := 0
		err := s.read(ctx, "look whom campaigns name", "SELECT "+campaignColumns+" FROM campaigns WHERE app = $1 AND id > $2 ORDER BY id LIMIT $3", func(r row) error {
			c, err := scanCampaign(r)
			if err != nil {
				return err
			}
			if seen++; slices.Contains(c.Audience.Recipients, id) || slices.Contains(c.Audience.Except, id) {
				found = append(found, c.ID)
			}
			from = c.ID
			return nil
		}, app, from[:], int64(page))
		if err != nil {
			return err
		}
		for _, c := range found {
			if err := s.eraseAudience(ctx, c, id); err != nil {
				return err
			}
		}
		if seen < page {
			return nil
		}
	}
}

func (s *Store) eraseAudience(ctx context.Context, campaign core.ID, id string) error {
	return s.write(ctx, "erase whom a campaign names", func(t tx) error {
		c, err := lockCampaign(ctx, t, campaign)
		if err != nil || c == nil {
			return err
		}
		is := func(x string) bool { return x == id }
		a := &c.Audience
		listed := len(a.Recipients) > 0
		a.Recipients, a.Except = slices.DeleteFunc(a.Recipients, is), slices.DeleteFunc(a.Except, is)
		if listed && len(a.Recipients) == 0 {
			a.Recipients = []string{""} // nobody, which no list would not be
		}
		spec, err := json.Marshal(c.CampaignSpec)
		if err != nil {
			return fmt.Errorf("encode a campaign: %w", err)
		}
		// Under a new fence: whoever expands it by the old list finds out at its next step.
		_, err = t.exec(ctx, "UPDATE campaigns SET spec = $2, fence = fence + 1 WHERE id = $1", c.ID[:], pack(spec))
		return err
	})
}
