package plugintest

import (
	"slices"
	"strings"
	"testing"
)

// Records examines as Run does, outside of go test, and returns how each part went by its name
// ("in_process/batch"; the whole is "exam"): "passed", "skipped", or "failed: " and why.
func Records(t testing.TB, e Exam) map[string]string {
	t.Helper()
	return recorded(func(sub runner) {
		sub("exam", func(t testing.TB, _ runner) {
			run(t, func(name string, f func(testing.TB, runner)) { sub(name, f) }, e)
		})
	})
}

// RecordsOf makes some of the checks, in process alone.
func RecordsOf(t testing.TB, e Exam, only ...string) map[string]string {
	t.Helper()
	e.Except = map[string]string{}
	for _, c := range newSitting(&e, &tally{}, inProcess).checks() {
		if !slices.Contains(only, c.name) {
			e.Except[c.name] = "not asked for"
		}
	}
	return recorded(func(sub runner) {
		sub("exam", func(t testing.TB, _ runner) { examine(t, sub, newSitting(&e, &tally{}, inProcess)) })
	})
}

func recorded(f func(runner)) map[string]string {
	out := map[string]string{}
	f(recording("", func(r record) {
		switch {
		case r.failed:
			out[r.name] = "failed: " + strings.Join(r.lines, "\n")
		case r.skipped:
			out[r.name] = "skipped"
		default:
			out[r.name] = "passed"
		}
	}))
	return out
}
