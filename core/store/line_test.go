package store_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core/store"
)

// commit takes a group that is to be of n after a wait, and answers it after the time given.
func commit(t *testing.T, l store.Line, n int, waited, took time.Duration) {
	t.Helper()
	got, after, done := l.Gather()
	if got != n || after != waited {
		t.Errorf("a group of %d after %v, want %d after %v", got, after, n, waited)
	}
	time.Sleep(took) // of the bubble
	done()
}

func TestLine(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	tests := map[string]func(t *testing.T, l store.Line){
		"a lone one waits for nothing": func(t *testing.T, l store.Line) {
			for range 3 {
				l.Join(1)
				commit(t, l, 1, 0, ms)
			}
		},
		"nor do those who are too few to be a crowd": func(t *testing.T, l store.Line) {
			for range 3 {
				l.Join(store.Company - 1)
				commit(t, l, store.Company-1, 0, ms)
			}
		},
		"a crowd is waited for": func(t *testing.T, l store.Line) {
			l.Join(30)
			commit(t, l, 30, 0, 10*ms)
			l.Join(10)
			go func() {
				time.Sleep(ms)
				l.Join(20)
			}()
			commit(t, l, 30, ms, ms)
		},
		"but not for long": func(t *testing.T, l store.Line) {
			l.Join(30)
			commit(t, l, 30, 0, 10*ms)
			l.Join(10)
			commit(t, l, 10, store.Absence, ms)
		},
		"as long as one comes after the other": func(t *testing.T, l store.Line) {
			l.Join(30)
			commit(t, l, 30, 0, 10*ms)
			l.Join(10)
			go func() {
				for range 4 {
					time.Sleep(store.Absence - ms)
					l.Join(1)
				}
			}()
			commit(t, l, 14, 4*(store.Absence-ms)+store.Absence, ms)
		},
		"but not for ever": func(t *testing.T, l store.Line) {
			l.Join(30)
			commit(t, l, 30, 0, 10*ms)
			l.Join(10)
			go func() {
				for range 10 {
					time.Sleep(store.Absence - ms)
					l.Join(1)
				}
			}()
			commit(t, l, 16, store.Patience, ms)
			time.Sleep(store.Patience)
		},
		"nor for longer than a few commits take": func(t *testing.T, l store.Line) {
			l.Join(30)
			commit(t, l, 30, 0, ms)
			l.Join(10)
			commit(t, l, 10, store.Commits*ms, ms)
		},
		"nor by one who comes later": func(t *testing.T, l store.Line) {
			l.Join(30)
			commit(t, l, 30, 0, 10*ms)
			time.Sleep(store.Absence)
			l.Join(1)
			commit(t, l, 1, 0, ms)
		},
		"a second commit waits for the first": func(t *testing.T, l store.Line) {
			l.Join(1)
			_, _, done := l.Gather()
			l.Join(1)
			go func() {
				time.Sleep(5 * ms)
				l.Join(1)
				done()
			}()
			commit(t, l, 2, 5*ms, ms)
		},
		"unless its group is full": func(t *testing.T, l store.Line) {
			l.Join(1)
			_, _, done := l.Gather()
			defer done()
			l.Join(store.FullGroup)
			commit(t, l, store.FullGroup, 0, ms)
		},
		"or the first does not end": func(t *testing.T, l store.Line) {
			l.Join(1)
			_, _, done := l.Gather()
			defer done()
			l.Join(2)
			commit(t, l, 2, store.Flight, ms)
		},
		"a claim waits for nobody": func(t *testing.T, l store.Line) {
			l.Join(30)
			commit(t, l, 30, 0, ms)
			l.Join(10)
			l.Settle()
			l.Claim()
			commit(t, l, 2, 0, ms) // with the settlement, which would have waited
			go func() {
				time.Sleep(ms)
				l.Join(20)
			}()
			commit(t, l, 30, ms, ms)
		},
		"a settlement waits for the crowd": func(t *testing.T, l store.Line) {
			l.Join(30)
			commit(t, l, 30, 0, ms)
			l.Settle()
			go func() {
				time.Sleep(ms)
				l.Join(30)
			}()
			commit(t, l, 31, ms, ms)
		},
		"a claim waits for a commit under way": func(t *testing.T, l store.Line) {
			l.Join(1)
			_, _, done := l.Gather()
			l.Claim()
			go func() {
				time.Sleep(5 * ms)
				done()
			}()
			commit(t, l, 1, 5*ms, ms)
		},
		"closing sends everybody away": func(t *testing.T, l store.Line) {
			l.Join(30)
			commit(t, l, 30, 0, ms)
			l.Join(2)
			time.AfterFunc(ms, func() {
				if n := l.Close(); n != 2 {
					t.Errorf("%d were sent away, not 2", n)
				}
			})
			commit(t, l, 0, ms, 0)
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { test(t, store.NewLine(3)) })
		})
	}
}

// TestLineOfOne: one committer takes half of a crowd while nothing is delivered, and the other half next.
func TestLineOfOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const ms = time.Millisecond
		l := store.NewLine(1)
		back := func(n int) {
			time.Sleep(ms)
			l.Join(n)
		}
		l.Join(30)
		commit(t, l, 30, 0, ms)
		go back(15)
		commit(t, l, 15, ms, ms) // half are back
		go back(10)
		go back(5)
		commit(t, l, 15, ms, ms) // of the 30, not of the 15 that were answered last
		l.Claim()
		commit(t, l, 1, 0, ms)
		l.Join(15) // something is delivered now: all are waited for
		go back(15)
		commit(t, l, 30, ms, ms)
		l.Join(5)
		commit(t, l, 5, store.Commits*ms, ms) // who stays away
		l.Join(4)
		commit(t, l, 4, 0, ms) // is forgotten
	})
}

// TestLineOpenLoop: callers who come by themselves, 2,000 a second, and do not wait for each other, are kept
// for some commits' time at the most.
func TestLineOpenLoop(t *testing.T) {
	t.Parallel()
	for _, committers := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d committers", committers), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			synctest.Test(t, func(t *testing.T) {
				const took, n = 1500 * time.Microsecond, 5000
				l, rnd := store.NewLine(committers), rand.New(rand.NewPCG(seed, 0))
				came := make(chan time.Time, n) // in the order of the line
				var kept []time.Duration        // by all of one group at a time
				var mu sync.Mutex
				var running sync.WaitGroup
				for range committers {
					running.Go(func() {
						for n, _, done := l.Gather(); n > 0; n, _, done = l.Gather() {
							time.Sleep(took)
							mu.Lock()
							for range n {
								kept = append(kept, time.Since(<-came))
							}
							mu.Unlock()
							done()
						}
					})
				}
				for range n {
					time.Sleep(time.Duration(rnd.ExpFloat64() * float64(500*time.Microsecond)))
					came <- time.Now()
					l.Join(1)
				}
				time.Sleep(time.Second)
				l.Close()
				running.Wait()
				slices.Sort(kept)
				if median, worst := kept[n/2], kept[n*99/100]; median > 4*took || worst > 7*took {
					t.Errorf("they were kept for %v, and %v in the worst hundredth, where a commit takes %v", median, worst, took)
				}
			})
		})
	}
}
