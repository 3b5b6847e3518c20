package api

import (
	"context"

	"github.com/carillon-notify/carillon/core/intake"
)

func checkTopic(name string) error {
	if !isName(name) {
		return fault("/topic", intake.FaultInvalid, "a topic's name "+nameForm)
	}
	return nil
}

// PutTopicRecipient implements StrictServerInterface.
func (a *API) PutTopicRecipient(ctx context.Context, q PutTopicRecipientRequestObject) (PutTopicRecipientResponseObject, error) {
	if err := checkTopic(q.Topic); err != nil {
		return nil, err
	}
	if err := checkRecipientID(q.Id); err != nil {
		return nil, err
	}
	if _, err := a.Topics.PutTopicRecipient(ctx, callOf(ctx).principal.App, q.Topic, q.Id); err != nil {
		return nil, err
	}
	return PutTopicRecipient204Response{}, nil
}

// DeleteTopicRecipient implements StrictServerInterface.
func (a *API) DeleteTopicRecipient(ctx context.Context, q DeleteTopicRecipientRequestObject) (DeleteTopicRecipientResponseObject, error) {
	if err := a.Topics.DeleteTopicRecipient(ctx, callOf(ctx).principal.App, q.Topic, q.Id); err != nil {
		return nil, err
	}
	return DeleteTopicRecipient204Response{}, nil
}

// ListTopicRecipients implements StrictServerInterface.
func (a *API) ListTopicRecipients(ctx context.Context, q ListTopicRecipientsRequestObject) (ListTopicRecipientsResponseObject, error) {
	p, err := namePage(ctx, q.Params.Limit, q.Params.Cursor)
	if err != nil {
		return nil, err
	}
	rs, next, err := a.Topics.TopicRecipients(ctx, callOf(ctx).principal.App, q.Topic, p)
	if err != nil {
		return nil, err
	}
	out := ListTopicRecipients200JSONResponse{Data: make([]TopicRecipient, 0, len(rs)), NextCursor: nameCursor(next)}
	for _, r := range rs {
		out.Data = append(out.Data, TopicRecipient{Recipient: r.Recipient, Since: r.Since})
	}
	return out, nil
}
