package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// TopicRecipient is a recipient of a topic.
type TopicRecipient struct {
	Recipient string    `json:"recipient"`
	Since     time.Time `json:"since"`
}

func topicPath(topic string) string { return "/v1/topics/" + segment(topic) + "/recipients" }

// PutTopicRecipient puts a recipient into a topic; it creates the recipient if needed.
func (c *Client) PutTopicRecipient(ctx context.Context, topic, recipient string) error {
	_, err := c.do(ctx, ask{method: http.MethodPut, path: topicPath(topic) + "/" + segment(recipient)})
	return err
}

// DeleteTopicRecipient takes a recipient out of a topic.
func (c *Client) DeleteTopicRecipient(ctx context.Context, topic, recipient string) error {
	_, err := c.do(ctx, ask{method: http.MethodDelete, path: topicPath(topic) + "/" + segment(recipient)})
	return err
}

// TopicRecipients lists a topic's recipients by id, and the cursor of the next page, "" after the last.
func (c *Client) TopicRecipients(ctx context.Context, topic string, p Page) ([]TopicRecipient, string, error) {
	var out list[TopicRecipient]
	_, err := c.do(ctx, ask{method: http.MethodGet, path: topicPath(topic) + p.query(url.Values{}), answer: &out})
	return out.Data, out.Next, err
}
