package store

import (
	"context"
	"io/fs"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// Migrations are this version's.
var Migrations fs.FS = migrations

// OpenAs is Open for a version with other migrations.
func OpenAs(ctx context.Context, o Options, with fs.FS) (*Store, error) {
	o.migrations = with
	return Open(ctx, o)
}

// What the tests of the line need to know of it.
const (
	FullGroup = fullGroup
	Company   = company
	Flight    = flight
	Absence   = absence
	Patience  = patience
	Commits   = commits
)

// Line is a line of acceptances.
type Line struct{ l *line }

// NewLine returns an empty one, for so many committers.
func NewLine(committers int) Line { return Line{newLine(committers)} }

// Join has n acceptances join.
func (l Line) Join(n int) {
	for range n {
		l.l.join(&member{record: &recording{a: &core.Acceptance{}}})
	}
}

// Claim has a claim join, and Settle a settlement.
func (l Line) Claim() { l.l.join(&member{claim: &claim{}}) }

// Settle is described at Claim.
func (l Line) Settle() { l.l.join(&member{settle: &settling{s: &core.Settlement{}}}) }

// Gather waits for the next group, and says how many it has, how long that took, and how to end it.
func (l Line) Gather() (n int, waited time.Duration, done func()) {
	began := time.Now()
	group := l.l.gather()
	return len(group), time.Since(began), func() { l.l.done(group) }
}

// Close closes the line and says how many waited.
func (l Line) Close() int { return len(l.l.close()) }

// Waiting is how many wait for a group.
func (s *Store) Waiting() int {
	s.line.mu.Lock()
	defer s.line.mu.Unlock()
	return len(s.line.waiting)
}

// AskClock asks PostgreSQL for its time, as is done every few seconds.
func (s *Store) AskClock(ctx context.Context) error { return s.b.(*postgresDB).setClock(ctx) }

// Tx is a transaction, as the statements of a group have it.
type Tx struct{ t tx }

// Update runs fn in one.
func (s *Store) Update(ctx context.Context, fn func(Tx) error) error {
	return s.b.update(ctx, func(t tx) error { return fn(Tx{t}) })
}

// Insert adds rows.
func (t Tx) Insert(ctx context.Context, table, columns string, rows [][]any) error {
	return t.t.insert(ctx, table, columns, rows)
}

// Names are those of all routes that are known to be paused or were.
func (t Tx) Names(ctx context.Context) (names []string, err error) {
	err = t.t.query(ctx, "SELECT name FROM routes ORDER BY name", func(r row) error {
		names = append(names, "")
		return r.Scan(&names[len(names)-1])
	})
	return names, err
}

// ReadNames is Names whose answer is there with the next statement's.
func (t Tx) ReadNames(ctx context.Context) (*[]string, error) {
	var names []string
	err := t.t.read(ctx, "SELECT name FROM routes ORDER BY name", func(r row) error {
		names = append(names, "")
		return r.Scan(&names[len(names)-1])
	})
	return &names, err
}

// Read reads rows that cannot be scanned for that reason.
func (t Tx) Read(ctx context.Context, sql string, why error) error {
	return t.t.read(ctx, sql, func(row) error { return why })
}

// EncodeContent is how a content is kept.
func EncodeContent(c core.Content) ([]byte, error) { return encodeContent(c) }

// Setting is what PostgreSQL has a setting at in the store's sessions.
func (s *Store) Setting(ctx context.Context, name string) (value string, err error) {
	err = s.b.query(ctx, "SELECT current_setting($1)", func(r row) error { return r.Scan(&value) }, name)
	return value, err
}

// OnPage has fn called before each page is read.
func (s *Store) OnPage(fn func()) {
	s.Watch(func(sql string) {
		if strings.Contains(sql, "SELECT body FROM pages") {
			fn()
		}
	})
}

// Watch has seen told of each statement, but for those that add rows, from now on. It may be called from many
// goroutines. Nothing may use the store yet.
func (s *Store) Watch(seen func(sql string)) { s.b = watched{s.b, seen} }

// Plan is how SQLite would find the rows of a statement, a line for each of its steps.
func (s *Store) Plan(ctx context.Context, sql string) (steps []string, err error) {
	err = s.b.query(ctx, "EXPLAIN QUERY PLAN "+sql, func(r row) error {
		var id, parent, unused int64
		steps = append(steps, "")
		return r.Scan(&id, &parent, &unused, &steps[len(steps)-1])
	}, make([]any, 99)...) // of which it takes as many as it has parameters
	return steps, err
}

type watched struct {
	backend
	seen func(sql string)
}

func (w watched) query(ctx context.Context, q string, scan func(row) error, args ...any) error {
	w.seen(q)
	return w.backend.query(ctx, q, scan, args...)
}

func (w watched) queryMany(ctx context.Context, q string, sets [][]any, scan func(int, row) error) error {
	w.seen(q)
	return w.backend.queryMany(ctx, q, sets, scan)
}

func (w watched) queryIDs(ctx context.Context, q string, ids [][]byte, scan func(row) error, args ...any) error {
	w.seen(withIDs(q))
	return w.backend.queryIDs(ctx, q, ids, scan, args...)
}

func (w watched) update(ctx context.Context, fn func(tx) error) error {
	return w.backend.update(ctx, func(t tx) error { return fn(watchedTx{t, w.seen}) })
}

type watchedTx struct {
	tx
	seen func(sql string)
}

func (w watchedTx) query(ctx context.Context, q string, scan func(row) error, args ...any) error {
	w.seen(q)
	return w.tx.query(ctx, q, scan, args...)
}

func (w watchedTx) read(ctx context.Context, q string, scan func(row) error, args ...any) error {
	w.seen(q)
	return w.tx.read(ctx, q, scan, args...)
}

func (w watchedTx) queryMany(ctx context.Context, q string, sets [][]any, scan func(int, row) error) error {
	w.seen(q)
	return w.tx.queryMany(ctx, q, sets, scan)
}

func (w watchedTx) queryIDs(ctx context.Context, q string, ids [][]byte, scan func(row) error, args ...any) error {
	w.seen(withIDs(q))
	return w.tx.queryIDs(ctx, q, ids, scan, args...)
}

func (w watchedTx) exec(ctx context.Context, q string, args ...any) (int64, error) {
	w.seen(q)
	return w.tx.exec(ctx, q, args...)
}

func (w watchedTx) execMany(ctx context.Context, q string, sets [][]any) ([]int64, error) {
	w.seen(q)
	return w.tx.execMany(ctx, q, sets)
}

func (w watchedTx) write(ctx context.Context, q string, sets [][]any) error {
	w.seen(q)
	return w.tx.write(ctx, q, sets)
}

func (w watchedTx) execIDs(ctx context.Context, q string, ids [][]byte, args ...any) error {
	w.seen(withIDs(q))
	return w.tx.execIDs(ctx, q, ids, args...)
}

func (w watchedTx) writeIDs(ctx context.Context, q string, sets [][]any) error {
	if len(sets) > 0 {
		w.seen(byID(q, len(sets[0])))
	}
	return w.tx.writeIDs(ctx, q, sets)
}

// withIDs is a statement on two ids.
func withIDs(q string) string { return strings.ReplaceAll(q, "{ids}", "IN ($98, $99)") }

// Sleep is a read that takes so many seconds.
func (s *Store) Sleep(ctx context.Context, seconds int) error {
	return s.read(ctx, "sleep", "SELECT 1 FROM pg_sleep($1)", func(row) error { return nil }, seconds)
}

// Kept is how many statements the store keeps prepared itself, and the most texts of INSERTs that are kept for it.
func (s *Store) Kept() (prepared, texts int) {
	b, lite := s.b.(*sqliteDB)
	if !lite {
		pgInserts.mu.Lock()
		defer pgInserts.mu.Unlock()
		return 0, len(pgInserts.made)
	}
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	return len(b.writing.stmts), len(b.writing.inserts.made)
}

// MostKept bounds both.
const MostKept = max(maxStmts, maxTexts)

// EachName calls fn for each name that Names has, while they are being read.
func (t Tx) EachName(ctx context.Context, fn func(name string) error) error {
	return t.t.query(ctx, "SELECT name FROM routes ORDER BY name", func(r row) error {
		var name string
		if err := r.Scan(&name); err != nil {
			return err
		}
		return fn(name)
	})
}

// Run runs a statement.
func (t Tx) Run(ctx context.Context, sql string) error {
	_, err := t.t.exec(ctx, sql)
	return err
}

// MigrateLock is the advisory lock of the migrations.
const MigrateLock = int64(migrateLock)

// MaxRecent is how many deliveries are kept for the claims of what was just recorded, and Recent how many are.
const MaxRecent = maxRecent

// Recent is described at MaxRecent.
func (s *Store) Recent() int {
	s.recent.mu.Lock()
	defer s.recent.mu.Unlock()
	return s.recent.size
}

// Pending are the deliveries of a batch that are pending, as a claim reads them.
func (s *Store) Pending(ctx context.Context, b *core.Batch) ([]core.Delivery, error) {
	r := &core.Round{Batch: *b}
	err := s.b.update(ctx, func(t tx) error { return loadPending(ctx, t, []*core.Round{r}) })
	return r.Deliveries, err
}

// EncodeResults is how the results of a round are kept, unpacked.
func EncodeResults(as []core.Attempt) ([]byte, error) {
	return unpack(encodeResults(as).([]byte))
}

// ClaimBeside is Claim in one group with another member, which is called once the batch is claimed and may fail the group:
// then it is called again by itself, and then the claim is tried by itself.
func (s *Store) ClaimBeside(ctx context.Context, w core.Wake, other func() error) (*core.Round, error) {
	c := &claim{wake: w, worker: "w1", lease: time.Minute}
	group := []*member{{run: func(tx) error { return other() }}, {claim: c}}
	for _, m := range group {
		m.ctx, m.done = ctx, make(chan struct{})
	}
	s.commit(group)
	return c.round, group[1].err
}
