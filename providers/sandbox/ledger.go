package sandbox

import (
	"context"
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// entry is a message as the ledger keeps it: as it came, to be decoded when somebody looks.
type entry struct {
	seq         uint64
	at          time.Time
	service     Service
	id, address string
	header      []field
	content     []byte
	answered    string
	copy        int
	lost        atomic.Bool // the answer could not be given
}

type field struct{ name, value string }

// idShards spreads the ids of a service over that many maps with a lock each.
const idShards = 64

var hashSeed = maphash.MakeSeed()

// book holds the figures and ids of one service.
type book struct {
	requests, taken, distinct, conns, ok atomic.Uint64
	shards                               [idShards]struct {
		mu  sync.Mutex
		ids map[string]int
		_   [40]byte // a cache line each
	}
	answersMu sync.Mutex
	answers   map[string]uint64
	// wakeAt is the smallest number of distinct ids that somebody waits for.
	wakeAt    atomic.Uint64
	waitersMu sync.Mutex
	waiters   map[*waiter]struct{}
}

type waiter struct {
	n    uint64
	done chan struct{}
}

func newBook() *book {
	b := &book{answers: map[string]uint64{}, waiters: map[*waiter]struct{}{}}
	b.wakeAt.Store(math.MaxUint64)
	for i := range b.shards {
		b.shards[i].ids = map[string]int{}
	}
	return b
}

// copyOf counts an id and says how often it came by now.
func (b *book) copyOf(id string) int {
	s := &b.shards[maphash.String(hashSeed, id)%idShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids[id]++
	return s.ids[id]
}

// copiesOf says how often an id came by now.
func (b *book) copiesOf(id string) int {
	s := &b.shards[maphash.String(hashSeed, id)%idShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids[id]
}

// answer counts an answer by its code.
func (b *book) answer(code string) {
	if code == "200" {
		b.ok.Add(1)
		return
	}
	b.answersMu.Lock()
	defer b.answersMu.Unlock()
	b.answers[code]++
}

func (b *book) counts() Counts {
	c := Counts{Distinct: b.distinct.Load(), Conns: b.conns.Load(), Answers: map[string]uint64{}}
	c.Taken, c.Requests = b.taken.Load(), b.requests.Load()
	c.Duplicates = c.Taken - c.Distinct
	if n := b.ok.Load(); n > 0 {
		c.Answers["200"] = n
	}
	b.answersMu.Lock()
	defer b.answersMu.Unlock()
	for code, n := range b.answers {
		c.Answers[code] = n
	}
	return c
}

// ids returns the ids that came at least atLeast times, with how often they came.
func (b *book) ids(atLeast int) map[string]int {
	all := map[string]int{}
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		for id, n := range s.ids {
			if n >= atLeast {
				all[id] = n
			}
		}
		s.mu.Unlock()
	}
	return all
}

func (b *book) reset() {
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		clear(s.ids)
		s.mu.Unlock()
	}
	for _, n := range []*atomic.Uint64{&b.distinct, &b.taken, &b.requests, &b.conns, &b.ok} {
		n.Store(0)
	}
	b.answersMu.Lock()
	defer b.answersMu.Unlock()
	clear(b.answers)
}

// wait returns when n different ids were taken.
func (b *book) wait(ctx context.Context, n uint64) error {
	w := &waiter{n: n, done: make(chan struct{})}
	b.waitersMu.Lock()
	b.waiters[w] = struct{}{}
	b.wakeAt.Store(min(b.wakeAt.Load(), n))
	b.waitersMu.Unlock()
	b.wake(b.distinct.Load()) // it may have been reached before
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		b.waitersMu.Lock()
		defer b.waitersMu.Unlock()
		delete(b.waiters, w)
		return ctx.Err()
	}
}

// wake lets those go on who waited for no more than distinct ids.
func (b *book) wake(distinct uint64) {
	if distinct < b.wakeAt.Load() {
		return
	}
	b.waitersMu.Lock()
	defer b.waitersMu.Unlock()
	next := uint64(math.MaxUint64)
	for w := range b.waiters {
		if w.n <= distinct {
			close(w.done)
			delete(b.waiters, w)
		} else {
			next = min(next, w.n)
		}
	}
	b.wakeAt.Store(next)
}

// ledger holds what arrived at all services.
type ledger struct {
	books map[Service]*book

	mu       sync.Mutex
	capacity int // 0: no bound
	seq      uint64
	first    uint64 // the oldest entry that is kept
	entries  []*entry

	resets      atomic.Uint64
	listeners   atomic.Int32
	listenersMu sync.Mutex
	listening   map[chan Message]Service
}

func newLedger(capacity int) *ledger {
	l := &ledger{
		books: map[Service]*book{APNs: newBook(), FCM: newBook(), SMTP: newBook()},
		first: 1, listening: map[chan Message]Service{},
	}
	switch {
	case capacity == 0:
		l.capacity = 10_000
	case capacity > 0:
		l.capacity = capacity
	}
	if l.capacity > 0 {
		l.entries = make([]*entry, l.capacity)
	}
	return l
}

// take records a message. The counters move last: whoever saw them move finds the message.
func (l *ledger) take(e *entry) {
	b := l.books[e.service]
	e.copy = b.copyOf(e.id)
	l.mu.Lock()
	l.seq++
	e.seq = l.seq
	if l.capacity > 0 {
		l.entries[e.seq%uint64(l.capacity)] = e
		l.first = max(l.first, e.seq+1-min(e.seq, uint64(l.capacity)))
	} else {
		l.entries = append(l.entries, e)
	}
	l.mu.Unlock()
	b.taken.Add(1)
	if e.copy == 1 {
		b.wake(b.distinct.Add(1))
	}
	if l.listeners.Load() > 0 {
		l.tell(e)
	}
}

// newest calls f with the entries older than before, the newest first, until f returns false.
func (l *ledger) newest(before uint64, f func(*entry) bool) {
	var page [256]*entry
	for {
		n := 0
		l.mu.Lock()
		if before > l.seq {
			before = l.seq + 1
		}
		for before > l.first && n < len(page) {
			before--
			page[n] = l.at(before)
			n++
		}
		l.mu.Unlock()
		for _, e := range page[:n] {
			if !f(e) {
				return
			}
		}
		if n < len(page) {
			return
		}
	}
}

func (l *ledger) at(seq uint64) *entry {
	if l.capacity > 0 {
		return l.entries[seq%uint64(l.capacity)]
	}
	return l.entries[seq-(l.seq+1-uint64(len(l.entries)))]
}

func (l *ledger) reset() {
	l.resets.Add(1)
	l.mu.Lock()
	l.first = l.seq + 1
	if l.capacity > 0 {
		clear(l.entries)
	} else {
		l.entries = nil
	}
	l.mu.Unlock()
	for _, b := range l.books {
		b.reset()
	}
}

func (l *ledger) tell(e *entry) {
	l.listenersMu.Lock()
	defer l.listenersMu.Unlock()
	var m Message
	for ch, service := range l.listening {
		// A slow listener misses messages, it never holds up a service. Nobody else sends here.
		if service != "" && service != e.service || len(ch) == cap(ch) {
			continue
		}
		if m.Seq == 0 {
			m = e.message()
		}
		ch <- m
	}
}

func (l *ledger) listen(service Service, size int) (<-chan Message, func()) {
	ch := make(chan Message, max(size, 1))
	l.listenersMu.Lock()
	defer l.listenersMu.Unlock()
	l.listening[ch] = service
	l.listeners.Add(1)
	return ch, sync.OnceFunc(func() {
		l.listenersMu.Lock()
		defer l.listenersMu.Unlock()
		delete(l.listening, ch)
		l.listeners.Add(-1)
	})
}
