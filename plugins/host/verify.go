package host

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/carillon-notify/carillon/providers"
)

// verifier passes on the answers that a batch may have: one for each id that was asked, in bounds.
type verifier struct {
	scrub  *scrubber
	report func(providers.Result)

	mu    sync.Mutex
	open  map[string]string // address by id of what has no answer yet
	asked int
	wrong string // what was wrong first
}

func newVerifier(batch []providers.Message, s *scrubber, report func(providers.Result)) *verifier {
	v := &verifier{scrub: s, report: report, open: make(map[string]string, len(batch)), asked: len(batch)}
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
	switch {
	case !ok:
		v.note("an answer for an id that was not given to it, or a second one")
	case r.After < 0:
		v.note(fmt.Sprintf("a negative time to wait, %s", r.After))
		r.After = 0
	case r.Parts < 0:
		v.note(fmt.Sprintf("a negative number of parts, %d", r.Parts))
		r.Parts = 0
	}
	v.mu.Unlock()
	if !ok {
		return
	}
	r.Code, r.Reason = v.scrub.text(r.Code, address), v.scrub.text(r.Reason, address)
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

// mask stands where something was that must not be shown.
const mask = "***"

// shortSecret is the length below which a text is no secret worth looking for: it would mask half of
// every sentence.
const shortSecret = 6

// scrubber takes the values of secret settings, and a message's address, out of what a plugin says.
type scrubber struct{ secrets []string }

func newScrubber(settings []providers.Setting, values []byte) *scrubber {
	s := &scrubber{}
	var given map[string]any
	if json.Unmarshal(values, &given) != nil {
		return s
	}
	for _, setting := range settings {
		if !setting.Secret {
			continue
		}
		var value any = given
		for part := range strings.SplitSeq(setting.Name, ".") {
			m, _ := value.(map[string]any)
			value = m[part]
		}
		s.add(value)
	}
	return s
}

func (s *scrubber) add(value any) {
	switch v := value.(type) {
	case string:
		if len(v) >= shortSecret {
			s.secrets = append(s.secrets, v)
		}
	case []any:
		for _, one := range v {
			s.add(one)
		}
	}
}

// text returns t without the secrets and without the address.
func (s *scrubber) text(t, address string) string {
	if t == "" {
		return ""
	}
	if len(address) >= shortSecret {
		t = strings.ReplaceAll(t, address, mask)
	}
	for _, secret := range s.secrets {
		t = strings.ReplaceAll(t, secret, mask)
	}
	return t
}
