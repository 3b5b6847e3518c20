// Package plugintest is the examination that every provider sits: one call from a test of the provider's
// author holds it against the contract of package providers, in process and through the wire:
//
//	func TestExam(t *testing.T) { plugintest.Run(t, plugintest.Exam{Kind: kind(), Settings: ..., Message: ...}) }
//
// The example of Run shows all that an author can supply. The checks are against a stand-in of the
// service that the author brings: an httptest.Server most often, or package providers/sandbox.
//
// Each check is a subtest. What the author does not supply is skipped, with a line that says what is
// missing (go test -v shows it); an exam in which no message was delivered fails. Run it under -race too:
// the exam calls from many goroutines at once and leaves the finding of races to the detector.
//
// Command is the examination of a built plugin of which nothing else is known.
package plugintest

import (
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/carillon-notify/carillon/providers"
)

// Exam is what an author supplies. Kind or Command, Settings and Message are needed; the more of the rest
// there is, the more is examined.
type Exam struct {
	// Kind is examined in this process and, unless Command is set, through the wire: over gRPC in memory.
	Kind providers.Kind
	// Command is the path of a built plugin, Args its arguments. It is examined as Carillon runs it: in a
	// process of its own, supervised.
	Command string
	Args    []string

	// Settings open a provider that delivers to the stand-in service. The names are the Kind's
	// ("pool.max", or nested maps), the values what encoding/json takes. The values of secret settings are
	// looked for in everything that the provider says, so let them be unlike anything else.
	Settings map[string]any
	// Message makes the i-th message of the exam, one that the service accepts; i counts from 0. The exam
	// sets the ID to a fresh UUID, and the App, the times, Attempt and Priority where they are not set.
	// Title, Body, Name and Address are looked for in what must not hold them, so let them be unlike
	// anything else too.
	Message func(i int) providers.Message
	// Opened is called with each provider that the exam opens, before it gets its first message, and again
	// when its process was started anew: the place to connect a client to a providers.Server. Nil does
	// nothing.
	Opened func(t testing.TB, p providers.Provider)

	// Outcomes are those that the provider claims to tell apart, and how to provoke each. Accepted needs
	// none. Under Unknown belongs whatever leaves it open whether the service took the message.
	Outcomes map[providers.Outcome]Provoke
	// Silence makes the service take messages and give no answer while it lasts.
	Silence Provoke
	// SomeSilence does that to some of the messages of a batch. It may be left out where Silence has a
	// Message.
	SomeSilence Provoke
	// Down makes the service unreachable: settings that lead nowhere, or a stand-in that is stopped.
	Down Provoke

	// Taken says how often the service took the message with this ID. With it the exam sees who says
	// Accepted and sent nothing, who says Deferred and did send, and who sends twice.
	Taken func(id string) int
	// Connections is how many connections the service has open.
	Connections func() int
	// Receipt makes the service report on a message that was delivered, once, to a provider that is a
	// providers.Receiver. It returns an error where the service was told that the receipt was not kept; it
	// is then called again, as the service would try again.
	Receipt func(t testing.TB, p providers.Provider, m providers.Message) error

	// Soon is how long the provider may take for what the contract wants soon; 0 is 3 s. It bounds
	// hangs and is no measure of speed.
	Soon time.Duration
	// Except names checks that are left out, with the reason, which is printed.
	Except map[string]string
}

// Provoke is a way to make the service answer in a certain way: a message, a state of the service, other
// settings, or several of them together.
type Provoke struct {
	// Message turns a message that would be accepted into one that is answered so.
	Message func(m *providers.Message)
	// Service brings the service into a state and returns what ends it.
	Service func(t testing.TB) (restore func())
	// Settings are laid over the exam's; a nil value takes one away. A provider of its own is opened with
	// them.
	Settings map[string]any
	// Code is what Result.Code must be then, "" for anything.
	Code string
	// After is what Result.After must be then, to the second; 0 is anything.
	After time.Duration
}

func (p *Provoke) given() bool { return p.Message != nil || p.Service != nil || p.Settings != nil }

// Run examines a provider. It replaces the default logger meanwhile and looks at what this process has
// open, so nothing else should run beside it: call it from a test that is not parallel.
func Run(t *testing.T, e Exam) {
	t.Helper()
	run(t, onT(t), e)
}

// runner runs a named part of an exam, as testing.T.Run does.
type runner func(name string, f func(t testing.TB, sub runner))

func onT(t *testing.T) runner {
	return func(name string, f func(testing.TB, runner)) {
		t.Run(name, func(t *testing.T) { f(t, onT(t)) })
	}
}

// run examines in each way that there is, and fails if nothing was.
func run(t testing.TB, sub runner, e Exam) {
	t.Helper()
	if e.Soon <= 0 {
		e.Soon = 3 * time.Second
	}
	var tally tally
	if e.Kind.Open != nil {
		sub("in_process", func(t testing.TB, sub runner) { examine(t, sub, newSitting(&e, &tally, inProcess)) })
	}
	switch {
	case e.Command != "":
		sub("process", func(t testing.TB, sub runner) { examine(t, sub, newSitting(&e, &tally, inOwnProcess)) })
	case e.Kind.Open != nil:
		sub("wire", func(t testing.TB, sub runner) { examine(t, sub, newSitting(&e, &tally, overWire)) })
	default:
		t.Error("there is nothing to examine: set Kind, or Command to the path of a built plugin")
		return
	}
	t.Logf("%d checks, %d skipped; %d providers opened, %d messages answered",
		tally.checks.Load(), tally.skipped.Load(), tally.opened.Load(), tally.answered.Load())
	if tally.checks.Load() > 0 && tally.answered.Load() == 0 {
		t.Error("nothing was examined: no message was answered; Settings and Message must lead to a provider that delivers")
	}
}

// tally counts what was examined.
type tally struct {
	messages                          atomic.Int64 // made
	checks, skipped, opened, answered atomic.Int64
}

// way is how a provider is reached.
type way string

const (
	inProcess    way = "in process"
	overWire     way = "through the wire"
	inOwnProcess way = "in a process of its own"
)

// sitting is an exam in one way.
type sitting struct {
	*Exam
	way      way
	tally    *tally
	kind     providers.Kind // its functions lead to the provider in this way
	features features
	witness  *witness
	// gentle examines a plugin that delivers to who knows whom: with test messages, and few of them.
	gentle  bool
	refused string       // why no provider can be opened, "" while one can
	late    atomic.Int64 // results that came after their Deliver had returned
}

// features are what is known of a provider before it is asked.
type features struct{ check, receive bool }

func newSitting(e *Exam, tally *tally, w way) *sitting {
	return &sitting{Exam: e, way: w, tally: tally, witness: newWitness()}
}

// check is one question of the exam.
type check struct {
	name string
	// missing says what the check needs and has not got, "" when it can begin; nil needs nothing but a
	// provider that opens.
	missing func(s *sitting) string
	run     func(t testing.TB, s *sitting)
}

// examine asks the questions one after the other.
func examine(t testing.TB, sub runner, s *sitting) {
	t.Helper()
	defer s.witness.listen()()
	if err := s.reach(); err != nil {
		s.tally.checks.Add(1)
		t.Errorf("%v", err)
		return
	}
	s.witness.know(s.kind.Settings, flatten(s.Settings))
	for _, c := range s.checks() {
		sub(c.name, func(t testing.TB, _ runner) {
			s.tally.checks.Add(1)
			if why := s.skips(&c); why != "" {
				s.tally.skipped.Add(1)
				t.Skip(why)
			}
			c.run(t, s)
		})
	}
}

// skips says why a check is not made, "" if it is.
func (s *sitting) skips(c *check) string {
	if why := s.Except[c.name]; why != "" {
		return "left out: " + why
	}
	if s.refused != "" && !slices.Contains(withoutProvider, c.name) {
		return "no provider can be opened: " + s.refused
	}
	if c.missing != nil {
		return c.missing(s)
	}
	return ""
}

// withoutProvider are the checks that need no open provider.
var withoutProvider = []string{"kind", "describe", "late_results", "secrets"}

// checks are all questions, in their order. The last ones are about what the others saw.
func (s *sitting) checks() []check {
	list := []check{
		{"kind", nil, kindForm},
		{"describe", notInProcess, described},
		{"open", nil, openGiven},
		{"check", needsCheck, checkMessages},
		{"open_unknown", oncePerKind, openUnknown},
		{"open_types", oncePerKind, openTypes},
		{"open_required", nil, openRequired},
		{"open_defaults", oncePerKind, openDefaults},
		{"open_garbage", oncePerKind, openGarbage},
		{"open_down", needs(func(s *sitting) bool { return s.Down.given() }, "Down"), openDown},
		{"batch", needsDelivery, batchSizes},
		{"odd_messages", needsDelivery, oddMessages},
		{"test_message", needsMessage, testMessage},
	}
	for _, o := range slices.Sorted(maps.Keys(s.Outcomes)) {
		list = append(list, check{"outcome_" + o.String(), needsDelivery, func(t testing.TB, s *sitting) { outcome(t, s, o) }})
	}
	if len(s.Outcomes) == 0 {
		list = append(list, check{"outcomes", needs(func(*sitting) bool { return false }, "Outcomes"), nil})
	}
	return append(list,
		check{"streaming", needs(func(s *sitting) bool { return s.SomeSilence.given() || s.Silence.Message != nil },
			"SomeSilence, or a Silence with a Message"), streaming},
		check{"context_ended", needsDelivery, contextEnded},
		check{"context_cancelled", needsDelivery, contextCancelled},
		check{"context_deadline", needs(func(s *sitting) bool { return s.Silence.given() }, "Silence"), contextDeadline},
		check{"concurrency", needsDelivery, concurrency},
		check{"health", nil, health},
		check{"receive", nil, receive},
		check{"close", nil, closing},
		check{"close_in_flight", needsDelivery, closeInFlight},
		check{"close_impatient", needs(func(s *sitting) bool { return s.Silence.given() }, "Silence"), closeImpatient},
		check{"leaks", nil, leaks},
		check{"supervision", ownProcessOnly, supervision},
		check{"late_results", nil, lateResults},
		check{"secrets", nil, secrets},
	)
}

// needs skips a check for want of something in the Exam.
func needs(has func(*sitting) bool, what string) func(*sitting) string {
	return func(s *sitting) string {
		if missing := needsDelivery(s); missing != "" {
			return missing
		}
		if has(s) {
			return ""
		}
		return "the exam has no " + what
	}
}

func needsMessage(s *sitting) string {
	if s.Message == nil {
		return "the exam has no Message"
	}
	return ""
}

func needsDelivery(s *sitting) string {
	if s.gentle {
		return "it would deliver messages"
	}
	return needsMessage(s)
}

func notInProcess(s *sitting) string {
	if s.way == inProcess {
		return "nothing lies between the provider and the exam"
	}
	return ""
}

func ownProcessOnly(s *sitting) string {
	if s.way != inOwnProcess {
		return "there is no process to supervise: the exam has no Command"
	}
	return ""
}

// oncePerKind spares a plugin dozens of starts for what was examined in process.
func oncePerKind(s *sitting) string {
	if s.way == inOwnProcess && s.Kind.Open != nil {
		return "examined in process"
	}
	return ""
}

// message makes the next message.
func (s *sitting) message() providers.Message {
	now := time.Now()
	m := s.Message(int(s.tally.messages.Add(1) - 1))
	m.ID = uuid.Must(uuid.NewV7()).String()
	if m.App == "" {
		m.App = "exam"
	}
	if m.CreatedAt.IsZero() {
		m.CreatedAt = now
	}
	if m.ExpiresAt.IsZero() {
		m.ExpiresAt = now.Add(time.Hour)
	}
	if m.Attempt == 0 {
		m.Attempt = 1
	}
	if m.Priority == "" {
		m.Priority = providers.Normal
	}
	m.Test = m.Test || s.gentle
	return m
}

// messages makes n messages, each changed by change unless that is nil.
func (s *sitting) messages(n int, change func(*providers.Message)) []providers.Message {
	out := make([]providers.Message, n)
	for i := range out {
		out[i] = s.message()
		if change != nil {
			change(&out[i])
		}
	}
	return out
}
