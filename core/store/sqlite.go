package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// readers is how many connections read at once.
const readers = 4

type sqliteDB struct {
	writeDB *sql.DB
	readDB  *sql.DB
	conn    *sql.Conn     // the one that writes
	writing *sqliteConn   // conn's own, below database/sql
	turn    chan struct{} // held by whoever writes
	closed  bool          // guarded by turn
	lockf   *os.File
}

// ErrLocked says that another process has the SQLite store open.
var ErrLocked = errors.New("another process has this data directory open; a SQLite store belongs to one process: stop the other one, or use PostgreSQL, which any number of processes share")

func openSQLite(ctx context.Context, path string, o *Options) (_ *sqliteDB, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	b := &sqliteDB{turn: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	b.lockf, err = os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s must be writable by this user: %w", filepath.Dir(path), err)
	}
	if err := lockSoon(b.lockf); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("open %s: %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path+".lock", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) // as the creator: nobody else may read it
	if err != nil {
		return nil, fmt.Errorf("the database %s must be writable by this user: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	// A commit waits for the data and the file's size, as in SQLite's own builds, and not for its times.
	_, _ = sqlite.Fdatasync(true) // where there is no such call it stays fsync
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() +
		"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=temp_store(2)&_pragma=cache_size(-32000)&_pragma=wal_autocheckpoint(4000)"
	if b.writeDB, err = sql.Open("sqlite", dsn+"&_txlock=immediate"); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	b.writeDB.SetMaxOpenConns(1)
	if err := migrate(ctx, b.writeDB, "sqlite", o); err != nil {
		return nil, err
	}
	if b.conn, err = b.writeDB.Conn(ctx); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if b.readDB, err = sql.Open("sqlite", dsn+"&_pragma=query_only(1)"); err != nil {
		return nil, fmt.Errorf("open %s to read: %w", path, err)
	}
	b.readDB.SetMaxOpenConns(readers)
	b.readDB.SetMaxIdleConns(readers)
	return b, nil
}

func (b *sqliteDB) now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
func (b *sqliteDB) writers() int   { return 1 }

func (b *sqliteDB) unavailable(err error) bool {
	var e *sqlite.Error
	if errors.As(err, &e) {
		switch e.Code() & 0xff {
		case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY,
			sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_NOTADB:
			return true
		}
	}
	return errors.Is(err, sql.ErrConnDone)
}

func (b *sqliteDB) ping(ctx context.Context) error { return b.readDB.PingContext(ctx) }

// abandon leaves what is under way alone: it is the disk that it waits for.
func (b *sqliteDB) abandon() {}

func (b *sqliteDB) close() error {
	var errs []error
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	b.closed = true
	if b.writing != nil {
		errs = append(errs, b.writing.close())
	}
	if b.conn != nil {
		errs = append(errs, b.conn.Close())
	}
	for _, db := range []*sql.DB{b.readDB, b.writeDB} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if b.lockf != nil {
		errs = append(errs, b.lockf.Close()) // gives the lock back
	}
	return errors.Join(errs...)
}

func (b *sqliteDB) update(ctx context.Context, fn func(tx) error) error {
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if b.closed {
		return sql.ErrConnDone
	}
	return b.conn.Raw(func(driverConn any) error {
		if b.writing == nil {
			b.writing = newSQLiteConn(driverConn)
		}
		return b.writing.transaction(ctx, fn)
	})
}

func (b *sqliteDB) query(ctx context.Context, q string, scan func(row) error, args ...any) error {
	rows, err := b.readDB.QueryContext(ctx, q, args...)
	if err != nil {
		return err
	}
	return drain(rows, scan)
}

func (b *sqliteDB) queryMany(ctx context.Context, q string, sets [][]any, scan func(int, row) error) error {
	for i, args := range sets {
		if err := b.query(ctx, q, func(r row) error { return scan(i, r) }, args...); err != nil {
			return err
		}
	}
	return nil
}

func drain(rows *sql.Rows, scan func(row) error) (err error) {
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// lockSoon locks a file. A lock may outlive its owner for a moment: a child that is just being started holds
// all that its parent has open until it runs its own program.
func lockSoon(f *os.File) error {
	for until := time.Now().Add(lockPatience); ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(until) {
			return err
		}
		time.Sleep(lockPatience / 20)
	}
}

const lockPatience = 200 * time.Millisecond
