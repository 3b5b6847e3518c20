package intake_test

import (
	"math/rand/v2"
	"testing"

	"github.com/carillon-notify/carillon/core/intake"
)

// What is kept in place is told from what is not there, the zero key among them, and gives way like any other.
func TestFew(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	keys := []string{"", "a", "b", "c"}
	for range 1000 {
		var f intake.Few
		want := map[string]int{}
		for range random.IntN(8) {
			key, value := keys[random.IntN(len(keys))], random.IntN(3)
			f.Put(key, value)
			want[key] = value
		}
		for _, key := range keys {
			value, ok := want[key]
			if got, had := f.Get(key); got != value || had != ok || f.Of(key) != value {
				t.Fatalf("%q is %d, %t (%d), not %d, %t, of %v", key, got, had, f.Of(key), value, ok, want)
			}
		}
	}
}
