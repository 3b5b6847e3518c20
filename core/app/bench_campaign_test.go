package app_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// campaignHTML is the body of a mail of 8 KB, as a template.
var campaignHTML = `<p>Dear {{ recipient.attributes.name }},</p>` + strings.Repeat(`<p style="margin:0 0 12px">Spring is here, {{ recipient.attributes.name }}, and so are we.</p>`, 100)

// BenchmarkCampaign is a campaign from its start to its completion, everyone with words of their own: 8 KB of
// HTML by mail, or a push. Beside it the bare libraries send as much to the same sandbox. It reports the
// ratios, what the database grew by for each recipient (SQLite), and the most memory that the orchestrator had.
func BenchmarkCampaign(b *testing.B) {
	backed(b, func(b *testing.B, on backing) {
		for _, channel := range []string{"push", "email"} {
			b.Run(channel, func(b *testing.B) {
				w := startWorld(b)
				data := b.TempDir()
				text := fmt.Sprintf("listen: 127.0.0.1:0\napi_key: %s\n%s\nsandbox: false\nroutes:\n  %s\n  %s\n", testKey, on.yaml(data), w.route(b, "apns"), w.route(b, "email"))
				file := filepath.Join(b.TempDir(), "carillon.yaml")
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					b.Fatal(err)
				}
				p, profile := measured(b, []string{"-config", file})
				benchCampaign(b, w, p, profile, channel, data)
			})
		}
	})
}

func benchCampaign(b *testing.B, w *world, p *process, profile func() func(), channel, data string) {
	c := newCaller(b, p.base)
	n := map[string]int{"push": 80_000, "email": 10_000}[channel] // some seconds
	raw := rawAPNs(b, w)
	if channel == "email" {
		raw = rawMails(b, w, func(i int) rawMail {
			html := strings.ReplaceAll(campaignHTML, "{{ recipient.attributes.name }}", fmt.Sprintf("Ann %d", i))
			return rawMail{fmt.Sprintf("u%d@example.com", i), "Spring", "It is here", html}
		})
	}
	importPeople(c, n, func(i int) string {
		// The campaigns of both channels may share a database.
		return strings.Replace(person(i, fmt.Sprintf(`,"topics":[%q]`, channel)), `"u_`, `"`+channel+"_", 1)
	})
	c.must(http.MethodPut, "/v1/templates/spring", map[string]any{"locales": map[string]any{"default": map[string]any{
		"title": "Spring, {{ recipient.attributes.name }}", "body": "It is here", "email": map[string]any{"subject": "Spring", "html": campaignHTML}}}}, nil, http.StatusCreated)
	raw(1000)
	var took, used, rawTook, rawUsed time.Duration
	size := func() int64 {
		return sizeOf(b, filepath.Join(data, "carillon.db")) + sizeOf(b, filepath.Join(data, "carillon.db-wal"))
	}
	var grown int64
	end := profile()
	for b.Loop() {
		before, began := cpu(b, os.Getpid()), time.Now()
		raw(n)
		rawTook, rawUsed = rawTook+time.Since(began), rawUsed+cpu(b, os.Getpid())-before
		before, large := cpu(b, p.cmd.Process.Pid), size()
		began = time.Now()
		var v campaignView
		c.must(http.MethodPost, "/v1/campaigns", map[string]any{"name": "spring", "audience": map[string]any{"topic": channel}, "template": "spring", "channels": []string{channel}, "now": true}, &v, http.StatusCreated)
		eventually(b, 5*time.Minute, "the campaign completed", func() bool {
			pause(b.Context(), 50*time.Millisecond)
			c.must(http.MethodGet, "/v1/campaigns/"+v.ID, nil, &v, http.StatusOK)
			return v.State == "completed"
		})
		took += time.Since(began)
		used += cpu(b, p.cmd.Process.Pid) - before
		if grown += size() - large; v.Progress.Sent != n {
			b.Fatalf("sent to %d of %d: %+v", v.Progress.Sent, n, v.Progress)
		}
	}
	end()
	total := float64(b.N * n)
	b.ReportMetric(total/took.Seconds(), "recipients/s")
	b.ReportMetric(rawTook.Seconds()/took.Seconds(), "rate-ratio")
	b.ReportMetric(used.Seconds()/rawUsed.Seconds(), "cpu-ratio")
	b.ReportMetric(used.Seconds()*1e6/total, "cpu-us/recipient")
	b.ReportMetric(float64(grown)/total, "db-bytes/recipient")
	b.ReportMetric(float64(peakMemory(b, p.cmd.Process.Pid))/(1<<20), "peak-MB")
	b.ReportMetric(0, "ns/op")
}

func sizeOf(b *testing.B, name string) int64 {
	b.Helper()
	info, err := os.Stat(name)
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		b.Fatal(err)
	}
	return info.Size()
}

// peakMemory is the most that a process had resident, in bytes.
func peakMemory(b *testing.B, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return kb << 10
}
