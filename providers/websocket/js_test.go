package websocket_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/websocket"
)

// program finds a program that a test needs; CI sets CARILLON_REQUIRE_SERVERS=1 and lets none be missing.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CARILLON_REQUIRE_SERVERS") == "1" {
			t.Fatalf("CARILLON_REQUIRE_SERVERS=1, and there is no %s", name)
		}
		t.Skipf("no %s here", name)
	}
	return path
}

// jsDir installs testdata/js into a temporary directory, once for all tests.
func jsDir(t *testing.T) string {
	t.Helper()
	npm := program(t, "npm")
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "js"))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	return dir
}

// sdk is a running client.mjs.
type sdk struct {
	t      *testing.T
	in     io.Writer
	events chan event
}

type event struct {
	Event     string          `json:"event"`
	Transport string          `json:"transport"`
	Channel   string          `json:"channel"`
	Recovered bool            `json:"recovered"`
	Title     string          `json:"title"`
	Code      int             `json:"code"`
	Data      json.RawMessage `json:"data"`
}

func startSDK(t *testing.T, node, dir, url, transport string) *sdk {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, node, "client.mjs", url, transport)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &sdk{t: t, in: in, events: make(chan event, 1000)}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(s.events)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var e event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Errorf("client.mjs said %q", lines.Text())
			}
			s.events <- e
		}
	})
	t.Cleanup(func() {
		_ = in.Close() // on which it exits
		wg.Wait()
		cancel()
		_ = cmd.Wait()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("client.mjs wrote: %s", stderr.String())
		}
	})
	return s
}

func (s *sdk) do(cmd string, fields ...string) {
	s.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `{"cmd":%q`, cmd)
	for i := 0; i+1 < len(fields); i += 2 {
		fmt.Fprintf(&b, `,%q:%s`, fields[i], fields[i+1])
	}
	if _, err := fmt.Fprintf(s.in, "%s}\n", b.String()); err != nil {
		s.t.Fatal(err)
	}
}

// want returns the next event, which must be of this sort; connecting and reconnecting are passed over.
func (s *sdk) want(sort string) event {
	s.t.Helper()
	for {
		select {
		case e, ok := <-s.events:
			if !ok {
				s.t.Fatalf("client.mjs ended; want %s", sort)
			}
			if e.Event == "publication" && e.Title == probe {
				continue
			}
			if e.Event == sort {
				return e
			}
			if e.Event != "connecting" && e.Event != "error" {
				s.t.Fatalf("the SDK reports %+v, want %s", e, sort)
			}
		case <-time.After(waiting):
			s.t.Fatalf("the SDK never reports %s", sort)
		}
	}
}

// TestJavaScriptClient lets the released centrifuge client for JavaScript do all that a recipient's
// client does, over each transport.
func TestJavaScriptClient(t *testing.T) {
	t.Parallel()
	node := program(t, "node")
	dir := jsDir(t)
	for _, transport := range []string{"websocket", "http_stream", "sse"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			jsLiveAndBack(t, node, dir, transport)
		})
	}
	for _, refresh := range []bool{true, false} {
		t.Run(fmt.Sprintf("refresh %v", refresh), func(t *testing.T) {
			t.Parallel()
			s := open(t, func(s *websocket.Settings) { s.Refresh = refresh })
			c := startSDK(t, node, dir, s.url, "websocket")
			c.do("connect")
			c.want("getToken")
			c.do("token", "token", fmt.Sprintf("%q", shortToken(t, "shop", "u")))
			c.want("connected")
			c.want("subscribed")
			c.want("getToken")
			c.do("token", "token", fmt.Sprintf("%q", token(t, "shop", "u")))
			if !refresh { // the connection ended, and came back with the new token
				c.want("connected")
				if e := c.want("subscribed"); !e.Recovered {
					t.Errorf("came back %+v", e)
				}
			}
			eventually(t, "the client is back", func() bool { return outcome(t, s, message("shop", "u", "later")) == providers.Accepted })
			if e := c.want("publication"); e.Title != "later" {
				t.Errorf("published %q", e.Title)
			}
		})
	}
	t.Run("bad token", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		c := startSDK(t, node, dir, s.url, "websocket")
		c.do("connect")
		c.want("getToken")
		c.do("token", "token", `"x"`)
		if e := c.want("disconnected"); e.Code != 3500 {
			t.Errorf("disconnected with %d", e.Code)
		}
	})
}

// jsLiveAndBack connects, gets a message, acknowledges it, goes, comes back and finds what it missed.
func jsLiveAndBack(t *testing.T, node, dir, transport string) {
	s := open(t)
	got := receive(t, s, keep)
	c := startSDK(t, node, dir, s.url, transport)
	c.do("connect")
	c.want("getToken")
	c.do("token", "token", fmt.Sprintf("%q", token(t, "shop", "u")))
	if e := c.want("connected"); e.Transport != transport {
		t.Errorf("connected over %s", e.Transport)
	}
	channel := c.want("subscribed").Channel
	m := message("shop", "u", "live")
	if got := outcome(t, s, m); got != providers.Accepted {
		t.Errorf("live: %v", got)
	}
	if e := c.want("publication"); e.Title != "live" {
		t.Errorf("published %q", e.Title)
	}
	c.do("rpc", "method", `"ack"`, "data", fmt.Sprintf(`{"ids":[%q]}`, m.ID))
	if e := c.want("rpc"); string(e.Data) != "{}" {
		t.Errorf("ack was answered %+v", e)
	}
	if r := <-got; r.ID != m.ID || r.App != "shop" || r.Address != "u" || r.Event != providers.EventDelivered {
		t.Errorf("receipt %+v", r)
	}
	c.do("rpc", "method", `"ack"`, "data", `{"ids":["x"]}`)
	if e := c.want("rpc"); e.Code != 107 {
		t.Errorf("a bad ack was answered %+v", e)
	}
	c.do("disconnect")
	c.want("disconnected")
	gone(t, s)
	for _, title := range []string{"one", "two", "three"} {
		if got := outcome(t, s, message("shop", "u", title)); got != providers.Absent {
			t.Errorf("%s: %v, want absent", title, got)
		}
	}
	c.do("connect")
	c.want("connected")
	if e := c.want("subscribed"); !e.Recovered || e.Channel != channel {
		t.Errorf("came back: %+v", e)
	}
	for _, title := range []string{"one", "two", "three"} {
		if e := c.want("publication"); e.Title != title {
			t.Errorf("recovered %q, want %q", e.Title, title)
		}
	}
	c.do("subscribe", "channel", `"shop/other"`)
	if e := c.want("unsubscribed"); e.Code != 103 {
		t.Errorf("a forbidden subscription ended with %d", e.Code)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if e := <-c.events; e.Event != "connecting" || e.Code != 3001 {
		t.Errorf("at shutdown the SDK reports %+v, want that it reconnects", e)
	}
}

// TestLockFile keeps addresses of any registry, and of a proxy before it, out of the lock file.
func TestLockFile(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(filepath.Join("testdata", "js", "package-lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), "://") || strings.Contains(string(raw), "resolved") {
		t.Error("package-lock.json names where packages were fetched; make it with npm's omit-lockfile-registry-resolved")
	}
}
