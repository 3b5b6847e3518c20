package store

import (
	"context"

	"github.com/carillon-notify/carillon/core"
)

// messagesPage is how many messages one page of MessagesTo has; each may have a large content.
const messagesPage = 100

// MessagesTo lists every delivery to a recipient that is kept, with its words, the oldest first; next is ""
// at the end.
func (s *Store) MessagesTo(ctx context.Context, app, recipient, cursor string) (out []core.SentMessage, next string, err error) {
	var from core.ID
	if cursor != "" {
		if from, err = core.ParseID(cursor); err != nil {
			return nil, "", err
		}
	}
	err = s.read(ctx, "list the messages to a recipient", "SELECT "+readColumns+`, seen_at, read_at, clicked_at FROM deliveries
		WHERE app = $1 AND recipient = $2 AND recipient <> '' AND id > $3 ORDER BY id LIMIT $4`, func(r row) error {
		var m core.SentMessage
		d, err := scanDelivery(r, stamp{&m.SeenAt}, stamp{&m.ReadAt}, stamp{&m.ClickedAt})
		m.Delivery = d
		out = append(out, m)
		return err
	}, app, recipient, from[:], int64(messagesPage+1))
	if err != nil {
		return nil, "", err
	}
	if len(out) > messagesPage {
		out = out[:messagesPage]
		next = out[messagesPage-1].ID.String()
	}
	for i := range out {
		c, err := s.content(ctx, out[i].Content)
		if err != nil {
			return nil, "", err
		}
		if c != nil {
			out[i].Words = *c
		}
	}
	return out, next, nil
}
