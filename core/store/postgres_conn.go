package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A server that hangs, or a network that drops everything, says nothing: only these bounds tell.
const (
	pgTxTimeout = 15 * time.Second // of one transaction, or of one read
	pgConnect   = 5 * time.Second  // to make a connection, where the URL has no connect_timeout
	pgAcquire   = 5 * time.Second  // for a read to have its turn and a connection that answers, or an administrative write its turn
	pgUndo      = time.Second      // to roll back, or to say goodbye
	pgClose     = 2 * time.Second  // until the connections are left to end by themselves
	pgLeast     = 2                // connections: one holds the migrations' lock while another migrates
)

// errReadOnly says that writes go elsewhere: this server is a standby, or was the primary until a failover.
var errReadOnly = errors.New("the database is read-only")

// pgSession is what each connection sets.
//
// Durable accept: a server or role set to asynchronous commit must not weaken it. Nor must one set to a stricter
// isolation have a settlement fail where others write, after the service was called: what is read and written together
// is locked, and SKIP LOCKED wants what is committed.
//
// A prepared statement keeps the plan of its first executions, and on tables that are nearly empty that is to read
// them from end to end: until they are analyzed, each settlement would read all deliveries. Every frequent statement
// has its index. What has none looks so dear without that reading that it would be compiled each time.
const pgSession = "SET synchronous_commit = on; SET default_transaction_isolation = 'read committed'; SET enable_seqscan = off; SET jit = off"

// CheckURL says what is wrong with a PostgreSQL URL, as Open would, without touching the network. It reads the files
// that the URL names. No error holds what may be secret.
func CheckURL(url string) error {
	_, err := pgConfig(url)
	return err
}

// pgConfig reads the URL. Its errors never quote it: it may hold a password.
func pgConfig(url string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, unreadable(url)
	}
	if !strings.Contains(url, "pool_max_conns") {
		cfg.MaxConns = 16
	}
	if cfg.MaxConns < pgLeast {
		return nil, fmt.Errorf("the store's URL says pool_max_conns=%d: it must be at least %d (left out it is 16)", cfg.MaxConns, pgLeast)
	}
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = pgConnect
	}
	cfg.ConnConfig.RuntimeParams["application_name"] = "carillon"
	// By a statement, not as parameters of the connection: PgBouncer refuses those that it does not know.
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.PgConn().Exec(ctx, pgSession).ReadAll(); err != nil {
			return fmt.Errorf("set up the session: %w", err)
		}
		return nil
	}
	return cfg, nil
}

// bound is how long a transaction or a read may take: less where the caller's context or the store ends.
func (b *postgresDB) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, pgTxTimeout)
	stop := context.AfterFunc(b.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// cut says of an error that the store was closed under what it is about, where that is so.
func (b *postgresDB) cut(err error) error {
	if err != nil && errors.Is(err, context.Canceled) && b.life.Err() != nil {
		return fmt.Errorf("%w: %w", errClosed, err)
	}
	return err
}

func (b *postgresDB) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	conn, err := b.pool.Acquire(ctx)
	var ce *pgconn.ConnectError
	if errors.As(err, &ce) {
		err = connectError{err}
	}
	return conn, err
}

// read runs fn on a connection, outside of a transaction. Readers leave some of the connections to others: slow lists
// would take all of them, and nothing be accepted or settled meanwhile.
func (b *postgresDB) read(ctx context.Context, fn func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	soon, cancelSoon := context.WithTimeout(ctx, pgAcquire)
	defer cancelSoon()
	select {
	case b.turns <- struct{}{}:
		defer func() { <-b.turns }()
	case <-soon.Done():
		return b.cut(fmt.Errorf("wait for other reads: %w", soon.Err()))
	}
	return b.on(ctx, soon, fn)
}

// ask is read for what the store asks of the server itself, and seldom: it does not wait for the readers.
func (b *postgresDB) ask(ctx context.Context, fn func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	soon, cancelSoon := context.WithTimeout(ctx, pgAcquire)
	defer cancelSoon()
	return b.on(ctx, soon, fn)
}

// on runs fn on a connection that it has before soon ends.
func (b *postgresDB) on(ctx, soon context.Context, fn func(context.Context, *pgx.Conn) error) error {
	conn, err := b.acquire(soon)
	if err != nil {
		return b.cut(err)
	}
	defer conn.Release()
	err = fn(ctx, conn.Conn())
	leave(conn, err)
	return b.cut(err)
}

// leave closes a connection whose server takes no writes, so that the next one is made to the server that does.
// The pool keeps a connection that has only answered with an error.
func leave(conn *pgxpool.Conn, err error) {
	var pe *pgconn.PgError
	if !errors.Is(err, errReadOnly) && (!errors.As(err, &pe) || pe.Code != "25006" && !strings.HasPrefix(pe.Code, "57P")) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), pgUndo)
	defer cancel()
	_ = conn.Conn().Close(ctx) // Release drops it
}

// ping asks whether the server answers and takes writes. It takes no reader's turn: where those are all held by slow
// lists, the server is well and the committers work, while what else is read is slow or a 503 for some seconds. To have
// /readyz take the process out of service for that would bring its readers to the others, and then take those out.
// A server that hangs does not answer on this connection either.
func (b *postgresDB) ping(ctx context.Context) error {
	return b.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		var on string
		if err := conn.QueryRow(ctx, "SHOW transaction_read_only").Scan(&on); err != nil {
			return err
		}
		if on == "on" {
			return errReadOnly
		}
		return nil
	})
}

func (b *postgresDB) abandon() { b.cutOff() }

func (b *postgresDB) close() error {
	b.cutOff()
	<-b.done
	b.closePool()
	return nil
}

// closePool closes the connections and waits a while for that: a server that hangs does not say goodbye, and
// pgx waits for it.
func (b *postgresDB) closePool() {
	b.cutOff()
	closed := make(chan struct{})
	go func() {
		b.pool.Close()
		close(closed)
	}()
	t := time.NewTimer(pgClose)
	defer t.Stop()
	select {
	case <-closed:
	case <-t.C:
	}
}

// connectError is pgx's error of a connection that could not be made, on one line. pgx lists every attempt, and
// by default tries TLS first: that the server speaks none says nothing where the attempt without it failed too.
type connectError struct{ error }

// Error is that line.
func (e connectError) Error() string {
	head, causes, many := strings.Cut(e.error.Error(), "\n")
	if !many {
		return head
	}
	var lines []string
	for line := range strings.Lines(causes) {
		if line = strings.TrimSpace(line); line != "" && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	real := slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return strings.Contains(l, "server refused TLS connection") })
	if len(real) > 0 {
		lines = real
	}
	return head + " " + strings.Join(lines, "; ")
}

// Unwrap gives pgx's own.
func (e connectError) Unwrap() error { return e.error }
