package coretest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const tabWait = 30 * time.Second // for a condition of a page

// Tab is a browser's tab. Its methods fail the test where the page does not do what was asked.
type Tab struct {
	t       testing.TB
	b       *browser
	session string

	mu       sync.Mutex
	loaded   map[string]chan struct{} // by navigation; closed as its page is loaded
	problems []string
	asked    []string
}

func openTab(t testing.TB, b *browser) *Tab {
	t.Helper()
	p := &Tab{t: t, b: b, loaded: map[string]chan struct{}{}}
	var own struct {
		ID string `json:"browserContextId"`
	}
	p.must(b.call(t.Context(), "", "Target.createBrowserContext", nil, &own))
	t.Cleanup(func() { // closes its tab too
		if err := b.call(context.Background(), "", "Target.disposeBrowserContext", map[string]any{"browserContextId": own.ID}, nil); err != nil {
			t.Log(err)
		}
	})
	var target struct {
		ID string `json:"targetId"`
	}
	p.must(b.call(t.Context(), "", "Target.createTarget", map[string]any{"url": "about:blank", "browserContextId": own.ID}, &target))
	var attached struct {
		ID string `json:"sessionId"`
	}
	p.must(b.call(t.Context(), "", "Target.attachToTarget", map[string]any{"targetId": target.ID, "flatten": true}, &attached))
	p.session = attached.ID
	b.mu.Lock()
	b.tabs[p.session] = p
	b.mu.Unlock()
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		p.do(domain+".enable", nil, nil)
	}
	p.do("Page.setLifecycleEventsEnabled", map[string]any{"enabled": true}, nil)
	p.Screen(1280, 800, false)
	return p
}

func (p *Tab) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("the browser: %v", err)
	}
}

func (p *Tab) do(method string, params, out any) {
	p.t.Helper()
	p.must(p.b.call(p.t.Context(), p.session, method, params, out))
}

// event notes what a page does that a test wants to know. It must not call the browser.
func (p *Tab) event(method string, params json.RawMessage) {
	var e struct {
		Type    string // of a console call
		URL     string // of a WebSocket
		Message string // of a dialog
		Request struct{ URL string }
		Entry   struct{ Level, Text, URL string }
		Args    []struct{ Value, Description any }

		ExceptionDetails struct {
			Text      string
			Exception struct{ Description string }
		}
		ErrorText string
		Canceled  bool

		LoaderID, Name string // of a navigation
	}
	if json.Unmarshal(params, &e) != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch method {
	case "Page.lifecycleEvent":
		if done := p.navigation(e.LoaderID); e.Name == "load" {
			select {
			case <-done: // another frame of the page
			default:
				close(done)
			}
		}
	case "Page.javascriptDialogOpening":
		p.problems = append(p.problems, "a dialog: "+e.Message)
		_, _ = p.b.send(p.session, "Page.handleJavaScriptDialog", map[string]any{"accept": true})
	case "Network.requestWillBeSent":
		p.asked = append(p.asked, e.Request.URL)
	case "Network.webSocketCreated":
		p.asked = append(p.asked, e.URL)
	case "Network.loadingFailed":
		if !e.Canceled {
			p.problems = append(p.problems, "a request failed: "+e.ErrorText)
		}
	case "Runtime.exceptionThrown":
		p.problems = append(p.problems, "an exception: "+e.ExceptionDetails.Text+" "+e.ExceptionDetails.Exception.Description)
	case "Runtime.consoleAPICalled":
		if e.Type == "error" || e.Type == "warning" || e.Type == "assert" {
			p.problems = append(p.problems, fmt.Sprintf("console.%s: %v", e.Type, e.Args))
		}
	case "Log.entryAdded":
		if e.Entry.Level == "error" || e.Entry.Level == "warning" {
			p.problems = append(p.problems, e.Entry.Level+": "+e.Entry.Text+" "+e.Entry.URL)
		}
	}
}

// navigation is what tells that the page of a navigation is loaded; p.mu is held.
func (p *Tab) navigation(id string) chan struct{} {
	if p.loaded[id] == nil {
		p.loaded[id] = make(chan struct{})
	}
	return p.loaded[id]
}

// Go opens a page and waits until it is loaded.
func (p *Tab) Go(address string) {
	p.t.Helper()
	var went struct{ ErrorText, LoaderID string }
	p.do("Page.navigate", map[string]any{"url": address}, &went)
	if went.ErrorText != "" {
		p.t.Fatalf("open %s: %s", address, went.ErrorText)
	}
	if went.LoaderID == "" {
		return // within the page
	}
	p.mu.Lock()
	loaded := p.navigation(went.LoaderID)
	p.mu.Unlock()
	select {
	case <-loaded:
	case <-time.After(tabWait):
		p.t.Fatalf("%s was not loaded within %s", address, tabWait)
	}
}

// Eval evaluates a JavaScript expression in the page, awaits it if it is a promise, and decodes its
// value into out unless that is nil.
func (p *Tab) Eval(expression string, out any) {
	p.t.Helper()
	if err := p.eval(expression, out); err != nil {
		p.t.Fatalf("evaluate %s: %v", expression, err)
	}
}

func (p *Tab) eval(expression string, out any) error {
	var got struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	err := p.b.call(p.t.Context(), p.session, "Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &got)
	if err != nil {
		return err
	}
	if e := got.ExceptionDetails; e != nil {
		return fmt.Errorf("%s %s", e.Text, e.Exception.Description)
	}
	if out == nil || len(got.Result.Value) == 0 {
		return nil
	}
	return json.Unmarshal(got.Result.Value, out)
}

// Wait waits until a JavaScript expression holds in the page, whichever that has become by then.
func (p *Tab) Wait(expression string) {
	p.t.Helper()
	limit, tick := time.NewTimer(tabWait), time.NewTicker(20*time.Millisecond)
	defer limit.Stop()
	defer tick.Stop()
	for {
		ok := false
		err := p.eval("!!("+expression+")", &ok) // an error, too, may pass: the page may be changing
		if err == nil && ok {
			return
		}
		select {
		case <-tick.C:
		case <-p.t.Context().Done():
			p.t.FailNow()
		case <-limit.C:
			text, where := "", ""
			_ = p.eval("document.body.innerText", &text)
			_ = p.eval("location.href", &where)
			p.shoot("failed")
			p.t.Fatalf("not within %s: %s (%v), on %s:\n%s\n%s", tabWait, expression, err, where, text, strings.Join(p.Problems(), "\n"))
		}
	}
}

// WaitText waits until the element that a CSS selector finds shows a text.
func (p *Tab) WaitText(selector, text string) {
	p.t.Helper()
	p.Wait(fmt.Sprintf("document.querySelector(%q)?.innerText.includes(%q)", selector, text))
}

// Text returns what the element that a CSS selector finds shows.
func (p *Tab) Text(selector string) string {
	p.t.Helper()
	text := ""
	p.Eval(fmt.Sprintf("document.querySelector(%q).innerText", selector), &text)
	return text
}

// Click clicks the middle of the element that a CSS selector finds, as a mouse does: something lying
// over it gets the click instead.
func (p *Tab) Click(selector string) {
	p.t.Helper()
	// Before its style is there a page is laid out otherwise, and the element would move away.
	p.Wait(fmt.Sprintf(`document.readyState === "complete" && document.querySelector(%q)`, selector))
	var at struct{ X, Y float64 }
	p.Eval(fmt.Sprintf(`(() => { const e = document.querySelector(%q); e.scrollIntoView({block: "center", behavior: "instant"});
		const r = e.getBoundingClientRect(); return {x: r.x + r.width / 2, y: r.y + r.height / 2}; })()`, selector), &at)
	for _, kind := range []string{"mousePressed", "mouseReleased"} {
		p.do("Input.dispatchMouseEvent", map[string]any{"type": kind, "x": at.X, "y": at.Y, "button": "left", "clickCount": 1}, nil)
	}
}

// Type clicks an element and types a text, key by key; "\n" is the Enter key.
func (p *Tab) Type(selector, text string) {
	p.t.Helper()
	p.Click(selector)
	for _, r := range text {
		key := map[string]any{"type": "char", "text": string(r)}
		if r == '\n' {
			key = map[string]any{"type": "keyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
		}
		p.do("Input.dispatchKeyEvent", key, nil)
	}
}

// Screen sets the window's size in CSS pixels, and whether the user prefers dark colours. Below 600
// pixels the tab plays a phone.
func (p *Tab) Screen(width, height int, dark bool) {
	p.t.Helper()
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	p.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}, nil)
	p.do("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// Shoot keeps a picture of the whole page as <name>.png in the test's artifacts, if those are asked for
// (go test -artifacts -outputdir).
func (p *Tab) Shoot(name string) {
	p.t.Helper()
	if f := flag.Lookup("test.artifacts"); f != nil && f.Value.String() == "true" {
		p.shoot(name)
	}
}

func (p *Tab) shoot(name string) {
	var size struct{ Width, Height float64 }
	_ = p.eval("({width: innerWidth, height: Math.min(6000, Math.max(innerHeight, document.documentElement.scrollHeight))})", &size)
	var got struct{ Data string }
	err := p.b.call(context.Background(), p.session, "Page.captureScreenshot", map[string]any{"captureBeyondViewport": true,
		"clip": map[string]any{"x": 0, "y": 0, "width": size.Width, "height": size.Height, "scale": 1}}, &got)
	if err != nil {
		p.t.Log(err)
		return
	}
	png, _ := base64.StdEncoding.DecodeString(got.Data)
	if err := os.WriteFile(filepath.Join(p.t.ArtifactDir(), name+".png"), png, 0o600); err != nil {
		p.t.Log(err)
	}
}

// Problems returns what went wrong in the pages so far: errors and warnings in the console, uncaught
// exceptions, dialogs, requests that failed or that a policy refused.
func (p *Tab) Problems() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.problems)
}

// Forget forgets the problems so far, which the test expected.
func (p *Tab) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problems = nil
}

// Hosts returns the hosts that the pages asked anything of so far, each once.
func (p *Tab) Hosts() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, a := range p.asked {
		if u, err := url.Parse(a); err == nil && u.Host != "" && !slices.Contains(out, u.Host) {
			out = append(out, u.Host)
		}
	}
	return out
}
