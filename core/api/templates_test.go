package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/templates"
)

// TestTemplateNames: what no channel knows is a fault as a template is put, beside all its others, not a message that
// lacks something.
func TestTemplateNames(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for name, tc := range map[string]struct {
		source string
		want   map[string]string
		detail string
	}{
		"a field":   {`{"locales":{"default":{"title":"Hi","body":"b","email":{"htlm":"x"}}}}`, map[string]string{"/locales/default/email/htlm": templates.CodeMember}, `it has attachments, from, headers, html,`},
		"a channel": {`{"locales":{"default":{"title":"Hi"},"fr":{"emial":{"html":"x"}}}}`, map[string]string{"/locales/fr/emial": templates.CodeMember}, "channels email, in_app, push"},
		"beside others": {`{"locales":{"default":{"title":"{% if %}","email":{"mjml":"x","htlm":"x"}}}}`,
			map[string]string{"/locales/default/title": templates.CodeSyntax, "/locales/default/email/htlm": templates.CodeMember, "/locales/default/email/mjml": templates.CodeOffered}, "mjml is not offered yet"},
	} {
		t.Run(name, func(t *testing.T) {
			a := r.must(http.StatusUnprocessableEntity, "PUT", "/v1/templates/t9", adminKey, tc.source)
			if d := cmp.Diff(tc.want, a.faults(t)); d != "" || !strings.Contains(string(a.body), tc.detail) {
				t.Errorf("%s (-want +got):\n%s", a.body, d)
			}
			r.must(http.StatusNotFound, "GET", "/v1/templates/t9", readKey, "")
		})
	}
}
