package store

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// suppressionSecret is the name of the secret that addresses are hashed with, and hashSize how much of a hash
// is kept.
const (
	suppressionSecret = "suppressions"
	hashSize          = 16
)

// hasher hashes addresses with the store's secret.
type hasher []byte

// hasherOf reads the secret, or makes it: its transaction has to be the one that uses it.
func hasherOf(ctx context.Context, t tx) (hasher, error) {
	var h []byte
	read := func() error {
		return t.query(ctx, "SELECT value FROM secrets WHERE name = $1", func(r row) error { return r.Scan(&h) }, suppressionSecret)
	}
	if err := read(); err != nil || h != nil {
		return h, err
	}
	fresh := make([]byte, sha256.Size)
	if _, err := rand.Read(fresh); err != nil {
		return nil, fmt.Errorf("make a secret: %w", err)
	}
	if _, err := t.exec(ctx, "INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING", suppressionSecret, fresh); err != nil {
		return nil, err
	}
	return h, read()
}

func (h hasher) of(a core.AddressOf) []byte {
	a = a.Normal()
	m := hmac.New(sha256.New, h)
	m.Write([]byte(a.Kind + "\x00" + a.Address))
	return m.Sum(nil)[:hashSize]
}

// suppress keeps that nothing is sent to an address any more, from a time.
func suppress(ctx context.Context, t tx, s core.Suppression, address string, at time.Time) error {
	h, err := hasherOf(ctx, t)
	if err != nil {
		return err
	}
	_, err = t.exec(ctx, `INSERT INTO suppressions (app, hash, kind, channel, recipient, code, since) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (app, hash) DO NOTHING`, s.App, h.of(core.AddressOf{App: s.App, Kind: s.Kind, Address: address}), s.Kind, s.Channel, s.Recipient, clean(s.Code), micros(at))
	if err != nil {
		return fmt.Errorf("suppress an address: %w", err)
	}
	return nil
}

// suppressBounced suppresses the address of a delivery that bounced for good.
func suppressBounced(ctx context.Context, t tx, id core.ID, code string, at time.Time) error {
	if !core.BounceSuppresses(code) {
		return nil
	}
	s, address := core.Suppression{Code: code}, ""
	err := t.query(ctx, "SELECT app, kind, channel, recipient, address FROM deliveries WHERE id = $1", func(r row) error {
		return r.Scan(&s.App, &s.Kind, &s.Channel, &s.Recipient, &address)
	}, id[:])
	if err != nil || !core.Lasting(s.Channel) || address == "" {
		return err
	}
	return suppress(ctx, t, s, address, at)
}

// markSuppressed notes at the deliveries of rounds whose address is suppressed that it is, and why.
func markSuppressed(ctx context.Context, t tx, rounds []*core.Round) error {
	h, err := hasherOf(ctx, t)
	if err != nil {
		return err
	}
	var all []core.AddressOf
	var of []*core.Delivery
	for _, r := range rounds {
		for i := range r.Deliveries {
			if d := &r.Deliveries[i]; core.Lasting(d.Channel) {
				all = append(all, core.AddressOf{App: d.App, Kind: d.Kind, Address: d.Address})
				of = append(of, d)
			}
		}
	}
	err = findSuppressed(ctx, t, h, all, func(i int, s core.Suppression) {
		of[i].Suppressed = fmt.Sprintf("%s since %s", s.Code, s.Since.UTC().Format(time.DateOnly))
	})
	if err != nil {
		return fmt.Errorf("look whose address is suppressed: %w", err)
	}
	return nil
}

// SuppressedAddresses tells which of some addresses are suppressed.
func (s *Store) SuppressedAddresses(ctx context.Context, all []core.AddressOf) (map[core.AddressOf]core.Suppression, error) {
	out := map[core.AddressOf]core.Suppression{}
	var h hasher
	err := s.read(ctx, "read a secret", "SELECT value FROM secrets WHERE name = $1", func(r row) error { return r.Scan((*[]byte)(&h)) }, suppressionSecret)
	if err != nil || h == nil { // nobody was suppressed yet
		return out, err
	}
	err = findSuppressed(ctx, s.b, h, all, func(i int, x core.Suppression) { out[all[i]] = x })
	return out, s.fail("look whose address is suppressed", err)
}

// findSuppressed calls found for each of some addresses that is suppressed, by its index. It asks once for all the
// addresses of an app.
func findSuppressed(ctx context.Context, q querier, h hasher, all []core.AddressOf, found func(i int, s core.Suppression)) error {
	hashes := map[string][][]byte{} // by app, each once
	places := map[string][]int{}    // by app and hash
	for i, a := range all {
		hash := h.of(a)
		at := a.App + "\x00" + string(hash)
		if places[at] == nil {
			hashes[a.App] = append(hashes[a.App], hash)
		}
		places[at] = append(places[at], i)
	}
	for app, some := range hashes {
		err := q.queryIDs(ctx, "SELECT "+suppressionColumns+" FROM suppressions WHERE app = $1 AND hash {ids}", some, func(r row) error {
			s, hash, err := scanSuppression(r)
			for _, i := range places[app+"\x00"+string(hash)] {
				found(i, s)
			}
			return err
		}, app)
		if err != nil {
			return err
		}
	}
	return nil
}

const suppressionColumns = "app, hash, kind, channel, recipient, code, since"

func scanSuppression(r row) (x core.Suppression, hash []byte, err error) {
	err = r.Scan(&x.App, &hash, &x.Kind, &x.Channel, &x.Recipient, &x.Code, stamp{&x.Since})
	x.ID = hex.EncodeToString(hash)
	return x, hash, err
}

// Suppressions lists an app's suppressed addresses, in no order that means anything; next is "" at the end.
func (s *Store) Suppressions(ctx context.Context, app string, p core.Page) (out []core.Suppression, next string, err error) {
	limit := limitOf(p)
	from, err := hex.DecodeString(p.Cursor)
	if err != nil || len(from) != 0 && len(from) != hashSize {
		return nil, "", fmt.Errorf("the cursor is none of this list: %w", core.ErrBadID)
	}
	err = s.read(ctx, "list suppressed addresses", "SELECT "+suppressionColumns+" FROM suppressions WHERE app = $1 AND hash > $2 ORDER BY hash LIMIT $3", func(r row) error {
		x, _, err := scanSuppression(r)
		out = append(out, x)
		return err
	}, app, from, int64(limit+1))
	if len(out) > limit {
		out = out[:limit]
		next = out[limit-1].ID
	}
	return out, next, err
}

// LiftSuppression lets an address be sent to again; core.ErrNotFound if it is not suppressed.
func (s *Store) LiftSuppression(ctx context.Context, a core.AddressOf) error {
	return s.write(ctx, "lift a suppression", func(t tx) error {
		h, err := hasherOf(ctx, t)
		if err != nil {
			return err
		}
		n, err := t.exec(ctx, "DELETE FROM suppressions WHERE app = $1 AND hash = $2", a.App, h.of(a))
		if err == nil && n == 0 {
			err = core.ErrNotFound
		}
		return err
	})
}
