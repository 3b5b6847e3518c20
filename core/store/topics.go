package store

import (
	"context"
	"fmt"

	"github.com/carillon-notify/carillon/core"
)

// PutTopicRecipient puts a recipient into a topic, creating the recipient if needed. One who is in it
// already stays as of then; added says that this one was not.
func (s *Store) PutTopicRecipient(ctx context.Context, app, topic, recipient string) (added bool, err error) {
	return writeFor(ctx, s, "put a recipient into a topic", func(t tx) (added bool, err error) {
		now := micros(s.Now())
		if _, err := t.exec(ctx, ensureRecipientSQL, app, recipient, now); err != nil {
			return false, err
		}
		// The row is locked, so that nobody who is being erased is left in a topic.
		found := false
		err = t.query(ctx, "SELECT 1 FROM recipients WHERE app = $1 AND id = $2"+t.forUpdate(), func(row) error { found = true; return nil }, app, recipient)
		if err != nil {
			return false, err
		}
		if !found {
			return false, core.ErrNotFound // erased in between
		}
		n, err := t.exec(ctx, putTopicSQL, app, topic, recipient, now)
		return n > 0, err
	})
}

const putTopicSQL = `INSERT INTO topic_recipients (app, topic, recipient, created_at) VALUES ($1, $2, $3, $4)
	ON CONFLICT (app, topic, recipient) DO NOTHING`

// ensureRecipientSQL makes a recipient if there is none of that id.
const ensureRecipientSQL = `INSERT INTO recipients (app, id, locale, timezone, created_at, updated_at) VALUES ($1, $2, '', '', $3, $3)
	ON CONFLICT (app, id) DO NOTHING`

// DeleteTopicRecipient takes a recipient out of a topic; core.ErrNotFound if it is not in it.
func (s *Store) DeleteTopicRecipient(ctx context.Context, app, topic, recipient string) error {
	return s.write(ctx, "take a recipient out of a topic", func(t tx) error {
		n, err := t.exec(ctx, "DELETE FROM topic_recipients WHERE app = $1 AND topic = $2 AND recipient = $3", app, topic, recipient)
		if err == nil && n == 0 {
			err = core.ErrNotFound
		}
		return err
	})
}

// TopicRecipients lists the ids of a topic's recipients and since when they are in it, by id; next is ""
// at the end. A topic without any is empty, not unknown.
func (s *Store) TopicRecipients(ctx context.Context, app, topic string, p core.Page) (out []core.TopicRecipient, next string, err error) {
	limit := limitOf(p)
	err = s.read(ctx, "list a topic's recipients", `SELECT recipient, created_at FROM topic_recipients WHERE app = $1 AND topic = $2 AND recipient > $3
		ORDER BY recipient LIMIT $4`, func(r row) error {
		var x core.TopicRecipient
		err := r.Scan(&x.Recipient, stamp{&x.Since})
		out = append(out, x)
		return err
	}, app, topic, p.Cursor, int64(limit+1))
	if len(out) > limit {
		out = out[:limit]
		next = out[limit-1].Recipient
	}
	return out, next, err
}

// topicsOf lists the topics that a recipient is in, by name.
func topicsOf(ctx context.Context, q querier, app, recipient string) (out []string, err error) {
	err = q.query(ctx, "SELECT topic FROM topic_recipients WHERE app = $1 AND recipient = $2 ORDER BY topic", func(r row) error {
		var name string
		err := r.Scan(&name)
		out = append(out, name)
		return err
	}, app, recipient)
	if err != nil {
		return nil, fmt.Errorf("read the topics of a recipient: %w", err)
	}
	return out, nil
}

// Topics lists the topics that a recipient is in, by name.
func (s *Store) Topics(ctx context.Context, app, recipient string) ([]string, error) {
	out, err := topicsOf(ctx, s.b, app, recipient)
	return out, s.fail("list the topics of a recipient", err)
}
