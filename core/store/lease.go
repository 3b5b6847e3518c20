package store

import (
	"context"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// Acquire takes the lease of a name for a time if nobody holds it or the holder's time is over; ok is
// false if somebody does. holder is for people: a process that starts again under the same name does
// not get its old lease back.
func (s *Store) Acquire(ctx context.Context, name, holder string, ttl time.Duration) (_ core.Lease, ok bool, _ error) {
	type answer struct {
		lease core.Lease
		ok    bool
	}
	got, err := writeFor(ctx, s, "take a lease", func(t tx) (a answer, err error) {
		now := s.Now()
		a.lease = core.Lease{Name: clean(name), Holder: clean(holder), Until: now.Add(ttl)}
		// A fence is at least the time, so that it does not begin anew when the row was removed.
		err = t.query(ctx, `INSERT INTO leases AS l (name, holder, fence, expires_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at,
				fence = CASE WHEN l.fence >= excluded.fence THEN l.fence + 1 ELSE excluded.fence END
			WHERE l.expires_at <= $3 RETURNING fence`, func(r row) error {
			a.ok = true
			return r.Scan(&a.lease.Fence)
		}, a.lease.Name, a.lease.Holder, micros(now), micros(a.lease.Until))
		return a, err
	})
	if err != nil || !got.ok {
		return core.Lease{}, false, err
	}
	return got.lease, true, nil
}

// Renew extends a lease to a time from now, also one whose time is over that nobody took since. The
// error is core.ErrLeaseLost if somebody did.
func (s *Store) Renew(ctx context.Context, l core.Lease, ttl time.Duration) (core.Lease, error) {
	end, err := writeFor(ctx, s, "renew a lease", func(t tx) (time.Time, error) {
		until := s.Now().Add(ttl)
		n, err := t.exec(ctx, "UPDATE leases SET expires_at = $3 WHERE name = $1 AND fence = $2", l.Name, l.Fence, micros(until))
		if err == nil && n == 0 {
			err = core.ErrLeaseLost
		}
		return until, err
	})
	if err == nil {
		l.Until = end
	}
	return l, err
}

// Release gives a lease back, so that the next process need not wait for its end. One that is lost is
// left alone.
func (s *Store) Release(ctx context.Context, l core.Lease) error {
	return s.write(ctx, "give a lease back", func(t tx) error {
		_, err := t.exec(ctx, "UPDATE leases SET fence = fence + 1, expires_at = 0 WHERE name = $1 AND fence = $2", l.Name, l.Fence)
		return err
	})
}

// holding makes the rest of a transaction conditional on a lease: it fails with core.ErrLeaseLost if
// somebody took that since, and keeps it from being taken until the transaction ends. What leaders write
// begins with it, so that two who each believe to lead do no harm.
func holding(ctx context.Context, t tx, l core.Lease) error {
	found := false
	err := t.query(ctx, "SELECT fence FROM leases WHERE name = $1 AND fence = $2"+t.forUpdate(), func(r row) error {
		found = true
		var fence int64
		return r.Scan(&fence)
	}, l.Name, l.Fence)
	if err == nil && !found {
		err = core.ErrLeaseLost
	}
	return err
}
