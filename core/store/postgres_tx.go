package store

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/carillon-notify/carillon/core"
)

// pgTx is a transaction. What is written without an answer that anybody needs is not sent by itself: it
// goes, in its order, with the next statement that has one, or with the commit. So a group of acceptances
// is one round trip, from BEGIN to COMMIT. The error of such a statement is that of what it went with.
type pgTx struct {
	conn  *pgx.Conn
	bound context.Context // the transaction's: its statements may be given one that knows no end
	begun bool            // BEGIN was sent
	wait  pgx.Batch
	what  []pgWaiting // the statements in wait
}

// pgWaiting is a statement that waits for the next one.
type pgWaiting struct {
	what string // for its error
	scan func(row) error
}

// later has a statement wait for the next one.
func (t *pgTx) later(what, q string, args ...any) {
	t.wait.Queue(q, args...)
	t.what = append(t.what, pgWaiting{what: what})
}

func (t *pgTx) read(_ context.Context, q string, scan func(row) error, args ...any) error {
	t.wait.Queue(q, args...)
	t.what = append(t.what, pgWaiting{"read", scan})
	return nil
}

// send sends what waits and n statements behind it, which read reads the answers of.
func (t *pgTx) send(_ context.Context, read func(pgx.BatchResults) error) (err error) {
	batch, what, begin := t.wait, t.what, !t.begun
	t.wait, t.what, t.begun = pgx.Batch{}, nil, true
	if begin {
		batch.QueuedQueries = slices.Insert(batch.QueuedQueries, 0, &pgx.QueuedQuery{SQL: "BEGIN"})
		what = slices.Insert(what, 0, pgWaiting{what: "begin"})
	}
	res := t.conn.SendBatch(t.bound, &batch)
	defer func() { err = first(err, res.Close()) }()
	for _, w := range what {
		var err error
		if w.scan != nil {
			err = pgScan(res, 1, func(_ int, r row) error { return w.scan(r) })
		} else {
			_, err = res.Exec()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w.what, err)
		}
	}
	return read(res)
}

func (t *pgTx) commit(ctx context.Context) error {
	if !t.begun && len(t.what) == 0 {
		return nil // there was nothing to do
	}
	if slices.ContainsFunc(t.what, func(w pgWaiting) bool { return w.scan != nil }) {
		// Whoever reads may find that nothing is to be committed.
		if err := t.send(ctx, func(pgx.BatchResults) error { return nil }); err != nil {
			return err
		}
	}
	t.wait.Queue("COMMIT")
	return t.send(ctx, func(res pgx.BatchResults) error {
		tag, err := res.Exec()
		if err == nil && tag.String() != "COMMIT" {
			err = pgx.ErrTxCommitRollback
		}
		return err
	})
}

// rollback gives everything up. A connection that cannot even do that is closed as it is released.
func (t *pgTx) rollback() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.bound), pgUndo)
	defer cancel()
	if t.begun && t.conn.PgConn().TxStatus() != 'I' {
		_, _ = t.conn.Exec(ctx, "ROLLBACK")
	}
}

func (t *pgTx) query(ctx context.Context, q string, scan func(row) error, args ...any) error {
	return t.queryMany(ctx, q, [][]any{args}, func(_ int, r row) error { return scan(r) })
}

func (t *pgTx) queryMany(ctx context.Context, q string, sets [][]any, scan func(int, row) error) error {
	if len(sets) == 0 {
		return nil
	}
	for _, args := range sets {
		t.wait.Queue(q, args...)
	}
	return t.send(ctx, func(res pgx.BatchResults) error { return pgScan(res, len(sets), scan) })
}

func (t *pgTx) exec(ctx context.Context, q string, args ...any) (int64, error) {
	n, err := t.execMany(ctx, q, [][]any{args})
	if err != nil {
		return 0, err
	}
	return n[0], nil
}

func (t *pgTx) execMany(ctx context.Context, q string, sets [][]any) (out []int64, err error) {
	if len(sets) == 0 {
		return nil, nil
	}
	for _, args := range sets {
		t.wait.Queue(q, args...)
	}
	out = make([]int64, len(sets))
	return out, t.send(ctx, func(res pgx.BatchResults) error {
		for i := range sets {
			tag, err := res.Exec()
			if err != nil {
				return err
			}
			out[i] = tag.RowsAffected()
		}
		return nil
	})
}

func (t *pgTx) write(_ context.Context, q string, sets [][]any) error {
	for _, args := range sets {
		t.later("write", q, args...)
	}
	return nil
}

func (t *pgTx) execIDs(_ context.Context, q string, ids [][]byte, args ...any) error {
	if len(ids) > 0 {
		q, args = pgIDs(q, ids, args)
		t.later("write by ids", q, args...)
	}
	return nil
}

func (t *pgTx) queryIDs(ctx context.Context, q string, ids [][]byte, scan func(row) error, args ...any) error {
	if len(ids) == 0 {
		return nil
	}
	q, args = pgIDs(q, ids, args)
	return t.query(ctx, q, scan, args...)
}

// pgIDs has a statement take ids as one more argument.
func pgIDs(q string, ids [][]byte, args []any) (string, []any) {
	return strings.ReplaceAll(q, "{ids}", fmt.Sprintf("= ANY($%d)", len(args)+1)), append(slices.Clone(args), ids)
}

// writeIDs is one statement however many rows there are. What they differ in goes as arrays, each row's values
// by its id's place: a join with the arrays would be planned by statistics that are old in a flood.
func (t *pgTx) writeIDs(ctx context.Context, q string, sets [][]any) error {
	const worth, most = 4, 100 // a place in an array is found by looking from its start
	if len(sets) < worth {
		if len(sets) == 0 {
			return nil
		}
		return t.write(ctx, byID(q, len(sets[0])), sets)
	}
	for part := range slices.Chunk(sets, most) {
		last := len(part[0])
		common, args, kinds := inCommon(part), make([]any, last), make([]byte, last)
		for at := range last {
			if common&(1<<at) != 0 && at+1 < last {
				args[at] = part[0][at]
				continue
			}
			var err error
			if args[at], kinds[at], err = pgColumn(part, at); err != nil {
				return fmt.Errorf("write by ids: %w", err)
			}
		}
		own := pgParam.ReplaceAllStringFunc(q, func(param string) string {
			n, _ := strconv.Atoi(param[1:]) // digits
			if kinds[n-1] == 0 {
				return param
			}
			return fmt.Sprintf("(%s::%s)[array_position($%d::bytea[], id)]", param, pgArrays[kinds[n-1]], last)
		})
		t.later("write by ids", strings.Replace(own, "{id}", fmt.Sprintf("id = ANY($%d)", last), 1), args...)
	}
	return nil
}

// pgParam is a parameter of a statement.
var pgParam = regexp.MustCompile(`\$[0-9]+`)

func (t *pgTx) lock(_ context.Context, batches []core.ID) error {
	if len(batches) > 0 {
		ids := make([][]byte, len(batches))
		for i := range batches {
			ids[i] = batches[i][:]
		}
		slices.SortFunc(ids, bytes.Compare)
		t.later("lock batches", "SELECT 1 FROM batches WHERE id = ANY($1) ORDER BY id FOR UPDATE", ids)
	}
	return nil
}

// holdRecipients locks in the order of the ids' bytes, as an import does.
func (t *pgTx) holdRecipients(ctx context.Context, h hold, scan func(row) error) error {
	sql := "SELECT " + knownColumns + ` FROM recipients WHERE app = $1 AND id = ANY($2::text[]) ORDER BY id COLLATE "C" FOR SHARE`
	if !h.wait {
		sql += " SKIP LOCKED"
	}
	return t.query(ctx, sql, scan, h.app, h.ids)
}

func (t *pgTx) skipLocked() string { return " FOR UPDATE SKIP LOCKED" }
func (t *pgTx) forUpdate() string  { return " FOR UPDATE" }

// insert adds any number of rows by one statement. It passes a column's values as an array, what they have
// in common once: a parameter for each value would cost PostgreSQL more than the rows do.
func (t *pgTx) insert(_ context.Context, table, columns string, rows [][]any) error {
	if len(rows) == 0 {
		return nil
	}
	if len(rows) == 1 {
		t.later("insert into "+table, pgInserts.of(pgShape{table: table, columns: columns}, pgInsertSQL), rows[0]...)
		return nil
	}
	s := pgShape{table: table, columns: columns, many: true, common: inCommon(rows)}
	args := make([]any, len(rows[0]))
	kinds := make([]byte, len(args))
	for at := range args {
		if s.common&(1<<at) != 0 {
			args[at] = rows[0][at]
			continue
		}
		var err error
		if args[at], kinds[at], err = pgColumn(rows, at); err != nil {
			return fmt.Errorf("insert into %s: %w", table, err)
		}
	}
	s.kinds = string(kinds)
	t.later("insert into "+table, pgInserts.of(s, pgInsertSQL), args...)
	return nil
}

// pgColumn is one column's values as an array, and what they are: a number, a text or bytes, which alone may
// be NULL.
func pgColumn(rows [][]any, at int) (array any, kind byte, err error) {
	var numbers []int64
	var texts []string
	var blobs [][]byte
	for i := range rows {
		switch v := rows[i][at].(type) {
		case int64:
			numbers = append(slices.Grow(numbers, len(rows)-len(numbers)), v)
		case string:
			texts = append(slices.Grow(texts, len(rows)-len(texts)), v)
		case []byte:
			blobs = append(slices.Grow(blobs, len(rows)-len(blobs)), v)
		case nil:
			blobs = append(slices.Grow(blobs, len(rows)-len(blobs)), nil)
		default:
			return nil, 0, fmt.Errorf("column %d of row %d is a %T", at+1, i+1, v)
		}
	}
	switch len(rows) {
	case len(numbers):
		return numbers, 'n', nil
	case len(texts):
		return texts, 't', nil
	case len(blobs):
		return blobs, 'b', nil
	}
	return nil, 0, fmt.Errorf("column %d has values of more than one type", at+1)
}

// pgShape tells one INSERT statement from another.
type pgShape struct {
	table, columns string
	many           bool
	common         uint64 // the columns that are no arrays, as a set of bits
	kinds          string // of the arrays, by column
}

// pgInserts are the statements that were made.
var pgInserts sqlTexts[pgShape]

// pgArrays are the types of arrays, by the kinds of pgColumn.
var pgArrays = map[byte]string{'n': "bigint[]", 't': "text[]", 'b': "bytea[]"}

// pgInsertSQL is the statement of a shape.
func pgInsertSQL(s pgShape) string {
	var values, arrays, names []string
	for at := range strings.Count(s.columns, ",") + 1 {
		param := fmt.Sprintf("$%d", at+1)
		if !s.many || s.common&(1<<at) != 0 {
			values = append(values, param)
			continue
		}
		name := fmt.Sprintf("c%d", at+1)
		values, names = append(values, "a."+name), append(names, name)
		arrays = append(arrays, param+"::"+pgArrays[s.kinds[at]])
	}
	q := "INSERT INTO " + s.table + " (" + s.columns + ") "
	if s.many {
		q += "SELECT " + strings.Join(values, ", ") + " FROM unnest(" + strings.Join(arrays, ", ") + ") AS a(" + strings.Join(names, ", ") + ")"
	} else {
		q += "VALUES (" + strings.Join(values, ", ") + ")"
	}
	return q
}

// pgAnswers reads the answers to n statements, and closes.
func pgAnswers(res pgx.BatchResults, n int, scan func(int, row) error) (err error) {
	defer func() { err = first(err, res.Close()) }()
	return pgScan(res, n, scan)
}

// first is the error that came first: closing says the same again.
func first(err, closing error) error {
	if err != nil {
		return err
	}
	return closing
}

func pgScan(res pgx.BatchResults, n int, scan func(int, row) error) error {
	for i := range n {
		rows, err := res.Query()
		if err != nil {
			return err
		}
		if err := pgDrain(rows, func(r row) error { return scan(i, r) }); err != nil {
			return err
		}
	}
	return nil
}

func pgDrain(rows pgx.Rows, scan func(row) error) error {
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
