package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/carillon-notify/carillon/core"
)

const campaignColumns = "id, app, parent, target, state, fence, run_at, created_at, spec, legs, live"

func scanCampaign(r row) (*core.Campaign, error) {
	c := &core.Campaign{}
	var state int64
	var spec, legs, live []byte
	err := r.Scan(key{&c.ID}, &c.App, key{&c.Parent}, key{&c.Target}, &state, &c.Fence, stamp{&c.RunAt}, stamp{&c.CreatedAt}, &spec, &legs, &live)
	if err != nil {
		return nil, err
	}
	c.State = core.CampaignState(state)
	for _, part := range []struct {
		text []byte
		into any
	}{{spec, &c.CampaignSpec}, {legs, &c.Legs}, {live, &c.CampaignLive}} {
		if len(part.text) == 0 {
			continue
		}
		text, err := unpack(part.text)
		if err == nil {
			err = json.Unmarshal(text, part.into)
		}
		if err != nil {
			return nil, fmt.Errorf("decode campaign %s: %w", c.ID, err)
		}
	}
	return c, nil
}

// firstCampaign is what an idempotency key remembers of a campaign: all of it that changes. The rest is read where it
// is kept, so that who is erased from there is not in the answer either.
type firstCampaign struct {
	ID    core.ID            `json:"id"`
	State core.CampaignState `json:"state"`
	Live  core.CampaignLive  `json:"live"`
}

// CreateCampaign keeps a new campaign. If its key ("" for none) was used in the last 24 hours with the same body,
// nothing is kept, and first is the campaign that was made then, as it was then; else first is nil. With another body
// the error is core.ErrKeyReused.
func (s *Store) CreateCampaign(ctx context.Context, c *core.Campaign, key string, hash [32]byte) (first *core.Campaign, err error) {
	answer, err := json.Marshal(&firstCampaign{c.ID, c.State, c.CampaignLive})
	if err != nil {
		return nil, fmt.Errorf("encode a campaign: %w", err)
	}
	var kept []byte
	err = s.write(ctx, "keep a campaign", func(t tx) error {
		kept = nil
		r := &recording{a: &core.Acceptance{Notification: core.Notification{App: c.App}, Key: key, BodyHash: hash, Answer: answer}}
		fresh, err := s.useKeys(ctx, t, s.Now(), []*recording{r})
		switch {
		case err != nil:
			return err
		case r.err != nil:
			return r.err
		case len(fresh) == 0:
			kept = r.out.Answer
			return nil
		}
		return insertCampaign(ctx, t, c)
	})
	if err != nil || kept == nil {
		return nil, err
	}
	return s.firstOf(ctx, c.App, kept)
}

// CampaignAnswered is the campaign that was made under a key that is still remembered, as it was then. The error is
// core.ErrNotFound if the key is free or the campaign gone, core.ErrKeyReused if it was used with another body.
func (s *Store) CampaignAnswered(ctx context.Context, app, key string, hash [32]byte) (*core.Campaign, error) {
	answer, err := s.Answered(ctx, app, key, hash)
	if err != nil {
		return nil, err
	}
	return s.firstOf(ctx, app, answer)
}

func (s *Store) firstOf(ctx context.Context, app string, answer []byte) (*core.Campaign, error) {
	var first firstCampaign
	if err := json.Unmarshal(answer, &first); err != nil {
		return nil, fmt.Errorf("decode the first answer: %w", err)
	}
	c, err := s.Campaign(ctx, app, first.ID)
	if err != nil {
		return nil, err
	}
	c.State, c.CampaignLive, c.Legs = first.State, first.Live, nil
	return c, nil
}

// insertCampaign leaves one that is there under its id as it is: an occurrence's id follows from its time.
func insertCampaign(ctx context.Context, t tx, c *core.Campaign) error {
	spec, err := json.Marshal(c.CampaignSpec)
	if err != nil {
		return fmt.Errorf("encode a campaign: %w", err)
	}
	legs, live, err := encodeCampaign(c)
	if err != nil {
		return err
	}
	_, err = t.exec(ctx, "INSERT INTO campaigns ("+campaignColumns+") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (id) DO NOTHING",
		c.ID[:], c.App, blob(c.Parent), blob(c.Target), int64(c.State), c.Fence, micros(c.RunAt), micros(c.CreatedAt), pack(spec), legs, live)
	return err
}

func encodeCampaign(c *core.Campaign) (legs any, live []byte, err error) {
	if len(c.Legs) > 0 {
		text, err := json.Marshal(c.Legs)
		if err != nil {
			return nil, nil, fmt.Errorf("encode a campaign: %w", err)
		}
		legs = pack(text)
	}
	if live, err = json.Marshal(c.CampaignLive); err != nil {
		return nil, nil, fmt.Errorf("encode a campaign: %w", err)
	}
	return legs, live, nil
}

// encoded is all of a campaign that changes once it is there, as one text to compare.
func encoded(c *core.Campaign) ([]byte, error) {
	text, err := json.Marshal(struct {
		State core.CampaignState
		RunAt time.Time
		Legs  []core.Leg
		Live  core.CampaignLive
	}{c.State, c.RunAt, c.Legs, c.CampaignLive})
	if err != nil {
		return nil, fmt.Errorf("encode a campaign: %w", err)
	}
	return text, nil
}

// lockCampaign reads a campaign and keeps others from changing it; nil if there is none.
func lockCampaign(ctx context.Context, t tx, id core.ID) (*core.Campaign, error) {
	var c *core.Campaign
	err := t.query(ctx, "SELECT "+campaignColumns+" FROM campaigns WHERE id = $1"+t.forUpdate(), func(r row) (err error) {
		c, err = scanCampaign(r)
		return err
	}, id[:])
	return c, err
}

func writeCampaign(ctx context.Context, t tx, c *core.Campaign) error {
	legs, live, err := encodeCampaign(c)
	if err != nil {
		return err
	}
	_, err = t.exec(ctx, "UPDATE campaigns SET state = $2, fence = $3, run_at = $4, legs = $5, live = $6 WHERE id = $1",
		c.ID[:], int64(c.State), c.Fence, micros(c.RunAt), legs, live)
	return err
}

// Campaign returns a campaign of an app, or core.ErrNotFound.
func (s *Store) Campaign(ctx context.Context, app string, id core.ID) (*core.Campaign, error) {
	var c *core.Campaign
	err := s.read(ctx, "read a campaign", "SELECT "+campaignColumns+" FROM campaigns WHERE id = $1 AND app = $2 AND target IS NULL", func(r row) (err error) {
		c, err = scanCampaign(r)
		return err
	}, id[:], app)
	if err == nil && c == nil {
		err = core.ErrNotFound
	}
	return c, err
}

// Campaigns lists an app's campaigns, the newest first; next is "" at the end.
func (s *Store) Campaigns(ctx context.Context, f core.CampaignFilter) (out []core.Campaign, next string, err error) {
	limit := limitOf(f.Page)
	from, err := after(f.Page)
	if err != nil {
		return nil, "", err
	}
	where, args := "", []any{f.App, from[:], int64(limit + 1)}
	if f.State != 0 {
		args = append(args, int64(f.State))
		where += fmt.Sprintf(" AND state = $%d", len(args))
	}
	if !f.Parent.IsZero() {
		args = append(args, f.Parent[:])
		where += fmt.Sprintf(" AND parent = $%d", len(args))
	}
	err = s.read(ctx, "list campaigns", "SELECT "+campaignColumns+" FROM campaigns WHERE app = $1 AND id < $2 AND target IS NULL"+where+" ORDER BY id DESC LIMIT $3", func(r row) error {
		c, err := scanCampaign(r)
		if err == nil {
			out = append(out, *c)
		}
		return err
	}, args...)
	if len(out) > limit {
		out = out[:limit]
		next = out[limit-1].ID.String()
	}
	return out, next, err
}

// UpdateCampaign lets change alter a campaign of an app in one transaction, and returns what it is then.
// An error of change is returned as it is, and nothing is kept; change may be called more than once and
// must touch nothing but its argument, whose slices and maps it replaces rather than alters: what it was is compared
// with what it is. A campaign that is over by then has what is pending of it cancelled;
// one that was paused and is not any more has what its pause held made due. One that change leaves as it was
// stays with whoever expands it. An id that names no campaign
// of the app is core.ErrNotFound.
func (s *Store) UpdateCampaign(ctx context.Context, app string, id core.ID, change func(*core.Campaign) error) (*core.Campaign, error) {
	c, err := writeFor(ctx, s, "change a campaign", func(t tx) (*core.Campaign, error) {
		c, err := lockCampaign(ctx, t, id)
		if err != nil {
			return nil, err
		}
		if c == nil || c.App != app {
			return nil, core.ErrNotFound
		}
		was := c.State
		before, err := encoded(c)
		if err != nil {
			return nil, err
		}
		if err := change(c); err != nil {
			return nil, refusal{err}
		}
		after, err := encoded(c)
		if err != nil || bytes.Equal(before, after) {
			return c, err // as it was: whoever expands it goes on
		}
		c.Fence++ // whoever expands it finds out at its next step
		if err := writeCampaign(ctx, t, c); err != nil {
			return nil, err
		}
		switch now := micros(s.Now()); {
		case c.State == core.CampaignCancelled && was != core.CampaignCancelled:
			_, err = cancelWhere(ctx, t, now, campaignPending, c.ID[:])
		case was == core.CampaignPaused && c.State != core.CampaignPaused:
			_, err = t.exec(ctx, `UPDATE batches SET due_at = $2, run_at = $2 WHERE id IN (SELECT b.id FROM batches b WHERE b.campaign = $1 AND b.campaign IS NOT NULL
				AND b.state < 4 AND b.state < 3 AND b.due_at > $2
				AND EXISTS (SELECT 1 FROM deliveries d WHERE d.batch_id = b.id AND d.state = 1 AND d.code = $3) ORDER BY b.id`+t.forUpdate()+`)`, c.ID[:], now, core.CodePaused)
		}
		return c, err
	})
	return c, refused(err)
}

const campaignPending = "d.batch_id IN (SELECT b2.id FROM batches b2 WHERE b2.campaign = $1 AND b2.campaign IS NOT NULL AND b2.state < 4)"

// Occur keeps an occurrence of a campaign with a cron, and how that goes on, conditional on its fence.
// occurrence may be nil. stale says that somebody else works on it by now.
func (s *Store) Occur(ctx context.Context, c, occurrence *core.Campaign) (stale bool, err error) {
	return writeFor(ctx, s, "keep a campaign's occurrence", func(t tx) (stale bool, err error) {
		now, err := lockCampaign(ctx, t, c.ID)
		if err != nil {
			return false, err
		}
		if now == nil || now.Fence != c.Fence || now.State != core.CampaignScheduled {
			return true, nil
		}
		if occurrence != nil {
			if err := insertCampaign(ctx, t, occurrence); err != nil {
				return false, err
			}
		}
		return false, writeCampaign(ctx, t, c)
	})
}

// DueCampaigns takes up to limit campaigns whose run_at is behind them, puts that off by until under a new
// fence, and returns their wakes.
func (s *Store) DueCampaigns(ctx context.Context, limit int, until time.Duration) ([]core.CampaignWake, error) {
	due := false
	at := micros(s.Now())
	err := s.read(ctx, "look for due campaigns", "SELECT 1 FROM campaigns WHERE run_at > 0 AND run_at <= $1 LIMIT 1", func(row) error { due = true; return nil }, at)
	if err != nil || !due {
		return nil, err
	}
	return writeFor(ctx, s, "take due campaigns", func(t tx) ([]core.CampaignWake, error) {
		var wakes []core.CampaignWake
		var sets [][]any
		now := s.Now()
		err := t.query(ctx, "SELECT id, fence FROM campaigns WHERE run_at > 0 AND run_at <= $1 ORDER BY run_at LIMIT $2"+t.skipLocked(), func(r row) error {
			var w core.CampaignWake
			err := r.Scan(key{&w.Campaign}, &w.Fence)
			w.Fence++
			wakes = append(wakes, w)
			sets = append(sets, []any{w.Campaign[:], w.Fence, micros(now.Add(until))})
			return err
		}, micros(now), int64(limit))
		if err != nil {
			return nil, err
		}
		return wakes, t.write(ctx, "UPDATE campaigns SET fence = $2, run_at = $3 WHERE id = $1", sets)
	})
}

// TakeCampaign makes a campaign the caller's for the lease, under a new fence. It returns nil where there is
// nothing to do: a newer fence, or no time set.
func (s *Store) TakeCampaign(ctx context.Context, w core.CampaignWake, lease time.Duration) (*core.Campaign, error) {
	return writeFor(ctx, s, "take a campaign", func(t tx) (*core.Campaign, error) {
		c, err := lockCampaign(ctx, t, w.Campaign)
		if err != nil || c == nil || c.Fence != w.Fence || c.RunAt.IsZero() {
			return nil, err
		}
		c.Fence++
		c.RunAt = s.Now().Add(lease)
		_, err = t.exec(ctx, "UPDATE campaigns SET fence = $2, run_at = $3 WHERE id = $1", c.ID[:], c.Fence, micros(c.RunAt))
		return c, err
	})
}

// KeepCampaign lets change alter a campaign that the caller took, conditional on its fence. It returns the
// campaign as it is then, nil if somebody else has it by now.
func (s *Store) KeepCampaign(ctx context.Context, id core.ID, fence int64, change func(*core.Campaign)) (*core.Campaign, error) {
	return writeFor(ctx, s, "keep how far a campaign is", func(t tx) (*core.Campaign, error) {
		c, err := lockCampaign(ctx, t, id)
		if err != nil || c == nil || c.Fence != fence {
			return nil, err
		}
		change(c)
		return c, writeCampaign(ctx, t, c)
	})
}

// VoidCampaigns makes due whatever campaigns run: nobody works on any. It is for a process that has the store
// to itself, as it starts.
func (s *Store) VoidCampaigns(ctx context.Context) error {
	return s.write(ctx, "void the last process's campaigns", func(t tx) error {
		now := micros(s.Now())
		_, err := t.exec(ctx, "UPDATE campaigns SET run_at = $1 WHERE run_at > 0 AND run_at > $1 AND state = 3", now)
		return err
	})
}
