package coretest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	chromeDirPrefix = "carillon-chromium-"
	chromeCall      = 30 * time.Second // for a command, on a machine that is busy with other tests
)

// chrome is the one browser of this test process. Its tabs share nothing but the process.
var chrome struct {
	once sync.Once
	path string // "" where it is not installed
	dir  string
	err  error
	b    *browser
}

// browser is a running Chromium, spoken to in the DevTools protocol over a pipe: JSON, each message ended
// by a NUL. Only the few commands that tests need are known here, by their names.
type browser struct {
	cmd  *exec.Cmd
	in   *os.File
	log  bytes.Buffer
	gone chan struct{}

	mu    sync.Mutex
	last  int
	calls map[int]chan<- answer
	tabs  map[string]*Tab // by session
}

type answer struct {
	result json.RawMessage
	err    error
}

// message is what comes out of the pipe: an answer, which has an id, or an event.
type message struct {
	ID      int             `json:"id"`
	Session string          `json:"sessionId"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params"`
	Result  json.RawMessage `json:"result"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// Chromium opens a tab of a headless Chromium that the tests of one process share. The tab has cookies
// and a cache of its own and is closed when the test ends. The browser resolves no name but those of
// this machine, so that nothing it might ask for leaves it. Where Chromium is not installed the test is
// skipped, or fails if CARILLON_REQUIRE_SERVERS is 1. StopServers, called by TestMain, ends the browser.
func Chromium(t testing.TB) *Tab {
	t.Helper()
	chrome.once.Do(func() {
		if chrome.path, _ = exec.LookPath("chromium"); chrome.path != "" {
			removeStale(chromeDirPrefix)
			chrome.b, chrome.err = startChromium()
		}
	})
	if chrome.path == "" {
		if os.Getenv(RequireServers) == "1" {
			t.Fatal("chromium is not installed, and " + RequireServers + " is 1")
		}
		t.Skip("chromium is not installed")
	}
	if chrome.err != nil {
		t.Fatalf("start Chromium: %v", chrome.err)
	}
	return openTab(t, chrome.b)
}

func startChromium() (*browser, error) {
	dir, err := os.MkdirTemp("", chromeDirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, err
	}
	chrome.dir = dir
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	b := &browser{in: in, gone: make(chan struct{}), calls: map[int]chan<- answer{}, tabs: map[string]*Tab{}}
	b.cmd = exec.Command(chrome.path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-breakpad",
		"--disable-dev-shm-usage", "--mute-audio", "--password-store=basic", "--force-color-profile=srgb", "--hide-scrollbars",
		"--disable-features=Translate,MediaRouter,OptimizationHints", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
		"--remote-debugging-pipe", "--user-data-dir="+filepath.Join(dir, "profile"), "about:blank")
	b.cmd.Env = append(os.Environ(), "HOME="+dir)
	b.cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4, as --remote-debugging-pipe wants them
	b.cmd.Stderr = &b.log
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = Start(b.cmd)
	_, _ = theirIn.Close(), theirOut.Close()
	if err != nil {
		return nil, err
	}
	go func() {
		_ = b.cmd.Wait()
		close(b.gone)
	}()
	go b.read(out)
	if err := b.call(context.Background(), "", "Browser.getVersion", nil, nil); err != nil {
		return nil, fmt.Errorf("%w: %s", err, b.end())
	}
	return b, nil
}

// end kills the browser with all its processes and returns what it wrote.
func (b *browser) end() string {
	_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
	<-b.gone
	return b.log.String()
}

// stopChromium ends the browser and removes its profile, which its dying processes may still write to.
func stopChromium() {
	if chrome.b != nil {
		chrome.b.end()
	}
	if chrome.dir == "" {
		return
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 50 {
		if os.RemoveAll(chrome.dir) == nil {
			return
		}
		<-tick.C
	}
}

// read hands out what comes through the pipe, until it ends.
func (b *browser) read(out io.Reader) {
	r := bufio.NewReaderSize(out, 1<<16)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			break
		}
		var m message
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue // nothing that a test waits for
		}
		b.mu.Lock()
		call, tab := b.calls[m.ID], b.tabs[m.Session]
		delete(b.calls, m.ID)
		b.mu.Unlock()
		switch {
		case m.ID > 0 && call != nil && m.Error != nil:
			call <- answer{err: errors.New(m.Error.Message)}
		case m.ID > 0 && call != nil:
			call <- answer{result: m.Result}
		case m.ID == 0 && tab != nil:
			tab.event(m.Method, m.Params)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, call := range b.calls {
		call <- answer{err: errors.New("Chromium ended")}
		delete(b.calls, id)
	}
}

// call runs one command, of the browser or (with a session) of a tab, and decodes what it answers.
func (b *browser) call(ctx context.Context, session, method string, params, out any) error {
	ctx, cancel := context.WithTimeout(ctx, chromeCall)
	defer cancel()
	got, err := b.send(session, method, params)
	if err != nil {
		return err
	}
	select {
	case a := <-got:
		if a.err != nil {
			return fmt.Errorf("%s: %w", method, a.err)
		}
		if out == nil {
			return nil
		}
		return json.Unmarshal(a.result, out)
	case <-b.gone:
		return fmt.Errorf("%s: Chromium ended", method)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, ctx.Err())
	}
}

func (b *browser) send(session, method string, params any) (<-chan answer, error) {
	if params == nil {
		params = struct{}{}
	}
	got := make(chan answer, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last++
	text, err := json.Marshal(struct {
		ID      int    `json:"id"`
		Session string `json:"sessionId,omitempty"`
		Method  string `json:"method"`
		Params  any    `json:"params"`
	}{b.last, session, method, params})
	if err != nil {
		return nil, err
	}
	b.calls[b.last] = got
	if _, err := b.in.Write(append(text, 0)); err != nil {
		delete(b.calls, b.last)
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	return got, nil
}
