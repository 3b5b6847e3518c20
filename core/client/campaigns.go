package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"
)

// Audience is whom a campaign is for: one of its fields is set.
type Audience struct {
	Topic      string   `json:"topic,omitempty"`
	Recipients []string `json:"recipients,omitempty"`
	Filter     string   `json:"filter,omitempty"` // such as: attributes.plan == "pro" and attributes.age >= 18
	All        bool     `json:"all,omitempty"`
}

// CampaignRequest is what a campaign is made of. Without StartAt, Delay, Now and Cron it is a draft, to be
// started by SteerCampaign.
type CampaignRequest struct {
	Name          string          `json:"name"`
	Audience      Audience        `json:"audience"`
	Template      string          `json:"template,omitempty"`
	Version       int             `json:"version,omitempty"`
	Data          json.RawMessage `json:"data,omitempty"`
	Content       json.RawMessage `json:"content,omitempty"` // instead of Template
	Channels      []string        `json:"channels,omitempty"`
	Mode          string          `json:"mode,omitempty"`
	FallbackAfter string          `json:"fallback_after,omitempty"`
	Priority      string          `json:"priority,omitempty"`
	Category      string          `json:"category,omitempty"`
	CollapseKey   string          `json:"collapse_key,omitempty"`
	TTL           string          `json:"ttl,omitempty"`
	Unknown       string          `json:"unknown,omitempty"`
	Metadata      json.RawMessage `json:"metadata,omitempty"`
	Now           bool            `json:"now,omitempty"`
	StartAt       *time.Time      `json:"start_at,omitempty"`
	Delay         string          `json:"delay,omitempty"`
	Cron          string          `json:"cron,omitempty"`
	Timezone      string          `json:"timezone,omitempty"`
	LocalTime     string          `json:"local_time,omitempty"` // "09:00"
	Rate          string          `json:"rate,omitempty"`       // "500/s"
	Missed        string          `json:"missed,omitempty"`     // "skip" or "run"
}

// Campaign is a campaign as it stands.
type Campaign struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	State    string   `json:"state"`
	Reason   string   `json:"reason"`
	Parent   string   `json:"parent"`
	Audience Audience `json:"audience"`
	// What it says, as CampaignRequest has it. Lists leave out Data and Content.
	Template      string           `json:"template"`
	Version       string           `json:"version"`
	Data          json.RawMessage  `json:"data"`
	Locale        string           `json:"locale"`
	Content       json.RawMessage  `json:"content"`
	Channels      []string         `json:"channels"`
	Mode          string           `json:"mode"`
	FallbackAfter string           `json:"fallback_after"`
	Priority      string           `json:"priority"`
	Unknown       string           `json:"unknown"`
	CollapseKey   string           `json:"collapse_key"`
	Category      string           `json:"category"`
	Metadata      json.RawMessage  `json:"metadata"`
	TTL           string           `json:"ttl"`
	StartAt       *time.Time       `json:"start_at"`
	CreatedAt     time.Time        `json:"created_at"`
	StartedAt     *time.Time       `json:"started_at"`
	EndedAt       *time.Time       `json:"ended_at"`
	NextAt        *time.Time       `json:"next_at"`
	Cron          string           `json:"cron"`
	Timezone      string           `json:"timezone"`
	LocalTime     string           `json:"local_time"`
	Missed        string           `json:"missed"`
	Rate          string           `json:"rate"`
	Runs          int              `json:"runs"`
	LastRun       string           `json:"last_run"`
	Progress      CampaignProgress `json:"progress"`
	// Replayed says that this is the answer to an earlier request with the same key.
	Replayed bool `json:"-"`
}

// CampaignProgress counts people, each once, and in Deliveries what goes to them.
type CampaignProgress struct {
	Audience int `json:"audience"`
	Expanded int `json:"expanded"`
	Counts
	Skipped    int        `json:"skipped"`
	Deliveries Counts     `json:"deliveries"`
	RatePerS   float64    `json:"rate_per_s"`
	ETA        *time.Time `json:"eta"`
}

func campaignPath(id string) string { return "/v1/campaigns/" + segment(id) }

// CreateCampaign makes a campaign, under the idempotency key given, or a new one if that is "".
func (c *Client) CreateCampaign(ctx context.Context, r *CampaignRequest, key string) (*Campaign, error) {
	if key == "" {
		key = NewKey()
	}
	return c.campaign(ctx, ask{method: http.MethodPost, path: "/v1/campaigns", key: key, body: r})
}

// Campaign reads a campaign and how far it is.
func (c *Client) Campaign(ctx context.Context, id string) (*Campaign, error) {
	return c.campaign(ctx, ask{method: http.MethodGet, path: campaignPath(id)})
}

// Campaigns lists campaigns, the newest first, and the cursor of the next page, "" after the last.
func (c *Client) Campaigns(ctx context.Context, p Page) ([]Campaign, string, error) {
	var out list[Campaign]
	_, err := c.do(ctx, ask{method: http.MethodGet, path: "/v1/campaigns" + p.query(url.Values{}), answer: &out})
	return out.Data, out.Next, err
}

// SteerCampaign starts, pauses, resumes or cancels a campaign ("start", "pause", "resume", "cancel"). After
// a pause or a cancel has returned, no new attempt begins.
func (c *Client) SteerCampaign(ctx context.Context, id, action string) (*Campaign, error) {
	return c.campaign(ctx, ask{method: http.MethodPost, path: campaignPath(id) + "/" + segment(action)})
}

// SetCampaignRate changes how fast a campaign goes, also while it runs; "" is as fast as the routes do.
func (c *Client) SetCampaignRate(ctx context.Context, id, rate string) (*Campaign, error) {
	body := struct {
		Rate string `json:"rate"`
	}{rate}
	return c.campaign(ctx, ask{method: http.MethodPatch, path: campaignPath(id), body: body})
}

func (c *Client) campaign(ctx context.Context, q ask) (*Campaign, error) {
	out := &Campaign{}
	q.answer = out
	header, err := c.do(ctx, q)
	if err != nil {
		return nil, err
	}
	out.Replayed = header.Get("Idempotency-Replayed") == "true"
	return out, nil
}
