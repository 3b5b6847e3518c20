package store_test

import (
	"context"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/carillon-notify/carillon/core/store"
)

// statements are those that stores ran.
type statements struct {
	mu   sync.Mutex
	seen map[string]bool
}

func (x *statements) watch(s *store.Store) {
	s.Watch(func(sql string) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.seen[sql] = true
	})
}

// scan is a step of a plan that reads a table, or an index of it, from end to end.
var scan = regexp.MustCompile(`^SCAN (\w+)`)

// large are the tables that grow with every message, by the names that statements give them.
var large = regexp.MustCompile(`\b(?:FROM|JOIN|UPDATE|INTO) (deliveries|notifications|batches|pages|rounds|late_rounds|receipts|idempotency|campaign_pages|campaigns)(?: (?:AS )?([a-z]+)\b)?`)

// useIndexes fails where SQLite would read all of a large table for one of the statements. It concludes nothing of a
// parameter: a partial index whose condition is x <> ” serves x = ? only where the statement says that x <> ” as well.
func (x *statements) useIndexes(t *testing.T) {
	t.Helper()
	s, err := store.Open(context.Background(), store.Options{URL: sqliteURL(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	explained := 0
	for q := range x.seen {
		verb, _, _ := strings.Cut(strings.TrimSpace(q), " ")
		if verb != "SELECT" && verb != "UPDATE" && verb != "DELETE" && verb != "WITH" && verb != "INSERT" {
			continue
		}
		steps, err := s.Plan(context.Background(), q)
		if err != nil {
			t.Errorf("%s: %v", q, err)
			continue
		}
		explained++
		names := map[string]string{}
		for _, m := range large.FindAllStringSubmatch(q, -1) {
			names[m[1]] = m[1]
			names[m[2]] = m[1]
		}
		for _, step := range steps {
			if m := scan.FindStringSubmatch(step); m != nil && names[m[1]] != "" {
				t.Errorf("%s\n\t%s", q, strings.Join(steps, "\n\t"))
			}
		}
	}
	t.Logf("%d statements", explained)
}
