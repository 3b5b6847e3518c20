package intake

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/templates"
)

// maxTopics is how many topics one notification may name.
const maxTopics = 20

// tryForTopics renders for nobody what the recipients of topics are to get: what the data lacks is heard now, and
// not of each of them. What lacks of a recipient is nobody's fault yet.
func (r *renderer) tryForTopics(f *faults) {
	if r.template == nil || !slices.ContainsFunc(r.req.To, func(t Target) bool { return t.Topic != "" }) {
		return
	}
	_, err := r.template.Render(templates.Input{Data: r.base, Locale: r.req.Locale, Channels: r.req.Channels})
	var bad *templates.Error
	if !errors.As(err, &bad) {
		return
	}
	for _, fault := range bad.Faults {
		at := Fault{Code: FaultContent, Detail: fault.Detail, Pointer: "/template"}
		if strings.HasPrefix(fault.Pointer, "/data") {
			at.Pointer = fault.Pointer
		}
		if r.said[at] || fault.Code != templates.CodeSchema && (fault.Code != templates.CodeUndefined || !strings.Contains(fault.Detail, `"`) || strings.Contains(fault.Detail, "recipient.")) {
			continue
		}
		r.said[at] = true
		f.add(at.Pointer, at.Code, "%s", at.Detail)
	}
}

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
