package store

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// knownColumns is what of a recipient must not change between reading and recording.
const knownColumns = "id, created_at, preferences"

// hold is which recipients of an app to keep as they are until the transaction ends.
type hold struct {
	app  string
	ids  []string
	wait bool // for who changes them now, instead of leaving those out
}

// holdKnown looks whether the recipients that recordings were made for are still those that were read, with what they
// chose then, and keeps them so until the transaction ends: whoever chooses or is erased after it finds what it
// wrote, and cancels that. It returns the recordings of which that is so; the others are core.ErrStale. What else
// changes of a recipient makes nothing stale.
//
// Its locks come before those of keys, batches and deliveries, as they do where somebody chooses. A group does not
// wait for a recipient that is being changed, for others' acceptances are in it: that one's is stale. A page of a
// campaign waits: it is alone, its campaign's lock is one that nobody waits for who has a recipient's, and made
// anew it would be for fewer.
func holdKnown(ctx context.Context, t tx, all []*recording) ([]*recording, error) {
	var holds []hold
	at := map[string]int{}
	for _, r := range all {
		if len(r.a.Known) == 0 {
			continue
		}
		app := r.a.Notification.App
		i, ok := at[app]
		if !ok {
			i, at[app] = len(holds), len(holds)
			holds = append(holds, hold{app: app, wait: !r.campaign.IsZero()})
		}
		for _, x := range r.a.Known {
			holds[i].ids = append(holds[i].ids, x.ID)
		}
	}
	if len(holds) == 0 {
		return all, nil
	}
	slices.SortFunc(holds, func(a, b hold) int { return strings.Compare(a.app, b.app) })
	type named struct{ app, id string }
	now := map[named]known{}
	for _, h := range holds {
		h.ids = unique(h.ids)
		err := t.holdRecipients(ctx, h, func(r row) error {
			id, k := "", known{}
			err := r.Scan(&id, stamp{&k.createdAt}, &k.preferences)
			now[named{h.app, id}] = k
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("look who changed: %w", err)
		}
	}
	steady := make([]*recording, 0, len(all))
	for _, r := range all {
		for _, x := range r.a.Known {
			k, ok := now[named{r.a.Notification.App, x.ID}]
			if ok {
				var err error
				if ok, err = k.same(x); err != nil {
					return nil, err
				}
			}
			if !ok {
				r.err = core.ErrStale
				break
			}
		}
		if r.err == nil {
			steady = append(steady, r)
		}
	}
	return steady, nil
}

// known is what a recipient is known by.
type known struct {
	createdAt   time.Time
	preferences []byte
}

// same reports whether x, as it was read, is this one still. Who is back after an erasure was made anew.
func (k known) same(x *core.Recipient) (bool, error) {
	if !k.createdAt.Equal(x.CreatedAt) {
		return false, nil
	}
	var p core.Preferences
	if len(k.preferences) > 0 {
		if err := json.Unmarshal(k.preferences, &p); err != nil {
			return false, fmt.Errorf("decode preferences: %w", err)
		}
	}
	return maps.EqualFunc(p, x.Preferences, maps.Equal), nil
}
