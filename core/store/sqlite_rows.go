package store

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
)

// chunks are how many rows one statement takes: few different statements, few of them.
var chunks = [...]int{16, 4, 1}

// chunked cuts n into chunks.
func chunked(n int, do func(from, to int) error) error {
	for at := 0; at < n; {
		for _, size := range chunks {
			if n-at < size {
				continue
			}
			if err := do(at, at+size); err != nil {
				return err
			}
			at += size
			break
		}
	}
	return nil
}

// insert implements tx. Binding a value costs SQLite more than writing it, so what all the rows of one
// statement have in common is bound once.
func (t sqliteTx) insert(ctx context.Context, table, columns string, rows [][]any) error {
	return chunked(len(rows), func(from, to int) error {
		part := rows[from:to]
		common := inCommon(part)
		q := t.c.inserts.of(insertShape{table, columns, len(part), common}, insertSQL)
		args := t.c.values[:0]
		for i, row := range part {
			for at, v := range row {
				if i == 0 || common&(1<<at) == 0 {
					args = append(args, v)
				}
			}
		}
		t.c.values = args
		_, err := t.exec(ctx, q, args...)
		return err
	})
}

// insertShape tells one INSERT statement from another: how many rows, and which columns they have in
// common, as a set of bits.
type insertShape struct {
	table, columns string
	rows           int
	common         uint64
}

// inCommon says in which of their first 64 columns rows have the same value.
func inCommon(rows [][]any) uint64 {
	var common uint64
	if len(rows) == 1 {
		return 0
	}
	for at := range min(len(rows[0]), 64) {
		same := true
		for i := 1; i < len(rows) && same; i++ {
			same = sameValue(rows[0][at], rows[i][at])
		}
		if same {
			common |= 1 << at
		}
	}
	return common
}

func sameValue(a, b any) bool {
	switch x := a.(type) {
	case []byte:
		y, ok := b.([]byte)
		return ok && (x == nil) == (y == nil) && bytes.Equal(x, y)
	case int64, string, nil:
		return a == b
	}
	return false
}

// insertSQL is the statement of a shape. The arguments are those of the first row, and of each other
// row those that are not in common.
func insertSQL(s insertShape) string {
	var q strings.Builder
	q.WriteString("INSERT INTO " + s.table + " (" + s.columns + ") VALUES ")
	n := strings.Count(s.columns, ",") + 1
	next := n
	for i := range s.rows {
		sep := "("
		if i > 0 {
			sep = ", ("
		}
		for at := range n {
			param := at + 1
			if i > 0 && s.common&(1<<at) == 0 {
				next++
				param = next
			}
			q.WriteString(sep)
			q.WriteByte('$')
			q.WriteString(strconv.Itoa(param))
			sep = ", "
		}
		q.WriteByte(')')
	}
	return q.String()
}

// inChunks has a statement take ids a chunk at a time, behind its arguments.
func inChunks(q string, ids [][]byte, args []any, do func(q string, args []any) error) error {
	return chunked(len(ids), func(from, to int) error {
		var in strings.Builder
		all := append(make([]any, 0, len(args)+to-from), args...)
		sep := "IN ("
		for _, id := range ids[from:to] {
			all = append(all, id)
			fmt.Fprintf(&in, "%s$%d", sep, len(all))
			sep = ", "
		}
		return do(strings.ReplaceAll(q, "{ids}", in.String()+")"), all)
	})
}

// execIDs implements tx.
func (t sqliteTx) execIDs(ctx context.Context, q string, ids [][]byte, args ...any) error {
	return inChunks(q, ids, args, func(q string, args []any) error {
		_, err := t.exec(ctx, q, args...)
		return err
	})
}

// queryIDs implements tx.
func (t sqliteTx) queryIDs(ctx context.Context, q string, ids [][]byte, scan func(row) error, args ...any) error {
	return inChunks(q, ids, args, func(q string, args []any) error { return t.query(ctx, q, scan, args...) })
}

// queryIDs implements backend.
func (b *sqliteDB) queryIDs(ctx context.Context, q string, ids [][]byte, scan func(row) error, args ...any) error {
	return inChunks(q, ids, args, func(q string, args []any) error { return b.query(ctx, q, scan, args...) })
}

// writeIDs implements tx.
func (t sqliteTx) writeIDs(ctx context.Context, q string, sets [][]any) error {
	if len(sets) == 0 {
		return nil
	}
	return t.write(ctx, byID(q, len(sets[0])), sets)
}

// byID is a statement whose condition {id} is on its last argument of n.
func byID(q string, n int) string { return strings.Replace(q, "{id}", fmt.Sprintf("id = $%d", n), 1) }
