package intake

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/templates"
)

// maxTopics is how many topics one notification may name.
const maxTopics = 20

// tryForAudience renders for nobody what the recipients of topics or of a campaign are to get, in each locale that
// they may get it in: what the data lacks is heard now, and not of each of them. What lacks of a recipient is
// nobody's fault yet.
func (r *renderer) tryForAudience() {
	if r.template == nil {
		return
	}
	locales := []string{r.req.Locale}
	if r.req.Locale == "" {
		locales = slices.Sorted(maps.Keys(r.template.Source().Locales))
	}
	for _, locale := range locales {
		_, err := r.template.Render(templates.Input{Data: r.base, Locale: locale, Channels: r.req.Channels})
		var bad *templates.Error
		if !errors.As(err, &bad) {
			continue
		}
		for _, fault := range bad.Faults {
			at := Fault{Code: FaultContent, Detail: fault.Detail, Pointer: "/template"}
			if strings.HasPrefix(fault.Pointer, "/data") {
				at.Pointer = fault.Pointer
			}
			if r.said[at] || !ofData(&fault) {
				continue
			}
			r.said[at] = true
			r.f.add(at.Pointer, at.Code, "%s", at.Detail)
		}
	}
}

// ofData reports whether a rendering for nobody failed by the data, and not by what a recipient will bring.
func ofData(fault *templates.Fault) bool {
	switch fault.Code {
	case templates.CodeSchema:
		return true
	case templates.CodeUndefined:
		_, name, named := strings.Cut(fault.Detail, `undefined variable "`)
		return named && !strings.HasPrefix(name, "recipient.")
	}
	return false
}

func namesTopic(req *Request) bool {
	return slices.ContainsFunc(req.To, func(t Target) bool { return t.Topic != "" })
}

// expand has the topics of a request resolved after it is taken, by what resolves a campaign's audience: of
// all of them together, each recipient once, and none who is named beside them.
func (in *Intake) expand(p *plan, req *Request, r *renderer, f *faults) error {
	var topics, except []string
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
	n, rest := &p.notification, *req
	rest.To = nil
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
