package plugintest

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/providers"
)

// openGiven opens with the exam's own settings: twice at once, for two routes may be of one kind.
func openGiven(t testing.TB, s *sitting) {
	one, two := s.open(t), s.open(t)
	for _, p := range []*subject{one, two} {
		if h := p.health(context.Background()); h.Status == providers.HealthDown && s.Message != nil {
			t.Errorf("a provider that was just opened says that it is down: %s", h.Reason)
		}
	}
	if s.Message != nil && !s.gentle {
		s.end(t, one)
		two.deliver(s.messages(1, nil)).only("with another provider of the same kind closed", "accepted")
	}
}

// end closes a provider in the middle of a check.
func (s *sitting) end(t testing.TB, p *subject) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.Soon)
	defer cancel()
	if err := p.close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// openUnknown lays settings over the exam's that the kind does not list. Carillon refuses those before
// Open; one that is opened directly ignores them all, or refuses them all by name.
func openUnknown(t testing.TB, s *sitting) {
	const name = "no_such_setting"
	at := []string{name}
	for i := range s.kind.Settings {
		if group, _, nested := strings.Cut(s.kind.Settings[i].Name, "."); nested && !slices.Contains(at, group+"."+name) {
			at = append(at, group+"."+name)
		}
	}
	var refused, ignored []string
	for _, unknown := range at {
		_, err := s.tryOpen(t, settingsJSON(t, s.Settings, map[string]any{unknown: 1}))
		switch {
		case err == nil:
			ignored = append(ignored, unknown)
		case !strings.Contains(err.Error(), name):
			t.Errorf("the unknown setting %s is refused, and the error does not name it: %v", unknown, err)
			fallthrough
		default:
			refused = append(refused, unknown)
		}
	}
	if len(refused) > 0 && len(ignored) > 0 {
		t.Errorf("of unknown settings, %s is refused and %s is ignored", strings.Join(refused, ", "), strings.Join(ignored, ", "))
	}
}

// marker stands where a secret would: it must not come back in an error.
const marker = "marker-of-the-exam-4711"

// misfits are values that are not of a setting's type.
func misfits(s *providers.Setting) []any {
	switch s.Type {
	case providers.Int:
		return []any{marker, 1.5, true, []string{marker}}
	case providers.Bool:
		return []any{marker, 1, []string{marker}}
	case providers.Duration:
		return []any{marker, 5, true, "5 parsecs"}
	case providers.Choice:
		return []any{marker, 7, true}
	case providers.List:
		return []any{7, true, []int{7}}
	case providers.String, providers.File:
		return []any{7, true, []string{marker}}
	}
	return nil
}

// openTypes gives each setting values of other types. They must be refused by name: what is taken for
// something else, or for nothing, is found out when messages do not go out.
func openTypes(t testing.TB, s *sitting) {
	for i := range s.kind.Settings {
		setting := &s.kind.Settings[i]
		for _, v := range misfits(setting) {
			shown, _ := json.Marshal(v)
			_, err := s.tryOpen(t, settingsJSON(t, s.Settings, map[string]any{setting.Name: v}))
			if err == nil {
				t.Errorf("%s is a %s, and Open takes %s for it", setting.Name, setting.Type, shown)
				break
			}
			if !names(err, setting.Name) {
				t.Errorf("%s is a %s; given %s, the error of Open does not name it: %v", setting.Name, setting.Type, shown, err)
				break
			}
			if setting.Secret && strings.Contains(err.Error(), marker) {
				t.Errorf("%s is a secret, and the error of Open repeats its value: %v", setting.Name, err)
				break
			}
		}
		switch _, given := flatten(s.Settings)[setting.Name]; {
		case setting.Type == providers.File && given:
			_, err := s.tryOpen(t, settingsJSON(t, s.Settings, map[string]any{setting.Name: "/no/such/" + marker}))
			if err == nil {
				t.Errorf("%s is a file, and Open does not mind that there is none", setting.Name)
			} else if !names(err, setting.Name) {
				t.Errorf("%s is a file that is not there, and the error of Open does not name the setting: %v", setting.Name, err)
			}
		case setting.Secret && setting.Type == providers.String:
			// A secret that is of the right type and of the wrong form.
			if _, err := s.tryOpen(t, settingsJSON(t, s.Settings, map[string]any{setting.Name: marker})); err != nil && strings.Contains(err.Error(), marker) {
				t.Errorf("%s is a secret, and the error of Open repeats its value: %v", setting.Name, err)
			}
		}
	}
}

// names says whether an error names a setting, in full or by its last part.
func names(err error, setting string) bool {
	return strings.Contains(err.Error(), setting[strings.LastIndexByte(setting, '.')+1:])
}

// openRequired leaves out each required setting, and then everything.
func openRequired(t testing.TB, s *sitting) {
	required := 0
	for i := range s.kind.Settings {
		setting := &s.kind.Settings[i]
		if !setting.Required {
			continue
		}
		required++
		_, err := s.tryOpen(t, settingsJSON(t, s.Settings, map[string]any{setting.Name: nil}))
		if err == nil {
			t.Errorf("%s is required, and Open does without", setting.Name)
		} else if !names(err, setting.Name) {
			t.Errorf("%s is required, and the error of Open without it does not name it: %v", setting.Name, err)
		}
	}
	_, err := s.tryOpen(t, []byte("{}"))
	if err == nil && required > 0 {
		t.Error("Open takes empty settings, although some are required")
	}
	if err != nil && strings.TrimSpace(err.Error()) == "" {
		t.Error("Open refuses empty settings and does not say why")
	}
}

// openDefaults sets each setting to its documented default, which must be as good as leaving it out.
func openDefaults(t testing.TB, s *sitting) {
	given := flatten(s.Settings)
	all := map[string]any{}
	for i := range s.kind.Settings {
		setting := &s.kind.Settings[i]
		if _, set := given[setting.Name]; set || setting.Default == "" {
			continue
		}
		v, err := typed(setting, setting.Default)
		if err != nil {
			continue // told by kind
		}
		all[setting.Name] = v
		if _, err := s.tryOpen(t, settingsJSON(t, s.Settings, map[string]any{setting.Name: v})); err != nil {
			t.Errorf("%s: Open refuses the documented default %q: %v", setting.Name, setting.Default, err)
		}
		for _, choice := range setting.Values {
			_, err := s.tryOpen(t, settingsJSON(t, s.Settings, map[string]any{setting.Name: choice}))
			if err != nil && names(err, setting.Name) {
				t.Errorf("%s: Open refuses %q, which is documented: %v", setting.Name, choice, err)
			}
		}
		if setting.Name != poolMax {
			continue
		}
		if n := s.open(t).health(context.Background()).Pool.Max; n != v {
			t.Errorf("%s: documented is the default %s, and without the setting Health has %d", poolMax, setting.Default, n)
		}
		if n := s.open(t, map[string]any{poolMax: 3}).health(context.Background()).Pool.Max; n != 3 {
			t.Errorf("%s: set to 3, and Health has %d", poolMax, n)
		}
	}
	if _, err := s.tryOpen(t, settingsJSON(t, s.Settings, all)); err != nil {
		t.Errorf("Open refuses the documented defaults together: %v", err)
	}
}

// poolMax is the setting that every provider on package providers/pool has.
const poolMax = "pool.max"

// openGarbage gives Open what is no JSON object. Where there are no settings, nobody has to read them.
func openGarbage(t testing.TB, s *sitting) {
	for _, tt := range []struct {
		raw     string
		refused bool
	}{
		{"", false}, {"null", false}, {"[]", true}, {`"` + marker + `"`, true}, {"{", true}, {`{"a":"` + marker, true},
		{"{} {}", true}, {strings.Repeat("[", 100_000), true}, {"\xff\xfe", true},
	} {
		_, err := s.tryOpen(t, []byte(tt.raw))
		if err == nil && tt.refused && len(s.kind.Settings) > 0 {
			t.Errorf("Open takes %.20q for settings", tt.raw)
		}
		if err != nil && strings.Contains(err.Error(), marker) {
			t.Errorf("given settings that are no JSON object, the error of Open repeats what is in them: %v", err)
		}
	}
}

// openDown opens while the service cannot be reached.
func openDown(t testing.TB, s *sitting) {
	restore := func() {}
	if s.Down.Service != nil {
		restore = s.Down.Service(t)
	}
	restored := false
	defer func() {
		if !restored {
			restore()
		}
	}()
	p, err := s.tryOpen(t, settingsJSON(t, s.Settings, s.Down.Settings))
	if err != nil {
		t.Fatalf("the service cannot be reached, and Open fails: that is a matter of Health and of Deferred answers: %v", err)
	}
	p.health(context.Background())
	c := p.deliver(s.messages(min(s.kind.MaxBatch, 3), s.Down.Message))
	c.only("with a service that cannot be reached", "deferred", "throttled")
	p.health(context.Background())
	if s.Down.Service == nil {
		return
	}
	restore()
	restored = true
	s.recovers(t, p)
}

// recovers waits until a message is accepted again.
func (s *sitting) recovers(t testing.TB, p *subject) {
	t.Helper()
	var last *call
	if !eventually(3*s.Soon, func() bool {
		last = p.deliver(s.messages(1, nil))
		return last.outcomes()["accepted"] == 1
	}) {
		t.Errorf("the service is well again, and %s later a message came to %s%s", 3*s.Soon, words(last.outcomes()), last.example("deferred"))
	}
}
