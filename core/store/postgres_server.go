package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	pgOldest = 12 // version
	pgProbes = 8  // how often two connections are compared: others may use the same pool meanwhile
	pgSlow   = 3 * time.Second
)

// ErrPooled says that a connection is not one session of the server for as long as it is open.
var ErrPooled = errors.New("the store's URL leads to a pool that gives a session of PostgreSQL to somebody else after each transaction, as PgBouncer does " +
	"with pool_mode = transaction or statement: set pool_mode = session for this database, or have the URL lead to PostgreSQL itself")

// checkServer refuses a server that will not do, before anything is written to it.
//
// What a session keeps is relied on: its settings, without which a commit need not be on disk; the migrations' lock,
// which would be taken in one session, never be given back in another, and keep every later start waiting; prepared
// statements.
func (b *postgresDB) checkServer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pgTxTimeout)
	defer cancel()
	one, err := b.acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer one.Release()
	if err := checkVersion(ctx, one); err != nil {
		return err
	}
	other, err := b.acquire(ctx)
	if err != nil {
		return fmt.Errorf("make a second connection to PostgreSQL (a process opens up to pool_max_conns; max_connections there, or default_pool_size of PgBouncer, "+
			"must leave room for them): %w", err)
	}
	defer other.Release()
	for range pgProbes {
		if err := checkSession(ctx, one, other); err != nil {
			return fmt.Errorf("look whether PostgreSQL keeps a session: %w", err)
		}
	}
	if _, err := pgSimple(ctx, one, "RESET carillon.session"); err != nil {
		return fmt.Errorf("take the mark off a session: %w", err)
	}
	return nil
}

func checkVersion(ctx context.Context, conn *pgxpool.Conn) error {
	number, err := pgSimple(ctx, conn, "SHOW server_version_num")
	if err != nil {
		return fmt.Errorf("ask PostgreSQL for its version: %w", err)
	}
	if n, err := strconv.Atoi(number); err == nil && n < pgOldest*10_000 {
		return fmt.Errorf("the server is PostgreSQL %d: %d or newer is needed", n/10_000, pgOldest)
	}
	encoding, err := pgSimple(ctx, conn, "SHOW server_encoding")
	if err != nil {
		return fmt.Errorf("ask PostgreSQL for its encoding: %w", err)
	}
	if encoding != "UTF8" && encoding != "SQL_ASCII" { // the latter keeps what it is given
		return fmt.Errorf("the database's encoding is %s, which cannot keep every text: make one with ENCODING 'UTF8' TEMPLATE template0", encoding)
	}
	return nil
}

// checkSession gives one connection's session a mark and looks who has it afterwards. Of a pool of transactions, one that
// hands out its sessions in turn gives the same connection another one at once, and one that hands out the last used
// first gives the other connection the one with the mark. The other then holds a transaction open, so that the one has to
// find its own again.
func checkSession(ctx context.Context, one, other *pgxpool.Conn) error {
	const ask = "SELECT current_setting('carillon.session', true)"
	mark := rand.Text()
	if _, err := pgSimple(ctx, one, "SET carillon.session = '"+mark+"'"); err != nil {
		return err
	}
	keeps := func() error {
		got, err := pgSimple(ctx, one, ask)
		if err == nil && got != mark {
			return ErrPooled
		}
		return err
	}
	if err := keeps(); err != nil {
		return err
	}
	got, err := pgSimple(ctx, other, "BEGIN; "+ask)
	var pe *pgconn.PgError
	switch {
	case errors.As(err, &pe) && pe.Code == "08P01": // PgBouncer's word for a transaction in a pool of statements
		return fmt.Errorf("%w (%s)", ErrPooled, pe.Message)
	case err != nil:
		return err
	}
	defer func() { _, _ = pgSimple(context.WithoutCancel(ctx), other, "ROLLBACK") }()
	if got != "" { // or another start's mark
		return ErrPooled
	}
	return keeps()
}

// pgSimple runs statements without preparing them, and returns the last one's first value.
func pgSimple(ctx context.Context, conn *pgxpool.Conn, sql string) (string, error) {
	results, err := conn.Conn().PgConn().Exec(ctx, sql).ReadAll()
	if err != nil || len(results) == 0 {
		return "", err
	}
	if rows := results[len(results)-1].Rows; len(rows) > 0 && len(rows[0]) > 0 {
		return string(rows[0][0]), nil
	}
	return "", nil
}

// tellHolder says which session holds the migrations' lock, where a start waits for it.
func tellHolder(ctx context.Context, conn *pgxpool.Conn, log *slog.Logger) {
	const q = `SELECT coalesce(max(pid), 0) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND (classid::bigint << 32) + objid::bigint = $1`
	var pid int64
	if err := conn.QueryRow(ctx, q, int64(migrateLock)).Scan(&pid); err != nil {
		log.Debug("who holds the migrations' lock is not known", "error", err)
	}
	log.Warn("the start waits for the migrations of another process; where none runs, end the session that holds their lock: SELECT pg_terminate_backend(held_by)", "held_by", pid)
}

// remedy adds to an error of an opening what to do about it, where PostgreSQL's words do not say.
func remedy(err error) error {
	what := ""
	if pe := (*pgconn.PgError)(nil); errors.As(err, &pe) {
		what = remedies[pe.Code]
	} else {
		for said, do := range sayings {
			if strings.Contains(err.Error(), said) {
				what = do
			}
		}
	}
	if what == "" {
		return err
	}
	return fmt.Errorf("%w; %s", err, what)
}

// sayings are what to do, by what the client says.
var sayings = map[string]string{
	"server refused TLS connection": "turn TLS on at the server, or write sslmode=disable into the URL where nobody else can listen",
	"read only connection":          "none of the URL's servers takes writes: name the primary, too",
}

// remedies are what to do, by SQLSTATE.
var remedies = map[string]string{
	"28P01": "correct the user or the password in the URL, in which a character such as @ : / ? # % is written as %40 %3A %2F %3F %23 %25",
	"28000": "correct the user, the database or sslmode in the URL, or let this user in from here in the server's pg_hba.conf",
	"3D000": "correct the database's name in the URL, or make it: CREATE DATABASE … OWNER …",
	"42501": "the URL's user must own the database and what is in it, or at least be granted CREATE and USAGE on its schema public",
	"42704": "correct the parameters in the URL",
	"53300": "raise the server's max_connections, or lower pool_max_conns in the URL of each process",
	"25006": "have the URL lead to the primary, or name all servers in it with target_session_attrs=read-write",
	"57P03": "start again when the server is up",
}

// parameters are what a URL may say wrongly, and what each must be. A duration is as Go writes it.
var parameters = map[string]string{
	"sslmode": "disable, allow, prefer, require, verify-ca or verify-full", "sslrootcert": "a file of certificates in PEM form", "sslcert": "a file, with sslkey",
	"sslkey": "a file, with sslcert", "connect_timeout": "a whole number of seconds", "target_session_attrs": "any, read-write, read-only, primary, standby or prefer-standby",
	"pool_max_conns": "a whole number", "pool_min_conns": "a whole number", "pool_min_idle_conns": "a whole number", "pool_max_conn_lifetime": "a duration",
	"pool_max_conn_idle_time": "a duration", "pool_health_check_period": "a duration", "pool_max_conn_lifetime_jitter": "a duration", "port": "a whole number",
}

// unreadable says what of a URL cannot be read, without a value: which parameter it would do without.
func unreadable(raw string) error {
	if u, err := url.Parse(raw); err == nil {
		for _, name := range slices.Sorted(maps.Keys(parameters)) {
			query := u.Query()
			if !query.Has(name) {
				continue
			}
			query.Del(name)
			rest := *u
			rest.RawQuery = query.Encode()
			if _, err := pgxpool.ParseConfig(rest.String()); err != nil {
				continue
			}
			if strings.HasPrefix(name, "ssl") && name != "sslmode" {
				if _, err := os.Stat(u.Query().Get(name)); err != nil {
					return fmt.Errorf("read what the parameter %s of the store's URL names: %w", name, err)
				}
			}
			return fmt.Errorf("the parameter %s of the store's URL must be %s", name, parameters[name])
		}
	}
	return errors.New("the store's PostgreSQL URL cannot be read; it is postgres://user:password@host:port/database")
}
