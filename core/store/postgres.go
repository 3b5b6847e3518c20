package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/carillon-notify/carillon/core"
)

const (
	pgWriters  = 3
	pgSpare    = 1                // connection for who asks how the server is, and for what is done by one process
	pgAsides   = 3                // one in so many of the others is for administrative writes
	clockEvery = 10 * time.Second // how often the database is asked for its time
	pgTries    = 3                // of a transaction that is a deadlock's victim

	migrateLock  = 0x436172696c6c6f // "Carillo": the advisory lock of the migrations
	migrateEvery = 50 * time.Millisecond
)

// anchor is what the database's time was at a time here, which has the monotonic clock.
type anchor struct {
	db, here time.Time
	off      time.Duration // by how much that may be wrong: half of what the answer took
}

// drift bounds how fast two clocks part: by less than one part in so many.
const drift = 1000

type postgresDB struct {
	pool   *pgxpool.Pool
	turns  chan struct{} // held by whoever reads, for as long
	asides chan struct{} // held by whoever writes and is no committer
	anchor atomic.Pointer[anchor]
	life   context.Context // ends with cutOff, and everything under way with it
	cutOff context.CancelFunc
	done   chan struct{}
}

func openPostgres(ctx context.Context, o *Options) (*postgresDB, error) {
	cfg, err := pgConfig(o.URL)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	left := int(cfg.MaxConns) - pgWriters - pgSpare
	asides := max(1, left/pgAsides)
	b := &postgresDB{pool: pool, turns: make(chan struct{}, max(1, left-asides)), asides: make(chan struct{}, asides), done: make(chan struct{})}
	b.life, b.cutOff = context.WithCancel(context.Background())
	if err := b.prepare(ctx, o); err != nil {
		b.closePool()
		return nil, remedy(err)
	}
	go b.keepClock(b.life, o.Logger)
	return b, nil
}

func (b *postgresDB) prepare(ctx context.Context, o *Options) error {
	if err := b.checkServer(ctx); err != nil {
		return err
	}
	if err := b.migrate(ctx, o); err != nil {
		return err
	}
	if err := b.setClock(ctx); err != nil {
		return fmt.Errorf("ask PostgreSQL for its time: %w", err)
	}
	return nil
}

// migrate applies the migrations under an advisory lock, so that instances that start together wait
// for the first. The lock is asked for again and again rather than waited for: a statement that waits has a
// snapshot, and CREATE INDEX CONCURRENTLY waits for the end of every older one.
func (b *postgresDB) migrate(ctx context.Context, o *Options) (err error) {
	conn, err := b.acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer conn.Release()
	if _, err := pgSimple(ctx, conn, pgUnbound); err != nil {
		return fmt.Errorf("take the time-outs off a session: %w", err)
	}
	defer func() {
		if _, berr := pgSimple(context.WithoutCancel(ctx), conn, pgBound); berr != nil {
			err = errors.Join(err, fmt.Errorf("put the time-outs back on a session: %w", berr))
		}
	}()
	slow := time.After(pgSlow)
	for got := false; ; {
		if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", int64(migrateLock)).Scan(&got); err != nil {
			return fmt.Errorf("ask for the migrations' lock: %w", err)
		}
		if got {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for other instances' migrations: %w", ctx.Err())
		case <-slow:
			tellHolder(ctx, conn, o.Logger)
		case <-time.After(migrateEvery):
		}
	}
	err = b.migrateAlone(ctx, o)
	if _, uerr := conn.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", int64(migrateLock)); uerr != nil {
		err = errors.Join(err, fmt.Errorf("give the migrations' lock back: %w", uerr))
	}
	return err
}

// The time-outs that a server, a database or a role may have set are for the short statements of every day. A migration of large
// tables takes what it takes, as long as whoever holds their lock is idle meanwhile. (Not each version knows all of them.)
const (
	pgTimeouts = " FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')"
	pgUnbound  = "SELECT set_config(name, '0', false)" + pgTimeouts
	pgBound    = "SELECT set_config(name, reset_val, false)" + pgTimeouts
)

// migrateAlone applies the migrations over one connection, which has no time-outs meanwhile.
func (b *postgresDB) migrateAlone(ctx context.Context, o *Options) (err error) {
	db := stdlib.OpenDBFromPool(b.pool)
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	db.SetMaxIdleConns(1) // it stays the same one
	if _, err := db.ExecContext(ctx, pgUnbound); err != nil {
		return fmt.Errorf("take the time-outs off the migrations: %w", err)
	}
	err = migrate(ctx, db, "postgres", o)
	if _, berr := db.ExecContext(context.WithoutCancel(ctx), pgBound); berr != nil {
		err = errors.Join(err, fmt.Errorf("put the time-outs back: %w", berr))
	}
	return err
}

func (b *postgresDB) setClock(ctx context.Context) error {
	var us int64
	before := time.Now()
	err := b.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").Scan(&us)
	})
	if err != nil {
		return err
	}
	half := time.Since(before) / 2
	if last := b.anchor.Load(); last != nil && half > last.off+time.Since(last.here)/drift {
		return nil // it came over a connection that was slow or hung for a while: the last one is more exact
	}
	b.anchor.Store(&anchor{db: time.UnixMicro(us).UTC(), here: before.Add(half), off: half})
	return nil
}

func (b *postgresDB) keepClock(ctx context.Context, log *slog.Logger) {
	defer close(b.done)
	t := time.NewTicker(clockEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := b.setClock(ctx); err != nil && ctx.Err() == nil {
				log.Debug("PostgreSQL did not tell its time; the last one is counted on", "error", err)
			}
		}
	}
}

func (b *postgresDB) now() time.Time {
	a := b.anchor.Load()
	return a.db.Add(time.Since(a.here)).Truncate(time.Microsecond)
}

func (b *postgresDB) writers() int { return pgWriters }

func (b *postgresDB) unavailable(err error) bool {
	if errors.Is(err, core.ErrUnavailable) {
		return true
	}
	var ce *pgconn.ConnectError
	if errors.As(err, &ce) {
		return true // whatever the server says of it: on a full disk that is an internal error
	}
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		// Class 08 connection, 53 resources, 57 operator intervention, 58 system, XX internal error, 25006 read-only.
		return slices.Contains([]string{"08", "53", "57", "58", "XX"}, pe.Code[:min(2, len(pe.Code))]) || pe.Code == "25006"
	}
	var ne net.Error
	return errors.As(err, &ne) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, context.DeadlineExceeded) || pgconn.Timeout(err) || strings.Contains(err.Error(), "conn closed") ||
		strings.Contains(err.Error(), "closed pool")
}

// update runs fn again when PostgreSQL chose its transaction to break a deadlock: nothing of it was kept.
func (b *postgresDB) update(ctx context.Context, fn func(tx) error) error {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	for try := 1; ; try++ {
		err := b.tryUpdate(ctx, fn)
		var pe *pgconn.PgError
		if try == pgTries || !errors.As(err, &pe) || (pe.Code != "40P01" && pe.Code != "40001") {
			return b.cut(err)
		}
	}
}

// aside is update for who is no committer. Like readers they leave some of the connections to others: writes that wait
// for a row that somebody holds would take all of them.
func (b *postgresDB) aside(ctx context.Context, fn func(tx) error) error {
	soon, cancel := context.WithTimeout(ctx, pgAcquire)
	defer cancel()
	select {
	case b.asides <- struct{}{}:
		defer func() { <-b.asides }()
	case <-soon.Done():
		return fmt.Errorf("wait for other writes: %w", soon.Err())
	case <-b.life.Done():
		return errClosed
	}
	return b.update(ctx, fn)
}

func (b *postgresDB) tryUpdate(ctx context.Context, fn func(tx) error) (err error) {
	conn, err := b.acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Release() // which closes a connection whose transaction is still open
	defer func() { leave(conn, err) }()
	t := &pgTx{conn: conn.Conn(), bound: ctx}
	if err := fn(t); err != nil {
		t.rollback()
		return err
	}
	if err := t.commit(ctx); err != nil {
		t.rollback()
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

func (b *postgresDB) query(ctx context.Context, q string, scan func(row) error, args ...any) error {
	return b.read(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, q, args...)
		if err != nil {
			return err
		}
		return pgDrain(rows, scan)
	})
}

func (b *postgresDB) queryMany(ctx context.Context, q string, sets [][]any, scan func(int, row) error) error {
	if len(sets) == 0 {
		return nil
	}
	batch := &pgx.Batch{}
	for _, args := range sets {
		batch.Queue(q, args...)
	}
	return b.read(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return pgAnswers(conn.SendBatch(ctx, batch), len(sets), scan)
	})
}

func (b *postgresDB) queryIDs(ctx context.Context, q string, ids [][]byte, scan func(row) error, args ...any) error {
	if len(ids) == 0 {
		return nil
	}
	q, args = pgIDs(q, ids, args)
	return b.query(ctx, q, scan, args...)
}
