package host

import (
	"fmt"
	"sync"

	"github.com/carillon-notify/carillon/providers"
)

// verifier passes on the answers that a batch may have: one for each id that was asked, in bounds.
type verifier struct {
	scrub  *scrubber
	report func(providers.Result)
	enough func()

	mu     sync.Mutex
	open   map[string]string // address by id of what has no answer yet
	excess int               // answers that nobody asked for
	wrong  string            // what was wrong first
}

// maxExcess is how many answers that nobody asked for are borne in one call.
const maxExcess = 1000

// newVerifier returns a verifier that calls enough once when the answers do not end.
func newVerifier(batch []providers.Message, s *scrubber, enough func(), report func(providers.Result)) *verifier {
	v := &verifier{scrub: s, report: report, enough: enough, open: make(map[string]string, len(batch))}
	for i := range batch {
		v.open[batch[i].ID] = batch[i].Address
	}
	return v
}

// take passes an answer on, or notes what is wrong with it.
func (v *verifier) take(r providers.Result) {
	v.mu.Lock()
	address, ok := v.open[r.ID]
	delete(v.open, r.ID)
	if !ok {
		v.note("an answer for an id that was not given to it, or a second one")
		if v.excess++; v.excess == maxExcess {
			v.enough()
		}
	}
	if r.After < 0 {
		v.note(fmt.Sprintf("a negative time to wait, %s", r.After))
		r.After = 0
	}
	if r.Parts < 0 {
		v.note(fmt.Sprintf("a negative number of parts, %d", r.Parts))
		r.Parts = 0
	}
	v.mu.Unlock()
	if !ok {
		return
	}
	r.Code, r.Reason, r.ProviderID = v.scrub.text(r.Code, address), v.scrub.text(r.Reason, address), v.scrub.secret(r.ProviderID)
	v.report(r)
}

func (v *verifier) note(what string) {
	if v.wrong == "" {
		v.wrong = what
	}
}

// broken is what was wrong with the answers, "" if nothing.
func (v *verifier) broken() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.wrong
}
