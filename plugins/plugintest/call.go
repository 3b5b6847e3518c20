package plugintest

import (
	"context"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/carillon-notify/carillon/providers"
)

// The lengths in bytes to which texts are cut on their way through the wire.
const (
	maxCode   = 100
	maxReason = 500
	maxID     = 1000
)

// callTime is the deadline of a call that is not about deadlines.
const callTime = time.Minute

// call is one Deliver under way or over.
type call struct {
	p     *subject
	batch []providers.Message // as it was given
	given []providers.Message // what the provider has: a copy, to see whether it changed anything
	first chan struct{}       // closed by the first result
	done  chan struct{}       // closed when Deliver returned

	mu       sync.Mutex
	results  []providers.Result
	returned bool
	err      error // set before done is closed
	panicked any   // likewise
}

// begin starts a Deliver.
func (p *subject) begin(ctx context.Context, batch []providers.Message) *call {
	c := &call{p: p, batch: batch, given: clone(batch), first: make(chan struct{}), done: make(chan struct{})}
	for i := range batch {
		p.s.witness.sent(&batch[i])
	}
	p.calls = append(p.calls, c)
	go func() {
		defer close(c.done)
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.returned = true
			if v := recover(); v != nil {
				c.panicked = v
			}
		}()
		c.err = p.provider.Deliver(ctx, c.given, c.report)
	}()
	return c
}

func (c *call) report(r providers.Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.returned {
		c.p.s.late.Add(1)
		return
	}
	c.results = append(c.results, r)
	if len(c.results) == 1 {
		close(c.first)
	}
}

// deliver begins a Deliver and waits for its end.
func (p *subject) deliver(batch []providers.Message) *call {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	c := p.begin(ctx, batch)
	c.wait(callTime + p.s.Soon)
	return c
}

// wait waits for the end of the call, and then looks at what holds of every call.
func (c *call) wait(limit time.Duration) {
	c.p.t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
		c.p.t.Fatalf("Deliver of %d messages did not return within %s", len(c.batch), limit)
	}
	c.verify()
}

// verify holds the answers against the contract.
func (c *call) verify() {
	t, s := c.p.t, c.p.s
	t.Helper()
	if c.panicked != nil {
		t.Fatalf("Deliver panicked: %v", c.panicked)
	}
	if c.err != nil {
		s.witness.saw("the error of Deliver", c.err.Error())
	}
	asked := map[string]int{} // results by id
	for i := range c.batch {
		asked[c.batch[i].ID] = 0
	}
	for _, r := range c.results {
		n, ok := asked[r.ID]
		if !ok {
			t.Errorf("a result for the id %q, which is not in the batch", r.ID)
			continue
		}
		if asked[r.ID] = n + 1; n == 1 {
			t.Errorf("a second result for one message: %+v", r)
		}
		c.verifyResult(r)
	}
	s.tally.answered.Add(int64(len(c.results)))
	if !reflect.DeepEqual(c.batch, c.given) {
		t.Error("Deliver changed the messages that it was given")
	}
	unanswered := 0
	for _, n := range asked {
		if n == 0 {
			unanswered++
		}
	}
	if s.way == inProcess { // the wire adds errors of its own
		switch {
		case c.err != nil && unanswered == 0:
			t.Errorf("every message has its result, and Deliver returns the error %q besides: an error speaks for messages without a result alone", c.err)
		case c.err == nil && unanswered > 0:
			t.Errorf("%d of %d messages have no result, and no error says why", unanswered, len(c.batch))
		}
	}
	c.verifyTaken(asked)
}

// verifyResult looks at one result's form.
func (c *call) verifyResult(r providers.Result) {
	t := c.p.t
	t.Helper()
	c.p.s.witness.saw("Result.Code", r.Code)
	c.p.s.witness.saw("Result.Reason", r.Reason)
	c.p.s.witness.saw("Result.ProviderID", r.ProviderID)
	form(t, "Result.Code", r.Code, maxCode)
	form(t, "Result.Reason", r.Reason, maxReason)
	form(t, "Result.ProviderID", r.ProviderID, maxID)
	if r.Outcome > providers.Denied {
		t.Errorf("an outcome that does not exist: %d", r.Outcome)
	}
	if r.After < 0 || r.Parts < 0 {
		t.Errorf("a result with a negative figure: After %s, Parts %d", r.After, r.Parts)
	}
	if r.Since.After(time.Now().Add(time.Minute)) {
		t.Errorf("an address that will be gone in the future: Since %s", r.Since)
	}
	if a := r.NewAddress; a != "" && !addressPattern(c.p.s.kind.Address).MatchString(a) {
		t.Error("a NewAddress that the kind's address pattern does not match")
	}
}

// verifyTaken holds the answers against what the service has.
func (c *call) verifyTaken(asked map[string]int) {
	s, t := c.p.s, c.p.t
	t.Helper()
	if s.Taken == nil {
		return
	}
	test := map[string]bool{}
	for i := range c.batch {
		m := &c.batch[i]
		test[m.ID] = m.Test
		if n := s.Taken(m.ID); n > 1 {
			t.Errorf("one Deliver sent a message %d times", n)
		} else if n > 0 && m.Test {
			t.Error("a test message was delivered")
		}
	}
	for _, r := range c.results {
		if asked[r.ID] != 1 || test[r.ID] {
			continue
		}
		taken := s.Taken(r.ID) > 0
		switch r.Outcome {
		case providers.Accepted:
			if !taken {
				t.Errorf("a message is reported as accepted, and the service never got it: %+v", r)
			}
		case providers.Deferred, providers.Throttled, providers.Rejected, providers.Gone, providers.Denied:
			if taken {
				t.Errorf("a message is reported as %s, and the service took it: %+v", r.Outcome, r)
			}
		case providers.Unknown, providers.Absent:
		}
	}
}

// verifyLater looks once more, for what was still on its way when the call ended.
func (c *call) verifyLater() {
	select {
	case <-c.done:
	default: // a check failed, and left it
		return
	}
	for _, r := range c.results {
		if (r.Outcome == providers.Deferred || r.Outcome == providers.Throttled) && c.p.s.Taken(r.ID) > 0 {
			c.p.t.Errorf("a message was reported as %s, and the service got it after that: %+v", r.Outcome, r)
		}
	}
}

// outcomes counts what became of the messages; those without a result are "none".
func (c *call) outcomes() map[string]int {
	out := map[string]int{}
	seen := map[string]bool{}
	for _, r := range c.results {
		if !seen[r.ID] {
			seen[r.ID] = true
			out[r.Outcome.String()]++
		}
	}
	if n := len(c.batch) - len(seen); n > 0 {
		out["none"] = n
	}
	return out
}

// only fails the test unless every message has one of the outcomes; "none" is no result.
func (c *call) only(when string, allowed ...string) {
	c.p.t.Helper()
	for o := range c.outcomes() {
		if !slices.Contains(allowed, o) {
			c.p.t.Errorf("%s, %d messages came to %s: want %s only%s", when, len(c.batch), words(c.outcomes()), strings.Join(allowed, " or "), c.example(o))
			return
		}
	}
}

// example shows one result, for the author to see what went wrong.
func (c *call) example(outcome string) string {
	for _, r := range c.results {
		if r.Outcome.String() == outcome {
			return fmt.Sprintf("; such as code %q, reason %q", r.Code, r.Reason)
		}
	}
	if c.err != nil {
		return fmt.Sprintf("; the error is %q", c.err)
	}
	return ""
}

// result is the result of a message, if it has one.
func (c *call) result(id string) (providers.Result, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.results {
		if r.ID == id {
			return r, true
		}
	}
	return providers.Result{}, false
}

func words(outcomes map[string]int) string {
	var out []string
	for o, n := range outcomes {
		out = append(out, fmt.Sprintf("%d %s", n, o))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// form says what is wrong with a text that people will see.
func form(t testing.TB, where, text string, limit int) {
	t.Helper()
	switch {
	case !utf8.ValidString(text):
		t.Errorf("%s is not UTF-8: %q", where, text)
	case len(text) > limit:
		t.Errorf("%s has %d bytes, and is cut to %d: %.60q…", where, len(text), limit, text)
	case strings.ContainsFunc(text, unicode.IsControl):
		t.Errorf("%s has a control character: %q", where, text)
	}
}

func clone(batch []providers.Message) []providers.Message {
	out := slices.Clone(batch)
	for i := range out {
		out[i].Data, out[i].Content = slices.Clone(out[i].Data), slices.Clone(out[i].Content)
	}
	return out
}

// addressPattern matches whole addresses; a pattern that is none matches everything.
func addressPattern(pattern string) *regexp.Regexp {
	if re, err := regexp.Compile(`^(?:` + pattern + `)$`); err == nil {
		return re
	}
	return regexp.MustCompile("")
}
