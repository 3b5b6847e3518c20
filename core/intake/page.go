package intake

import (
	"context"
	"errors"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/templates"
)

// Check says what is wrong with a request but for whom it is to: its template or content, the template's data, its
// channels and times. It returns the version that the template has now, 0 for inline content and files. The error is
// *Invalid with every fault, or the store's.
func (in *Intake) Check(ctx context.Context, app string, req *Request) (version int, err error) {
	in = in.steady()
	f := &faults{}
	now := in.store.Now()
	n := notification(app, req, now)
	checkTimes(req, &n, now, f)
	in.checkChannels(req, f)
	r, err := in.newRenderer(ctx, app, req, f)
	if err != nil {
		return 0, err
	}
	r.tryForAudience()
	if r.inline != nil {
		for _, name := range req.Channels {
			if ch := in.routing.channels[name]; ch != nil && !r.broken.of(contentChannel{r.inline, name}) {
				in.checkByKinds(ch, r.inline, r.inline.Channels[name], r.pointer(name), f)
			}
		}
	}
	if r.template != nil {
		version = r.template.Version()
	}
	return version, f.err()
}

// People are a page of an audience.
type People struct {
	Known   []*core.Recipient
	Unknown []string // ids that are nobody's: they are skipped
	// Of is the notification that the deliveries are of; zero makes one for the page.
	Of core.ID
}

// Page plans what a page of recipients gets, by the code that plans a notification. What fails for one of
// them (data that a template lacks, a content that its service would refuse) skips that one alone. The error
// is *Invalid where the request cannot be used for anybody, or the store's.
func (in *Intake) Page(ctx context.Context, app string, req *Request, page People) (*core.Acceptance, error) {
	in = in.steady()
	own := *req
	own.To = make([]Target, len(page.Known)+len(page.Unknown))
	recipients := make(map[string]*core.Recipient, len(page.Known))
	for i, x := range page.Known {
		own.To[i].Recipient = x.ID
		recipients[x.ID] = x
	}
	for i, id := range page.Unknown {
		own.To[len(page.Known)+i].Recipient = id
	}
	p := &plan{notification: notification(app, &own, in.store.Now()), known: page.Known}
	if !page.Of.IsZero() {
		p.notification.ID = page.Of
	}
	f := &faults{}
	in.checkChannels(&own, f) // one that has gone since would leave everybody out without a word
	r, err := in.newRenderer(ctx, app, &own, f)
	if err != nil {
		return nil, err
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	// From here on a fault is one recipient's.
	r.p, r.lenient, p.notification.Template = p, map[int]string{}, r.pinned
	if err := in.resolve(ctx, r, make([]target, len(own.To)), recipients); err != nil {
		return nil, err
	}
	a, _, err := p.acceptance(Key{})
	return a, err
}

// fail notes that an entry of a page cannot be rendered for, and reports whether it is of a page: else it
// is a fault of the request.
func (r *renderer) fail(i int, err error) bool {
	if r.lenient == nil {
		return false
	}
	r.lenient[i] = core.SkipRender
	var bad *templates.Error
	if errors.As(err, &bad) && len(bad.Faults) > 0 {
		r.lenient[i] += ": " + bad.Faults[0].Detail
	}
	return true
}
