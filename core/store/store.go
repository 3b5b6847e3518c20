package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// Options say where the store is and how it forms batches.
type Options struct {
	// URL is "sqlite:<path>" or "postgres://user:password@host:port/database".
	URL string
	// MaxBatch is the most deliveries of a batch on a route; nil: 100.
	MaxBatch func(route string) int
	// Room says how many more wakes of an app, route, lane and due time the queue takes; nil: accepting
	// wakes nothing and the relay brings everything in.
	Room func(like core.Wake) int
	// VoidQueued says that the queue's content is gone with the last process (the embedded Redis): what
	// was queued is overdue at once. SQLite only.
	VoidQueued bool
	// KeyLife is how long an idempotency key is remembered; 0: DefaultKeyLife.
	KeyLife time.Duration
	Logger  *slog.Logger // nil: slog.Default()

	migrations fs.FS // nil: this version's
}

// Store keeps everything. It is safe for concurrent use.
type Store struct {
	b        backend
	maxBatch func(route string) int
	room     func(like core.Wake) int
	keyLife  time.Duration
	log      *slog.Logger
	pages    *pageCache
	recent   *recent
	line     *line
	closing  sync.Once
	running  sync.WaitGroup
	// aside is PostgreSQL's way of administrative writes: they need no committer. Nil: they ride like everything.
	aside func(context.Context, func(tx) error) error
}

// DefaultMaxBatch is the most deliveries of a batch where Options do not say.
const DefaultMaxBatch = 100

// Open opens the store and brings its schema up to date; several processes may do so at once. A schema that
// a newer version made incompatible gives ErrNewerSchema. A SQLite store that another process has open
// gives ErrLocked. All leases of a SQLite store are void from then on: the process that held them is
// gone.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{
		maxBatch: o.MaxBatch, room: o.Room, keyLife: cmp.Or(o.KeyLife, DefaultKeyLife), log: o.Logger, pages: newPageCache(pageCacheBytes), recent: newRecent(),
	}
	if s.log == nil {
		s.log = slog.Default()
		o.Logger = s.log
	}
	if s.maxBatch == nil {
		s.maxBatch = func(string) int { return DefaultMaxBatch }
	}
	switch path, lite := strings.CutPrefix(o.URL, "sqlite:"); {
	case lite && path != "":
		b, err := openSQLite(ctx, path, &o)
		if err != nil {
			return nil, err
		}
		s.b = b
		if err := s.voidLeases(ctx, o.VoidQueued); err != nil {
			return nil, errors.Join(err, b.close())
		}
	case strings.HasPrefix(o.URL, "postgres://"), strings.HasPrefix(o.URL, "postgresql://"):
		b, err := openPostgres(ctx, &o)
		if err != nil {
			return nil, err
		}
		s.b, s.aside = b, b.aside
	default:
		return nil, errors.New(`the store's URL is "sqlite:<path>" or "postgres://user:password@host:port/database"`)
	}
	s.line = newLine(s.b.writers())
	for range s.b.writers() {
		s.running.Go(s.commitGroups)
	}
	return s, nil
}

// voidLeases makes due what the last process held: its rounds, and with queued its wakes, those at their time.
func (s *Store) voidLeases(ctx context.Context, queued bool) error {
	states := "state = 3"
	if queued {
		states = "state IN (2, 3)"
	}
	err := s.b.update(ctx, func(t tx) error {
		_, err := t.exec(ctx, "UPDATE batches SET run_at = CASE WHEN state = 2 AND due_at > $1 THEN due_at ELSE $1 END WHERE "+states+" AND state < 4 AND run_at > $1",
			micros(s.Now()))
		return err
	})
	if err != nil {
		return fmt.Errorf("void the last process's leases: %w", err)
	}
	return nil
}

// Now is the database's time, in whole microseconds.
func (s *Store) Now() time.Time { return s.b.now() }

// pingTimeout bounds a Ping.
const pingTimeout = 1500 * time.Millisecond

// Ping reports whether the database answers, within 1.5 s, and where it is PostgreSQL whether that server takes
// writes; else the error is core.ErrUnavailable. It writes nothing: that the disk is full it does not say.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if err := s.b.ping(ctx); err != nil {
		return fmt.Errorf("%w: %w", core.ErrUnavailable, err)
	}
	return nil
}

// Abandon has everything that waits for PostgreSQL end with core.ErrUnavailable, its outcome unknown, and all
// that is asked for later as well. It is for a process that must go while the server may hang. SQLite's
// transactions end as they would.
func (s *Store) Abandon() { s.b.abandon() }

// closeGrace is how long Close waits for transactions on PostgreSQL.
const closeGrace = 2 * time.Second

// Close waits for the transactions under way, on PostgreSQL for up to 2 s, and closes the database, which takes
// up to 2 s more where it does not answer. Calls after it fail with core.ErrUnavailable.
func (s *Store) Close() error {
	var err error
	s.closing.Do(func() {
		for _, m := range s.line.close() {
			m.err = errClosed
			close(m.done)
		}
		late := time.AfterFunc(closeGrace, s.b.abandon)
		s.running.Wait()
		late.Stop()
		if e := s.b.close(); e != nil {
			err = fmt.Errorf("close the store: %w", e)
		}
	})
	return err
}

// fail says what was attempted and marks errors of the connection or the disk.
func (s *Store) fail(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, core.ErrNotFound), errors.Is(err, core.ErrKeyReused), errors.Is(err, core.ErrLeaseLost):
		return err
	case !errors.Is(err, core.ErrUnavailable) && s.b.unavailable(err):
		return fmt.Errorf("%s: %w: %w", what, core.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// write runs fn in a transaction that is synced when write returns nil. On SQLite it rides in the next
// group commit. fn may run more than once.
func (s *Store) write(ctx context.Context, what string, fn func(tx) error) error {
	if s.aside != nil {
		return s.fail(what, s.aside(ctx, fn))
	}
	return s.fail(what, s.ride(ctx, &member{run: fn, guard: true}))
}

// writeFor is write for what has an answer: that of fn's last run, and none with an error.
func writeFor[T any](ctx context.Context, s *Store, what string, fn func(tx) (T, error)) (T, error) {
	return answerOf(fn, func(run func(tx) error) error { return s.write(ctx, what, run) })
}

// rideFor is writeFor for what is about one delivery. It rides in a group commit on PostgreSQL as well.
func rideFor[T any](ctx context.Context, s *Store, what string, of finding, fn func(tx) (T, error)) (T, error) {
	return answerOf(fn, func(run func(tx) error) error { return s.fail(what, s.ride(ctx, &member{run: run, of: &of})) })
}

// answerOf has do run fn in a transaction, and returns its answer. A caller that goes away may be outlived by its
// transaction, so what it returns is never what fn still writes to.
func answerOf[T any](fn func(tx) (T, error), do func(run func(tx) error) error) (T, error) {
	answers := make(chan T, 1)
	err := do(func(t tx) error {
		v, err := fn(t)
		select {
		case <-answers: // of a run before
		default:
		}
		answers <- v
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return <-answers, nil
}

// refusal is a caller's own error, which ends a transaction and is returned as it is.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// refused takes the caller's own error out of what a transaction ended with.
func refused(err error) error {
	var r refusal
	if errors.As(err, &r) {
		return r.error
	}
	return err
}

func (s *Store) read(ctx context.Context, what, q string, scan func(row) error, args ...any) error {
	return s.fail(what, s.b.query(ctx, q, scan, args...))
}

// keep keeps what a recording that is committed wrote, for those who read it next.
func (s *Store) keep(r *recording) {
	s.pages.add(r.pages)
	s.recent.add(r.recent)
}
