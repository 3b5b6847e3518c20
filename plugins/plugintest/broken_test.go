package plugintest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/plugintest"
	"github.com/carillon-notify/carillon/providers"
)

// TestBroken has one provider after the other sit that is wrong in one way, and wants the check that is
// for it to fail. The check is made for the sound provider too, which must pass: else it might fail everything.
func TestBroken(t *testing.T) {
	setting := func(i int, change func(*providers.Setting)) func(*plugintest.Exam) {
		return func(e *plugintest.Exam) { change(&e.Kind.Settings[i]) }
	}
	kind := func(change func(*providers.Kind)) func(*plugintest.Exam) {
		return func(e *plugintest.Exam) { change(&e.Kind) }
	}
	soon := func(e *plugintest.Exam) { e.Soon = short }
	for _, tt := range []struct {
		flaw  flaw
		check string // that must fail
		said  string // in its words
		also  func(*plugintest.Exam)
	}{
		// The Kind.
		{"name", "kind", "Name", kind(func(k *providers.Kind) { k.Name = "Not A Name" })},
		{"channel", "kind", "Channel", kind(func(k *providers.Kind) { k.Channel = "" })},
		{"no doc", "kind", "the kind has no Doc", kind(func(k *providers.Kind) { k.Doc = " " })},
		{"long doc", "kind", "is cut to 500", kind(func(k *providers.Kind) { k.Doc = strings.Repeat("long ", 120) })},
		{"batch of none", "kind", "MaxBatch", kind(func(k *providers.Kind) { k.MaxBatch = 0 })},
		{"batch of many", "kind", "MaxBatch", kind(func(k *providers.Kind) { k.MaxBatch = 101 })},
		{"no pattern", "kind", "Address is empty", kind(func(k *providers.Kind) { k.Address = "" })},
		{"bad pattern", "kind", "RE2", kind(func(k *providers.Kind) { k.Address = "(?=a)" })},
		{"pattern of nothing", "kind", "empty address", kind(func(k *providers.Kind) { k.Address = "[+0-9]*" })},
		{"pattern of others", "kind", "does not match", kind(func(k *providers.Kind) { k.Address = "[a-f]+" })},
		{"schema no JSON", "kind", "no JSON", kind(func(k *providers.Kind) { k.Content = []byte("{") })},
		{"schema no object", "kind", `type "object"`, kind(func(k *providers.Kind) { k.Content = []byte(`{"type":"string"}`) })},
		{"bad schema", "kind", "draft 2020-12", kind(func(k *providers.Kind) { k.Content = []byte(`{"type":"object","properties":{"a":{"type":"txt"}}}`) })},
		{"setting without a doc", "kind", "has no Doc", setting(0, func(s *providers.Setting) { s.Doc = "" })},
		{"setting of no type", "kind", "the type", setting(0, func(s *providers.Setting) { s.Type = "text" })},
		{"setting twice", "kind", "listed twice", setting(3, func(s *providers.Setting) { s.Name = "url" })},
		{"setting and group", "kind", "members of its own", setting(3, func(s *providers.Setting) { s.Name = "pool" })},
		{"setting's name", "kind", "lower-case", setting(3, func(s *providers.Setting) { s.Name = "Tags!" })},
		{"choice of none", "kind", "without Values", setting(2, func(s *providers.Setting) { s.Values, s.Default = nil, "" })},
		{"default of no choice", "kind", "is none of", setting(2, func(s *providers.Setting) { s.Default = "slow" })},
		{"default of no type", "kind", "no duration", setting(6, func(s *providers.Setting) { s.Default = "ten seconds" })},
		{"required with a default", "kind", "required and has a default", setting(0, func(s *providers.Setting) { s.Default = "http://localhost" })},
		{"secret not marked", "kind", "Secret", setting(1, func(s *providers.Setting) { s.Secret = false })},
		{"unlisted setting", "kind", "does not list", func(e *plugintest.Exam) { e.Settings["color"] = "red" }},
		// Check.
		{"check changes", "check", "changed", nil},
		{"check panics", "check", "panicked", nil},
		{"check is slow", "check", "took", func(e *plugintest.Exam) { e.Soon = 3 * time.Second }},
		{"check repeats", "check", "is cut to 500", nil},
		{"check tells the address", "check", "address", nil},
		// Open.
		{"unknown inconsistent", "open_unknown", "is ignored", nil},
		{"wrong type without a name", "open_types", "does not name it", nil},
		{"wrong type ignored", "open_types", "takes", nil},
		{"secret in the error of open", "open_types", "repeats its value", nil},
		{"required ignored", "open_required", "does without", nil},
		{"required without a name", "open_required", "does not name it", nil},
		{"other default", "open_defaults", "documented is the default 4", nil},
		{"default refused", "open_defaults", "refuses the documented default", nil},
		{"choice refused", "open_defaults", `refuses "safe"`, nil},
		{"garbage repeated", "open_garbage", "repeats", nil},
		{"open asks the service", "open_down", "Open fails", nil},
		{"down is rejected", "open_down", "want deferred", nil},
		// Deliver.
		{"reports twice", "batch", "a second result", nil},
		{"reports others", "batch", "not in the batch", nil},
		{"no id", "batch", "not in the batch", nil},
		{"reports late", "late_results", "after their Deliver", nil},
		{"changes the batch", "batch", "changed the messages", nil},
		{"empty batch fails", "batch", "empty batch", nil},
		{"error for nothing", "batch", "an error speaks for", nil},
		{"control characters", "batch", "control character", nil},
		{"negative wait", "batch", "negative", nil},
		{"accepted without sending", "batch", "never got it", nil},
		{"sends twice", "batch", "2 times", nil},
		{"poison", "odd_messages", "a good message", nil},
		{"test delivered", "test_message", "test message was delivered", nil},
		{"gone is rejected", "outcome_gone", "want gone", nil},
		{"gone tomorrow", "outcome_gone", "in the future", nil},
		{"retry-after ignored", "outcome_throttled", "After", nil},
		{"silence unexplained", "outcome_unknown", "no error that says why", soon},
		{"holds results", "streaming", "held back", soon},
		{"context ignored", "context_ended", "want deferred", soon},
		{"context ignored", "context_cancelled", "did not return", soon},
		{"context ignored", "context_deadline", "did not return", soon},
		{"deferred although sent", "context_cancelled", "the service took it", soon},
		{"pool without bounds", "concurrency", "out of its bounds", nil},
		// Health, Receive, Close.
		{"health asks the service", "health", "did not return", soon},
		{"health waits", "health", "did not return", soon},
		{"health of no status", "health", "none of ok", nil},
		{"health says ok and why", "health", "has a Reason", nil},
		{"waiting for ever", "health", "nothing under way", soon},
		{"receive ends", "receive", "before its context", nil},
		{"receive goes on", "receive", "did not return", soon},
		{"receipt lost", "receive", "not offered again", soon},
		{"receipt of nothing", "receive", "neither the message's ID", nil},
		{"close twice panics", "close", "Close panicked", nil},
		{"deliver after close", "close", "after Close", nil},
		{"close leaves connections", "close", "connections open", soon},
		{"close does not wait", "close_in_flight", "under way at Close", nil},
		{"close waits for ever", "close_impatient", "did not return", soon},
		{"goroutine left behind", "leaks", "left behind", soon},
		{"file left behind", "leaks", "left behind", soon},
		{"close leaves connections", "leaks", "left behind", func(e *plugintest.Exam) { e.Connections, e.Soon = nil, short }},
		// What must not be told.
		{"secret in the reason", "secrets", "Result.Reason holds the secret", nil},
		{"secret in health", "secrets", "Health.Reason holds the secret", nil},
		{"secret in the error of deliver", "secrets", "the error of Deliver holds the secret", soon},
		{"secret in the log", "secrets", "a log line at DEBUG holds the secret", nil},
		{"address in the reason", "secrets", "Result.Reason holds the address", nil},
		{"address in the log", "secrets", "a log line at INFO holds the address", nil},
		{"content in the log", "secrets", "a log line at WARN holds the content", nil},
	} {
		t.Run(string(tt.flaw)+"/"+tt.check, func(t *testing.T) {
			checks := []string{tt.check}
			switch tt.check {
			case "secrets": // it looks back on others
				checks = append(checks, "open", "batch", "open_down", "context_deadline")
			case "late_results":
				checks = append(checks, "batch", "close")
			}
			service := newStandIn(t)
			e := examAt(t, service, tt.flaw)
			if tt.flaw == "health asks the service" {
				e.Silence = plugintest.Provoke{Service: service.quiet}
			}
			if tt.also != nil {
				tt.also(&e)
			}
			got := plugintest.RecordsOf(t, e, checks...)[tt.check]
			if !strings.HasPrefix(got, "failed") || !strings.Contains(got, tt.said) {
				t.Errorf("want a failure that says %q; got %q", tt.said, got)
			}
			if strings.Contains(got, token) {
				t.Errorf("the failure repeats the secret: %q", got)
			}
		})
	}
}
