package store

import (
	"context"
	"fmt"
	"slices"

	"github.com/carillon-notify/carillon/core"
)

// maxAudience is the most recipients of one page of an audience.
const maxAudience = 5000

// AudiencePage reads the recipients of an audience that come after a cursor ("" for the first page), up to
// limit of them (1 to 5,000), in three statements at the most however many they are. Pages follow one
// another by id, so that nobody comes twice and the work of a page does not grow with its place. A page
// may have fewer than limit and yet not be the last: Next tells.
func (s *Store) AudiencePage(ctx context.Context, a core.Audience, cursor string, limit int) (core.AudiencePage, error) {
	limit = min(max(limit, 1), maxAudience)
	page, err := audiencePage(ctx, s.b, &a, cursor, limit)
	return page, s.fail("read a page of an audience", err)
}

func audiencePage(ctx context.Context, q querier, a *core.Audience, cursor string, limit int) (core.AudiencePage, error) {
	switch {
	case a.Recipients != nil:
		return listed(ctx, q, a, cursor, limit)
	case a.Topic != "":
		return ranged(ctx, q, audienceQuery{
			recipients: `FROM (SELECT recipient FROM topic_recipients WHERE app = $1 AND topic = $2 AND recipient > $3 AND created_at <= $4
				ORDER BY recipient LIMIT $5) t JOIN recipients ON app = $1 AND id = t.recipient ORDER BY t.recipient`,
			endpoints: `FROM topic_recipients t JOIN endpoints e ON e.app = t.app AND e.recipient = t.recipient
				WHERE t.app = $1 AND t.topic = $2 AND t.recipient > $3 AND t.recipient <= $4 ORDER BY t.recipient, e.position, e.kind, e.address`,
			args: []any{a.App, a.Topic, cursor}, until: micros(a.Until), limit: limit,
		})
	default:
		return ranged(ctx, q, audienceQuery{
			recipients: "FROM recipients WHERE app = $1 AND id > $2 AND created_at <= $3 ORDER BY id LIMIT $4",
			endpoints:  "FROM endpoints e WHERE e.app = $1 AND e.recipient > $2 AND e.recipient <= $3 ORDER BY e.recipient, e.position, e.kind, e.address",
			args:       []any{a.App, cursor}, until: micros(a.Until), limit: limit,
		})
	}
}

// audienceQuery reads a range of recipients: the same range of both tables, in the same order.
type audienceQuery struct {
	recipients, endpoints string
	args                  []any // of both, the cursor last
	until                 int64
	limit                 int
}

func ranged(ctx context.Context, q querier, aq audienceQuery) (page core.AudiencePage, err error) {
	err = q.query(ctx, "SELECT "+recipientColumns+" "+aq.recipients, func(r row) error {
		x, err := scanRecipient(r)
		if err == nil {
			page.Recipients = append(page.Recipients, *x)
		}
		return err
	}, append(slices.Clone(aq.args), aq.until, int64(aq.limit))...)
	if err != nil || len(page.Recipients) == 0 {
		return page, err
	}
	last := page.Recipients[len(page.Recipients)-1].ID
	if len(page.Recipients) == aq.limit {
		page.Next = last
	}
	at := make(map[string]int, len(page.Recipients))
	for i := range page.Recipients {
		at[page.Recipients[i].ID] = i
	}
	err = q.query(ctx, "SELECT e.recipient, e.kind, e.address, e.route, e.app_version, e.registered_at "+aq.endpoints, func(r row) error {
		var id string
		var e core.Endpoint
		if err := r.Scan(&id, &e.Kind, &e.Address, &e.Route, &e.AppVersion, stamp{&e.RegisteredAt}); err != nil {
			return err
		}
		if i, ok := at[id]; ok { // who is not in both answers came in between, or after Until
			page.Recipients[i].Endpoints = append(page.Recipients[i].Endpoints, e)
		}
		return nil
	}, append(slices.Clone(aq.args), last)...)
	if err != nil {
		return page, fmt.Errorf("read the endpoints: %w", err)
	}
	return page, nil
}

// listed is a page of an audience that is a list of ids.
func listed(ctx context.Context, q querier, a *core.Audience, cursor string, limit int) (page core.AudiencePage, err error) {
	ids := slices.Clone(a.Recipients)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	from, found := slices.BinarySearch(ids, cursor)
	if found {
		from++
	}
	ids = ids[from:]
	if len(ids) > limit {
		ids = ids[:limit]
		page.Next = ids[limit-1]
	}
	known, err := recipientsByID(ctx, q, a.App, ids)
	if err != nil {
		return page, err
	}
	for _, id := range ids {
		x := known[id]
		if x == nil || x.CreatedAt.After(a.Until) {
			page.Unknown = append(page.Unknown, id)
			continue
		}
		page.Recipients = append(page.Recipients, *x)
	}
	return page, nil
}
