package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/carillon-notify/carillon/core"
)

// ImportRecipients keeps recipients as PutRecipient does, all in one transaction, with the preferences and
// topics that are given beside them, and returns how many were new. Of several with one id the last counts. It is made
// for some hundreds at a time: they hold everybody else up as long as they take. What preferences rule out
// is cancelled as by PutPreferences.
func (s *Store) ImportRecipients(ctx context.Context, app string, all []core.Import, rules *core.Rules) (created int, err error) {
	last := make(map[string]int, len(all))
	for i := range all {
		last[all[i].ID] = i
	}
	return writeFor(ctx, s, "import recipients", func(t tx) (created int, err error) {
		im := &importing{app: app, now: micros(s.Now())}
		for i := range all {
			if last[all[i].ID] == i {
				im.people = append(im.people, &all[i])
			}
		}
		// Rows of recipients are locked in one order.
		slices.SortFunc(im.people, func(a, b *core.Import) int { return strings.Compare(a.ID, b.ID) })
		if created, err = im.write(ctx, t); err != nil {
			return 0, err
		}
		for _, x := range im.chose {
			if err := s.ruleOut(ctx, t, x, rules); err != nil {
				return 0, err
			}
		}
		return created, nil
	})
}

type importing struct {
	app    string
	now    int64
	people []*core.Import
	chose  []*core.Recipient // who was there before, and chose anew
}

func (im *importing) write(ctx context.Context, t tx) (created int, err error) {
	sets := make([][]any, len(im.people))
	for i, x := range im.people {
		quiet, err := quietText(x.QuietHours)
		if err != nil {
			return 0, fmt.Errorf("encode the quiet hours: %w", err)
		}
		var preferences []byte
		if len(x.Preferences) > 0 {
			if preferences, err = json.Marshal(x.Preferences); err != nil {
				return 0, fmt.Errorf("encode the preferences: %w", err)
			}
		}
		sets[i] = []any{im.app, x.ID, raw(x.Attributes), x.Locale, x.Timezone, im.now, quiet, raw(preferences)}
	}
	var known [][]any // who was there before, and may have endpoints
	err = t.queryMany(ctx, `INSERT INTO recipients (app, id, attributes, locale, timezone, created_at, updated_at, quiet_hours, preferences)
		VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8)
		ON CONFLICT (app, id) DO UPDATE SET attributes = excluded.attributes, locale = excluded.locale, timezone = excluded.timezone,
		updated_at = excluded.updated_at, quiet_hours = excluded.quiet_hours, preferences = COALESCE(excluded.preferences, recipients.preferences), `+moved+`
		RETURNING created_at`, sets, func(i int, r row) error {
		var at int64
		err := r.Scan(&at)
		if at == im.now {
			created++
		} else {
			known = append(known, []any{im.app, im.people[i].ID})
			if p := im.people[i].Preferences; len(p) > 0 {
				im.chose = append(im.chose, &core.Recipient{App: im.app, ID: im.people[i].ID, Preferences: p})
			}
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("write recipients: %w", err)
	}
	if err := t.write(ctx, "DELETE FROM endpoints WHERE app = $1 AND recipient = $2", known); err != nil {
		return 0, fmt.Errorf("clear endpoints: %w", err)
	}
	var endpoints, topics [][]any
	for _, x := range im.people {
		for i, e := range x.Endpoints {
			endpoints = append(endpoints, []any{im.app, x.ID, e.Kind, e.Address, int64(i), e.Route, e.AppVersion, im.now})
		}
		for _, topic := range x.Topics {
			topics = append(topics, []any{im.app, topic, x.ID, im.now})
		}
	}
	if err := t.write(ctx, putEndpointSQL, endpoints); err != nil {
		return 0, fmt.Errorf("write endpoints: %w", err)
	}
	if err := t.write(ctx, putTopicSQL, topics); err != nil {
		return 0, fmt.Errorf("write topics: %w", err)
	}
	return created, nil
}
