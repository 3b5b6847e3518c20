package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// Bounds of a list.
const (
	defaultLimit = 50
	maxLimit     = 500
	maxScanned   = 5000 // notifications looked at for one page of a filtered list
)

func limitOf(p core.Page) int {
	if p.Limit <= 0 {
		return defaultLimit
	}
	return min(p.Limit, maxLimit)
}

const notificationColumns = `id, app, created_at, send_at, expires_at, lane, mode, category, collapse_key, unknown, template, metadata, skipped, cancelled_at, fallback_after`

func scanNotification(r row) (v core.NotificationView, err error) {
	var lane, after int64
	var unknown string
	var metadata, skipped []byte
	n := &v.Notification
	err = r.Scan(key{&n.ID}, &n.App, stamp{&n.CreatedAt}, stamp{&n.SendAt}, stamp{&n.ExpiresAt}, &lane, &n.Mode, &n.Category,
		&n.CollapseKey, &unknown, &n.Template, &metadata, &skipped, stamp{&n.CancelledAt}, &after)
	if err != nil {
		return v, err
	}
	n.FallbackAfter = time.Duration(after) * time.Microsecond
	n.Priority, n.Unknown, n.Metadata = laneOf(lane), core.UnknownPolicy(unknown), metadata
	if len(skipped) > 0 {
		if err := json.Unmarshal(skipped, &n.Skipped); err != nil {
			return v, fmt.Errorf("decode what was skipped: %w", err)
		}
	}
	return v, nil
}

// count fills in the counts of notifications.
func (s *Store) count(ctx context.Context, views []core.NotificationView) error {
	sets := make([][]any, len(views))
	for i := range views {
		sets[i] = []any{views[i].ID[:]}
	}
	// Before the deliveries: who is not resolving any more when asked has all of them when they are counted. The
	// other way round a notification could look completed for a moment.
	err := s.b.queryMany(ctx, "SELECT CASE WHEN state = 6 THEN live END FROM campaigns WHERE target = $1 AND target IS NOT NULL AND ("+expanding+" OR state = 6) LIMIT 1", sets, func(i int, r row) error {
		var text []byte
		if err := r.Scan(&text); err != nil {
			return err
		}
		if views[i].Resolving = text == nil; text == nil {
			return nil
		}
		var live core.CampaignLive
		if err := json.Unmarshal(text, &live); err != nil {
			return fmt.Errorf("decode why topics are resolved no further: %w", err)
		}
		if live.Reason != "" { // else that was asked for
			views[i].Unresolved, views[i].UnresolvedAt = live.Reason, live.EndedAt
		}
		return nil
	})
	if err != nil {
		return s.fail("look whether topics are resolved", err)
	}
	err = s.b.queryMany(ctx, `SELECT d.state, count(*), COALESCE(max(CASE WHEN d.attempts + d.unknowns > 0 OR (d.state = 1 AND b.state = 3) THEN 1 ELSE 0 END), 0)
		FROM deliveries d LEFT JOIN batches b ON b.id = d.batch_id WHERE d.notification_id = $1 GROUP BY d.state`, sets, func(i int, r row) error {
		var state, n, begun int64
		err := r.Scan(&state, &n, &begun)
		views[i].Counts.Add(core.State(state), int(n))
		views[i].Begun = views[i].Begun || begun > 0
		return err
	})
	return s.fail("count deliveries", err)
}

// expanding is the condition of a campaign that is not over.
const expanding = "state < 5"

// Notification returns a notification as it stands, or core.ErrNotFound.
func (s *Store) Notification(ctx context.Context, app string, id core.ID) (*core.NotificationView, error) {
	var views []core.NotificationView
	err := s.read(ctx, "read a notification", "SELECT "+notificationColumns+" FROM notifications WHERE id = $1 AND app = $2", func(r row) error {
		v, err := scanNotification(r)
		views = append(views, v)
		return err
	}, id[:], app)
	if err != nil {
		return nil, err
	}
	if len(views) == 0 {
		return nil, core.ErrNotFound
	}
	if err := s.count(ctx, views); err != nil {
		return nil, err
	}
	return &views[0], nil
}

// after reads a cursor that is an id; where it is none, the list begins at its newest end.
func after(p core.Page) (core.ID, error) {
	if p.Cursor == "" {
		return core.ID{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, nil
	}
	id, err := core.ParseID(p.Cursor)
	if err != nil {
		return id, fmt.Errorf("the cursor is none of this list: %w", err)
	}
	return id, nil
}

// Notifications lists an app's notifications, the newest first; next is "" at the end. A page filtered
// by status may be shorter than its limit and yet not the last.
func (s *Store) Notifications(ctx context.Context, f core.NotificationFilter) (out []core.NotificationView, next string, err error) {
	limit := limitOf(f.Page)
	from, err := after(f.Page)
	if err != nil {
		return nil, "", err
	}
	where := ""
	args := []any{f.App, nil, int64(limit + 1), micros(f.Since)}
	if f.Recipient != "" {
		where = " AND id IN (SELECT notification_id FROM deliveries WHERE app = $1 AND recipient = $5 AND recipient <> '')"
		args = append(args, f.Recipient)
	}
	if !f.Campaign.IsZero() {
		args = append(args, f.Campaign[:])
		where += fmt.Sprintf(" AND id IN (SELECT notification_id FROM campaign_pages WHERE campaign = $%d)", len(args))
	}
	for scanned := 0; scanned < maxScanned; {
		var page []core.NotificationView
		args[1] = from[:]
		err := s.read(ctx, "list notifications", "SELECT "+notificationColumns+` FROM notifications
			WHERE app = $1 AND id < $2 AND created_at >= $4`+where+" ORDER BY id DESC LIMIT $3", func(r row) error {
			v, err := scanNotification(r)
			page = append(page, v)
			return err
		}, args...)
		if err != nil {
			return nil, "", err
		}
		more := len(page) > limit
		if more {
			page = page[:limit]
		}
		if err := s.count(ctx, page); err != nil {
			return nil, "", err
		}
		now := s.Now()
		for i := range page {
			v := &page[i]
			from = v.ID
			if f.Status != "" && core.StatusOf(&v.Notification, v.Counts, v.Begun, now) != f.Status {
				continue
			}
			if out = append(out, *v); len(out) == limit {
				next = "" // of an earlier page
				if i < len(page)-1 || more {
					next = v.ID.String()
				}
				return out, next, nil
			}
		}
		if !more {
			return out, "", nil
		}
		scanned += len(page)
		next = from.String()
	}
	return out, next, nil
}

// Deliveries lists a notification's deliveries in the order they were made; next is "" at the end.
func (s *Store) Deliveries(ctx context.Context, app string, notification core.ID, p core.Page) (out []core.Delivery, next string, err error) {
	limit := limitOf(p)
	var from core.ID
	if p.Cursor != "" {
		if from, err = after(p); err != nil {
			return nil, "", err
		}
	}
	err = s.read(ctx, "list deliveries", "SELECT "+fullColumns+` FROM deliveries
		WHERE notification_id = $1 AND app = $2 AND id > $3 ORDER BY id LIMIT $4`, func(r row) error {
		d, err := scanFull(r)
		out = append(out, d)
		return err
	}, notification[:], app, from[:], int64(limit+1))
	if len(out) > limit {
		out = out[:limit]
		next = out[limit-1].ID.String()
	}
	return out, next, err
}

// Content returns what was sent with a delivery; nil if it was erased.
func (s *Store) Content(ctx context.Context, ref core.ContentRef) (*core.Content, error) {
	return s.content(ctx, ref)
}
