package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

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
	if len(a.Except) > 0 {
		page.Recipients = slices.DeleteFunc(page.Recipients, func(x core.Recipient) bool { return slices.Contains(a.Except, x.ID) })
	}
	return page, s.fail("read a page of an audience", err)
}

func audiencePage(ctx context.Context, q querier, a *core.Audience, cursor string, limit int) (core.AudiencePage, error) {
	switch {
	case a.Recipients != nil:
		return listed(ctx, q, a, cursor, limit)
	case len(a.Topics) > 0:
		return united(ctx, q, a, cursor, limit)
	case a.Topic != "":
		also, more := besides(a, 5, "m.")
		return ranged(ctx, q, audienceQuery{
			recipients: `FROM (SELECT r.recipient FROM topic_recipients r` + joined(also) + ` WHERE r.app = $1 AND r.topic = $2 AND r.recipient > $3 AND r.created_at <= $4` + also + `
				ORDER BY r.recipient LIMIT $5) t JOIN recipients ON app = $1 AND id = t.recipient ORDER BY t.recipient`,
			endpoints: `FROM topic_recipients t JOIN endpoints e ON e.app = t.app AND e.recipient = t.recipient
				WHERE t.app = $1 AND t.topic = $2 AND t.recipient > $3 AND t.recipient <= $4 ORDER BY t.recipient, e.position, e.kind, e.address`,
			args: []any{a.App, a.Topic, cursor}, until: micros(a.Until), limit: limit, more: more, bare: a.Bare,
		})
	default:
		also, more := besides(a, 4, "")
		return ranged(ctx, q, audienceQuery{
			recipients: "FROM recipients WHERE app = $1 AND id > $2 AND created_at <= $3" + also + " ORDER BY id LIMIT $4",
			endpoints:  "FROM endpoints e WHERE e.app = $1 AND e.recipient > $2 AND e.recipient <= $3 ORDER BY e.recipient, e.position, e.kind, e.address",
			args:       []any{a.App, cursor}, until: micros(a.Until), limit: limit, more: more, bare: a.Bare,
		})
	}
}

// audienceQuery reads a range of recipients: the same range of both tables, in the same order.
type audienceQuery struct {
	recipients, endpoints string
	args                  []any // of both, the cursor last
	until                 int64
	limit                 int
	more                  []any // arguments of further conditions on recipients
	bare                  bool
}

// besides is the further conditions of an audience, whose arguments come after n others.
func besides(a *core.Audience, n int, of string) (where string, args []any) {
	if !a.Since.IsZero() {
		args = append(args, micros(a.Since))
		where += fmt.Sprintf(" AND %smoved_at > $%d", of, n+len(args))
	}
	if a.Zones != nil {
		marks := make([]string, len(a.Zones))
		for i, z := range a.Zones {
			args = append(args, z)
			marks[i] = fmt.Sprintf("$%d", n+len(args))
		}
		where += fmt.Sprintf(" AND %stimezone IN (%s)", of, strings.Join(marks, ", "))
	}
	return where, args
}

// joined joins the recipients of a topic where a condition on them needs it.
func joined(also string) string {
	if also == "" {
		return ""
	}
	return " JOIN recipients m ON m.app = r.app AND m.id = r.recipient"
}

// meant holds a recipient against an audience's further conditions.
func meant(a *core.Audience, x *core.Recipient) bool {
	return (a.Since.IsZero() || x.MovedAt.After(a.Since)) && (a.Zones == nil || slices.Contains(a.Zones, x.Timezone))
}

func ranged(ctx context.Context, q querier, aq audienceQuery) (page core.AudiencePage, err error) {
	err = q.query(ctx, "SELECT "+recipientColumns+" "+aq.recipients, func(r row) error {
		x, err := scanRecipient(r)
		if err == nil {
			page.Recipients = append(page.Recipients, *x)
		}
		return err
	}, append(append(slices.Clone(aq.args), aq.until, int64(aq.limit)), aq.more...)...)
	if err != nil || len(page.Recipients) == 0 {
		return page, err
	}
	last := page.Recipients[len(page.Recipients)-1].ID
	if len(page.Recipients) == aq.limit {
		page.Next = last
	}
	if aq.bare {
		return page, nil
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

// united is a page of the recipients of several topics. Each topic's next ones are read in the order of the
// index, and put together by the database, whose order of texts it is.
func united(ctx context.Context, q querier, a *core.Audience, cursor string, limit int) (page core.AudiencePage, err error) {
	args := []any{a.App, cursor, micros(a.Until), int64(limit)}
	parts := make([]string, len(a.Topics))
	for i, topic := range a.Topics {
		args = append(args, topic)
		parts[i] = fmt.Sprintf(`SELECT * FROM (SELECT recipient FROM topic_recipients WHERE app = $1 AND topic = $%d AND recipient > $2 AND created_at <= $3
			ORDER BY recipient LIMIT $4) t%d`, len(args), i)
	}
	var ids []string
	err = q.query(ctx, "SELECT recipient FROM ("+strings.Join(parts, " UNION ")+") u ORDER BY recipient LIMIT $4", func(r row) error {
		var id string
		err := r.Scan(&id)
		ids = append(ids, id)
		return err
	}, args...)
	if err != nil {
		return page, err
	}
	if len(ids) == limit {
		page.Next = ids[limit-1]
	}
	known, err := recipientsByID(ctx, q, a.App, ids)
	for _, id := range ids {
		if x := known[id]; x != nil && meant(a, x) {
			page.Recipients = append(page.Recipients, *x)
		}
	}
	return page, err
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
		if !meant(a, x) {
			continue
		}
		page.Recipients = append(page.Recipients, *x)
	}
	return page, nil
}

// AudienceSize counts an audience; of a list the ids, whosesoever they are.
func (s *Store) AudienceSize(ctx context.Context, a core.Audience) (n int, err error) {
	if a.Recipients != nil {
		return len(unique(a.Recipients)), nil
	}
	from, args := whole(&a)
	err = s.read(ctx, "count an audience", "SELECT count(*) "+from, func(r row) error {
		var count int64
		err := r.Scan(&count)
		n = int(count)
		return err
	}, args...)
	return n, err
}

// AudienceZones lists the time zones of an audience's recipients, "" if some have none.
func (s *Store) AudienceZones(ctx context.Context, a core.Audience) ([]string, error) {
	var out []string
	if a.Recipients == nil {
		from, args := whole(&a)
		err := s.read(ctx, "list an audience's time zones", "SELECT DISTINCT r.timezone "+from+" ORDER BY r.timezone", func(r row) error {
			var zone string
			err := r.Scan(&zone)
			out = append(out, zone)
			return err
		}, args...)
		return out, err
	}
	for cursor := ""; ; {
		page, err := s.AudiencePage(ctx, a, cursor, maxAudience)
		if err != nil {
			return nil, err
		}
		for i := range page.Recipients {
			out = append(out, page.Recipients[i].Timezone)
		}
		if cursor = page.Next; cursor == "" {
			slices.Sort(out)
			return slices.Compact(out), nil
		}
	}
}

// whole is all of an audience that is no list.
func whole(a *core.Audience) (from string, args []any) {
	if len(a.Topics) > 0 {
		args = []any{a.App, micros(a.Until)}
		marks := make([]string, len(a.Topics))
		for i, topic := range a.Topics {
			args = append(args, topic)
			marks[i] = fmt.Sprintf("$%d", len(args))
		}
		return `FROM recipients r WHERE r.app = $1 AND r.id IN (SELECT recipient FROM topic_recipients
			WHERE app = $1 AND created_at <= $2 AND topic IN (` + strings.Join(marks, ", ") + "))", args
	}
	if a.Topic == "" {
		return "FROM recipients r WHERE r.app = $1 AND r.created_at <= $2", []any{a.App, micros(a.Until)}
	}
	return `FROM topic_recipients t JOIN recipients r ON r.app = t.app AND r.id = t.recipient
		WHERE t.app = $1 AND t.created_at <= $2 AND t.topic = $3`, []any{a.App, micros(a.Until), a.Topic}
}
