package queue

import (
	"log/slog"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
)

// Decode is decode.
func Decode(kind string, body []byte) (core.ID, int64, error) {
	p, err := decode(kind, body)
	return p.Batch, p.Fence, err
}

// TaskType is the type of every task.
const TaskType = taskType

// DoNotPoll makes the servers started from now on ask only when their bell rings.
func (q *Queue) DoNotPoll() {
	q.tempo.longestWait, q.tempo.askAnyway, q.tempo.forwardAnyway = time.Hour, time.Hour, time.Hour
}

// TellWaiting has fn told of each dequeue that begins to wait for its bell, from now on.
func (q *Queue) TellWaiting(fn func(queue string)) { q.tempo.waiting = fn }

// MisreadKeys makes the servers started from now on not recognise asynq's scripts.
func (q *Queue) MisreadKeys() { q.tempo.prefix = "other:{" }

// Recognised says of how many of its queues a server has seen asynq's dequeue.
func (s *Server) Recognised() (n int) {
	for _, l := range s.lanes {
		if l.bell.recognised.Load() {
			n++
		}
	}
	return n
}

// Known is how many wakes a queue is taken to hold, without asking anybody.
func (q *Queue) Known(route string, lane core.Lane) (pending, scheduled int) {
	q.window.mu.Lock()
	defer q.window.mu.Unlock()
	p := q.window.place(name(route, lane))
	return p.now.depth, p.later.depth
}

// NewLoggers are what the asynq servers of some queues log to.
func NewLoggers(log *slog.Logger, queues ...string) (out []asynq.Logger) {
	words := new(said)
	for _, on := range queues {
		out = append(out, &logger{log: log, queue: on, words: words})
	}
	return out
}

// Bell is one doorbell by itself.
type Bell struct{ b *bell }

// NewBell returns the doorbell of a queue in its usual tempo.
func NewBell(queue string, lost, taken func()) Bell { return Bell{newBell(queue, usual, lost, taken)} }

// Hook is what go-redis is given.
func (b Bell) Hook() redis.Hook { return b.b }

// Ring rings it.
func (b Bell) Ring() { b.b.ring() }

// Expect notes a wake due later.
func (b Bell) Expect(due time.Time) { b.b.expect(due) }

// Close lets everybody in for good.
func (b Bell) Close() { b.b.close() }

// Shortcut is the hook that runs asynq's scripts on a miniredis in Go.
func Shortcut(mr *miniredis.Miniredis) redis.Hook { return &shortcut{mr: mr} }

// ShortcutOf is the SHA-1 of the script of that name that it knows.
func ShortcutOf(name string) string {
	return map[string]string{"enqueue": enqueueSHA, "dequeue": dequeueSHA, "done": doneSHA}[name]
}

// Announced is a wake that is announced to other processes.
type Announced struct {
	Queue string
	Due   time.Time // zero: at once
}

// Announcements are what is announced of some wakes together, and what is left to be after that.
func Announcements(of ...Announced) (first, second map[string]int64) {
	var b bells
	b.init(true)
	for _, a := range of {
		b.ring(a.Queue, a.Due)
	}
	return b.announcements(), b.announcements()
}

// Rung is how often the bell of a lane was rung.
func (s *Server) Rung(lane core.Lane) uint64 {
	for _, l := range s.lanes {
		if l.name == name(s.o.Route, lane) {
			n, _, _ := l.bell.look()
			return n
		}
	}
	return 0
}

// Bells is how many servers of a queue are rung for.
func (q *Queue) Bells(route string, lane core.Lane) int {
	q.bells.mu.Lock()
	defer q.bells.mu.Unlock()
	return len(q.bells.byName[name(route, lane)])
}

// Ring rings the bell of a lane.
func (s *Server) Ring(lane core.Lane) {
	for _, l := range s.lanes {
		if l.name == name(s.o.Route, lane) {
			l.bell.ring()
		}
	}
}

// Window is what is known of how full one queue is, by itself.
type Window struct{ w *window }

const only = "a.normal"

// NewWindow returns one of a queue of that size, of which nothing is known.
func NewWindow(size int) Window {
	w := new(window)
	w.init(size, []string{only})
	return Window{w}
}

// Add notes a wake that was put in, due now.
func (w Window) Add(app string) { w.w.add(only, app, time.Time{}) }

// Taken notes one that was taken out.
func (w Window) Taken() { w.w.taken(only) }

// Fail notes an error of Redis's.
func (w Window) Fail(err error) { w.w.fail(err) }

// Look notes what was seen, by somebody who asked beside what else happens in meanwhile.
func (w Window) Look(pending, scheduled int, err error, meanwhile func()) (looked bool) {
	if looked = w.w.begin(only); looked {
		meanwhile()
		w.w.end(only, pending, scheduled, err)
	}
	return looked
}

// Room is how many more wakes of an app it takes.
func (w Window) Room(app string) int { return w.w.room(only, app, false, true) }
