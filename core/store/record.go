package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// DefaultKeyLife is how long an idempotency key is remembered where Options do not say.
const DefaultKeyLife = 24 * time.Hour

// recording is an acceptance on its way in. What of its rows is known beforehand is made by whoever records it: a group's
// writer works for everybody.
type recording struct {
	a     *core.Acceptance
	slots []int // the deliveries' places in Contents, which the group's pages change

	contents     []contentText
	notification []any
	deliveries   [][]any // but for what the group says

	out core.Recorded
	err error // core.ErrKeyReused or core.ErrStale: nothing was recorded, nobody else is concerned
	// What the group's first one carries, for all of it.
	pages  []*page
	recent []recentBatch
	// campaign is whose page it is. joins says that its notification is there already.
	campaign core.ID
	joins    bool
}

const notificationInsert = `id, app, created_at, send_at, expires_at, lane, mode, category, collapse_key,
	unknown, template, metadata, skipped, fallback_after`

// Where in deliveryColumns is what the group says.
const (
	batchColumn = 2
	pageColumn  = 10
	slotColumn  = 11
)

func newRecording(a *core.Acceptance) (*recording, error) {
	r := &recording{a: a, slots: make([]int, len(a.Deliveries)), deliveries: make([][]any, len(a.Deliveries))}
	var err error
	if r.contents, err = encodeContents(a.Contents); err != nil {
		return nil, err
	}
	n := &a.Notification
	skipped, err := encodeSkips(n.Skipped)
	if err != nil {
		return nil, err
	}
	r.notification = []any{n.ID[:], n.App, micros(n.CreatedAt), micros(n.SendAt), micros(n.ExpiresAt), laneNumbers[n.Priority],
		n.Mode, n.Category, n.CollapseKey, string(n.Unknown), n.Template, raw(n.Metadata), raw(skipped), n.FallbackAfter.Microseconds()}
	for i := range a.Deliveries {
		d := &a.Deliveries[i]
		r.slots[i] = d.Content.Slot
		row := []any{d.ID[:], d.Notification[:], nil, d.App, d.Channel, d.Kind, d.Route, d.Recipient, d.Address, d.Name,
			nil, nil, int64(d.State), int64(0), int64(0), int64(d.MaxUnknown), "", "", "",
			micros(d.CreatedAt), micros(d.UpdatedAt), micros(d.ExpiresAt)}
		if waits(d) {
			row = append(row, blob(d.Ladder), int64(d.Step), d.Quiet, d.Held, micros(d.DueAt))
		}
		r.deliveries[i] = row
	}
	return r, nil
}

func (r *recording) reset() { r.out, r.err, r.pages, r.recent = core.Recorded{}, nil, nil, nil }

// Record makes an acceptance durable: synced to disk when it returns nil. It sets the deliveries' Batch
// and Content.Page. A key used within Options.KeyLife with the same body gives the first answer back, with
// another body core.ErrKeyReused. core.ErrStale says that who it is for changed since: what is made for them now would
// overtake what they were answered. It is to be made anew. When ctx ends first, or with core.ErrUnavailable, the outcome is
// unknown: asking again with the same key tells.
func (s *Store) Record(ctx context.Context, a *core.Acceptance) (core.Recorded, error) {
	r, err := newRecording(a)
	if err == nil {
		err = s.ride(ctx, &member{record: r})
	}
	if err != nil {
		return core.Recorded{}, s.fail("record the notification", err)
	}
	return r.out, r.err
}

func (s *Store) recordAll(ctx context.Context, t tx, now time.Time, all []*recording) error {
	steady, err := holdKnown(ctx, t, all)
	if err != nil || len(steady) == 0 {
		return err
	}
	fresh, err := s.useKeys(ctx, t, now, steady)
	if err != nil || len(fresh) == 0 {
		return err
	}
	as := make([]*core.Acceptance, len(fresh))
	for i, r := range fresh {
		as[i] = r.a
	}
	batches, wakes := core.Pack(as, now, s.maxBatch, s.window(now))
	for i := range batches {
		batches[i].Campaign = fresh[0].campaign // a page of a campaign is recorded alone
	}
	if err := bind(ctx, t, now, fresh); err != nil {
		return err
	}
	if err := insertBatches(ctx, t, batches); err != nil {
		return err
	}
	if err := insertNotifications(ctx, t, fresh); err != nil {
		return err
	}
	fresh[0].recent = recentOf(fresh, wakes)
	for _, r := range fresh {
		for i := range r.a.Expansions {
			if err := insertCampaign(ctx, t, &r.a.Expansions[i]); err != nil {
				return fmt.Errorf("insert an expansion: %w", err)
			}
		}
		for i := range r.a.Deliveries {
			id := r.a.Deliveries[i].Batch
			if w, ok := wakes[id]; ok {
				r.out.Wakes = append(r.out.Wakes, w)
				delete(wakes, id) // the others that share it need not wake it
			}
		}
	}
	return nil
}

// window counts, within one group, how many wakes there is still room for.
func (s *Store) window(now time.Time) func(core.Wake) bool {
	type place struct {
		app, route string
		lane       core.Lane
		later      bool
	}
	left := map[place]int{}
	return func(w core.Wake) bool {
		if s.room == nil {
			return false
		}
		p := place{w.App, w.Route, w.Lane, w.At.After(now)}
		n, ok := left[p]
		if !ok {
			n = s.room(w)
		}
		left[p] = n - 1
		return n > 0
	}
}

// useKeys takes the idempotency keys and returns the recordings that are not repetitions.
func (s *Store) useKeys(ctx context.Context, t tx, now time.Time, all []*recording) ([]*recording, error) {
	keyed, fresh := make([]*recording, 0, len(all)), make([]*recording, 0, len(all))
	for _, r := range all {
		if r.a.Key == "" {
			fresh = append(fresh, r)
		} else {
			keyed = append(keyed, r)
		}
	}
	slices.SortStableFunc(keyed, func(a, b *recording) int { // two groups take keys in the same order
		if c := strings.Compare(a.a.Notification.App, b.a.Notification.App); c != 0 {
			return c
		}
		return strings.Compare(a.a.Key, b.a.Key)
	})
	sets := make([][]any, len(keyed))
	for i, r := range keyed {
		answer := r.a.Answer
		if answer == nil {
			answer = []byte{}
		}
		sets[i] = []any{r.a.Notification.App, r.a.Key, r.a.BodyHash[:], answer, micros(now), micros(now.Add(-s.keyLife))}
	}
	taken, err := t.execMany(ctx, `INSERT INTO idempotency (app, key, body_hash, answer, created_at) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (app, key) DO UPDATE SET body_hash = excluded.body_hash, answer = excluded.answer, created_at = excluded.created_at
		WHERE idempotency.created_at <= $6`, sets)
	if err != nil {
		return nil, fmt.Errorf("take the idempotency keys: %w", err)
	}
	for i, r := range keyed {
		if taken[i] > 0 {
			fresh = append(fresh, r)
			continue
		}
		if err := replay(ctx, t, r); err != nil {
			return nil, err
		}
	}
	return fresh, nil
}

func replay(ctx context.Context, t tx, r *recording) error {
	var hash, answer []byte
	err := t.query(ctx, "SELECT body_hash, answer FROM idempotency WHERE app = $1 AND key = $2",
		func(x row) error { return x.Scan(&hash, &answer) }, r.a.Notification.App, r.a.Key)
	switch {
	case err != nil:
		return fmt.Errorf("read the first answer: %w", err)
	case hash == nil:
		return errors.New("read the first answer: the key went in between")
	case !bytes.Equal(hash, r.a.BodyHash[:]):
		r.err = core.ErrKeyReused
	default:
		r.out.Replayed, r.out.Answer = true, answer
	}
	return nil
}

// Answered is the answer that was recorded under a key that is still remembered. The error is
// core.ErrNotFound if the key is free, core.ErrKeyReused if it was used with another body.
func (s *Store) Answered(ctx context.Context, app, key string, hash [32]byte) ([]byte, error) {
	var used, answer []byte
	err := s.read(ctx, "look an idempotency key up", "SELECT body_hash, answer FROM idempotency WHERE app = $1 AND key = $2 AND created_at > $3",
		func(x row) error { return x.Scan(&used, &answer) }, app, key, micros(s.Now().Add(-s.keyLife)))
	switch {
	case err != nil:
		return nil, err
	case used == nil:
		return nil, core.ErrNotFound
	case !bytes.Equal(used, hash[:]):
		return nil, core.ErrKeyReused
	}
	return answer, nil
}

// bind writes the contents and points the deliveries at them.
func bind(ctx context.Context, t tx, now time.Time, all []*recording) error {
	b := &binder{now: now, seen: map[[32]byte]core.ContentRef{}, refs: map[core.ID]int{}}
	for _, r := range all {
		refs := make([]core.ContentRef, len(r.a.Contents))
		for i, c := range r.a.Contents {
			refs[i] = b.add(c, r.contents[i])
		}
		for i := range r.a.Deliveries {
			slot := r.slots[i]
			if slot < 0 || slot >= len(refs) {
				return fmt.Errorf("delivery %s has no content", r.a.Deliveries[i].ID)
			}
			r.a.Deliveries[i].Content = refs[slot]
			b.refs[refs[slot].Page]++
		}
	}
	all[0].pages = b.pages
	rows := b.rows()
	if err := t.insert(ctx, "pages", "id, body, refs", rows); err != nil {
		return fmt.Errorf("insert pages: %w", err)
	}
	return nil
}

func insertBatches(ctx context.Context, t tx, batches []core.Batch) error {
	sets := make([][]any, len(batches))
	for i := range batches {
		b := &batches[i]
		sets[i] = []any{b.ID[:], b.App, b.Route, laneNumbers[b.Lane], int64(b.State), b.Fence, micros(b.DueAt), micros(b.RunAt), blob(b.Parent), blob(b.Campaign)}
	}
	if err := t.insert(ctx, "batches", "id, app, route, lane, state, fence, due_at, run_at, parent, campaign", sets); err != nil {
		return fmt.Errorf("insert batches: %w", err)
	}
	return nil
}

func insertNotifications(ctx context.Context, t tx, all []*recording) error {
	var ns, ds, held [][]any
	for _, r := range all {
		if !r.joins {
			ns = append(ns, r.notification)
		}
		for i, row := range r.deliveries {
			d := &r.a.Deliveries[i]
			row[batchColumn], row[pageColumn], row[slotColumn] = d.Batch[:], blob(d.Content.Page), int64(d.Content.Slot)
			if waits(d) {
				held = append(held, row)
			} else {
				ds = append(ds, row)
			}
		}
	}
	if err := t.insert(ctx, "notifications", notificationInsert, ns); err != nil {
		return fmt.Errorf("insert notifications: %w", err)
	}
	if err := t.insert(ctx, "deliveries", deliveryColumns, ds); err != nil {
		return fmt.Errorf("insert deliveries: %w", err)
	}
	if err := t.insert(ctx, "deliveries", deliveryColumns+heldColumns, held); err != nil {
		return fmt.Errorf("insert deliveries that wait: %w", err)
	}
	return nil
}

// waits reports whether a delivery has something in heldColumns.
func waits(d *core.Delivery) bool { return d.Held != "" || d.Quiet != "" || !d.Ladder.IsZero() }

func encodeSkips(skipped []core.Skip) ([]byte, error) {
	if len(skipped) == 0 {
		return nil, nil
	}
	text, err := json.Marshal(skipped)
	if err != nil {
		return nil, fmt.Errorf("encode what was skipped: %w", err)
	}
	return text, nil
}
