package core_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/carillon-notify/carillon/core"
)

// The bits of RFC 9562 section 5.7, read by another implementation.
func TestIDIsUUIDv7(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		at := time.UnixMilli(rapid.Int64Range(0, 1<<48-1).Draw(t, "ms"))
		for _, id := range core.NewIDs(at, rapid.IntRange(0, 50).Draw(t, "n")) {
			u, err := uuid.Parse(id.String())
			if err != nil || u.Version() != 7 || u.Variant() != uuid.RFC4122 || !bytes.Equal(u[:], id[:]) {
				t.Fatalf("%s: version %d, variant %s, %v", id, u.Version(), u.Variant(), err)
			}
			ms := int64(0)
			for _, b := range id[:6] {
				ms = ms<<8 | int64(b)
			}
			if ms != at.UnixMilli() {
				t.Fatalf("%s is of %d ms, want %d", id, ms, at.UnixMilli())
			}
		}
	})
}

func TestIDsSort(t *testing.T) {
	t.Parallel()
	const n = 100_000
	ids := core.NewIDs(t0, n)
	ids = append(ids, core.NewIDs(t0.Add(time.Millisecond), 10)...)
	ids = append(ids, core.NewID(t0.Add(time.Hour)))
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	if !slices.IsSorted(texts) || len(slices.Compact(texts)) != len(ids) {
		t.Error("ids of one call, or of later times, do not sort one after the other")
	}
}

func TestIDsAreUnique(t *testing.T) {
	t.Parallel()
	seen := map[core.ID]bool{}
	for range 20_000 {
		for _, id := range core.NewIDs(t0, 5) {
			if seen[id] {
				t.Fatalf("%s was given twice", id)
			}
			seen[id] = true
		}
	}
}

func TestParseID(t *testing.T) {
	t.Parallel()
	id := core.NewID(t0)
	text := id.String()
	for _, ok := range []string{text, strings.ToUpper(text)} {
		if got, err := core.ParseID(ok); err != nil || got != id {
			t.Errorf("ParseID(%q) = %s, %v", ok, got, err)
		}
	}
	for _, bad := range []string{"", "x", text[:35], text + "0", " " + text[1:], strings.ReplaceAll(text, "-", ""), strings.Replace(text, "-", "0", 1),
		"{" + text[1:], "g" + text[1:], text[:35] + "-", "urn:uuid:" + text, strings.Repeat("-", 36), strings.Repeat("é", 18)} {
		if got, err := core.ParseID(bad); !errors.Is(err, core.ErrBadID) || !got.IsZero() {
			t.Errorf("ParseID(%q) = %s, %v", bad, got, err)
		}
	}
	var back struct{ ID core.ID }
	b, err := json.Marshal(struct{ ID core.ID }{id})
	if err != nil || json.Unmarshal(b, &back) != nil || back.ID != id {
		t.Errorf("%s through JSON is %s: %s, %v", id, back.ID, b, err)
	}
	if json.Unmarshal([]byte(`{"ID":"nope"}`), &back) == nil {
		t.Error("a text that is no id was read from JSON")
	}
	if !(core.ID{}).IsZero() || id.IsZero() {
		t.Error("only the unset id is zero")
	}
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{core.NewID(t0).String(), "", "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000", "0199AAAA-BBBB-7CCC-8DDD-EEEEFFFF0000", "0199aaaabbbb7ccc8dddeeeeffff0000----"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := core.ParseID(s)
		if err != nil {
			if !errors.Is(err, core.ErrBadID) || !id.IsZero() {
				t.Fatalf("%q: %s, %v", s, id, err)
			}
			return
		}
		if id.String() != strings.ToLower(s) {
			t.Fatalf("%q reads as %s", s, id)
		}
	})
}

// A derived id is a UUIDv7 of its time, the same for the same, and another for another parent, fence or
// place.
func TestDerivedIDs(t *testing.T) {
	t.Parallel()
	parents := core.NewIDs(t0, 20)
	seen := map[core.ID]bool{}
	for _, parent := range parents {
		for fence := range int64(20) {
			for n := range 20 {
				id := parent.Derived(t0, fence, n)
				if id != parent.Derived(t0, fence, n) {
					t.Fatalf("%s, fence %d, %d: not the same twice", parent, fence, n)
				}
				if seen[id] {
					t.Fatalf("%s was derived twice", id)
				}
				seen[id] = true
				u, err := uuid.Parse(id.String())
				if err != nil || u.Version() != 7 || u.Variant() != uuid.RFC4122 || !bytes.Equal(id[:6], parent[:6]) {
					t.Fatalf("%s of %s: version %d, variant %s, %v", id, t0, u.Version(), u.Variant(), err)
				}
			}
		}
	}
}

// Jitter spreads evenly over [0,1), from id to id of one request and from attempt to attempt, and does
// not hang together from one to the next.
func TestJitter(t *testing.T) {
	t.Parallel()
	const n, parts = 20_000, 10
	ids := core.NewIDs(t0, n)
	for name, jitter := range map[string]func(i int) float64{
		"ids":      func(i int) float64 { return ids[i].Jitter(3) },
		"attempts": func(i int) float64 { return ids[0].Jitter(i) },
	} {
		var counts [parts]int
		product, last := 0.0, 0.5
		for i := range n {
			j := jitter(i)
			if j < 0 || j >= 1 || j != jitter(i) {
				t.Fatalf("%s: jitter %v, then %v", name, j, jitter(i))
			}
			counts[int(j*parts)]++
			product += (j - 0.5) * (last - 0.5)
			last = j
		}
		for part, got := range counts {
			if want := n / parts; got < want*9/10 || got > want*11/10 { // 4.7 standard deviations
				t.Errorf("%s: %d of %d fall into part %d, want about %d: %v", name, got, n, part, want, ids[0])
			}
		}
		if correlation := 12 * product / n; correlation < -0.05 || correlation > 0.05 { // 7 standard deviations
			t.Errorf("%s: one jitter tells of the next, by %.3f: %v", name, correlation, ids[0])
		}
	}
}
