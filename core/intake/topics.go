package intake

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/carillon-notify/carillon/core"
)

// maxTopics is how many topics one notification may name.
const maxTopics = 20

// expand has the topics of a request resolved after it is taken, by what resolves a campaign's audience: of
// all of them together, each recipient once, and none who is named beside them.
func (in *Intake) expand(p *plan, req *Request, r *renderer, f *faults) error {
	var topics, except []string
	rest := *req
	rest.To = nil
	for i := range req.To {
		t := &req.To[i]
		switch {
		case t.Topic != "":
			if !slices.Contains(topics, t.Topic) {
				topics = append(topics, t.Topic)
			}
			if len(t.Data) > 0 {
				f.add(fmt.Sprintf("/to/%d/data", i), FaultConflict, "is for one entry; what the recipients of a topic get is in data")
			}
		case t.Recipient != "":
			except = append(except, t.Recipient)
		}
	}
	if len(topics) == 0 {
		return nil
	}
	if len(topics) > maxTopics {
		f.add("/to", FaultTooMany, "names at most %d topics", maxTopics)
	}
	n := &p.notification
	rest.SendAt, rest.Delay, rest.TTL, rest.ExpiresAt = n.SendAt, 0, 0, n.ExpiresAt
	if r.template != nil {
		rest.Version = r.template.Version()
	}
	text, err := json.Marshal(&rest)
	if err != nil {
		return fmt.Errorf("encode what a topic's recipients get: %w", err)
	}
	c := core.NewExpansion(n, topics, except, text)
	p.expansion = &c
	return nil
}
