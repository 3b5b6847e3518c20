package campaign_test

import (
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/campaign"
)

func TestFilter(t *testing.T) {
	t.Parallel()
	ann := &core.Recipient{ID: "ann", Locale: "de-AT", Timezone: "Europe/Vienna",
		Attributes: []byte(`{"plan":"pro","age":41,"score":7.5,"zero":0,"tags":["a","b"],"address":{"country":"AT"},"trial":false,"none":null}`)}
	for text, want := range map[string]bool{
		`attributes.plan == "pro"`:                                 true,
		`attributes.plan == "free"`:                                false,
		`attributes.age >= 41 and attributes.age < 42`:             true,
		`attributes.score > 7`:                                     true,
		`attributes.address.country in ["AT", "DE"]`:               true,
		`"b" in attributes.tags`:                                   true,
		`not attributes.trial`:                                     true,
		`attributes.nothing == "x"`:                                false,
		`attributes.nothing == nil`:                                true,
		`attributes.nothing > 3`:                                   false, // it makes no sense
		`attributes.plan > 3`:                                      false,
		`attributes.nothing.deeper == 1`:                           false,
		`(attributes.nothing ?? 5) > 3`:                            true,
		`attributes.nothing?.deeper == nil`:                        true,
		`locale startsWith "de" or timezone == "Asia/Tokyo"`:       true,
		`lower(attributes.plan) matches "^p.o$"`:                   true,
		`len(attributes.tags) == 2`:                                true,
		`id == "ann"`:                                              true,
		`attributes.age % 2 == 1`:                                  false, // of a number with a point there is none
		`int(attributes.age) % 2 == 1`:                             true,
		`attributes.plan contains "r" && attributes.tags != ["a"]`: true,
		`true`: true,
		`attributes.age == 41 ? attributes.score < 8 : false`:          true,
		`attributes.age / 2 == 20.5 and 9 / 3 == 3`:                    true,
		`attributes.age / attributes.zero > 1`:                         false, // infinity is no number
		`not (attributes.age / attributes.zero < 1)`:                   false,
		`attributes.zero / attributes.zero != 1`:                       false,
		`int(attributes.age) % int(attributes.zero) != 1`:              false,
		`attributes.plan / 2 != 1`:                                     false,
		`attributes["plan"] == "pro"`:                                  true,
		`attributes.tags[5] == "x"`:                                    false,
		`hasPrefix(id, "a") and hasSuffix(id, "n") and trim(id) == id`: true,
	} {
		f, err := campaign.NewFilter(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := f.Matches(ann); got != want {
			t.Errorf("%s is %t, not %t", text, got, want)
		}
	}
	f, err := campaign.NewFilter(`attributes.plan == nil`)
	if err != nil {
		t.Fatal(err)
	}
	if !f.Matches(&core.Recipient{ID: "x"}) || f.Matches(&core.Recipient{ID: "x", Attributes: []byte(`[1]`)}) {
		t.Error("who has no attributes has none; who has broken ones is not meant")
	}
}

// What would loop, call out or is no condition is refused, and so is what is too long.
func TestFilterIsRefused(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{``, `1`, `"x"`, `attributes`, `plan == "pro"`, `attributes.plan = "x"`, `env["attributes"]`, `all(attributes.tags, # == "a")`,
		`filter(attributes.tags, true)`, `len(map(1..1000000, # * 2)) > 1`, `reduce(1..9, #acc + #) > 1`, `repeat("x", 1000000) == "y"`, `now() > date("2026-01-01")`,
		`get(attributes, "x") == 1`, `attributes.x; true`, `id == "' OR 1=1 --`, `attributes.plan matches "("`, `fromJSON(id) == 1`, `$env.id == "x"`,
		`id == "` + strings.Repeat("x", 3000) + `"`, strings.Repeat("not ", 450) + "true", "true" + strings.Repeat(" or true", 300)} {
		if _, err := campaign.NewFilter(bad); err == nil {
			t.Errorf("taken: %.60s", bad)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60s: the error has more than a line: %v", bad, err)
		}
	}
}

// What is refused is told so that it can be mended.
func TestFilterTells(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`attributes.plan = "pro"`:     "line 1, column 17: there is no operator =; use == to compare",
		"id == \"é\" and\nlocale = 1": "line 2, column 8: there is no operator =; use == to compare",
		`id == "a" AND locale == "b"`: "line 1, column 11: write AND in small letters",
		`id ==`:                       "unexpected token EOF",
		`attribute.x == 1`:            "there is no name attribute; there are id, locale, timezone, attributes, and what attributes hold is named like attributes.plan",
		`plan == "pro"`:               "there is no name plan; there are id, locale, timezone, attributes, and what attributes hold is named like attributes.plan",
		`upcase(id) == "X"`:           "there is no function upcase; there are len, lower, upper",
		`now() == 1`:                  "there is no function now; there are len, lower, upper",
		`attributes.age / 0 > 1`:      "nothing can be divided by zero",
		`attributes.age % 0.0 > 1`:    "nothing can be divided by zero",
		`id / 2 > 1`:                  "invalid operation: / (mismatched types string and int)",
	} {
		if _, err := campaign.NewFilter(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add(`attributes.plan == "pro"`)
	f.Add(`1..9 == attributes.x`)
	f.Add(`attributes.n / 0 == 1 / attributes.plan`)
	f.Fuzz(func(t *testing.T, text string) {
		if filter, err := campaign.NewFilter(text); err == nil {
			filter.Matches(&core.Recipient{ID: "ann", Attributes: []byte(`{"plan":"pro","n":3,"tags":["a"]}`)})
		}
	})
}

// BenchmarkFilter is what it costs to look at a recipient, with reading its attributes.
func BenchmarkFilter(b *testing.B) {
	f, err := campaign.NewFilter(`attributes.plan == "pro" and attributes.age >= 18 and attributes.country in ["DE", "FR"]`)
	if err != nil {
		b.Fatal(err)
	}
	r := &core.Recipient{ID: "ann", Attributes: []byte(`{"plan":"pro","age":41,"country":"FR","name":"Ann Example","city":"Paris"}`)}
	for b.Loop() {
		if !f.Matches(r) {
			b.Fatal("it does not match")
		}
	}
}
