package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core/api"
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

// TestTemplatePreview: a preview sees a recipient, and refuses what a send would.
func TestTemplatePreview(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.must(http.StatusCreated, "PUT", "/v1/recipients/ann", sendKey, `{"attributes":{"name":"Ann"}}`)
	r.must(http.StatusCreated, "PUT", "/v1/templates/t", adminKey, `{"locales":{"default":{"title":"Hi {{ recipient.attributes.name }}","body":"{{ body }}","email":{"subject":"{{ s }}","html":"H"}}}}`)
	var out api.Rendering
	r.must(http.StatusOK, "POST", "/v1/templates/t/preview", readKey, `{"recipient":"ann","data":{"body":"B","s":"S"}}`).into(t, &out)
	if out.Title != "Hi Ann" || out.Version != 1 || string(out.Channels) != `{"email":{"subject":"S","html":"H","text":"H"}}` {
		t.Errorf("rendered %+v with %s", out, out.Channels)
	}
	long := strings.Repeat("x", 6000)
	for body, want := range map[string]map[string]string{
		`{"data":{"body":"B","s":"S"}}`:                                                    {"/locales/default/title": templates.CodeUndefined},
		`{"recipient":"nobody","channel":"emial","data":{"body":"B","s":"S"}}`:             {"/recipient": "unknown", "/channel": "unknown"},
		`{"recipient":"ann","channel":"push","data":{"body":"` + long + `","s":"S"}}`:      {"/locales/default": "content"},
		`{"recipient":"ann","channel":"email","data":{"body":"B","s":"a\r\nBcc: b@c.de"}}`: {"/locales/default/email/subject": "content"},
		`{"recipient":5,"data":[]}`:                                                        {"/recipient": "invalid"},
	} {
		if d := cmp.Diff(want, r.must(http.StatusUnprocessableEntity, "POST", "/v1/templates/t/preview", readKey, body).faults(t)); d != "" {
			t.Errorf("%.80s (-want +got):\n%s", body, d)
		}
	}
	r.must(http.StatusNotFound, "POST", "/v1/templates/none/preview", readKey, `{}`)
}

// TestVersions: a version is a number, as answers have it, or a text of one, wherever a request names one.
func TestVersions(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, title := range []string{"first", "second"} {
		r.must(http.StatusCreated, "PUT", "/v1/templates/t", adminKey, `{"locales":{"default":{"title":"`+title+`"}}}`)
	}
	asks := map[string]string{
		"/v1/templates/t/preview":   `{"version":%s}`,
		"/v1/notifications/preview": `{"to":[{"email":"a@example.com"}],"template":"t","version":%s}`,
		"/v1/campaigns":             `{"name":"c","audience":{"recipients":["nobody"]},"template":"t","version":%s}`,
	}
	for path, ask := range asks {
		taken, key := http.StatusOK, sendKey
		switch path {
		case "/v1/campaigns":
			taken = http.StatusCreated
		case "/v1/templates/t/preview":
			key = readKey
		}
		for version, want := range map[string]string{"1": "", `"1"`: "", "2": "", "3": "unknown", "0": "conflict", `"0"`: "conflict", "-1": "invalid", "1.5": "invalid", "1e0": "invalid",
			"true": "invalid", `"one"`: "invalid", `"\u0000"`: "invalid", "[1]": "invalid", "12345678901": "too_large"} {
			a := r.do("POST", path, key, fmt.Sprintf(ask, version))
			switch {
			case want == "":
				if a.status != taken {
					t.Errorf("%s of version %s: %d %s", path, version, a.status, a.body)
				}
			case version == "3" && path == "/v1/templates/t/preview":
				if a.status != http.StatusNotFound {
					t.Errorf("%s of version %s: %d %s", path, version, a.status, a.body)
				}
			case a.status != http.StatusUnprocessableEntity || a.faults(t)["/version"] != want:
				t.Errorf("%s of version %s: %d %s, want %s", path, version, a.status, a.body, want)
			}
			if a.status == http.StatusOK && strings.Contains(string(a.body), "first") != strings.Contains(version, "1") {
				t.Errorf("%s of version %s is %s", path, version, a.body)
			}
		}
	}
}

// TestFileTemplates: one from a file is read like a stored one, until one of its name is stored.
func TestFileTemplates(t *testing.T) {
	t.Parallel()
	catalog := templates.New(fstest.MapFS{"hello.yaml": {Data: []byte("locales: {default: {title: Hello}}\n")}}, nil)
	if err := catalog.Reload(); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(o *api.Options) { o.Catalog = catalog })
	read := func(path string) (out api.Template) {
		t.Helper()
		r.must(http.StatusOK, "GET", path, readKey, "").into(t, &out)
		return out
	}
	if got := read("/v1/templates/order-shipped"); got.Version != 0 || got.Origin != "shipped" || got.CreatedAt != nil || !strings.Contains(string(got.Source), `"layout":"default"`) {
		t.Errorf("the shipped one is %+v with %s", got, got.Source)
	}
	if got := read("/v1/templates/hello"); got.Version != 0 || got.Origin != "file" || string(got.Source) != `{"locales":{"default":{"title":"Hello"}}}` {
		t.Errorf("the file is %+v with %s", got, got.Source)
	}
	versions := func() (out []string) {
		t.Helper()
		var vs api.TemplateList
		r.must(http.StatusOK, "GET", "/v1/templates/hello/versions", readKey, "").into(t, &vs)
		for _, v := range vs.Data {
			out = append(out, fmt.Sprint(v.Origin, v.Version, v.CreatedAt != nil))
		}
		return out
	}
	if d := cmp.Diff([]string{"file0 false"}, versions()); d != "" {
		t.Errorf("versions of the file (-want +got):\n%s", d)
	}
	r.must(http.StatusNotFound, "GET", "/v1/templates/hello/versions/0", readKey, "")
	r.must(http.StatusNotFound, "GET", "/v1/templates/none", readKey, "")
	r.must(http.StatusNotFound, "GET", "/v1/templates/none/versions", readKey, "")
	r.must(http.StatusCreated, "PUT", "/v1/templates/hello", adminKey, `{"locales":{"default":{"title":"Stored"}}}`)
	if got := read("/v1/templates/hello"); got.Version != 1 || got.Origin != "stored" || got.CreatedAt == nil {
		t.Errorf("the stored one is %+v", got)
	}
	if d := cmp.Diff([]string{"stored1 true"}, versions()); d != "" {
		t.Errorf("versions (-want +got):\n%s", d)
	}
}
