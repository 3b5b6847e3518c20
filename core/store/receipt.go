package store

import (
	"cmp"
	"context"
	"fmt"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

// Receipt records an event of a delivery, found by its id or by route and provider id, once, and changes
// its state where core.State.OnReceipt says so. found is false if there is no such delivery, or its app
// or address is not the receipt's. It rides in a group commit.
func (s *Store) Receipt(ctx context.Context, route string, rc providers.Receipt) (found bool, err error) {
	// SQLite takes an index of the ids that are not empty only where the statement says that this one is not.
	where, args := "route = $1 AND provider_id = $2 AND provider_id <> ''", []any{route, clean(rc.ProviderID)}
	id, err := core.ParseID(cmp.Or(rc.ID, rc.ProviderID))
	switch {
	case rc.ID != "" && err != nil, rc.ID == "" && rc.ProviderID == "":
		return false, nil //nolint:nilerr // an id that is none is nobody's
	case rc.ID != "":
		where, args = "id = $1 AND route = $2", []any{id[:], route}
	case err == nil: // a service that goes by our ids
		where, args = "route = $1 AND (provider_id = $2 AND provider_id <> '' OR id = $3)", append(args, id[:])
	}
	of := finding{where, args}
	return rideFor(ctx, s, "record a receipt", of, func(t tx) (found bool, err error) {
		h, err := findHit(ctx, t, of)
		if err != nil || h == nil || rc.App != "" && rc.App != h.app || rc.Address != "" && rc.Address != h.address {
			return false, err
		}
		return true, s.hear(ctx, t, h, rc)
	})
}

// hit is a delivery that something is heard of.
type hit struct {
	id, of, ladder core.ID
	app, address   string
	state, step    int64
	unknowns       int64
}

// finding is a condition that finds a delivery: the newest that it selects.
type finding struct {
	where string
	args  []any
}

func (f finding) sql(columns string) string {
	return "SELECT " + columns + " FROM deliveries WHERE " + f.where + " ORDER BY id DESC LIMIT 1"
}

// findHit finds and locks a delivery; nil if there is none.
func findHit(ctx context.Context, t tx, f finding) (h *hit, err error) {
	err = t.query(ctx, f.sql("id, notification_id, app, address, state, ladder, step, unknowns")+t.forUpdate(), func(r row) error {
		h = &hit{}
		return r.Scan(key{&h.id}, key{&h.of}, &h.app, &h.address, &h.state, key{&h.ladder}, &h.step, &h.unknowns)
	}, f.args...)
	return h, err
}

// hear records an event of a delivery. Its state, its fallback and its address follow the first time only; what its
// reader did to it counts again after it was undone.
func (s *Store) hear(ctx context.Context, t tx, h *hit, rc providers.Receipt) error {
	at := rc.At
	if at.IsZero() {
		at = s.Now()
	}
	fresh, err := t.exec(ctx, "INSERT INTO receipts (delivery_id, event, code, at) VALUES ($1, $2, $3, $4) ON CONFLICT (delivery_id, event) DO NOTHING",
		h.id[:], clean(string(rc.Event)), clean(rc.Code), micros(at))
	if err != nil {
		return err
	}
	if fresh > 0 {
		if err := s.follow(ctx, t, h, rc); err != nil {
			return err
		}
		if rc.Event == providers.EventBounced {
			if err := suppressBounced(ctx, t, h.id, rc.Code, at); err != nil {
				return err
			}
		}
	}
	return engage(ctx, t, h.id, rc.Event, micros(at))
}

// follow has a delivery's state and its fallback follow an event.
func (s *Store) follow(ctx context.Context, t tx, h *hit, rc providers.Receipt) error {
	if to, ok := core.State(h.state).OnReceipt(rc.Event, int(h.unknowns)); ok {
		if _, err := t.exec(ctx, "UPDATE deliveries SET state = $2, updated_at = $3, code = COALESCE($5, code) WHERE id = $1 AND state = $4",
			h.id[:], int64(to), micros(s.Now()), h.state, failing(rc, to)); err != nil {
			return err
		}
		if err := touchPage(ctx, t, h.of); err != nil {
			return err
		}
	}
	if h.ladder.IsZero() {
		return nil
	}
	return s.heardOf(ctx, t, rc.Event, h.ladder, int(h.step))
}

// failing is the code of a delivery that a receipt makes failed: the service's, or else the event; nil is none.
func failing(rc providers.Receipt, to core.State) any {
	switch {
	case to != core.Failed:
		return nil
	case rc.Code != "":
		return clean(rc.Code)
	}
	return string(rc.Event)
}

// heardOf lets a fallback end or go on by what was heard of one of its steps.
func (s *Store) heardOf(ctx context.Context, t tx, e providers.Event, ladder core.ID, step int) error {
	now := s.Now()
	if acknowledges(e) {
		return stopFallback(ctx, t, micros(now), ladder, step)
	}
	if err := lockLadders(ctx, t, []core.ID{ladder}); err != nil {
		return err
	}
	_, err := s.advance(ctx, t, now, []core.ID{ladder})
	return err
}

// engagement says which columns an event sets; what was read was seen as well.
var engagement = map[providers.Event][]string{
	providers.EventSeen:     {"seen_at"},
	providers.EventRead:     {"seen_at", "read_at"},
	providers.EventClicked:  {"seen_at", "clicked_at"},
	providers.EventArchived: {"archived_at"},
}

func engage(ctx context.Context, t tx, id core.ID, e providers.Event, at int64) error {
	for _, column := range engagement[e] {
		if _, err := t.exec(ctx, "UPDATE deliveries SET "+column+" = $2 WHERE id = $1 AND "+column+" = 0", id[:], at); err != nil {
			return fmt.Errorf("note %s: %w", e, err)
		}
	}
	return nil
}
