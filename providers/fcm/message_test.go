package fcm_test

import (
	"encoding/json"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/fcm"
)

const (
	someID    = "01998a3e-5b1c-7d00-8000-000000000001"
	someToken = "fcm-token-ann-0001"
)

// message is a small one, changed by with.
func message(with func(*providers.Message)) *providers.Message {
	m := &providers.Message{ID: someID, Address: someToken, Title: "Hi", Body: "Text", Priority: providers.Normal, CreatedAt: noon, ExpiresAt: noon.Add(time.Hour), Attempt: 1}
	if with != nil {
		with(m)
	}
	return m
}

var messageRows = []struct {
	name string
	with func(*providers.Message)
	want string
}{
	{"plain", nil, `{
			"token": "fcm-token-ann-0001",
			"notification": {"title": "Hi", "body": "Text"},
			"data": {"delivery_id": "01998a3e-5b1c-7d00-8000-000000000001"},
			"android": {"priority": "normal", "ttl": "3600s"},
			"webpush": {"headers": {"TTL": "3600", "Urgency": "normal"}},
			"apns": {"headers": {"apns-expiration": "1795525200", "apns-priority": "10"}}}`},
	{"all of it", func(m *providers.Message) {
		m.URL, m.Priority, m.CollapseKey = "https://example.com/o/7", providers.Critical, "order-7"
		m.Data = json.RawMessage(`{"s":"a\"b","n":1.50,"big":12345678901234567890,"t":true,"z":null,"o":{ "x" : [1, 2] },"delivery_id":"mine"}`)
	}, `{
			"token": "fcm-token-ann-0001",
			"notification": {"title": "Hi", "body": "Text"},
			"data": {"delivery_id": "01998a3e-5b1c-7d00-8000-000000000001", "url": "https://example.com/o/7",
				"s": "a\"b", "n": "1.50", "big": "12345678901234567890", "t": "true", "z": "null", "o": "{\"x\":[1,2]}"},
			"android": {"priority": "high", "ttl": "3600s", "collapse_key": "order-7", "notification": {"tag": "order-7"}},
			"webpush": {"headers": {"TTL": "3600", "Urgency": "high", "Topic": "34z4AifsMjeSLfDs2IOFxUbkoxvbgSew"},
				"notification": {"tag": "order-7"}, "fcm_options": {"link": "https://example.com/o/7"}},
			"apns": {"headers": {"apns-expiration": "1795525200", "apns-priority": "10", "apns-collapse-id": "order-7"}}}`},
	{"data only, bulk, other scheme", func(m *providers.Message) {
		m.Title, m.Body, m.URL, m.Priority, m.CollapseKey = "", "", "app://order/7", providers.Bulk, strings.Repeat("k", 65)
		m.Data = json.RawMessage(`{"url":"mine"}`)
	}, `{
			"token": "fcm-token-ann-0001",
			"data": {"delivery_id": "01998a3e-5b1c-7d00-8000-000000000001", "url": "mine"},
			"android": {"priority": "normal", "ttl": "3600s", "collapse_key": "` + strings.Repeat("k", 65) + `"},
			"webpush": {"headers": {"TTL": "3600", "Urgency": "low", "Topic": "{TOPIC}"}},
			"apns": {"headers": {"apns-expiration": "1795525200", "apns-collapse-id": "{COLLAPSE}"}}}`},
	{"no end", func(m *providers.Message) { m.ExpiresAt = time.Time{} }, `{
			"token": "fcm-token-ann-0001",
			"notification": {"title": "Hi", "body": "Text"},
			"data": {"delivery_id": "01998a3e-5b1c-7d00-8000-000000000001"},
			"android": {"priority": "normal"},
			"webpush": {"headers": {"Urgency": "normal"}},
			"apns": {"headers": {"apns-priority": "10"}}}`},
	{"too late, bulk", func(m *providers.Message) { m.ExpiresAt, m.Priority = noon.Add(-time.Hour), providers.Bulk }, `{
			"token": "fcm-token-ann-0001",
			"notification": {"title": "Hi", "body": "Text"},
			"data": {"delivery_id": "01998a3e-5b1c-7d00-8000-000000000001"},
			"android": {"priority": "normal", "ttl": "0s"},
			"webpush": {"headers": {"TTL": "0", "Urgency": "low"}},
			"apns": {"headers": {"apns-expiration": "1795518000", "apns-priority": "5"}}}`},
	{"longer than FCM keeps", func(m *providers.Message) { m.ExpiresAt = noon.Add(60 * 24 * time.Hour) }, `{
			"token": "fcm-token-ann-0001",
			"notification": {"title": "Hi", "body": "Text"},
			"data": {"delivery_id": "01998a3e-5b1c-7d00-8000-000000000001"},
			"android": {"priority": "normal", "ttl": "2419200s"},
			"webpush": {"headers": {"TTL": "2419200", "Urgency": "normal"}},
			"apns": {"headers": {"apns-expiration": "1800705600", "apns-priority": "10"}}}`},
	{"the block laid over", func(m *providers.Message) {
		m.Content = json.RawMessage(`{"apns":{"payload":{}},"fcm":{
				"notification": {"title": null, "image": "https://example.com/i.png"},
				"data": {"more": "1", "delivery_id": "mine"},
				"android": {"ttl": "3.5s", "direct_boot_ok": true, "notification": {"channel_id": "c", "event_time": "2026-11-24T12:00:00Z", "vibrate_timings": ["0.2s", "1s"], "notification_count": 0}},
				"webpush": {"headers": {"Urgency": null}, "notification": {"requireInteraction": true, "odd": {"x": [1]}}},
				"apns": {"payload": {"aps": {"badge": 0, "sound": {"name": "s", "critical": 1, "volume": 0.5}, "interruption-level": "passive"}, "acme": {"a": 1.5}}},
				"fcm_options": {"analytics_label": "l"}}}`)
	}, `{
			"token": "fcm-token-ann-0001",
			"notification": {"body": "Text", "image": "https://example.com/i.png"},
			"data": {"delivery_id": "01998a3e-5b1c-7d00-8000-000000000001", "more": "1"},
			"android": {"priority": "normal", "ttl": "3.500000000s", "direct_boot_ok": true, "notification": {"channel_id": "c", "event_time": "2026-11-24T12:00:00.000000000Z", "vibrate_timings": ["0.200000000s", "1s"], "notification_count": 0}},
			"webpush": {"headers": {"TTL": "3600"}, "notification": {"requireInteraction": true, "odd": {"x": [1]}}},
			"apns": {"headers": {"apns-expiration": "1795525200", "apns-priority": "10"}, "payload": {"aps": {"badge": 0, "sound": {"name": "s", "critical": 1, "volume": 0.5}, "interruption-level": "passive"}, "acme": {"a": 1.5}}},
			"fcm_options": {"analytics_label": "l"}}`},
	{"the words taken away", func(m *providers.Message) {
		m.Content = json.RawMessage(`{"fcm":{"notification": null, "data": null, "webpush": null, "apns": null}}`)
	}, `{
			"token": "fcm-token-ann-0001",
			"data": {"delivery_id": "01998a3e-5b1c-7d00-8000-000000000001"},
			"android": {"priority": "normal", "ttl": "3600s"}}`},
}

func TestMessage(t *testing.T) {
	t.Parallel()
	for _, tt := range messageRows {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := message(tt.with)
			if err := fcm.Kind().Check(m); err != nil {
				t.Fatalf("Check: %v", err)
			}
			b, err := fcm.Build(m, noon)
			if err != nil {
				t.Fatal(err)
			}
			var got, want map[string]any
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatal(err)
			}
			hashed := got
			r := strings.NewReplacer("{TOPIC}", at(hashed, "webpush", "headers", "Topic"), "{COLLAPSE}", at(hashed, "apns", "headers", "apns-collapse-id"))
			if err := json.Unmarshal([]byte(r.Replace(tt.want)), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("message (-want +got):\n%s\n%s", diff, b)
			}
			if n := len(at(got, "webpush", "headers", "Topic")); n != 0 && n != 32 {
				t.Errorf("the push topic has %d characters, want 32", n)
			}
			if n := len(at(got, "apns", "headers", "apns-collapse-id")); n > 64 {
				t.Errorf("the collapse id has %d bytes, Apple takes 64", n)
			}
		})
	}
}

func at(m map[string]any, path ...string) string {
	for _, k := range path[:len(path)-1] {
		m, _ = m[k].(map[string]any)
	}
	s, _ := m[path[len(path)-1]].(string)
	return s
}

func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	block := func(s string) func(*providers.Message) {
		return func(m *providers.Message) { m.Content = json.RawMessage(`{"fcm":` + s + `}`) }
	}
	for _, tt := range []struct {
		name string
		with func(*providers.Message)
		want string
	}{
		{"too big", func(m *providers.Message) { m.Body = strings.Repeat("x", 4096) }, "FCM takes 4096"},
		{"too big by escapes", func(m *providers.Message) { m.Body = strings.Repeat("<", 800) }, "FCM takes 4096"},
		{"too big by the block", block(`{"data":{"k":"` + strings.Repeat("x", 4096) + `"}}`), "FCM takes 4096"},
		{"token", block(`{"token":"x"}`), "fcm.token"},
		{"topic", block(`{"topic":"x"}`), "fcm.topic"},
		{"condition", block(`{"condition":"x"}`), "fcm.condition"},
		{"name", block(`{"name":"x"}`), "fcm.name"},
		{"not an object", block(`[1]`), "fcm:"},
		{"unknown field", block(`{"android":{"bandwidth_constrained_ok":true}}`), "fcm.android.bandwidth_constrained_ok"},
		{"unknown member", block(`{"andriod":{"ttl":"3s"}}`), "fcm.andriod"}, //nolint:misspell // on purpose
		{"camel case", block(`{"android":{"collapseKey":"x"}}`), "fcm.android.collapseKey"},
		{"wrong case", block(`{"Android":{"ttl":"3s"}}`), "fcm.Android"},
		{"wrong type", block(`{"android":{"collapse_key":7}}`), "not an FCM v1 message"},
		{"wrong type of payload", block(`{"apns":{"payload":"x"}}`), "not an FCM v1 message"},
		{"bad ttl", block(`{"android":{"ttl":"1h"}}`), "not an FCM v1 message"},
		{"negative ttl", block(`{"android":{"ttl":"-3s"}}`), "ttl"},
		{"ttl over four weeks", block(`{"android":{"ttl":"2419201s"}}`), "fcm.android.ttl"},
		{"bad priority", block(`{"android":{"priority":"urgent"}}`), "priority"},
		{"bad image", block(`{"notification":{"image":"not a url"}}`), "image"},
		{"a colour that panics in the library", block(`{"android":{"notification":{"light_settings":{"color":{"red":1,"green":0,"blue":0},"light_on_duration":"1s","light_off_duration":"1s"}}}}`), "light_settings"},
		{"data not strings", block(`{"data":{"a":1}}`), "not an FCM v1 message"},
		{"data is a list", func(m *providers.Message) { m.Data = json.RawMessage(`[1]`) }, "data"},
		{"reserved key", func(m *providers.Message) { m.Data = json.RawMessage(`{"from":"x"}`) }, `"from"`},
		{"reserved prefix", func(m *providers.Message) { m.Data = json.RawMessage(`{"google.x":"x"}`) }, `"google.x"`},
		{"reserved key in the block", block(`{"data":{"gcm":"x"}}`), `"gcm"`},
		{"token too long", func(m *providers.Message) { m.Address = strings.Repeat("t", 4097) }, "4096"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := message(tt.with)
			before, _ := json.Marshal(m)
			err := fcm.Kind().Check(m)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check says %v, want something about %q", err, tt.want)
			}
			if after, _ := json.Marshal(m); string(after) != string(before) {
				t.Error("Check changed the message")
			}
		})
	}
}

func TestCheckTakesTheLimit(t *testing.T) {
	t.Parallel()
	m := message(func(m *providers.Message) { m.Body = "" })
	n := sort.Search(4097, func(size int) bool {
		m.Body = strings.Repeat("x", size)
		return fcm.Kind().Check(m) != nil
	}) - 1
	if n < 3700 {
		t.Errorf("a body of more than %d bytes is refused; the options should not take so much of 4096", n)
	}
	m.Address = "" // not known yet
	m.Body = strings.Repeat("x", n)
	if err := fcm.Kind().Check(m); err != nil {
		t.Errorf("the size depends on the address: %v", err)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add("t", "b", `{"a":1}`, `{"fcm":{"android":{"ttl":"3.5s"}}}`)
	f.Add("\x00", "\xff", `{"delivery_id":{}}`, `{"fcm":{"data":null,"apns":{"payload":{"aps":{"alert":"x"}}}}}`)
	f.Add("", "", ``, `{"fcm":{"android":{"notification":{"light_settings":{"color":{"red":1e9}}}}}}`)
	f.Fuzz(func(t *testing.T, title, body, data, block string) {
		m := message(func(m *providers.Message) { m.Title, m.Body = title, body })
		if data != "" {
			m.Data = json.RawMessage(data)
		}
		if block != "" {
			m.Content = json.RawMessage(block)
		}
		if fcm.Kind().Check(m) != nil {
			return
		}
		b, err := fcm.Build(m, noon)
		if err != nil {
			t.Fatalf("Check took what cannot be built: %v", err)
		}
		var got struct {
			Token, Topic, Condition string
			Data                    map[string]string
		}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if got.Token != someToken || got.Topic+got.Condition != "" || got.Data["delivery_id"] != someID {
			t.Errorf("the target or the id was changed: %s", b)
		}
	})
}
