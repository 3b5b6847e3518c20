package console

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/carillon-notify/carillon/core"
)

type notificationBody struct {
	row
	Base       string
	Deliveries []core.Delivery
	More       bool // there are more deliveries than these
	Steps      []step
	Cut        int // steps that are not shown
	Contents   []words
}

// step is a step of the timeline with its delivery, where it has one that the page shows.
type step struct {
	core.Step
	Of *core.Delivery
}

// Outcome is an attempt's outcome, "" for other steps.
func (s step) Outcome() string {
	if s.What == core.StepAttempt || s.What == core.StepLate {
		return s.Step.Outcome.String()
	}
	return ""
}

// Notes are the lesser facts of a step.
func (s step) Notes() []string {
	var out []string
	if s.Outcome() != "" && s.State != 0 {
		out = append(out, s.State.String())
	}
	if !s.HeldTill.IsZero() {
		out = append(out, "again at "+s.HeldTill.UTC().Format(time.TimeOnly))
	}
	if s.What == core.StepResolved {
		out = append(out, "route "+s.Route)
	}
	if s.Attempt > 0 {
		out = append(out, fmt.Sprintf("round %d of its batch", s.Attempt))
	}
	if s.Worker != "" {
		out = append(out, "by "+s.Worker)
	}
	return out
}

// words is a content that was sent, and on which channels.
type words struct {
	Channels []string
	Title    string
	Body     string
	URL      string
	Data     string // JSON, laid out
	Block    string // the channel's own part of it
	Erased   bool
}

// Channel is the channels' names.
func (w words) Channel() string { return strings.Join(w.Channels, ", ") }

func (c *Console) notification(w http.ResponseWriter, r *http.Request, s session) {
	id, err := core.ParseID(r.PathValue("id"))
	var b *notificationBody
	if err == nil {
		b, err = c.read(r.Context(), s.App, id)
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	b.Base = base(r)
	p := s.page("Notification", b)
	p.Refresh = true
	c.page(w, http.StatusOK, "notification.html", p)
}

// read puts together what there is to know of a notification.
func (c *Console) read(ctx context.Context, app string, id core.ID) (*notificationBody, error) {
	n := c.o.Notifications
	v, err := n.Notification(ctx, app, id)
	if err != nil {
		return nil, err
	}
	b := &notificationBody{row: c.rows([]core.NotificationView{*v})[0]}
	var next string
	if b.Deliveries, next, err = n.Deliveries(ctx, app, id, core.Page{Limit: mostShown}); err != nil {
		return nil, err
	}
	b.More = next != ""
	steps, err := n.Timeline(ctx, app, id)
	if err != nil {
		return nil, err
	}
	of := map[core.ID]*core.Delivery{}
	for i := range b.Deliveries {
		of[b.Deliveries[i].ID] = &b.Deliveries[i]
	}
	if len(steps) > mostSteps {
		b.Cut = len(steps) - mostSteps
		steps = steps[:mostSteps]
	}
	for _, x := range steps {
		b.Steps = append(b.Steps, step{x, of[x.Delivery]})
	}
	b.Contents, err = c.contents(ctx, b.Deliveries)
	return b, err
}

// contents reads what was sent with deliveries, each content once.
func (c *Console) contents(ctx context.Context, deliveries []core.Delivery) ([]words, error) {
	var out []words
	seen := map[core.ContentRef]int{}
	for i := range deliveries {
		d := &deliveries[i]
		at, ok := seen[d.Content]
		if ok {
			if !slices.Contains(out[at].Channels, d.Channel) {
				out[at].Channels = append(out[at].Channels, d.Channel)
			}
			continue
		}
		if len(out) == mostContent {
			break
		}
		x, err := c.o.Notifications.Content(ctx, d.Content)
		if err != nil {
			return nil, fmt.Errorf("read what was sent: %w", err)
		}
		w := words{Channels: []string{d.Channel}, Erased: x == nil}
		if x != nil {
			w.Title, w.Body, w.URL, w.Data, w.Block = x.Title, x.Body, x.URL, layout(x.Data), layout(x.Block)
		}
		seen[d.Content] = len(out)
		out = append(out, w)
	}
	return out, nil
}

// layout lays JSON out for people, and cuts what is too long to look at, such as attachments.
func layout(text json.RawMessage) string {
	if len(text) == 0 {
		return ""
	}
	var b bytes.Buffer
	if json.Indent(&b, text, "", "  ") != nil {
		b.Reset()
		b.Write(text)
	}
	out := b.String()
	if len(out) > mostBlock {
		cut := mostBlock
		for cut > 0 && !utf8.RuneStart(out[cut]) {
			cut--
		}
		out = fmt.Sprintf("%s\n… and %d bytes more", out[:cut], len(out)-cut)
	}
	return out
}

// cancel cancels what is still pending.
func (c *Console) cancel(w http.ResponseWriter, r *http.Request, s session) {
	id, err := core.ParseID(r.PathValue("id"))
	if err == nil {
		_, err = c.o.Notifications.Cancel(r.Context(), s.App, id)
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	http.Redirect(w, r, "/console/notifications/"+id.String(), http.StatusSeeOther)
}
