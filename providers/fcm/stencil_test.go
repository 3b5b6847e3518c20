package fcm_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/fcm"
)

// TestStencil tells that what goes out by a stencil is byte for byte what the library makes of each message.
func TestStencil(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	plain := providers.Message{Title: "Hi", Body: "<b>text</b> & more", Priority: providers.Normal, ExpiresAt: now.Add(time.Hour)}
	with := func(change func(*providers.Message)) providers.Message {
		m := plain
		change(&m)
		return m
	}
	for name, c := range map[string]struct {
		message providers.Message
		want    int // of five messages
	}{
		"plain":  {plain, 5},
		"a test": {with(func(m *providers.Message) { m.Test = true }), 5},
		"data and link": {with(func(m *providers.Message) {
			m.Data, m.URL = json.RawMessage(`{"a":1,"z":"é\n"}`), "https://example.com/?a=1&b=2"
		}), 5},
		"own content": {with(func(m *providers.Message) {
			m.Content = json.RawMessage(`{"fcm":{"android":{"ttl":"3.5s","notification":{"color":"#ff0000"}},"data":{"x":"y"}}}`)
		}), 5},
		"critical, replaced": {with(func(m *providers.Message) { m.Priority, m.CollapseKey = providers.Critical, "order-7" }), 5},
		"a mark in it":       {with(func(m *providers.Message) { m.Body = fcm.TokenMark + fcm.IDMark }), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var batch []providers.Message
			for i, address := range []string{"device:1", `odd"<&>` + "\u2028\\", strings.Repeat("x", 4096), "ü", "z\x00"} {
				m := c.message
				m.ID, m.Address, m.Attempt, m.App = fmt.Sprintf("0199-%d\"", i), address, i, "app"
				batch = append(batch, m)
			}
			got, want, n, err := fcm.Sheets(batch, now)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(texts(want), texts(got)); diff != "" {
				t.Error(diff)
			}
			if n != c.want {
				t.Errorf("%d went by a stencil, want %d", n, c.want)
			}
		})
	}
}

// TestStencilsApart tells that messages that differ in anything do not share a stencil.
func TestStencilsApart(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	changes := []func(*providers.Message){
		func(*providers.Message) {},
		func(m *providers.Message) { m.Title = "another" },
		func(m *providers.Message) { m.Body = "another" },
		func(m *providers.Message) { m.URL = "https://example.com/" },
		func(m *providers.Message) { m.Data = json.RawMessage(`{"a":"b"}`) },
		func(m *providers.Message) { m.Content = json.RawMessage(`{"fcm":{"data":{"a":"c"}}}`) },
		func(m *providers.Message) { m.Priority = providers.Bulk },
		func(m *providers.Message) { m.CollapseKey = "k" },
		func(m *providers.Message) { m.ExpiresAt = now.Add(time.Minute) },
		func(m *providers.Message) { m.Test = true },
	}
	var batch []providers.Message
	for i, change := range changes {
		for j := range 3 {
			m := providers.Message{ID: fmt.Sprintf("%d-%d", i, j), Address: "device:1", Title: "one", Priority: providers.Normal, ExpiresAt: now.Add(time.Hour)}
			change(&m)
			batch = append(batch, m)
		}
	}
	got, want, n, err := fcm.Sheets(batch, now)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(texts(want), texts(got)); diff != "" {
		t.Error(diff)
	}
	if n != len(batch) {
		t.Errorf("%d of %d went by a stencil", n, len(batch))
	}
}

func texts(bs [][]byte) (out []string) {
	for _, b := range bs {
		out = append(out, string(b))
	}
	return out
}
