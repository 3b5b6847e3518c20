package intake_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/templates"
)

// TestPreviewTemplate: a template is shown as a recipient would get it, with every digit of its data.
func TestPreviewTemplate(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.template("t", `{"locales":{"default":{"title":"Hi {{ recipient.attributes.name }}, {{ n }}","email":{"html":"<p>{{ n }}</p>"},"sms":{"text":"{{ n }}"}},"fr":{"title":"Salut {{ recipient.id }}"}}}`)
	b.template("t", `{"locales":{"default":{"title":"second"}}}`)
	b.put(core.Recipient{ID: "ann", Attributes: json.RawMessage(`{"name":"Ann"}`)})
	b.put(core.Recipient{ID: "fred", Locale: "fr"})
	n := json.RawMessage(`{"n":12345678901234567890}`)
	email, sms := json.RawMessage(`{"html":"<p>12345678901234567890</p>","text":"12345678901234567890"}`), json.RawMessage(`{"text":"12345678901234567890"}`)
	const title = "Hi Ann, 12345678901234567890"
	for name, tc := range map[string]struct {
		q    intake.TemplatePreview
		want templates.Content
	}{
		"all channels":           {intake.TemplatePreview{Version: 1, Data: n, Recipient: "ann"}, templates.Content{Locale: "default", Title: title, Channels: map[string]json.RawMessage{"email": email, "sms": sms}}},
		"one channel":            {intake.TemplatePreview{Version: 1, Data: n, Recipient: "ann", Channel: "sms"}, templates.Content{Locale: "default", Title: title, Channels: map[string]json.RawMessage{"sms": sms}}},
		"the recipient's locale": {intake.TemplatePreview{Version: 1, Recipient: "fred"}, templates.Content{Locale: "fr", Title: "Salut fred"}},
		"another locale":         {intake.TemplatePreview{Version: 1, Recipient: "ann", Locale: "fr-CA"}, templates.Content{Locale: "fr", Title: "Salut ann"}},
		"the latest":             {intake.TemplatePreview{}, templates.Content{Locale: "default", Title: "second"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.q.Name = "t"
			used, got, err := b.PreviewTemplate(t.Context(), "a", &tc.q)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(&tc.want, got); d != "" || used.Name() != "t" {
				t.Errorf("%s (-want +got):\n%s", used.Name(), d)
			}
		})
	}
}

// TestPreviewTemplateRefuses: what a send refuses, a preview does, at the place in the template.
func TestPreviewTemplateRefuses(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 6000)
	for name, tc := range map[string]struct {
		parts  string // of the default locale
		q      intake.TemplatePreview
		want   map[string]string
		detail string
	}{
		"no such channel":    {`"title":"T"`, intake.TemplatePreview{Channel: "emial"}, map[string]string{"/channel": intake.FaultUnknown}, "email"},
		"no such recipient":  {`"title":"T"`, intake.TemplatePreview{Recipient: "nobody", Channel: "email"}, map[string]string{"/recipient": intake.FaultUnknown}, "no recipient"},
		"data":               {`"title":"T"`, intake.TemplatePreview{Data: json.RawMessage(`[1]`)}, map[string]string{"/data": intake.FaultInvalid}, "object"},
		"a push too large":   {`"title":"T","body":"` + long + `"`, intake.TemplatePreview{Channel: "push"}, map[string]string{"/locales/default": "content content"}, "4096"},
		"of all channels":    {`"body":"` + long + `"`, intake.TemplatePreview{}, map[string]string{"/locales/default": "content content"}, "4096"},
		"a block's":          {`"push":{"apns":{"payload":{"x":"` + long + `"}}}`, intake.TemplatePreview{}, map[string]string{"/locales/default/push": "content"}, "4096"},
		"a broken subject":   {`"title":"T","email":{"subject":"{{ s }}","html":"H"}`, intake.TemplatePreview{Data: json.RawMessage(`{"s":"a\r\nBcc: b@example.com"}`), Channel: "email"}, map[string]string{"/locales/default/email/subject": "content"}, "must match"},
		"a broken title":     {`"title":"{{ s }}"`, intake.TemplatePreview{Data: json.RawMessage(`{"s":"a\r\nBcc: b@example.com"}`), Channel: "email"}, map[string]string{"/locales/default": "content"}, "line break"},
		"a plugin's":         {`"title":"T","sms":{"text":"` + long + `"}`, intake.TemplatePreview{}, map[string]string{"/locales/default/sms/text": "content"}, "160"},
		"a plugin's check":   {`"body":"offer"`, intake.TemplatePreview{}, map[string]string{"/locales/default": "content"}, "sms: offers are not carried"},
		"nothing to be said": {`"email":{"html":"H"}`, intake.TemplatePreview{Channel: "push"}, map[string]string{"/channel": "content"}, "no content"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.template("t", `{"locales":{"default":{`+tc.parts+`}}}`)
			tc.q.Name = "t"
			_, _, err := b.PreviewTemplate(t.Context(), "a", &tc.q)
			var bad *intake.Invalid
			if !errors.As(err, &bad) {
				t.Fatalf("the error is %v, want faults", err)
			}
			got := map[string]string{}
			for _, f := range bad.Faults {
				got[f.Pointer] = strings.TrimSpace(got[f.Pointer] + " " + f.Code)
			}
			if d := cmp.Diff(tc.want, got); d != "" || !strings.Contains(bad.Error(), tc.detail) {
				t.Errorf("%s (-want +got):\n%s", bad, d)
			}
		})
	}
	b := newBench(t)
	if _, _, err := b.PreviewTemplate(t.Context(), "a", &intake.TemplatePreview{Name: "none"}); !errors.Is(err, templates.ErrNotFound) {
		t.Errorf("no template is %v", err)
	}
}
