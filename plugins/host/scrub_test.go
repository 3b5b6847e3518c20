package host_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/providers"
)

// TestScrubbed has a plugin say its secret and its messages' addresses wherever it can.
func TestScrubbed(t *testing.T) {
	t.Parallel()
	const key = "se&same open\"sesame"
	const address = "+491510000000"
	settings, err := json.Marshal(map[string]string{"key": key})
	if err != nil {
		t.Fatal(err)
	}
	s := spec(t, "obedient")
	l := newLog(t)
	s.Logger = l.logger()
	p := open(t, s, string(settings))
	clean := func(where, text string) {
		t.Helper()
		for _, secret := range []string{key, `se&same open\"sesame`, "se%26same+open%22sesame", "se&same%20open%22sesame", address, "%2B491510000000", "the words of the message"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s says %q: %q", where, secret, text)
			}
		}
		if !strings.Contains(text, "***") || !strings.Contains(text, "end") {
			t.Errorf("%s says %q", where, text)
		}
	}
	for _, said := range []string{
		"401 for KEY and ADDRESS, the end", "https://sms.test/?key=se%26same+open%22sesame&to=%2B491510000000 at the end", "https://sms.test/se&same%20open%22sesame/ at the end",
		strings.Repeat("x", 80) + " end at se&same open", // cut to 100 bytes in the middle of the secret
	} {
		got, err := deliver(t, p, patient, messages("say:"+said))
		if err != nil {
			t.Fatal(err)
		}
		r := got["id-0"]
		clean("the code", r.Code)
		clean("the reason", r.Reason)
		if strings.Contains(r.ProviderID, key) {
			t.Errorf("the provider's id says %q", r.ProviderID)
		}
	}
	batch := messages("hello", "error:KEY refused ADDRESS and +491510000000 at the end")
	if _, err := deliver(t, p, patient, batch); err == nil {
		t.Error("there is no error")
	} else {
		clean("the error", err.Error())
		if strings.Contains(err.Error(), batch[1].Address) {
			t.Errorf("the error says an address: %v", err)
		}
	}
	batch = messages("log:KEY sent TITLE to ADDRESS at the end")
	batch[0].Title = "the words of the message"
	if _, err := deliver(t, p, patient, batch); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	lines := 0
	for _, r := range l.all() {
		text := r.Message + " " + attrs(r)
		if strings.Contains(text, "at the end") {
			clean("the log", text)
			if lines++; r.Level == slog.LevelInfo && (attr(r, "its_plugin") != "another" || strings.Contains(text, " plugin=")) {
				t.Errorf("it passes itself off for another plugin: %s", text)
			}
		}
	}
	if lines != 2 {
		t.Errorf("%d of 2 lines are logged", lines)
	}
}

// TestSecretsOfManyLines looks for each line of a key, and masks neither short nor plain settings.
func TestSecretsOfManyLines(t *testing.T) {
	t.Parallel()
	line := "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQ"
	settings, err := json.Marshal(map[string]string{"key": "-----BEGIN PRIVATE KEY-----\n" + line + "\nshort\n-----END PRIVATE KEY-----\n", "greeting": "hello there"})
	if err != nil {
		t.Fatal(err)
	}
	p := open(t, spec(t, "obedient"), string(settings))
	got, err := deliver(t, p, patient, messages(fmt.Sprintf("say:asn1: %s is short, hello there", line)))
	if err != nil {
		t.Fatal(err)
	}
	if r := got["id-0"]; r.Reason != "asn1: *** is short, hello there" || r.Outcome != providers.Rejected {
		t.Errorf("%+v", r)
	}
}
