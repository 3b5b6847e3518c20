package plugintest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/carillon-notify/carillon/providers"
)

var (
	namePattern    = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	settingPattern = regexp.MustCompile(`^[a-z0-9_]+(\.[a-z0-9_]+)*$`)
	// confidential are the last words of the names of settings that hold a secret.
	confidential = []string{"password", "passwords", "passphrase", "secret", "secrets", "token", "tokens"}
)

// kindForm looks at the Kind as plain data.
func kindForm(t testing.TB, s *sitting) {
	k := &s.kind
	if !namePattern.MatchString(k.Name) {
		t.Errorf("Name %.70q is not of lower-case letters, digits, '-' and '_'", k.Name)
	}
	if !namePattern.MatchString(k.Channel) {
		t.Errorf("Channel %.70q is not of lower-case letters, digits, '-' and '_'", k.Channel)
	}
	documented(t, "the kind", k.Doc)
	if k.MaxBatch < 1 || k.MaxBatch > 100 {
		t.Errorf("MaxBatch is %d, and must be 1 to 100", k.MaxBatch)
	}
	if k.Open == nil {
		t.Error("there is no Open")
	}
	addressForm(t, s)
	if k.Content != nil {
		contentForm(t, k.Content)
	}
	names := map[string]bool{}
	for i := range k.Settings {
		settingForm(t, &k.Settings[i])
		if names[k.Settings[i].Name] {
			t.Errorf("setting %s: is listed twice", k.Settings[i].Name)
		}
		names[k.Settings[i].Name] = true
	}
	for name := range names {
		for at := strings.LastIndexByte(name, '.'); at > 0; at = strings.LastIndexByte(name[:at], '.') {
			if names[name[:at]] {
				t.Errorf("setting %s: %s cannot have a value and members of its own", name, name[:at])
			}
		}
	}
	for name := range flatten(s.Settings) {
		if !names[name] {
			t.Errorf("the exam's settings have %s, which the kind does not list: Carillon would refuse them", name)
		}
	}
}

func documented(t testing.TB, what, doc string) {
	t.Helper()
	if strings.TrimSpace(doc) == "" {
		t.Errorf("%s has no Doc: one sentence for the console and the documentation", what)
	}
	form(t, "Doc of "+what, doc, maxReason)
}

func addressForm(t testing.TB, s *sitting) {
	t.Helper()
	if s.kind.Address == "" {
		t.Error("Address is empty: give a pattern that a whole address must match")
		return
	}
	if _, err := regexp.Compile(s.kind.Address); err != nil {
		t.Errorf("Address is no RE2 pattern: %v", err)
		return
	}
	whole := addressPattern(s.kind.Address)
	if whole.MatchString("") {
		t.Error("Address matches an empty address")
	}
	if s.Message != nil {
		for i := range 3 {
			if a := s.Message(i).Address; !whole.MatchString(a) {
				t.Errorf("Address does not match %q, which is the address of a message of the exam", a)
				break
			}
		}
	}
}

func contentForm(t testing.TB, content []byte) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(content))
	if err != nil {
		t.Errorf("Content is no JSON: %v", err)
		return
	}
	object, ok := doc.(map[string]any)
	if !ok || object["type"] != "object" {
		t.Error(`Content is no JSON Schema of the type "object"`)
		return
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.UseLoader(jsonschema.SchemeURLLoader{}) // loads nothing
	if err := c.AddResource("kind:content", doc); err != nil {
		t.Errorf("Content is no JSON Schema of draft 2020-12: %v", err)
		return
	}
	if _, err := c.Compile("kind:content"); err != nil {
		t.Errorf("Content is no JSON Schema of draft 2020-12: %v", err)
	}
}

func settingForm(t testing.TB, s *providers.Setting) {
	t.Helper()
	wrong := func(format string, args ...any) { t.Errorf("setting "+s.Name+": "+format, args...) }
	if !settingPattern.MatchString(s.Name) {
		wrong("the name is not of lower-case letters, digits and '_', with '.' between its levels")
	}
	documented(t, "setting "+s.Name, s.Doc)
	switch s.Type {
	case providers.Choice:
		if len(s.Values) == 0 {
			wrong("a choice without Values")
		}
	case providers.String, providers.Int, providers.Bool, providers.Duration, providers.File, providers.List:
		if len(s.Values) > 0 {
			wrong("has Values, which only a choice has")
		}
	default:
		wrong("the type %q is none of string, int, bool, duration, choice, file and list", s.Type)
		return
	}
	if s.Required && s.Default != "" {
		wrong("is required and has a default")
	}
	if s.Default != "" {
		if _, err := typed(s, s.Default); err != nil {
			wrong("the default %q %s", s.Default, err)
		}
	}
	words := strings.FieldsFunc(s.Name, func(r rune) bool { return r == '_' || r == '.' })
	if last := words[max(len(words)-1, 0):]; len(last) == 1 && !s.Secret && slices.Contains(confidential, last[0]) &&
		(s.Type == providers.String || s.Type == providers.List) {
		wrong("is not marked Secret")
	}
}

// typed turns a default into the JSON value of its setting.
func typed(s *providers.Setting, text string) (any, error) {
	switch s.Type {
	case providers.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("is no whole number")
		}
		return n, nil
	case providers.Bool:
		if text != "true" && text != "false" {
			return nil, fmt.Errorf("is neither true nor false")
		}
		return text == "true", nil
	case providers.Duration:
		if _, err := time.ParseDuration(text); err != nil {
			return nil, fmt.Errorf("is no duration such as 90s")
		}
	case providers.Choice:
		if !slices.Contains(s.Values, text) {
			return nil, fmt.Errorf("is none of %s", strings.Join(s.Values, ", "))
		}
	case providers.List:
		return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }), nil
	case providers.String, providers.File:
	}
	return text, nil
}

// described holds what arrives at the host against what the package says.
func described(t testing.TB, s *sitting) {
	if s.Kind.Open == nil {
		t.Logf("kind %s of the channel %s, %d settings", s.kind.Name, s.kind.Channel, len(s.kind.Settings))
		return
	}
	plain := func(k providers.Kind) map[string]any {
		var out map[string]any
		k.Check, k.Open = nil, nil
		if len(k.Content) == 0 {
			k.Content = nil
		}
		for i := range k.Settings {
			if len(k.Settings[i].Values) == 0 {
				k.Settings[i].Values = nil
			}
		}
		raw, err := json.Marshal(struct { // the functions are no JSON
			Name, Channel, Doc, Address string
			MaxBatch                    int
			Secret                      bool
			Content                     []byte
			Settings                    []providers.Setting
		}{k.Name, k.Channel, k.Doc, k.Address, k.MaxBatch, k.Secret, k.Content, k.Settings})
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	own := s.Kind
	own.Settings = slices.Clone(own.Settings)
	sent, got := plain(own), plain(s.kind)
	for name := range sent {
		if !reflect.DeepEqual(sent[name], got[name]) {
			t.Errorf("%s %v arrives as %v", name, sent[name], got[name])
		}
	}
	if (s.Kind.Check != nil) != s.features.check {
		t.Errorf("the kind has a Check: %v; the host is told %v", s.Kind.Check != nil, s.features.check)
	}
}
