package api_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/api"
)

// stuckImports keeps no recipient until it may, and counts those that were read.
type stuckImports struct {
	api.Recipients
	api.Addresses
	read atomic.Int64
	may  chan struct{}
}

func (s *stuckImports) CheckAddress(kind, address string) error {
	s.read.Add(1)
	return s.Addresses.CheckAddress(kind, address)
}

func (s *stuckImports) ImportRecipients(ctx context.Context, app string, all []core.Import, rules *core.Rules) (int, error) {
	<-s.may
	return s.Recipients.ImportRecipients(ctx, app, all, rules)
}

// TestImportRoom: however many imports there are, what they hold of recipients that are to be kept is bounded; each
// comes to its end, though all of them have to wait for room.
func TestImportRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const streams, lines, size, room = 5, 100, 10_000, 300_000
		s := &stuckImports{may: make(chan struct{})}
		r := newRig(t, func(o *api.Options) {
			s.Recipients, s.Addresses, o.Recipients, o.Addresses, o.ImportRoom = o.Recipients, o.Addresses, s, s, room
		})
		ended := make(chan answer, streams)
		for i := range streams {
			var body strings.Builder
			for j := range lines {
				fmt.Fprintf(&body, `{"id":"u%d-%d","attributes":{"x":%q},"endpoints":[{"kind":"email","address":"u%d-%d@example.com"}]}`+"\n", i, j, strings.Repeat("x", size), i, j)
			}
			go func() {
				ended <- r.do("POST", "/v1/recipients/import", sendKey, body.String(), "Content-Type", "application/x-ndjson")
			}()
		}
		synctest.Wait()
		if n := s.read.Load(); n < 20 || (n-streams)*size > room {
			t.Errorf("%d recipients of %d bytes are held", n, size)
		}
		close(s.may)
		for range streams {
			if a := <-ended; a.status != 200 || !strings.Contains(string(a.body), `"done":true`) || !strings.Contains(string(a.body), fmt.Sprintf(`"created":%d,`, lines)) {
				t.Errorf("%d %.300s", a.status, a.body)
			}
		}
	})
}

// TestImportRoomTaken: an import that others leave no room for says so in the end, and what was sent up to there is kept.
func TestImportRoomTaken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &stuckImports{may: make(chan struct{})}
		r := newRig(t, func(o *api.Options) {
			s.Recipients, s.Addresses, o.Recipients, o.Addresses, o.ImportRoom = o.Recipients, o.Addresses, s, s, 1000
		})
		line := func(id string) string {
			return fmt.Sprintf(`{"id":%q,"attributes":{"x":%q}}`+"\n", id, strings.Repeat("x", 700))
		}
		first := make(chan answer, 1)
		go func() {
			first <- r.do("POST", "/v1/recipients/import", sendKey, line("a"), "Content-Type", "application/x-ndjson")
		}()
		synctest.Wait()
		began := time.Now()
		a := r.do("POST", "/v1/recipients/import", sendKey, line("b"), "Content-Type", "application/x-ndjson")
		if took := time.Since(began); took < time.Second || took > 5*time.Minute || !strings.Contains(string(a.body), `"status":503`) || strings.Contains(string(a.body), `"done"`) {
			t.Errorf("after %v: %d %s", took, a.status, a.body)
		}
		close(s.may)
		if a := <-first; !strings.Contains(string(a.body), `"created":1,`) {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := r.do("POST", "/v1/recipients/import", sendKey, line("b"), "Content-Type", "application/x-ndjson"); !strings.Contains(string(a.body), `"created":1,`) {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}

// panickingImports panics the first time.
type panickingImports struct {
	api.Recipients
	times atomic.Int64
}

func (p *panickingImports) ImportRecipients(ctx context.Context, app string, all []core.Import, rules *core.Rules) (int, error) {
	if p.times.Add(1) == 1 {
		panic("the store's")
	}
	return p.Recipients.ImportRecipients(ctx, app, all, rules)
}

// TestImportRoomAfterPanic: a panic as recipients are kept is the last line of the answer, and gives back their room.
func TestImportRoomAfterPanic(t *testing.T) {
	t.Parallel()
	p := &panickingImports{}
	r := newRig(t, func(o *api.Options) { p.Recipients, o.Recipients, o.ImportRoom = o.Recipients, p, 1000 })
	body := fmt.Sprintf(`{"id":"a","attributes":{"x":%q}}`+"\n", strings.Repeat("x", 700))
	for _, want := range []string{`"status":500`, `"done":true`} {
		if a := r.do("POST", "/v1/recipients/import", sendKey, body+body, "Content-Type", "application/x-ndjson"); a.status != 200 || !strings.Contains(string(a.body), want) {
			t.Errorf("%d, want %s: %s", a.status, want, a.body)
		}
	}
}

// TestBodyRoom: bodies that are read at the same time have so much room together. Whom there is none for is told so, small
// ones always have some, and what is only announced takes none.
func TestBodyRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *api.Options) { o.BodyRoom = api.MaxBodyAttachment })
		large := mail(`"content":{"title":"t","email":{"attachments":[{"filename":"a.bin","content_type":"application/octet-stream","content":"` + strings.Repeat("QUFB", 1_500_000) + `"}]}}`)
		begin := func(body string) (end func() int) {
			rest, w := io.Pipe()
			req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/notifications", io.MultiReader(strings.NewReader(body[:len(body)-1]), rest))
			req.Header.Set("Authorization", "Bearer "+sendKey)
			req.ContentLength = int64(len(body))
			answered := httptest.NewRecorder()
			done := make(chan int, 1)
			go func() {
				r.handler.ServeHTTP(answered, req)
				done <- answered.Code
			}()
			synctest.Wait()
			return func() int {
				go func() {
					_, _ = io.WriteString(w, body[len(body)-1:])
					_ = w.Close()
				}()
				defer rest.Close() // who was refused reads no more of it
				return <-done
			}
		}
		announced := begin(" ")
		first, second := begin(large), begin(large)
		a := r.do("POST", "/v1/notifications", sendKey, large)
		if a.status != 503 || a.header.Get("Retry-After") == "" {
			t.Errorf("without room: %d %.300s", a.status, a.body)
		}
		r.must(202, "POST", "/v1/notifications", sendKey, simple)
		if got := []int{second(), first()}; got[0] != 503 || got[1] != 202 {
			t.Errorf("two large ones: %v", got)
		}
		for range 3 { // what they took is given back
			r.must(202, "POST", "/v1/notifications", sendKey, large)
		}
		announced()
	})
}
