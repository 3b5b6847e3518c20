package apns_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/apns"
)

func schema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(apns.Kind().Content))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("push.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("push.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// soon and long are what the rows below speak of.
var (
	soon = time.Now().Add(time.Hour).Truncate(time.Second)
	long = strings.Repeat("k", 65)
)

var builtRows = []struct {
	name    string
	change  func(m *providers.Message)
	payload string            // without delivery_id
	headers map[string]string // that differ from an alert's
}{
	{"alert", func(*providers.Message) {}, `{"aps":{"alert":{"title":"Hi","body":"There"}}}`, nil},
	{"title only", func(m *providers.Message) { m.Body = "" }, `{"aps":{"alert":{"title":"Hi"}}}`, nil},
	{"critical", func(m *providers.Message) { m.Priority = providers.Critical }, `{"aps":{"alert":{"title":"Hi","body":"There"}}}`, nil},
	{"bulk", func(m *providers.Message) { m.Priority = providers.Bulk }, `{"aps":{"alert":{"title":"Hi","body":"There"}}}`, map[string]string{"apns-priority": "5"}},
	{"data only is a background push", func(m *providers.Message) { m.Title, m.Body, m.Data = "", "", json.RawMessage(`{"a":1}`) },
		`{"a":1,"aps":{"content-available":1}}`, map[string]string{"apns-push-type": "background", "apns-priority": "5"}},
	{"data cannot take our names", func(m *providers.Message) {
		m.URL, m.Data = "https://e.x", json.RawMessage(`{"delivery_id":"mine","url":"mine","x":{"y":null}}`)
	}, `{"aps":{"alert":{"title":"Hi","body":"There"}},"url":"https://e.x","x":{"y":null}}`, nil},
	{"data's url stands where there is no other", func(m *providers.Message) { m.Data = json.RawMessage(`{"url":"mine"}`) },
		`{"aps":{"alert":{"title":"Hi","body":"There"}},"url":"mine"}`, nil},
	{"empty data", func(m *providers.Message) { m.Data = json.RawMessage(`{}`) }, `{"aps":{"alert":{"title":"Hi","body":"There"}}}`, nil},
	{"laid over", func(m *providers.Message) {
		m.Content = json.RawMessage(`{"apns":{"payload":{"aps":{"badge":3,"sound":"ding.aiff","alert":{"subtitle":"Sub","body":null}},"extra":[1,2.50,12345678901234567890]}},"fcm":{"x":1}}`)
	}, `{"aps":{"alert":{"title":"Hi","subtitle":"Sub"},"badge":3,"sound":"ding.aiff"},"extra":[1,2.50,12345678901234567890]}`, nil},
	{"an alert that is a text", func(m *providers.Message) {
		m.Content = json.RawMessage(`{"apns":{"payload":{"aps":{"alert":"Short"}}}}`)
	},
		`{"aps":{"alert":"Short"}}`, nil},
	{"made silent", func(m *providers.Message) {
		m.Content = json.RawMessage(`{"apns":{"payload":{"aps":{"alert":null,"content-available":1}}}}`)
	}, `{"aps":{"content-available":1}}`, map[string]string{"apns-push-type": "background", "apns-priority": "5"}},
	{"emptied is silent", func(m *providers.Message) { m.Content = json.RawMessage(`{"apns":{"payload":{"aps":{"alert":null}}}}`) },
		`{"aps":{"content-available":1}}`, map[string]string{"apns-push-type": "background", "apns-priority": "5"}},
	{"silent with a badge is an alert", func(m *providers.Message) {
		m.Title, m.Body = "", ""
		m.Content = json.RawMessage(`{"apns":{"payload":{"aps":{"badge":0}}}}`)
	}, `{"aps":{"badge":0}}`, nil},
	{"voip", func(m *providers.Message) {
		m.Content = json.RawMessage(`{"apns":{"headers":{"apns-push-type":"voip","apns-expiration":"0"}}}`)
	}, `{"aps":{"alert":{"title":"Hi","body":"There"}}}`, map[string]string{"apns-push-type": "voip", "apns-topic": "com.example.app.voip", "apns-expiration": "0"}},
	{"live activity", func(m *providers.Message) {
		m.Content = json.RawMessage(`{"apns":{"headers":{"apns-push-type":"liveactivity"},"payload":{"aps":{"event":"update","timestamp":1,"content-state":{}}}}}`)
	}, `{"aps":{"alert":{"title":"Hi","body":"There"},"event":"update","timestamp":1,"content-state":{}}}`,
		map[string]string{"apns-push-type": "liveactivity", "apns-topic": "com.example.app.push-type.liveactivity"}},
	{"mdm", func(m *providers.Message) {
		m.Content = json.RawMessage(`{"apns":{"headers":{"apns-push-type":"mdm","apns-topic":"com.apple.mgmt.x"},"payload":{"aps":null,"mdm":"magic"}}}`)
	}, `{"mdm":"magic"}`, map[string]string{"apns-push-type": "mdm", "apns-topic": "com.apple.mgmt.x"}},
	{"own headers", func(m *providers.Message) {
		m.CollapseKey = "other"
		m.Content = json.RawMessage(fmt.Sprintf(`{"apns":{"headers":{"apns-priority":"1","apns-collapse-id":"mine","apns-topic":"com.example.two","apns-expiration":"%d"}}}`, soon.Unix()-10))
	}, `{"aps":{"alert":{"title":"Hi","body":"There"}}}`, map[string]string{"apns-priority": "1", "apns-collapse-id": "mine", "apns-topic": "com.example.two", "apns-expiration": fmt.Sprint(soon.Unix() - 10)}},
	{"an expiration after the message's own", func(m *providers.Message) {
		m.Content = json.RawMessage(`{"apns":{"headers":{"apns-expiration":"4000000000"}}}`)
	},
		`{"aps":{"alert":{"title":"Hi","body":"There"}}}`, nil},
	{"no expiration", func(m *providers.Message) { m.ExpiresAt = time.Time{} }, `{"aps":{"alert":{"title":"Hi","body":"There"}}}`, map[string]string{"apns-expiration": ""}},
	{"a long collapse key", func(m *providers.Message) { m.CollapseKey = long }, `{"aps":{"alert":{"title":"Hi","body":"There"}}}`,
		map[string]string{"apns-collapse-id": "f39cdc2584758c99cf81c1f41d2572f54e17066afffc9d187aeafe5f7cbe2122"}},
	{"an empty block", func(m *providers.Message) { m.Content = json.RawMessage(`{"apns":{}}`) }, `{"aps":{"alert":{"title":"Hi","body":"There"}}}`, nil},
	{"another kind's block", func(m *providers.Message) { m.Content = json.RawMessage(`{"fcm":{"android":{}}}`) }, `{"aps":{"alert":{"title":"Hi","body":"There"}}}`, nil},
}

func TestWhatIsBuilt(t *testing.T) {
	t.Parallel()
	valid := schema(t)
	for _, tt := range builtRows {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, (*peerConn).ok)
			pr := p.open(t, nil)
			m := providers.Message{ID: id(1), Address: token, Title: "Hi", Body: "There", Priority: providers.Normal, ExpiresAt: soon}
			tt.change(&m)
			if len(m.Content) > 0 {
				v, err := jsonschema.UnmarshalJSON(bytes.NewReader(m.Content))
				if err != nil {
					t.Fatal(err)
				}
				if err := valid.Validate(v); err != nil {
					t.Errorf("the schema refuses it: %v", err)
				}
			}
			if err := apns.Kind().Check(&m); err != nil {
				t.Errorf("Check: %v", err)
			}
			got, err := deliver(t, within(t, 5*time.Second), pr, []providers.Message{m})
			if err != nil {
				t.Fatal(err)
			}
			wantOutcomes(t, got, map[string]int{"accepted": 1})
			r := p.requests()[0]
			want := map[string]string{"apns-id": id(1), "apns-expiration": fmt.Sprint(soon.Unix()), "apns-priority": "10", "apns-push-type": "alert", "apns-topic": "com.example.app"}
			for name, v := range tt.headers {
				if want[name] = v; v == "" {
					delete(want, name)
				}
			}
			have := map[string]string{}
			for name, v := range r.header {
				if strings.HasPrefix(name, "apns-") {
					have[name] = v
				}
			}
			if d := cmp.Diff(want, have); d != "" {
				t.Errorf("headers (-want +got):\n%s", d)
			}
			wantPayload := number(t, []byte(tt.payload))
			wantPayload["delivery_id"] = id(1)
			if d := cmp.Diff(wantPayload, number(t, r.body)); d != "" {
				t.Errorf("payload (-want +got):\n%s", d)
			}
		})
	}
}

func number(t testing.TB, b []byte) map[string]any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out map[string]any
	if err := d.Decode(&out); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return out
}

func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	content := func(s string) func(*providers.Message) {
		return func(m *providers.Message) { m.Content = json.RawMessage(s) }
	}
	valid := schema(t)
	for _, tt := range []struct {
		name   string
		change func(m *providers.Message)
		want   string
		passes bool // the schema lets it pass: only Check can see it
	}{
		{"payload", func(m *providers.Message) { m.Body = strings.Repeat("x", 4096) },
			"the push payload is too large: it takes 4191 bytes as JSON and APNs takes 4096; shorten the body or the data by 95 bytes", true},
		{"payload with data", func(m *providers.Message) { m.Data = json.RawMessage(`{"k":"` + strings.Repeat("x", 4096) + `"}`) }, "APNs takes 4096", true},
		{"voip payload", func(m *providers.Message) {
			m.Body, m.Content = strings.Repeat("x", 5120), json.RawMessage(`{"apns":{"headers":{"apns-push-type":"voip"}}}`)
		}, "APNs takes 5120", true},
		{"data an array", func(m *providers.Message) { m.Data = json.RawMessage(`[1]`) }, "data must be a JSON object", true},
		{"data with aps", func(m *providers.Message) { m.Data = json.RawMessage(`{"aps":{}}`) }, `data must not have a member "aps"`, true},
		{"push type", content(`{"apns":{"headers":{"apns-push-type":"shout"}}}`), "apns-push-type must be one of alert, background,", false},
		{"priority", content(`{"apns":{"headers":{"apns-priority":"7"}}}`), "apns-priority must be 1, 5 or 10", false},
		{"background at once", content(`{"apns":{"headers":{"apns-push-type":"background","apns-priority":"10"}}}`), "apns-priority 10 is an error", true},
		{"id", content(`{"apns":{"headers":{"apns-id":"x"}}}`), "push.apns.headers.apns-id cannot be set", false},
		{"authorization", content(`{"apns":{"headers":{"authorization":"bearer x"}}}`), "push.apns.headers.authorization cannot be set", false},
		{"path", content(`{"apns":{"headers":{":path":"/"}}}`), "cannot be set", false},
		{"a header's name that lies", content(`{"apns":{"headers":{"x\r\ny":"z"}}}`), "headers.(a name that is none)", false},
		{"injection", content(`{"apns":{"headers":{"apns-collapse-id":"a\r\nauthorization: x"}}}`), "one line of printable ASCII", false},
		{"NUL", content(`{"apns":{"headers":{"apns-topic":"a\u0000"}}}`), "one line of printable ASCII", false},
		{"topic", content(`{"apns":{"headers":{"apns-topic":"a b"}}}`), "apns-topic must be a bundle id", false},
		{"collapse id", content(`{"apns":{"headers":{"apns-collapse-id":"` + strings.Repeat("x", 65) + `"}}}`), "1 to 64 bytes", false},
		{"expiration", content(`{"apns":{"headers":{"apns-expiration":"-1"}}}`), "Unix seconds", false},
		{"header not a text", content(`{"apns":{"headers":{"apns-priority":5}}}`), "push.apns must be an object", false},
		{"payload an array", content(`{"apns":{"payload":[1]}}`), "push.apns.payload must be a JSON object", false},
		{"aps a text", content(`{"apns":{"payload":{"aps":"x"}}}`), "push.apns.payload.aps must be an object", false},
		{"an unknown member", content(`{"apns":{"header":{}}}`), "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := providers.Message{ID: id(1), Title: "Hi", Body: "There"}
			tt.change(&m)
			before := m
			err := apns.Kind().Check(&m)
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if d := cmp.Diff(before, m); d != "" {
				t.Errorf("Check changed the message:\n%s", d)
			}
			if m.Content == nil {
				return
			}
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(m.Content))
			if err != nil {
				t.Fatal(err)
			}
			if err := valid.Validate(v); (err == nil) != tt.passes {
				t.Errorf("the schema says %v", err)
			}
		})
	}
}

// What Check measures is what goes over the wire, to the byte.
func TestCheckMeasuresWhatIsSent(t *testing.T) {
	t.Parallel()
	p := newPeer(t, (*peerConn).ok)
	pr := p.open(t, nil)
	for _, text := range []string{"x", "<", "é", "\u2028", "\x01"} {
		m := providers.Message{ID: id(1), Address: token, Title: text, Data: json.RawMessage(`{ "k" : "<&>" }`)}
		for apns.Kind().Check(&m) == nil {
			m.Body += text
		}
		m.Body = strings.TrimSuffix(m.Body, text)
		got, err := deliver(t, within(t, 5*time.Second), pr, []providers.Message{m})
		if err != nil {
			t.Fatal(err)
		}
		wantOutcomes(t, got, map[string]int{"accepted": 1})
		reqs := p.requests()
		if n := len(reqs[len(reqs)-1].body); n > 4096 || n < 4096-6 {
			t.Errorf("the longest body of %q makes a payload of %d bytes", text, n)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add("title", "body", `{"a":1}`, `{"apns":{"headers":{"apns-priority":"5"},"payload":{"aps":{"badge":1}}}}`)
	f.Add("", "", `{}`, `{"apns":{"payload":null,"headers":null}}`)
	f.Add("", "", `null`, `{"apns":null}`)
	f.Fuzz(func(t *testing.T, title, body, data, content string) {
		m := providers.Message{ID: id(1), Title: title, Body: body, Data: json.RawMessage(data), Content: json.RawMessage(content)}
		_ = apns.Kind().Check(&m) // must not panic
	})
}

// FuzzPayload: the payload is what encoding/json would write.
func FuzzPayload(f *testing.F) {
	f.Add("title", "body", "https://example.com/?a=1&b=2", "1")
	f.Add("", "", "", "")
	f.Add("", "<b>\u2028\"\\", "\x00\xff", "\n")
	f.Fuzz(func(t *testing.T, title, body, url, id string) {
		type alert struct {
			Title string `json:"title,omitempty"`
			Body  string `json:"body,omitempty"`
		}
		var want struct {
			Aps struct {
				Alert            *alert `json:"alert,omitempty"`
				ContentAvailable int    `json:"content-available,omitempty"`
			} `json:"aps"`
			URL        string `json:"url,omitempty"`
			DeliveryID string `json:"delivery_id"`
		}
		want.URL, want.DeliveryID = url, id
		if title != "" || body != "" {
			want.Aps.Alert = &alert{title, body}
		} else {
			want.Aps.ContentAvailable = 1
		}
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := apns.Payload(&providers.Message{ID: id, Title: title, Body: body, URL: url})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(text), string(got)); d != "" {
			t.Error(d)
		}
	})
}
