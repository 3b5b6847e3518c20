package api

import (
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/campaign"
	"github.com/carillon-notify/carillon/core/intake"
)

var errNoCampaigns = refuse(http.StatusNotFound, "This server offers no campaigns.")

// CreateCampaign implements StrictServerInterface.
func (a *API) CreateCampaign(ctx context.Context, q CreateCampaignRequestObject) (CreateCampaignResponseObject, error) {
	if a.Campaigns == nil {
		return nil, errNoCampaigns
	}
	c := callOf(ctx)
	b := q.Body
	spec, faults := specOf(b, c.faults)
	if len(faults) > 0 {
		return nil, invalid(mergeChecked(faults, a.Campaigns.Check(ctx, c.principal.App, spec)))
	}
	key, done, err := a.holdKey(c, q.Params.IdempotencyKey, "campaigns", c.body)
	if err != nil {
		return nil, err
	}
	defer done()
	got, replayed, err := a.Campaigns.Create(ctx, c.principal.App, spec, key)
	if err != nil {
		return nil, err
	}
	return CreateCampaign201JSONResponse{Body: campaignAt(got, got.CreatedAt),
		Headers: CreateCampaign201ResponseHeaders{Location: "/v1/campaigns/" + got.ID.String(), IdempotencyReplayed: replayedHeader(replayed)}}, nil
}

// specOf turns the document's campaign into the use case's. It returns the faults found before and its own; the spec then
// holds what was right.
func specOf(b *CampaignRequest, before []intake.Fault) (*campaign.Spec, []intake.Fault) {
	req, faults := requestOf(&NotificationRequest{Template: b.Template, Version: b.Version, Data: b.Data, Locale: b.Locale, Content: b.Content, Channels: b.Channels, Mode: b.Mode,
		FallbackAfter: b.FallbackAfter, Priority: b.Priority, Ttl: b.Ttl, Unknown: b.Unknown, CollapseKey: b.CollapseKey, Category: b.Category, Metadata: b.Metadata}, before)
	delay := durationOf(b.Delay, "/delay", false, func(pointer, code, detail string) {
		faults = merge(faults, []intake.Fault{{Pointer: pointer, Code: code, Detail: detail}})
	})
	return &campaign.Spec{Name: b.Name, Audience: core.CampaignAudience{Topic: b.Audience.Topic, Recipients: b.Audience.Recipients, Filter: b.Audience.Filter, All: b.Audience.All},
		Request: req, StartAt: given(b.StartAt), Delay: delay, Now: b.Now, Cron: b.Cron, Timezone: b.Timezone, LocalTime: b.LocalTime, Rate: b.Rate, Missed: b.Missed}, faults
}

// campaignOf is a campaign as the document has it, as of now.
func (a *API) campaignOf(c *core.Campaign) Campaign { return campaignAt(c, a.Campaigns.Now()) }

// campaignAt is a campaign as it stands at a time, with all that it says.
func campaignAt(c *core.Campaign, now time.Time) Campaign {
	out := campaignBrief(c, now)
	var request intake.Request
	_ = json.Unmarshal(c.Request, &request) // of our own making
	out.Data = request.Data
	if request.Content != nil {
		out.Content = contentBody(request.Content)
	}
	return out
}

// contentBody is a content as a request has it.
func contentBody(c *intake.Content) json.RawMessage {
	members := map[string]any{}
	for name, text := range map[string]string{"title": c.Title, "body": c.Body, "url": c.URL} {
		if text != "" {
			members[name] = text
		}
	}
	if len(c.Data) > 0 {
		members["data"] = c.Data
	}
	for name, block := range c.Channels {
		members[name] = block
	}
	body, _ := json.Marshal(members) // what was read can be written
	return body
}

// campaignBrief leaves out what it says, which may be long.
func campaignBrief(c *core.Campaign, now time.Time) Campaign {
	p := c.Progress(now)
	var request intake.Request
	_ = json.Unmarshal(c.Request, &request) // of our own making
	out := Campaign{Id: c.ID.String(), Name: c.Name, State: c.State.String(), Reason: c.Reason, Template: request.Template, CreatedAt: c.CreatedAt, StartedAt: stamp(c.Bound),
		EndedAt: stamp(c.EndedAt), Cron: c.Cron, Timezone: c.Timezone, LocalTime: c.LocalTime, Missed: c.Missed, Rate: c.Rate, Runs: c.Runs, MissedRuns: c.MissedRuns,
		Audience: Audience{Topic: c.Audience.Topic, Recipients: c.Audience.Recipients, Filter: c.Audience.Filter, All: c.Audience.All},
		Progress: CampaignProgress{Audience: p.Audience, Expanded: p.Totals.Expanded, Pending: p.People.Pending, Sent: p.People.Sent, Delivered: p.People.Delivered, Failed: p.People.Failed,
			Expired: p.People.Expired, Cancelled: p.People.Cancelled, Suppressed: p.People.Suppressed, Skipped: p.Skipped, Deliveries: countsOf(p.Deliveries),
			RatePerS: math.Round(p.RatePerS*10) / 10, Eta: stamp(p.ETA)}}
	if !c.State.Over() && c.NextAt.After(now) {
		out.NextAt = stamp(c.NextAt)
	}
	out.Locale, out.Channels, out.Mode, out.Priority, out.Unknown = request.Locale, request.Channels, cmp.Or(request.Mode, core.ModeAll), string(request.Priority), string(cmp.Or(request.Unknown, core.RetryUnknown))
	out.CollapseKey, out.Category, out.Metadata, out.Ttl = request.CollapseKey, request.Category, request.Metadata, cmp.Or(request.TTL, core.DefaultTTL).String()
	if out.Mode == core.ModeFallback {
		out.FallbackAfter = cmp.Or(request.FallbackAfter, core.DefaultFallbackAfter).String()
	}
	if request.Version > 0 {
		out.Version = strconv.Itoa(request.Version)
	}
	if c.Cron == "" {
		out.StartAt = stamp(c.StartAt)
	}
	if !c.Parent.IsZero() {
		out.Parent = c.Parent.String()
	}
	if !c.LastRun.IsZero() {
		out.LastRun = c.LastRun.String()
	}
	return out
}

// ListCampaigns implements StrictServerInterface.
func (a *API) ListCampaigns(ctx context.Context, q ListCampaignsRequestObject) (ListCampaignsResponseObject, error) {
	if a.Campaigns == nil {
		return nil, errNoCampaigns
	}
	p, err := page(ctx, q.Params.Limit, q.Params.Cursor)
	if err != nil {
		return nil, err
	}
	f := core.CampaignFilter{App: callOf(ctx).principal.App, Page: p}
	if q.Params.State != "" {
		if f.State, err = core.ParseCampaignState(string(q.Params.State)); err != nil {
			return nil, fault("/state", intake.FaultInvalid, "is no state of a campaign")
		}
	}
	if q.Params.Parent != "" {
		if f.Parent, err = core.ParseID(q.Params.Parent); err != nil {
			return nil, fault("/parent", intake.FaultInvalid, "is no id of a campaign")
		}
	}
	all, next, err := a.Campaigns.List(ctx, f)
	if err != nil {
		return nil, err
	}
	out, now := ListCampaigns200JSONResponse{Data: make([]Campaign, 0, len(all)), NextCursor: next}, a.Campaigns.Now()
	for i := range all {
		c := campaignBrief(&all[i], now)
		c.Audience.Recipients = c.Audience.Recipients[:min(len(c.Audience.Recipients), 10)] // GET shows them all
		out.Data = append(out.Data, c)
	}
	return out, nil
}

// GetCampaign implements StrictServerInterface.
func (a *API) GetCampaign(ctx context.Context, q GetCampaignRequestObject) (GetCampaignResponseObject, error) {
	c, err := a.findCampaign(ctx, q.Id)
	if err != nil {
		return nil, err
	}
	return GetCampaign200JSONResponse(a.campaignOf(c)), nil
}

func (a *API) findCampaign(ctx context.Context, text string) (*core.Campaign, error) {
	if a.Campaigns == nil {
		return nil, errNoCampaigns
	}
	id, err := idOf(text)
	if err != nil {
		return nil, err
	}
	return a.Campaigns.Get(ctx, callOf(ctx).principal.App, id)
}

// PatchCampaign implements StrictServerInterface.
func (a *API) PatchCampaign(ctx context.Context, q PatchCampaignRequestObject) (PatchCampaignResponseObject, error) {
	if a.Campaigns == nil {
		return nil, errNoCampaigns
	}
	id, err := idOf(q.Id)
	if err != nil {
		return nil, err
	}
	c, err := a.Campaigns.SetRate(ctx, callOf(ctx).principal.App, id, *q.Body.Rate)
	if err != nil {
		return nil, steered(err)
	}
	return PatchCampaign200JSONResponse(a.campaignOf(c)), nil
}

// SteerCampaign implements StrictServerInterface.
func (a *API) SteerCampaign(ctx context.Context, q SteerCampaignRequestObject) (SteerCampaignResponseObject, error) {
	if a.Campaigns == nil {
		return nil, errNoCampaigns
	}
	id, err := idOf(q.Id)
	if err != nil {
		return nil, err
	}
	c, err := a.Campaigns.Steer(ctx, callOf(ctx).principal.App, id, q.Action)
	if err != nil {
		return nil, steered(err)
	}
	return SteerCampaign200JSONResponse(a.campaignOf(c)), nil
}

// steered answers what a campaign's state does not allow.
func steered(err error) error {
	var conflict *campaign.Conflict
	if errors.As(err, &conflict) {
		return refuse(http.StatusConflict, "The campaign is "+conflict.State.String()+", which does not allow that: "+conflict.Remedy+".")
	}
	return err
}

// TestCampaign implements StrictServerInterface.
func (a *API) TestCampaign(ctx context.Context, q TestCampaignRequestObject) (TestCampaignResponseObject, error) {
	if a.Campaigns == nil {
		return nil, errNoCampaigns
	}
	id, err := idOf(q.Id)
	if err != nil {
		return nil, err
	}
	var faults []intake.Fault
	to := make([]intake.Target, len(q.Body.To))
	add := func(pointer, code, detail string) {
		faults = append(faults, intake.Fault{Pointer: pointer, Code: code, Detail: detail})
	}
	for i := range q.Body.To {
		if to[i] = targetOf(&q.Body.To[i], i, add); to[i].Topic != "" {
			add(fmt.Sprintf("/to/%d/topic", i), intake.FaultConflict, "a test goes to recipients and addresses that are named; start the campaign to reach a topic")
		}
	}
	if len(faults) > 0 {
		return nil, invalid(faults)
	}
	c := callOf(ctx)
	key, done, err := a.holdKey(c, q.Params.IdempotencyKey, "campaigns/"+id.String()+"/test", c.body)
	if err != nil {
		return nil, err
	}
	defer done()
	got, err := a.Campaigns.Test(ctx, c.principal.App, id, to, key)
	if err != nil {
		return nil, err
	}
	return TestCampaign202JSONResponse{Body: acceptedOf(got), Headers: TestCampaign202ResponseHeaders{IdempotencyReplayed: replayedHeader(got.Replayed)}}, nil
}

// StreamCampaign implements StrictServerInterface.
func (a *API) StreamCampaign(ctx context.Context, q StreamCampaignRequestObject) (StreamCampaignResponseObject, error) {
	c, err := a.findCampaign(ctx, q.Id)
	if err != nil {
		return nil, err
	}
	return &campaignEvents{api: a, ctx: ctx, app: callOf(ctx).principal.App, c: c}, nil
}

// The rhythm of a campaign's events.
const (
	eventEvery = time.Second
	eventIdle  = 15 * time.Second // a comment, so that nobody in between takes the stream for dead
)

type campaignEvents struct {
	api *API
	ctx context.Context
	app string
	c   *core.Campaign
}

// VisitStreamCampaignResponse implements StreamCampaignResponseObject.
func (e *campaignEvents) VisitStreamCampaignResponse(w http.ResponseWriter) error {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	tick := time.NewTicker(eventEvery)
	defer tick.Stop()
	last, said := "", time.Now()
	for n := 1; ; n++ {
		body, err := json.Marshal(campaignBrief(e.c, e.api.Campaigns.Now()))
		if err != nil {
			return fmt.Errorf("encode a campaign: %w", err)
		}
		text := ""
		switch {
		case string(body) != last:
			text = fmt.Sprintf("id: %d\nevent: progress\ndata: %s\n\n", n, body)
		case time.Since(said) > eventIdle:
			text = ": still here\n\n"
		}
		if text != "" {
			_ = control.SetWriteDeadline(time.Now().Add(streamIdle))
			if _, err := w.Write([]byte(text)); err != nil {
				return nil // the client is gone
			}
			_ = control.Flush()
			last, said = string(body), time.Now()
		}
		if e.c.State.Over() {
			return nil
		}
		select {
		case <-e.ctx.Done():
			return nil
		case <-e.api.Stopping:
			return nil // the client asks again, of whoever serves then
		case <-tick.C:
		}
		if e.c, err = e.api.Campaigns.Get(e.ctx, e.app, e.c.ID); err != nil {
			return nil // the client asks again
		}
	}
}

// CampaignResults implements StrictServerInterface.
func (a *API) CampaignResults(ctx context.Context, q CampaignResultsRequestObject) (CampaignResultsResponseObject, error) {
	c, err := a.findCampaign(ctx, q.Id)
	if err != nil {
		return nil, err
	}
	return &campaignResults{api: a, ctx: ctx, app: callOf(ctx).principal.App, id: c.ID}, nil
}

type campaignResults struct {
	api *API
	ctx context.Context
	app string
	id  core.ID
}

var resultColumns = []string{"recipient", "channel", "route", "address", "state", "code", "reason", "attempts", "unknown_attempts", "delivery", "created_at", "updated_at"}

// VisitCampaignResultsResponse implements CampaignResultsResponseObject: lines are written as they are read.
// A stream that cannot be finished is cut, so that nobody takes it for whole.
func (e *campaignResults) VisitCampaignResultsResponse(w http.ResponseWriter) error {
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
	w.Header().Set("Content-Disposition", `attachment; filename="`+e.id.String()+`.csv"`)
	w.WriteHeader(http.StatusOK)
	out := csv.NewWriter(w)
	_ = out.Write(resultColumns)
	n := 0
	err := e.api.Campaigns.Results(e.ctx, e.app, e.id, func(r *core.CampaignResult) error {
		if n++; n%1000 == 1 {
			_ = control.SetWriteDeadline(time.Now().Add(streamIdle))
		}
		line := resultLine(r)
		for i := range line {
			line[i] = plainCell(line[i])
		}
		return out.Write(line)
	})
	if out.Flush(); err == nil {
		err = out.Error()
	}
	if err != nil {
		e.api.Logger.Warn("a campaign's results could not be written to their end", "campaign", e.id.String(), "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// plainCell keeps a spreadsheet from taking a text for a formula, as OWASP's page on CSV injection advises: by an apostrophe
// before it. One before a text's own apostrophe has whoever reads it otherwise know that the first is never the text's.
func plainCell(text string) string {
	if first, _ := utf8.DecodeRuneInString(text); text != "" && strings.ContainsRune("=+-@\t\r\n＝＋－＠'", first) {
		return "'" + text
	}
	return text
}

func resultLine(r *core.CampaignResult) []string {
	switch {
	case r.Skip != "":
		return []string{r.Recipient, r.Channel, "", "", "skipped", "", r.Skip, "", "", "", "", ""}
	case r.ID.IsZero():
		return []string{r.Recipient, "", "", "", r.State.String(), "", "", "", "", "", "", ""}
	}
	return []string{r.Recipient, r.Channel, r.Route, core.MaskAddress(r.Kind, r.Address), r.State.String(), r.Code, r.Reason, strconv.Itoa(r.Attempts), strconv.Itoa(r.Unknowns),
		r.ID.String(), r.CreatedAt.Format(time.RFC3339Nano), r.UpdatedAt.Format(time.RFC3339Nano)}
}
