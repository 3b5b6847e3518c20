package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/intake"
)

// fragile panics at what has a certain title, or kind.
type fragile struct {
	api.Intake
	api.Addresses
}

func (f fragile) Accept(ctx context.Context, app string, req *intake.Request, key intake.Key) (*intake.Accepted, error) {
	if req.Content.Title == "panic" {
		panic("secret words")
	}
	return f.Intake.Accept(ctx, app, req, key)
}

func (f fragile) CheckAddress(kind, address string) error {
	if address == "panic@example.com" {
		panic("secret words")
	}
	return f.Addresses.CheckAddress(kind, address)
}

// TestStreamPanics: what makes something panic within a stream is a 500 there, and the process goes on.
func TestStreamPanics(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	r := newRig(t, func(o *api.Options) {
		f := fragile{o.Intake, o.Addresses}
		o.Intake, o.Addresses, o.Logger = f, f, slog.New(slog.NewTextHandler(&log, nil))
	})
	bad := mail(`"content":{"title":"panic"}`)
	a := r.must(200, "POST", "/v1/notifications/bulk", sendKey, simple+"\n"+bad+"\n"+simple, "Content-Type", "application/x-ndjson")
	var got []int
	for _, line := range strings.Split(strings.TrimSpace(string(a.body)), "\n") {
		var one struct{ Status int }
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		got = append(got, one.Status)
	}
	if diff := cmp.Diff([]int{202, 500, 202}, got); diff != "" {
		t.Error("lines: ", diff)
	}
	r.must(500, "POST", "/v1/notifications", sendKey, bad)

	events := r.imported("application/x-ndjson", `{"id":"u1"}`+"\n"+`{"id":"u2","endpoints":[{"kind":"email","address":"panic@example.com"}]}`+"\n"+`{"id":"u3"}`)
	if last := events[len(events)-1]; last.Problem == nil || last.Problem.Status != 500 || last.Done || last.Line != 2 {
		t.Errorf("the import ends with %+v", last)
	}
	if said := log.String(); strings.Count(said, "a request panicked") != 3 || strings.Contains(said, "secret words") {
		t.Errorf("the log says\n%s", said)
	}
}

// TestImportColumns: a CSV without the line that names its columns is refused without telling what it holds, and with no
// more faults than any answer has.
func TestImportColumns(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for body, faults := range map[string]int{
		"u_1,Ann Example,ann@example.com\nu_2,Bob,bob@example.com\n": 3,
		"id" + strings.Repeat(",X", 50_000) + "\n":                   100,
	} {
		events := r.imported("text/csv", body)
		text, err := json.Marshal(events)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "example.com") || strings.Contains(string(text), "Ann") || len(events) != 1 || len(events[0].Problem.Errors) != faults {
			t.Errorf("%d events, %.2000s", len(events), text)
		}
	}
}

// TestDots: what would lead up in a path is no name, and a path that leads up is none: nobody is sent on to another.
func TestDots(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.must(201, "PUT", "/v1/recipients/ann", sendKey, "{}")
	for _, path := range []string{"/v1/topics/../recipients/ann", "/v1//recipients/ann", "/v1/recipients/./ann"} {
		r.must(404, "DELETE", path, sendKey, "")
	}
	for _, name := range []string{".", ".."} {
		escaped := strings.ReplaceAll(name, ".", "%2E")
		for path, fault := range map[string]string{"/v1/recipients/" + escaped: "/id", "/v1/topics/" + escaped + "/recipients/ann": "/topic", "/v1/topics/t/recipients/" + escaped: "/id"} {
			if diff := cmp.Diff(map[string]string{fault: "invalid"}, r.must(422, "PUT", path, sendKey, "{}").faults(t)); diff != "" {
				t.Errorf("%s: %s", path, diff)
			}
		}
		tells(t, r.imported("application/x-ndjson", `{"id":"`+name+`"}`+"\n"+`{"id":"bob","topics":["`+name+`"]}`), map[int]string{1: "/id invalid", 2: "/topics/0 invalid"}, 2, 0, 0)
	}
	r.must(200, "GET", "/v1/recipients/ann", readKey, "")
}

// A campaign goes to whatever topic there is.
func TestLongTopic(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	topic := strings.Repeat("t", 255)
	r.must(204, "PUT", "/v1/topics/"+topic+"/recipients/u", sendKey, "")
	r.must(201, "POST", "/v1/campaigns", sendKey, `{"name":"x","audience":{"topic":"`+topic+`"},"content":{"title":"x"}}`)
}

// TestEventsStop: a stream of a campaign that goes on ends as the server stops, which would wait for it.
func TestEventsStop(t *testing.T) {
	t.Parallel()
	stopping := make(chan struct{})
	r := newRig(t, func(o *api.Options) { o.Stopping = stopping })
	var c api.Campaign
	r.must(201, "POST", "/v1/campaigns", sendKey, `{"name":"x","audience":{"all":true},"content":{"title":"x"}}`).into(t, &c)
	ended := make(chan answer, 1)
	go func() { ended <- r.do("GET", "/v1/campaigns/"+c.Id+"/events", readKey, "") }()
	close(stopping)
	select {
	case a := <-ended:
		if a.status != 200 || !strings.Contains(string(a.body), "event: progress") {
			t.Errorf("%d %s", a.status, a.body)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}
