package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/carillon-notify/carillon/core"
)

// row is one row of an answer.
type row interface{ Scan(dest ...any) error }

// querier reads.
type querier interface {
	// query calls scan for each row.
	query(ctx context.Context, sql string, scan func(row) error, args ...any) error
	// queryMany runs one statement with many sets of arguments, in one round trip where the database
	// is remote; i is the index of the set that the row answers.
	queryMany(ctx context.Context, sql string, sets [][]any, scan func(i int, r row) error) error
	// queryIDs is query for the rows whose id, or another key of bytes, is among some; {ids} in the statement
	// stands for those. The rows are in no order.
	queryIDs(ctx context.Context, sql string, ids [][]byte, scan func(row) error, args ...any) error
}

// tx is a transaction that writes.
type tx interface {
	querier
	exec(ctx context.Context, sql string, args ...any) (int64, error)
	// execMany is exec for many sets of arguments; it returns the rows affected by each.
	execMany(ctx context.Context, sql string, sets [][]any) ([]int64, error)
	// write is execMany where nobody needs to know how many rows were affected. Its error, and that of what is
	// below, may come with a later statement or the commit.
	write(ctx context.Context, sql string, sets [][]any) error
	// read is query for what is needed after the next statement that has an answer: scan may be called, and its error come,
	// as late as that.
	read(ctx context.Context, sql string, scan func(row) error, args ...any) error
	// insert adds rows to a table; columns is the list of theirs, with commas between.
	insert(ctx context.Context, table, columns string, rows [][]any) error
	// execIDs is exec for the rows whose id is among some; {ids} in the statement stands for those.
	execIDs(ctx context.Context, sql string, ids [][]byte, args ...any) error
	// writeIDs is write, an UPDATE, for rows of different ids, each the last of its set; {id} in the statement
	// stands for the condition on it.
	writeIDs(ctx context.Context, sql string, sets [][]any) error
	// lock locks rows of batches against every other transaction that locks them, in one order.
	lock(ctx context.Context, batches []core.ID) error
	// holdRecipients reads recipients of an app by their ids, in knownColumns, and keeps others from changing and erasing
	// them until the transaction ends. Those that somebody is changing it waits for, or leaves out.
	holdRecipients(ctx context.Context, h hold, scan func(row) error) error
	// skipLocked is the clause that takes rows for an update and passes over those in other hands.
	skipLocked() string
	// forUpdate is the clause that takes rows for an update and waits for them.
	forUpdate() string
}

// backend is one of the two databases.
type backend interface {
	querier
	// update runs fn in a transaction that is synced to disk when update returns nil.
	update(ctx context.Context, fn func(tx) error) error
	now() time.Time
	// writers is how many transactions may usefully run at once.
	writers() int
	// unavailable says that the error is the connection's or the disk's and not the statement's.
	unavailable(err error) bool
	ping(ctx context.Context) error
	// abandon ends what is under way with a server that may not answer any more, and all that comes.
	abandon()
	close() error
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

// stamp scans a time.
type stamp struct{ t *time.Time }

// Scan implements sql.Scanner.
func (s stamp) Scan(src any) error {
	n, ok := src.(int64)
	if !ok {
		return fmt.Errorf("a time is a number, not %T", src)
	}
	*s.t = fromMicros(n)
	return nil
}

// ScanInt64 implements pgtype.Int64Scanner, which spares the way through database/sql's values.
func (s stamp) ScanInt64(v pgtype.Int8) error {
	if !v.Valid {
		return errors.New("a time is a number, not NULL")
	}
	*s.t = fromMicros(v.Int64)
	return nil
}

// key scans an id.
type key struct{ id *core.ID }

// Scan implements sql.Scanner.
func (k key) Scan(src any) error {
	b, ok := src.([]byte)
	if src != nil && !ok {
		return fmt.Errorf("an id is 16 bytes, not a %T", src)
	}
	return k.ScanBytes(b)
}

// ScanBytes implements pgtype.BytesScanner, which spares a copy; nil is NULL.
func (k key) ScanBytes(b []byte) error {
	switch {
	case b == nil:
		*k.id = core.ID{}
	case len(b) == len(k.id):
		copy(k.id[:], b)
	default:
		return fmt.Errorf("an id is 16 bytes, not %d", len(b))
	}
	return nil
}

// blob is an id as an argument: nil if it is zero.
func blob(id core.ID) any {
	if id.IsZero() {
		return nil
	}
	return id[:]
}

// raw is a JSON text as an argument: nil if there is none.
func raw(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

// The numbers of the lanes in the database; they never change.
var laneNumbers = map[core.Lane]int64{core.Lanes[0]: 0, core.Lanes[1]: 1, core.Lanes[2]: 2}

func laneOf(n int64) core.Lane {
	if n < 0 || int(n) >= len(core.Lanes) {
		return core.Lanes[1]
	}
	return core.Lanes[n]
}

// sqlTexts are those of statements by their shape, each made once, mostly. It is safe for concurrent use.
type sqlTexts[Shape comparable] struct {
	mu   sync.Mutex
	made map[Shape]string
}

// maxTexts is how many are kept. Beyond them all are made anew, which costs less than to know which are in use.
const maxTexts = 200

// of is the text of a shape.
func (t *sqlTexts[Shape]) of(s Shape, text func(Shape) string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	q, ok := t.made[s]
	if ok {
		return q
	}
	if t.made == nil || len(t.made) >= maxTexts {
		t.made = map[Shape]string{}
	}
	q = text(s)
	t.made[s] = q
	return q
}
