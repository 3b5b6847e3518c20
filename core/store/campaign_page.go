package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/crash"
)

// Expand writes a step of a campaign's expansion in one transaction, conditional on its fence and state:
// the page's notification, deliveries and contents, and how far the campaign is. It returns the campaign as
// it is then, nil if it is in other hands or does not run any more: then nothing was written. Nor was it with
// core.ErrStale.
func (s *Store) Expand(ctx context.Context, p *core.CampaignPage) (*core.Campaign, core.Recorded, error) {
	var c *core.Campaign
	rec := &recording{}
	if p.Acceptance != nil {
		var err error
		if rec, err = newRecording(p.Acceptance); err != nil {
			return nil, core.Recorded{}, s.fail("expand a campaign", err)
		}
	}
	err := s.write(ctx, "expand a campaign", func(t tx) (err error) {
		if c, err = lockCampaign(ctx, t, p.Campaign); err != nil || c == nil {
			return err
		}
		if c.Fence != p.Fence || c.State != core.CampaignRunning {
			c = nil
			return nil
		}
		c.Cursor, c.Leg, c.Expanded, c.PacedTo, c.RunAt = p.Cursor, p.Leg, p.Expanded, p.PacedTo, p.RunAt
		if p.Acceptance != nil {
			rec.reset()
			if err := s.recordPage(ctx, t, c, p, rec); err != nil {
				return err
			}
		}
		if err := writeCampaign(ctx, t, c); err != nil {
			return err
		}
		crash.At(crash.ExpandWritten)
		return nil
	})
	if err != nil || c == nil {
		return nil, core.Recorded{}, err
	}
	s.keep(rec)
	return c, rec.out, nil
}

func (s *Store) recordPage(ctx context.Context, t tx, c *core.Campaign, p *core.CampaignPage, rec *recording) error {
	n := &rec.a.Notification
	was, is := core.Totals{}, core.Totals{Expanded: p.People, Skipped: p.Skipped}
	is.People.Pending, is.Deliveries.Pending = p.People-p.Skipped, len(rec.a.Deliveries)
	c.Totals = c.Totals.Plus(is, was)
	c.Sample(s.Now())
	for i := range rec.a.Deliveries {
		if due := rec.a.Deliveries[i].DueAt; due.After(c.LastDue) {
			c.LastDue = due
		}
	}
	rec.campaign = c.ID
	rec.joins = !c.Target.IsZero() // the notification is there, and counts its deliveries itself
	if err := s.recordAll(ctx, t, s.Now(), []*recording{rec}); err != nil {
		return err
	}
	if rec.err != nil {
		return rec.err
	}
	if rec.joins {
		return appendSkips(ctx, t, n.ID, n.Skipped)
	}
	totals, err := json.Marshal(is)
	if err != nil {
		return fmt.Errorf("encode a page's totals: %w", err)
	}
	stale := int64(0)
	if is.Deliveries.Pending > 0 {
		stale = 1
	}
	_, err = t.exec(ctx, "INSERT INTO campaign_pages (notification_id, campaign, open, stale, totals) VALUES ($1, $2, $3, $4, $5)",
		n.ID[:], c.ID[:], int64(is.Deliveries.Pending), stale, totals)
	return err
}

// maxSkips is how many skipped entries of a topic a notification keeps.
const maxSkips = 1000

func appendSkips(ctx context.Context, t tx, id core.ID, more []core.Skip) error {
	if len(more) == 0 {
		return nil
	}
	var text []byte
	err := t.query(ctx, "SELECT skipped FROM notifications WHERE id = $1"+t.forUpdate(), func(r row) error { return r.Scan(&text) }, id[:])
	if err != nil {
		return err
	}
	var all []core.Skip
	if len(text) > 0 {
		if err := json.Unmarshal(text, &all); err != nil {
			return fmt.Errorf("decode what was skipped: %w", err)
		}
	}
	if len(all) >= maxSkips {
		return nil
	}
	all = append(all, more[:min(len(more), maxSkips-len(all))]...)
	if text, err = json.Marshal(all); err != nil {
		return fmt.Errorf("encode what was skipped: %w", err)
	}
	_, err = t.exec(ctx, "UPDATE notifications SET skipped = $2 WHERE id = $1", id[:], text)
	return err
}

// CampaignBusy counts a campaign's batches that are due and wait for a worker or are with one, those that were
// tried and are held for later, and of the due those with a worker. What was made to be due later, the further
// steps of fallbacks and what waits for the end of quiet hours, is none of them.
func (s *Store) CampaignBusy(ctx context.Context, id core.ID) (due, held, sending int, err error) {
	err = s.read(ctx, "count a campaign's batches", `SELECT COALESCE(sum(CASE WHEN b.due_at <= $2 THEN 1 ELSE 0 END), 0), COALESCE(sum(CASE WHEN b.due_at > $2 AND (b.rounds > 0 OR b.parent IS NOT NULL) THEN 1 ELSE 0 END), 0),
			COALESCE(sum(CASE WHEN b.state = 3 THEN 1 ELSE 0 END), 0)
		FROM batches b WHERE b.campaign = $1 AND b.campaign IS NOT NULL AND b.state < 4`, func(r row) error {
		var a, b, c int64
		err := r.Scan(&a, &b, &c)
		due, held, sending = int(a), int(b), int(c)
		return err
	}, id[:], micros(s.Now()))
	return due, held, sending, err
}

// recountPage is how many pages one transaction counts anew.
const recountPage = 20

// RecountCampaign counts the pages anew of which something changed since they were counted last, at most
// limit, and returns how many pages have something pending. Those that changed beyond limit stay as they
// were counted until the next time.
func (s *Store) RecountCampaign(ctx context.Context, id core.ID, limit int) (open int, err error) {
	live := map[core.ID]int64{}
	var lastDue time.Time
	err = s.read(ctx, "look what a campaign has pending", `SELECT d.notification_id, count(*), max(b.due_at) FROM batches b JOIN deliveries d ON d.batch_id = b.id AND d.state = 1
		WHERE b.campaign = $1 AND b.campaign IS NOT NULL AND b.state < 4 GROUP BY d.notification_id`, func(r row) error {
		var n core.ID
		var pending int64
		var due time.Time
		err := r.Scan(key{&n}, &pending, stamp{&due})
		if live[n] = pending; due.After(lastDue) {
			lastDue = due
		}
		return err
	}, id[:])
	if err != nil {
		return 0, err
	}
	var changed []core.ID
	known := map[core.ID]bool{}
	err = s.read(ctx, "look which of a campaign's pages changed", "SELECT notification_id, open FROM campaign_pages WHERE campaign = $1 AND stale = 1", func(r row) error {
		var n core.ID
		var counted int64
		err := r.Scan(key{&n}, &counted)
		known[n] = true
		if live[n] != counted {
			changed = append(changed, n)
		}
		return err
	}, id[:])
	if err != nil {
		return 0, err
	}
	for n := range live {
		if !known[n] { // redriven
			changed = append(changed, n)
		}
	}
	left := max(0, len(changed)-limit)
	if len(changed) == 0 && lastDue.After(s.Now()) { // what is held for later stays pending, but until when may change
		return len(live), s.recount(ctx, id, nil, lastDue)
	}
	for part := range slices.Chunk(changed[:len(changed)-left], recountPage) {
		if err := s.recount(ctx, id, part, lastDue); err != nil {
			return 0, err
		}
	}
	return max(len(live), left), nil
}

// recount counts some pages of a campaign anew, and keeps when the last of what it has pending is due.
func (s *Store) recount(ctx context.Context, id core.ID, pages []core.ID, lastDue time.Time) error {
	return s.write(ctx, "count a campaign's pages", func(t tx) error {
		c, err := lockCampaign(ctx, t, id)
		if err != nil || c == nil || len(pages) == 0 && c.LastDue.Equal(lastDue) {
			return err
		}
		c.LastDue = lastDue
		for _, n := range pages {
			was, is, err := recountOne(ctx, t, n)
			if err != nil {
				return err
			}
			c.Totals = c.Totals.Plus(is, was)
		}
		c.Sample(s.Now())
		return writeCampaign(ctx, t, c)
	})
}

// recountOne counts one page. Its row is locked before its deliveries are read, so that a receipt that comes
// in between marks it anew.
func recountOne(ctx context.Context, t tx, n core.ID) (was, is core.Totals, err error) {
	var text []byte
	err = t.query(ctx, "SELECT totals FROM campaign_pages WHERE notification_id = $1"+t.forUpdate(), func(r row) error { return r.Scan(&text) }, n[:])
	if err != nil || text == nil {
		return was, is, err
	}
	if err := json.Unmarshal(text, &was); err != nil {
		return was, is, fmt.Errorf("decode a page's totals: %w", err)
	}
	is = core.Totals{Expanded: was.Expanded, Skipped: was.Skipped}
	people := map[string]core.State{}
	var erased []core.State // of people who are not known any more
	err = t.query(ctx, "SELECT recipient, state, count(*) FROM deliveries WHERE notification_id = $1 GROUP BY recipient, state", func(r row) error {
		var id string
		var state, count int64
		if err := r.Scan(&id, &state, &count); err != nil {
			return err
		}
		st := core.State(state)
		is.Deliveries.Add(st, int(count))
		if old, ok := people[id]; id != "" && (!ok || st.Better(old)) {
			people[id] = st
		}
		for range count {
			if id == "" {
				erased = append(erased, st)
			}
		}
		return nil
	}, n[:])
	if err != nil {
		return was, is, err
	}
	for _, st := range people {
		is.People.Add(st, 1)
	}
	// Of the erased only how many they were is known, and what became of their deliveries: the best count.
	slices.SortFunc(erased, func(a, b core.State) int {
		switch {
		case a.Better(b):
			return -1
		case b.Better(a):
			return 1
		}
		return 0
	})
	for i := range max(0, is.Expanded-is.Skipped-len(people)) {
		if len(erased) == 0 { // retention took the deliveries: what was counted last stays
			is = was
			break
		}
		is.People.Add(erased[min(i, len(erased)-1)], 1)
	}
	if text, err = json.Marshal(is); err != nil {
		return was, is, fmt.Errorf("encode a page's totals: %w", err)
	}
	stale := int64(0)
	if is.Deliveries.Pending > 0 {
		stale = 1
	}
	_, err = t.exec(ctx, "UPDATE campaign_pages SET open = $2, stale = $3, totals = $4 WHERE notification_id = $1", n[:], int64(is.Deliveries.Pending), stale, text)
	return was, is, err
}

// touchPage marks the page that a delivery is of, if it is of one, to be counted anew.
func touchPage(ctx context.Context, t tx, notification core.ID) error {
	_, err := t.exec(ctx, "UPDATE campaign_pages SET stale = 1, open = -1 WHERE notification_id = $1", notification[:])
	return err
}

// CampaignMet tells which of some recipients a campaign has deliveries for already, or skipped. For those who have none
// it reads all that the campaign skipped, some pages at a time: it is made for who moved to another zone while it goes.
func (s *Store) CampaignMet(ctx context.Context, c *core.Campaign, ids []string) (map[string]bool, error) {
	out := map[string]bool{}
	sets := make([][]any, len(ids))
	from := oldest(c.CreatedAt.Add(-time.Millisecond)) // a first page may be of the campaign's own millisecond
	for i, id := range ids {
		sets[i] = []any{c.App, id, from, c.ID[:]}
	}
	err := s.b.queryMany(ctx, `SELECT 1 FROM deliveries d JOIN campaign_pages p ON p.notification_id = d.notification_id
		WHERE d.app = $1 AND d.recipient = $2 AND d.recipient <> '' AND d.id > $3 AND p.campaign = $4 LIMIT 1`, sets, func(i int, _ row) error {
		out[ids[i]] = true
		return nil
	})
	if err != nil {
		return nil, s.fail("look whom a campaign reached", err)
	}
	left := map[string][]byte{}
	for _, id := range ids {
		if out[id] {
			continue
		}
		if left[id], err = naming(id); err != nil {
			return nil, err
		}
	}
	for from, more := (core.ID{}), true; more && len(left) > 0; {
		more = false
		err := s.campaignSkips(ctx, c.ID, from, func(page core.ID, skipped []byte) error {
			for id, name := range left {
				if bytes.Contains(skipped, name) {
					out[id] = true
					delete(left, id)
				}
			}
			from, more = page, true
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// campaignSkips calls each for the next of a campaign's pages behind one, with what was skipped there as it is kept.
func (s *Store) campaignSkips(ctx context.Context, campaign, from core.ID, each func(page core.ID, skipped []byte) error) error {
	return s.read(ctx, "list a campaign's pages", `SELECT p.notification_id, n.skipped FROM campaign_pages p JOIN notifications n ON n.id = p.notification_id
		WHERE p.campaign = $1 AND p.notification_id > $2 ORDER BY p.notification_id LIMIT 20`, func(r row) error {
		var id core.ID
		var text []byte
		if err := r.Scan(key{&id}, &text); err != nil {
			return err
		}
		return each(id, text)
	}, campaign[:], from[:])
}

// CampaignResults calls line for what became of each recipient that a campaign was expanded for, in the order
// of its pages. It reads a page at a time.
func (s *Store) CampaignResults(ctx context.Context, c *core.Campaign, line func(*core.CampaignResult) error) error {
	for from := (core.ID{}); ; {
		var pages []core.ID
		var skips [][]core.Skip
		err := s.campaignSkips(ctx, c.ID, from, func(id core.ID, text []byte) error {
			var skipped []core.Skip
			if len(text) > 0 {
				if err := json.Unmarshal(text, &skipped); err != nil {
					return fmt.Errorf("decode what was skipped: %w", err)
				}
			}
			pages, skips = append(pages, id), append(skips, skipped)
			return nil
		})
		if err != nil || len(pages) == 0 {
			return err
		}
		for i, id := range pages {
			if err := s.pageResults(ctx, id, skips[i], line); err != nil {
				return err
			}
			from = id
		}
	}
}

func (s *Store) pageResults(ctx context.Context, id core.ID, skipped []core.Skip, line func(*core.CampaignResult) error) error {
	for _, k := range skipped {
		err := line(&core.CampaignResult{Delivery: core.Delivery{Recipient: k.Recipient, Channel: k.Channel}, Skip: k.Reason})
		if err != nil {
			return err
		}
	}
	var out []core.CampaignResult
	err := s.read(ctx, "read a page's deliveries", "SELECT "+readColumns+" FROM deliveries WHERE notification_id = $1 ORDER BY id", func(r row) error {
		d, err := scanDelivery(r)
		out = append(out, core.CampaignResult{Delivery: d})
		return err
	}, id[:])
	if err != nil {
		return err
	}
	for i := range out {
		if err := line(&out[i]); err != nil {
			return err
		}
	}
	return nil
}
