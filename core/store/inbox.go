package store

import (
	"context"
	"errors"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

// inInbox selects the in-app messages that reached a recipient's inbox ($1 app, $2 recipient).
const inInbox = "app = $1 AND recipient = $2 AND recipient <> '' AND kind = 'websocket' AND state IN (2, 3)"

// ErrBadMark says that an inbox item can be marked seen, read, unread or archive only.
var ErrBadMark = errors.New("an inbox item is marked seen, read, unread or archive")

// Inbox lists a recipient's in-app messages, the newest first, either those archived or the others.
// next is "" at the end.
func (s *Store) Inbox(ctx context.Context, app, recipient string, p core.Page, archived bool) (out []core.InboxItem, next string, err error) {
	limit := limitOf(p)
	from, err := after(p)
	if err != nil {
		return nil, "", err
	}
	side := " AND archived_at = 0"
	if archived {
		side = " AND archived_at > 0"
	}
	var refs []core.ContentRef
	err = s.read(ctx, "read the inbox", "SELECT id, page_id, slot, created_at, seen_at, read_at, archived_at FROM deliveries WHERE "+inInbox+side+
		" AND id < $3 ORDER BY id DESC LIMIT $4", func(r row) error {
		var x core.InboxItem
		var ref core.ContentRef
		err := r.Scan(key{&x.ID}, key{&ref.Page}, &ref.Slot, stamp{&x.CreatedAt}, stamp{&x.SeenAt}, stamp{&x.ReadAt}, stamp{&x.ArchivedAt})
		out, refs = append(out, x), append(refs, ref)
		return err
	}, app, recipient, from[:], int64(limit+1))
	if err != nil {
		return nil, "", err
	}
	if len(out) > limit {
		out = out[:limit]
		next = out[limit-1].ID.String()
	}
	for i := range out {
		c, err := s.content(ctx, refs[i])
		if err != nil {
			return nil, "", err
		}
		if c != nil {
			out[i].Content = *c
		}
	}
	return out, next, nil
}

// Unread counts a recipient's in-app messages that were neither read nor archived.
func (s *Store) Unread(ctx context.Context, app, recipient string) (int, error) {
	var n int
	err := s.read(ctx, "count the unread", "SELECT count(*) FROM deliveries WHERE "+inInbox+" AND archived_at = 0 AND read_at = 0",
		func(r row) error { return r.Scan(&n) }, app, recipient)
	return n, err
}

// marks are what an inbox item can be marked, beside "unread", and the event that each is.
var marks = map[string]providers.Event{"seen": providers.EventSeen, "read": providers.EventRead, "archive": providers.EventArchived}

// MarkInbox marks one item of a recipient's inbox: "seen", "read" (and so seen), "unread" or "archive".
// core.ErrNotFound if it is not in that inbox. All but "unread" is a receipt as Receipt records one: whichever way it
// is marked first is the step of the timeline. It rides in a group commit.
func (s *Store) MarkInbox(ctx context.Context, app, recipient string, id core.ID, mark string) error {
	event, ok := marks[mark]
	if !ok && mark != "unread" {
		return ErrBadMark
	}
	of := finding{inInbox + " AND id = $3", []any{app, recipient, id[:]}}
	found, err := rideFor(ctx, s, "mark an inbox item", of, func(t tx) (found bool, err error) {
		h, err := findHit(ctx, t, of)
		if err != nil || h == nil {
			return false, err
		}
		if mark == "unread" {
			_, err = t.exec(ctx, "UPDATE deliveries SET read_at = 0 WHERE id = $1", id[:])
			return true, err
		}
		return true, s.hear(ctx, t, h, providers.Receipt{Event: event})
	})
	if err == nil && !found {
		return core.ErrNotFound
	}
	return err
}
