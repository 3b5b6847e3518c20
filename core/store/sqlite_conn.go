package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/carillon-notify/carillon/core"
)

// sqliteConn is the writing connection, spoken to below database/sql: its locks, conversions and pools
// cost as much as a short statement does, and there is one writer, whose statements are all prepared.
type sqliteConn struct {
	c       driver.ConnPrepareContext
	stmts   map[string]*sqliteStmt
	asked   int64 // how often for a statement
	inserts sqlTexts[insertShape]
	args    []driver.NamedValue // of the statement under way, used again
	values  []any               // likewise, before they are bound
}

// sqliteStmt is a prepared statement whose parameters are unnamed: SQLite looks a name up at each bind.
type sqliteStmt struct {
	s interface {
		driver.StmtExecContext
		driver.StmtQueryContext
	}
	close func() error
	order []int       // which argument each parameter is
	rows  sqliteRow   // of the answer, used again
	open  driver.Rows // an answer being read
	asked int64       // the connection's count when it was asked for last
}

// maxStmts is how many statements stay prepared. The store has some 200 in all, most of them seldom asked; but what rows
// have in common makes hundreds of each large INSERT, of 50 KB each.
const maxStmts = 200

func newSQLiteConn(driverConn any) *sqliteConn {
	return &sqliteConn{c: driverConn.(driver.ConnPrepareContext), stmts: map[string]*sqliteStmt{}}
}

func (c *sqliteConn) close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// transaction runs fn between BEGIN and COMMIT. It is not interruptible: a half-run statement would
// cost the whole group.
func (c *sqliteConn) transaction(ctx context.Context, fn func(tx) error) error {
	ctx = context.WithoutCancel(ctx)
	t := sqliteTx{c}
	if _, err := t.exec(ctx, "BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	err := fn(t)
	if err == nil {
		if _, err = t.exec(ctx, "COMMIT"); err == nil {
			return nil
		}
		err = fmt.Errorf("commit: %w", err)
	}
	// A failed COMMIT or a full disk may have rolled back already; then this one fails and says nothing new.
	_, _ = t.exec(ctx, "ROLLBACK")
	return err
}

// stmt prepares a statement, where it is not prepared. Its parameters $1, $2... become unnamed ones. It is to be
// run before the next one is asked for, which may close it.
func (c *sqliteConn) stmt(q string) (*sqliteStmt, error) {
	c.asked++
	if s := c.stmts[q]; s != nil {
		s.asked = c.asked
		return s, nil
	}
	c.makeRoom()
	text, order := unnamed(q)
	ds, err := c.c.PrepareContext(context.Background(), text)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	s := &sqliteStmt{close: ds.Close, order: order, asked: c.asked}
	var ok bool
	if s.s, ok = ds.(interface {
		driver.StmtExecContext
		driver.StmtQueryContext
	}); !ok {
		return nil, errors.Join(errors.New("prepare: the driver's statements take no context"), ds.Close())
	}
	c.stmts[q] = s
	return s, nil
}

// makeRoom closes the statement that was not asked for the longest, if there are too many. To look through all of
// them costs much less than to prepare the next one.
func (c *sqliteConn) makeRoom() {
	if len(c.stmts) < maxStmts {
		return
	}
	var oldest *sqliteStmt
	var of string
	for q, s := range c.stmts {
		if s.open == nil && (oldest == nil || s.asked < oldest.asked) {
			oldest, of = s, q
		}
	}
	if oldest == nil {
		return // all are being read
	}
	delete(c.stmts, of)
	_ = oldest.close() // it can only say again what its last run said
}

// unnamed turns the parameters of a statement into unnamed ones, but for those that occur more than once,
// and says which argument each is.
func unnamed(q string) (string, []int) {
	type mark struct {
		text  string
		param int // 0: none
	}
	marks := make([]mark, 0, strings.Count(q, "$")+1)
	times := make([]int, cap(marks)) // by parameter
	length := len(q)
	for found := true; found; {
		var m mark
		m.text, q, found = strings.Cut(q, "$")
		for q != "" && q[0] >= '0' && q[0] <= '9' && found {
			m.param, q = 10*m.param+int(q[0]-'0'), q[1:]
		}
		for m.param >= len(times) {
			times = append(times, 0)
		}
		times[m.param]++
		marks = append(marks, m)
	}
	var out strings.Builder
	out.Grow(length)
	var order []int
	numbers := make([]int, len(times))
	for _, m := range marks {
		out.WriteString(m.text)
		if m.param == 0 {
			continue
		}
		if numbers[m.param] == 0 {
			order = append(order, m.param-1)
			numbers[m.param] = len(order) // the number that SQLite gives to an unnamed one here
		}
		out.WriteByte('?')
		if times[m.param] > 1 {
			out.WriteString(strconv.Itoa(numbers[m.param]))
		}
	}
	return out.String(), order
}

// bind puts the arguments of a statement in the order of its parameters.
func (c *sqliteConn) bind(s *sqliteStmt, args []any) ([]driver.NamedValue, error) {
	c.args = c.args[:0]
	for i, n := range s.order {
		if n < 0 || n >= len(args) {
			return nil, fmt.Errorf("there is no argument $%d", n+1)
		}
		v := args[n]
		switch v.(type) {
		case nil, int64, string, []byte:
		default:
			var err error
			if v, err = driver.DefaultParameterConverter.ConvertValue(v); err != nil {
				return nil, fmt.Errorf("argument $%d: %w", n+1, err)
			}
		}
		c.args = append(c.args, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	return c.args, nil
}

// sqliteTx is the transaction under way on the writing connection.
type sqliteTx struct{ c *sqliteConn }

func (t sqliteTx) exec(_ context.Context, q string, args ...any) (int64, error) {
	s, err := t.c.stmt(q)
	if err != nil {
		return 0, err
	}
	bound, err := t.c.bind(s, args)
	if err != nil {
		return 0, err
	}
	res, err := s.s.ExecContext(context.Background(), bound)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (t sqliteTx) execMany(ctx context.Context, q string, sets [][]any) ([]int64, error) {
	out := make([]int64, len(sets))
	for i, args := range sets {
		n, err := t.exec(ctx, q, args...)
		if err != nil {
			return nil, err
		}
		out[i] = n
	}
	return out, nil
}

func (t sqliteTx) write(ctx context.Context, q string, sets [][]any) error {
	for _, args := range sets {
		if _, err := t.exec(ctx, q, args...); err != nil {
			return err
		}
	}
	return nil
}

func (t sqliteTx) read(ctx context.Context, q string, scan func(row) error, args ...any) error {
	return t.query(ctx, q, scan, args...)
}

func (t sqliteTx) query(_ context.Context, q string, scan func(row) error, args ...any) (err error) {
	s, err := t.c.stmt(q)
	if err != nil {
		return err
	}
	if s.open != nil {
		return errors.New("the answer to this statement is still being read")
	}
	bound, err := t.c.bind(s, args)
	if err != nil {
		return err
	}
	s.open, err = s.s.QueryContext(context.Background(), bound)
	if err != nil {
		s.open = nil
		return err
	}
	defer func() {
		err = errors.Join(err, s.open.Close())
		s.open = nil
	}()
	if n := len(s.open.Columns()); len(s.rows.values) != n {
		s.rows.values = make([]driver.Value, n)
	}
	for {
		switch err := s.open.Next(s.rows.values); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := scan(&s.rows); err != nil {
			return err
		}
	}
}

func (t sqliteTx) queryMany(ctx context.Context, q string, sets [][]any, scan func(int, row) error) error {
	for i, args := range sets {
		if err := t.query(ctx, q, func(r row) error { return scan(i, r) }, args...); err != nil {
			return err
		}
	}
	return nil
}

// sqliteRow is one row of an answer. What it scans belongs to the caller: the driver copies.
type sqliteRow struct{ values []driver.Value }

// Scan implements row, for the types that the store scans.
func (r *sqliteRow) Scan(dest ...any) error {
	if len(dest) != len(r.values) {
		return fmt.Errorf("a row of %d values does not fit %d", len(r.values), len(dest))
	}
	for i, d := range dest {
		if err := scanValue(d, r.values[i]); err != nil {
			return fmt.Errorf("column %d: %w", i+1, err)
		}
	}
	return nil
}

func scanValue(dest any, v driver.Value) error {
	ok := true
	switch d := dest.(type) {
	case *string:
		*d, ok = v.(string)
	case *int64:
		*d, ok = v.(int64)
	case *[]byte:
		if *d = nil; v != nil {
			*d, ok = v.([]byte)
		}
	case *int:
		var n int64
		n, ok = v.(int64)
		*d = int(n)
	case *bool:
		var n int64
		n, ok = v.(int64)
		*d = n != 0
	case sql.Scanner:
		return d.Scan(v)
	default:
		return fmt.Errorf("nothing is scanned into a %T", dest)
	}
	if !ok {
		return fmt.Errorf("a %T is no %T", v, dest)
	}
	return nil
}

// lock has nothing to do: there is one writer.
func (t sqliteTx) lock(context.Context, []core.ID) error { return nil }

// holdRecipients locks nothing: there is one writer.
func (t sqliteTx) holdRecipients(ctx context.Context, h hold, scan func(row) error) error {
	sets := make([][]any, len(h.ids))
	for i, id := range h.ids {
		sets[i] = []any{h.app, id}
	}
	return t.queryMany(ctx, "SELECT "+knownColumns+" FROM recipients WHERE app = $1 AND id = $2", sets, func(_ int, r row) error { return scan(r) })
}

func (t sqliteTx) skipLocked() string { return "" }
func (t sqliteTx) forUpdate() string  { return "" }
