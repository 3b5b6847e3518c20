package app_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/coretest"
)

// installed is the path of a program that a test needs.
func installed(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv(coretest.RequireServers) == "1" {
			t.Fatalf("%s is not installed, and %s is 1", name, coretest.RequireServers)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

// jsClient is a released centrifuge client for JavaScript in a process of its own: the one that the
// gateway is tested with, client.mjs of providers/websocket.
type jsClient struct {
	t      *testing.T
	in     io.Writer
	events chan jsEvent
}

type jsEvent struct {
	Event, Title, ID string
	at               time.Time
}

func startJS(t *testing.T, base string) *jsClient {
	t.Helper()
	node, npm, dir := installed(t, "node"), installed(t, "npm"), t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.FromSlash("../../providers/websocket/testdata/js"))); err != nil {
		t.Fatal(err)
	}
	install := exec.CommandContext(t.Context(), npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	cmd := exec.Command(node, "client.mjs", base, "websocket")
	cmd.Dir, cmd.Stderr = dir, t.Output()
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
	c := &jsClient{t, in, make(chan jsEvent, 100)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(c.events)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			e := jsEvent{at: time.Now()}
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Errorf("client.mjs said %q", lines.Text())
			}
			c.events <- e
		}
	}()
	t.Cleanup(func() {
		in.Close() // on which it exits
		<-done
		cmd.Wait()
	})
	return c
}

// do sends client.mjs a command, as JSON.
func (c *jsClient) do(command string) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.in, command); err != nil {
		c.t.Fatal(err)
	}
}

// want returns the next event of a sort; those of others are passed over.
func (c *jsClient) want(sort string) jsEvent {
	c.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case e, ok := <-c.events:
			if !ok {
				c.t.Fatalf("client.mjs ended; want %s", sort)
			}
			if e.Event == sort {
				return e
			}
		case <-limit:
			c.t.Fatalf("the JavaScript client never reports %s", sort)
		}
	}
}

// TestPrintedLine runs the line that a first start prints, in a shell, with nothing but what was printed:
// it reaches the three stand-ins and a JavaScript client in less than a second.
func TestPrintedLine(t *testing.T) {
	t.Parallel()
	installed(t, "curl")
	p := startProcess(t, "orchestrator", []string{"-listen", "127.0.0.1:0"}, nil)
	line := ""
	eventually(t, time.Minute, "the line is printed", func() bool {
		line = regexp.MustCompile(`(?m)^curl .*$`).FindString(p.printed())
		return line != ""
	})
	key := regexp.MustCompile(`API key +(\S+)`).FindStringSubmatch(p.printed())[1]

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.base+"/v1/recipients/u_42/token", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var minted struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&minted); err != nil || minted.Token == "" {
		t.Fatalf("a token: %d %v", resp.StatusCode, err)
	}
	js := startJS(t, p.base)
	js.do(`{"cmd":"connect"}`)
	js.want("getToken")
	js.do(fmt.Sprintf(`{"cmd":"token","token":%q}`, minted.Token))
	js.want("subscribed")

	best := time.Duration(0)
	for range 3 { // the machine may be busy with something else once
		began := time.Now()
		out, err := exec.CommandContext(t.Context(), "sh", "-c", line).Output()
		answered := time.Since(began)
		var got accepted
		if err != nil || json.Unmarshal(out, &got) != nil || got.Deliveries != 4 {
			t.Fatalf("%s\n%v: %s", line, err, out)
		}
		live := js.want("publication")
		if live.Title != "Hello" {
			t.Errorf("the client got %+v", live)
		}
		took := live.at.Sub(began)
		arrived := []string{fmt.Sprintf("live %d ms", took.Milliseconds())}
		for service, at := range sandboxArrivals(t, p.base, began) {
			arrived = append(arrived, fmt.Sprintf("%s %d ms", service, at.Milliseconds()))
			took = max(took, at)
		}
		t.Logf("from the shell's start: answered %d ms, %s", answered.Milliseconds(), strings.Join(arrived, ", "))
		if best == 0 || took < best {
			best = took
		}
		js.do(fmt.Sprintf(`{"cmd":"rpc","method":"ack","data":{"ids":[%q]}}`, live.ID))
		js.want("rpc")
	}
	if best >= time.Second {
		t.Errorf("the quickest of three took %s to arrive everywhere", best)
	}
}

// sandboxArrivals waits until all three stand-ins have a message of since then, and says when it came.
func sandboxArrivals(t *testing.T, base string, since time.Time) map[string]time.Duration {
	t.Helper()
	at := map[string]time.Duration{}
	eventually(t, 30*time.Second, "all three stand-ins have the message", func() bool {
		var list struct {
			Data []struct {
				Service string
				At      time.Time
			}
		}
		if _, err := newCaller(t, base).do(t.Context(), http.MethodGet, "/v1/sandbox/messages?limit=200", nil, &list); err != nil {
			t.Fatal(err)
		}
		for _, m := range list.Data {
			if m.At.After(since) {
				at[m.Service] = m.At.Sub(since)
			}
		}
		return len(at) == 3
	})
	return at
}
