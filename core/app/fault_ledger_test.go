package app_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// ledger is the first of three accounts, what was acknowledged to clients, and compares it with the other
// two: what arrived in the world, and what the store says.
type ledger struct {
	h *house

	mu       sync.Mutex
	next     int
	acked    []*request
	done     map[string]bool // ids of notifications that were seen to be terminal
	refusals map[int]int     // answers that were no 202, by status
	running  sync.WaitGroup
	waited   string // the notification that settle waited for last, of the test's goroutine alone
}

// request is one notification that a client asks for until it is acknowledged.
type request struct {
	n     int
	body  string
	key   string
	want  int  // deliveries
	once  bool // unknown: fail, so at most once
	dead  int  // addresses that are not there
	twice bool // two clients send it at once
	id    string
}

// A client waits so long for an answer, and so long before it asks again.
const (
	clientTimeout = 3 * time.Second
	again         = 200 * time.Millisecond
)

// compose draws the n-th request of a seed.
func (l *ledger) compose(n int) *request {
	rng := rand.New(rand.NewPCG(l.h.seed, uint64(n)+1))
	r := &request{n: n, key: fmt.Sprintf("fault-%d", n), twice: n%10 == 0}
	address := func(kind string, i int) string {
		dead := kind != "email" && rng.IntN(100) < 2
		if dead {
			r.dead++
		}
		forms := map[string]string{"email": "u%d-%d@example.com", "apns": "a%055x%08x", "fcm": "fcm-token-%d-%d"}
		if dead { // by its name
			forms = map[string]string{"apns": "dead%052x%08x", "fcm": "dead-fcm-token-%d-%d"}
		}
		return fmt.Sprintf(`{%q:%q}`, kind, fmt.Sprintf(forms[kind], n, i))
	}
	kinds := []string{"apns", "fcm", "email"}
	var to []string
	more := ""
	switch shape := rng.IntN(100); {
	case shape < 20: // many of one kind, which share a batch
		kind := kinds[rng.IntN(3)]
		for i := range 5 + rng.IntN(20) {
			to = append(to, address(kind, i))
		}
	default:
		for i, kind := range kinds {
			to = append(to, address(kind, i))
		}
		hook := "hooks"
		if rng.IntN(100) < 2 {
			hook = "dead"
			r.dead++
		}
		to = append(to, fmt.Sprintf(`{"websocket":"u_%d"}`, n), fmt.Sprintf(`{"kind":"webhook","address":"https://%s/%s/%d"}`, l.h.links["all/webhook"].Addr, hook, n))
		if shape < 30 {
			more = fmt.Sprintf(`,"delay":"%dms"`, 500+rng.IntN(2500))
		} else if shape < 45 {
			r.once, more = true, `,"unknown":"fail"`
		}
	}
	r.want = len(to)
	lane := []string{"critical", "normal", "normal", "bulk"}[rng.IntN(4)]
	r.body = fmt.Sprintf(`{"to":[%s],"content":{"title":"Message %d","body":"of the fault test"},"priority":%q%s}`, strings.Join(to, ","), n, lane, more)
	return r
}

// load asks for so many notifications a second from many clients until the function it returns is called,
// which waits until all are acknowledged.
func (l *ledger) load(rate int) (stop func()) {
	ctx, cancel := context.WithCancel(l.h.t.Context())
	ticking := make(chan struct{})
	go func() {
		defer close(ticking)
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-tick.C:
				l.ask(1)
			}
		}
	}()
	return func() {
		cancel()
		<-ticking
		l.running.Wait()
	}
}

// ask has clients begin to ask for the next n notifications.
func (l *ledger) ask(n int) {
	for range n {
		l.mu.Lock()
		l.next++
		r := l.compose(l.next)
		l.mu.Unlock()
		l.running.Go(func() { l.send(r) })
	}
}

// send asks for one notification until it is acknowledged, now and then from two clients at once.
func (l *ledger) send(r *request) {
	clients := 1
	if r.twice {
		clients = 2
	}
	l.crowd(r, clients)
}

// crowd has several clients ask for one notification under its key, by each API in turn, until all of them
// have their answer. It has to be the same.
func (l *ledger) crowd(r *request, clients int) {
	ctx, cancel := context.WithTimeout(l.h.t.Context(), 2*time.Minute)
	defer cancel()
	apis, ids := l.h.apis(), make([]string, clients)
	var asking sync.WaitGroup
	for i := range ids {
		asking.Go(func() {
			for try := r.n + i; ctx.Err() == nil && ids[i] == ""; try++ {
				if ids[i] = l.post(ctx, apis[try%len(apis)], r); ids[i] == "" {
					pause(ctx, again)
				}
			}
		})
	}
	asking.Wait()
	r.id = ids[0]
	for _, id := range ids {
		if id == "" {
			l.h.t.Errorf("request %d was not acknowledged within two minutes", r.n)
			return
		}
		if id != r.id {
			l.h.t.Errorf("the key of request %d was answered with two notifications, %s and %s", r.n, id, r.id)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked = append(l.acked, r)
}

// answer is what an API said.
type answer struct {
	status int
	header http.Header
	text   []byte
}

// exchange asks once; nil is no answer.
func (l *ledger) exchange(ctx context.Context, method, url, key, body string) *answer {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		l.h.t.Error(err)
		return nil
	}
	req.Header.Set("Authorization", "Bearer "+testKey)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := l.h.c.http.Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil
	}
	return &answer{resp.StatusCode, resp.Header, text}
}

// refused notes an answer that takes nothing. Overload, a store that is away, the same key under way: each says when
// to come back, and there is no other.
func (l *ledger) refused(what string, a *answer) {
	l.mu.Lock()
	l.refusals[a.status]++
	l.mu.Unlock()
	later := slices.Contains([]int{http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusConflict}, a.status)
	if !later || a.header.Get("Retry-After") == "" {
		l.h.t.Errorf("%s was refused: %d %s", what, a.status, a.text)
	}
}

// post asks once, and returns the id if it was acknowledged.
func (l *ledger) post(ctx context.Context, api string, r *request) string {
	a := l.exchange(ctx, http.MethodPost, api+"/v1/notifications", r.key, r.body)
	if a == nil {
		return ""
	}
	if a.status != http.StatusAccepted {
		l.refused(fmt.Sprintf("request %d", r.n), a)
		return ""
	}
	var got accepted
	if err := json.Unmarshal(a.text, &got); err != nil || got.ID == "" || got.Deliveries != r.want {
		l.h.t.Errorf("request %d was answered %s", r.n, a.text)
	}
	return got.ID
}

// accepts waits until each API acknowledges a new notification.
func (l *ledger) accepts(ctx context.Context) error {
	for _, api := range l.h.apis() {
		l.mu.Lock()
		l.next++
		r := l.compose(l.next)
		l.mu.Unlock()
		for r.id == "" {
			if r.id = l.post(ctx, api, r); r.id == "" {
				pause(ctx, again)
			}
			if r.id == "" && ctx.Err() != nil {
				return fmt.Errorf("%s acknowledges nothing: %w", api, ctx.Err())
			}
		}
		l.mu.Lock()
		l.acked = append(l.acked, r)
		l.mu.Unlock()
	}
	return nil
}

// count is how many notifications were acknowledged.
func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// open lists the acknowledged notifications that were not seen to be terminal.
func (l *ledger) open() (ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.acked {
		if !l.done[r.id] {
			ids = append(ids, r.id)
		}
	}
	return ids
}

// giveUp waits for notifications no more: what they came to is told at the end.
func (l *ledger) giveUp(ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		l.done[id] = true
	}
}

// settle waits until all of the notifications are terminal, one after the other: an answer that is late
// holds up the question after the next.
func (l *ledger) settle(ctx context.Context, ids []string) error {
	for i, id := range ids {
		for !l.terminal(ctx, id) {
			l.waited = id
			pause(ctx, 50*time.Millisecond)
			if ctx.Err() != nil {
				return fmt.Errorf("at most %d notifications are not terminal, such as %s: %w", len(ids)-i, l.story(id), ctx.Err())
			}
		}
	}
	return nil
}

// terminal asks about a notification; a process that is just coming back is asked again.
func (l *ledger) terminal(ctx context.Context, id string) bool {
	var v notification
	status, err := l.h.c.do(ctx, http.MethodGet, "/v1/notifications/"+id, nil, &v)
	if status == http.StatusNotFound {
		l.h.t.Errorf("lost: %s was acknowledged and is not there", id)
	} else if err != nil || status != http.StatusOK || v.Counts.Pending > 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done[id] = true
	return true
}

// story is what there is to know of a notification.
func (l *ledger) story(id string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var ds, steps json.RawMessage
	_, err1 := l.h.c.do(ctx, http.MethodGet, "/v1/notifications/"+id+"/deliveries?limit=200", nil, &ds)
	_, err2 := l.h.c.do(ctx, http.MethodGet, "/v1/notifications/"+id+"/timeline", nil, &steps)
	return fmt.Sprintf("%s: deliveries %s, timeline %s (%v)", id, ds, steps, errors.Join(err1, err2))
}

// totals are what a comparison came to.
type totals struct{ deliveries, sent, failed, arrived, duplicates, unknowns int }

// compare holds the three ledgers against each other. Nothing may be under way.
func (l *ledger) compare() {
	t := l.h.t
	t.Helper()
	taken := l.h.arrived()
	var mu sync.Mutex
	var sum totals
	known, distinct := map[string]bool{}, map[string]bool{}
	work := make(chan *request)
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			for r := range work {
				var ds struct{ Data []delivery }
				l.get("/v1/notifications/"+r.id+"/deliveries?limit=200", &ds)
				one := l.check(r, ds.Data, taken)
				mu.Lock()
				if distinct[r.id] {
					t.Errorf("%s was acknowledged for two requests", r.id)
				}
				distinct[r.id] = true
				for _, d := range ds.Data {
					known[d.ID] = true
				}
				sum.deliveries += one.deliveries
				sum.sent += one.sent
				sum.failed += one.failed
				sum.arrived += one.arrived
				sum.duplicates += one.duplicates
				sum.unknowns += one.unknowns
				mu.Unlock()
			}
		})
	}
	for _, r := range l.acked {
		work <- r
	}
	close(work)
	readers.Wait()
	l.h.campaigns.compare(taken, known)
	for route, ids := range taken {
		for id := range ids {
			if !known[id] {
				t.Errorf("%s received %s, which belongs to nothing that was acknowledged", route, id)
			}
		}
	}
	if sum.sent+sum.failed != sum.deliveries {
		t.Errorf("%d deliveries, %d of them sent and %d failed", sum.deliveries, sum.sent, sum.failed)
	}
	t.Logf("%d notifications, refused on the way: %v; %+v", len(l.acked), l.refusals, sum)
}

// get asks for what must be there.
func (l *ledger) get(path string, out any) {
	if status, err := l.h.c.do(l.h.t.Context(), http.MethodGet, path, nil, out); err != nil || status != http.StatusOK {
		l.h.t.Errorf("GET %s answered %d, %v", path, status, err)
	}
}

// check compares one notification's entries.
func (l *ledger) check(r *request, ds []delivery, taken map[string]map[string]int) (sum totals) {
	t := l.h.t
	var v notification
	l.get("/v1/notifications/"+r.id, &v)
	c := v.Counts
	if states := c.Pending + c.Sent + c.Delivered + c.Failed + c.Expired + c.Cancelled + c.Suppressed; len(ds) != r.want || states != r.want || c.Pending != 0 {
		t.Errorf("%s was accepted with %d deliveries; it has %d, and by state %+v", r.id, r.want, len(ds), c)
	}
	sum.deliveries = len(ds)
	lost := 0 // for reasons other than a dead address
	for _, d := range ds {
		copies := taken[d.Route][d.ID]
		switch {
		case d.State == "sent" && copies == 0 && d.Route != "websocket":
			t.Errorf("lost: delivery %s of %s is sent and never arrived: %s", d.ID, d.Route, l.story(r.id))
		case copies > 1+d.Unknown:
			t.Errorf("delivery %s of %s arrived %d times with %d unknown attempts on record: %s", d.ID, d.Route, copies, d.Unknown, l.story(r.id))
		case copies > 1 && r.once:
			t.Errorf("delivery %s of %s was to arrive at most once and arrived %d times: %s", d.ID, d.Route, copies, l.story(r.id))
		case copies > 1:
			l.fences(r, d)
		}
		switch {
		case d.State == "sent":
			sum.sent++
		case d.State == "failed" && d.Code != "":
			sum.failed++
			if !(r.once && d.Unknown > 0) {
				lost++
			}
		default:
			t.Errorf("delivery %s of %s ended as %s (%s)", d.ID, d.Route, d.State, d.Code)
		}
		sum.arrived += copies
		sum.duplicates += max(0, copies-1)
		sum.unknowns += d.Unknown
	}
	if lost > r.dead {
		t.Errorf("%d deliveries of %s failed, and %d of its addresses are dead: %s", lost, r.id, r.dead, l.story(r.id))
	}
	return sum
}

// fences checks that no two copies of a delivery were sent under one fence: each round has a fence of its
// own, so before the n-th copy arrives n rounds must have begun, and all of the delivery's own before the last of them
// have ended, or been given up. Copies may be late, never early.
func (l *ledger) fences(r *request, d delivery) {
	var list struct {
		Data []struct {
			At       time.Time
			Delivery string
			What     string `json:"step"`
			Route    string
			Attempt  int
		}
	}
	l.get("/v1/notifications/"+r.id+"/timeline", &list)
	var rounds, ended []time.Time
	for _, s := range list.Data {
		switch {
		case s.What == "started" && s.Route == d.Route:
			rounds = append(rounds, s.At)
		case s.What == "attempt" && s.Delivery == d.ID:
			ended = append(ended, s.At)
		}
	}
	if len(rounds) == 0 {
		l.h.t.Errorf("the timeline of %s shows no round: %+v", r.id, list.Data)
	}
	for i, arrived := range l.h.copies(d.Route, d.ID) {
		begun := 0
		for _, at := range rounds {
			if !at.After(arrived.Add(clockSlack)) {
				begun++
			}
		}
		over := 0
		for _, at := range ended {
			if !at.After(arrived.Add(clockSlack)) {
				over++
			}
		}
		if begun < i+1 || over < i {
			l.h.t.Errorf("copy %d of delivery %s of %s arrived at %s, when %d rounds had begun and %d of its own were over: %s", i+1, d.ID, d.Route, arrived.UTC().Format(time.RFC3339Nano), begun, over, l.story(r.id))
		}
	}
}

// clockSlack is how far the store's clock, asked for over a connection now and then, may be from ours.
const clockSlack = 100 * time.Millisecond
