package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// TopicRecipient is a recipient of a topic.
type TopicRecipient struct {
	Recipient string    `json:"recipient"`
	Since     time.Time `json:"since"`
}

func topicPath(topic string) string { return "/v1/topics/" + url.PathEscape(topic) + "/recipients" }

// PutTopicRecipient puts a recipient into a topic; it creates the recipient if needed.
func (c *Client) PutTopicRecipient(ctx context.Context, topic, recipient string) error {
	_, err := c.do(ctx, ask{method: http.MethodPut, path: topicPath(topic) + "/" + url.PathEscape(recipient)})
	return err
}

// DeleteTopicRecipient takes a recipient out of a topic.
func (c *Client) DeleteTopicRecipient(ctx context.Context, topic, recipient string) error {
	_, err := c.do(ctx, ask{method: http.MethodDelete, path: topicPath(topic) + "/" + url.PathEscape(recipient)})
	return err
}

// TopicRecipients lists a topic's recipients by id: up to limit (0: the server's default) after a cursor
// ("" at the beginning). next is "" at the end.
func (c *Client) TopicRecipients(ctx context.Context, topic, cursor string, limit int) (out []TopicRecipient, next string, err error) {
	q := url.Values{}
	if cursor != "" {
		q.Set("cursor", cursor)
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var list struct {
		Data []TopicRecipient `json:"data"`
		Next string           `json:"next_cursor"`
	}
	path := topicPath(topic)
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	_, err = c.do(ctx, ask{method: http.MethodGet, path: path, answer: &list})
	return list.Data, list.Next, err
}
