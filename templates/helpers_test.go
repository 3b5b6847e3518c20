package templates_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/carillon-notify/carillon/templates"
)

type object = map[string]any

// oneBody is a template whose default document is a body alone: a text part.
func oneBody(body string) templates.Source {
	return templates.Source{Name: "t", Locales: map[string]templates.Parts{"default": {Body: body}}}
}

// oneHTML is a template whose default document is an e-mail's HTML alone.
func oneHTML(html string) templates.Source {
	block, err := json.Marshal(object{"html": html})
	if err != nil {
		panic(err)
	}
	return templates.Source{Name: "t", Locales: map[string]templates.Parts{"default": {Channels: map[string]json.RawMessage{"email": block}}}}
}

func compile(t testing.TB, src templates.Source) *templates.Template {
	t.Helper()
	tpl, err := templates.Compile(src, templates.Options{})
	if err != nil {
		t.Fatalf("compile: %v", err)
	}
	return tpl
}

func body(t testing.TB, src string, data object) (string, error) {
	t.Helper()
	c, err := compile(t, oneBody("|"+src+"|")).Render(templates.Input{Data: data}) // the bars keep white space
	if err != nil {
		return "", err
	}
	return c.Body[1 : len(c.Body)-1], nil
}

func html(t testing.TB, src string, data object) (string, error) {
	t.Helper()
	c, err := compile(t, oneHTML(src)).Render(templates.Input{Data: data})
	if err != nil {
		return "", err
	}
	return email(t, c)["html"].(string), nil
}

func email(t testing.TB, c templates.Content) object {
	t.Helper()
	var e object
	if err := json.Unmarshal(c.Channels["email"], &e); err != nil {
		t.Fatalf("the e-mail is no JSON: %v: %s", err, c.Channels["email"])
	}
	return e
}

// faultsOf are the faults of an error that must be an *Error.
func faultsOf(t testing.TB, err error) []templates.Fault {
	t.Helper()
	var e *templates.Error
	if !errors.As(err, &e) || len(e.Faults) == 0 {
		t.Fatalf("want an *Error with faults, got %v", err)
	}
	return e.Faults
}

// codes are the faults without their details.
func codes(faults []templates.Fault) []string {
	var out []string
	for _, f := range faults {
		out = append(out, f.Pointer+" "+f.Code)
	}
	return out
}

func decode(t testing.TB, s string) object {
	t.Helper()
	var o object
	if err := json.Unmarshal([]byte(s), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

type number = json.Number
