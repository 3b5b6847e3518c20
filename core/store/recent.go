package store

import (
	"bytes"
	lists "container/list"
	"slices"
	"sync"

	"github.com/carillon-notify/carillon/core"
)

// maxRecent is how many deliveries are kept, some 4 MB.
const maxRecent = 8192

// recent keeps the deliveries of batches that this process just recorded: mostly it claims them next, and need not read
// them back. It is for a batch's first round alone. Until that has begun a delivery that is still pending is what it was
// when it was recorded, and none joins the batch: whatever is done to one ends it or, for the steps of a
// fallback, which are not kept, moves it to another batch. So the count of those that are pending tells whether all of it holds.
type recent struct {
	mu    sync.Mutex
	size  int
	order *lists.List // of *recentBatch, the oldest last
	byID  map[core.ID]*lists.Element
}

type recentBatch struct {
	id         core.ID
	deliveries []core.Delivery // by their ids
}

func newRecent() *recent { return &recent{order: lists.New(), byID: map[core.ID]*lists.Element{}} }

// add keeps batches, and lets the oldest ones go that are too many.
func (r *recent) add(batches []recentBatch) {
	if len(batches) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range batches {
		b := &batches[i]
		r.byID[b.id] = r.order.PushFront(b)
		r.size += len(b.deliveries)
	}
	for r.size > maxRecent {
		r.remove(r.order.Back())
	}
}

func (r *recent) remove(e *lists.Element) *recentBatch {
	b := r.order.Remove(e).(*recentBatch)
	delete(r.byID, b.id)
	r.size -= len(b.deliveries)
	return b
}

// take returns the deliveries of a batch, which are the caller's from then on, nil where they are not kept.
func (r *recent) take(batch core.ID) []core.Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.byID[batch]
	if e == nil {
		return nil
	}
	return r.remove(e).deliveries
}

// recentOf are the batches among wakes whose deliveries a claim would read as the acceptances have them.
func recentOf(all []*recording, wakes map[core.ID]core.Wake) []recentBatch {
	found := map[core.ID][]*core.Delivery{}
	left := map[core.ID]bool{} // that are to be read
	for _, r := range all {
		for i := range r.a.Deliveries {
			d := &r.a.Deliveries[i]
			found[d.Batch] = append(found[d.Batch], d)
			if d.State != core.Pending || waits(d) {
				left[d.Batch] = true
			}
		}
	}
	out := make([]recentBatch, 0, len(found))
	for id, of := range found {
		if _, woken := wakes[id]; !woken || left[id] {
			continue
		}
		slices.SortFunc(of, func(a, b *core.Delivery) int { return bytes.Compare(a.ID[:], b.ID[:]) })
		b := recentBatch{id: id, deliveries: make([]core.Delivery, len(of))}
		for i, d := range of {
			b.deliveries[i] = asRead(d)
		}
		out = append(out, b)
	}
	return out
}

// asRead is a delivery that was just recorded as newRoundScan would read it, and its batch's app and route.
func asRead(d *core.Delivery) core.Delivery {
	return core.Delivery{
		ID: d.ID, Notification: d.Notification, Batch: d.Batch, App: d.App, Channel: d.Channel, Kind: d.Kind, Route: d.Route,
		Recipient: d.Recipient, Address: d.Address, Name: d.Name, Content: d.Content, State: core.Pending, MaxUnknown: d.MaxUnknown,
		CreatedAt: fromMicros(micros(d.CreatedAt)), UpdatedAt: fromMicros(micros(d.UpdatedAt)), ExpiresAt: fromMicros(micros(d.ExpiresAt)),
	}
}
