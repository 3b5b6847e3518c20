package console

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/carillon-notify/carillon/core"
)

// asynqmon serves asynqmon, for admins with its buttons. It has no login of its own, and its page holds
// inline scripts and asks for web fonts: those are taken out, for the console asks nobody else, and the
// scripts that are in the page, no others, are let run by their hashes.
func (c *Console) asynqmon(w http.ResponseWriter, r *http.Request, s session) {
	h := c.queues[0]
	if s.Can("admin") {
		h = c.queues[1]
	}
	if strings.HasPrefix(r.URL.Path, Queues+"/api/") || strings.HasPrefix(r.URL.Path, Queues+"/static/") {
		h.ServeHTTP(&onceWriter{ResponseWriter: w}, r)
		return
	}
	kept := &keptPage{ResponseWriter: w, status: http.StatusOK}
	h.ServeHTTP(kept, r)
	text := kept.body.Bytes()
	if bytes.HasPrefix(text, []byte("<!doctype html>")) {
		text = webFont.ReplaceAll(text, nil)
		text = bytes.Replace(text, []byte("<body>"), []byte(wayBack), 1)
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", queuesPolicy(text))
	}
	w.WriteHeader(kept.status)
	w.Write(text)
}

var (
	webFont = regexp.MustCompile(`<link[^>]+href="https?://[^>]*>`)
	inline  = regexp.MustCompile(`(?s)<script>(.*?)</script>`)
)

// wayBack is a link to the console in the corner of asynqmon's page, which knows of no other page.
const wayBack = `<body><a href="/console/" style="position:fixed;top:.9rem;right:1.5rem;z-index:2000;font:15px/1.9 system-ui,sans-serif;color:#12906c">Carillon</a>`

// queuesPolicy is asynqmon's content policy: its components carry styles inline.
func queuesPolicy(html []byte) string {
	scripts := "'self'"
	for _, found := range inline.FindAllSubmatch(html, -1) {
		sum := sha256.Sum256(found[1])
		scripts += " 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return "default-src 'none'; script-src " + scripts + "; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
}

// onceWriter lets the first status pass alone: asynqmon sends another one when the browser leaves during
// its answer, which net/http would tell the log of each time.
type onceWriter struct {
	http.ResponseWriter
	sent bool
}

func (o *onceWriter) WriteHeader(status int) {
	if !o.sent {
		o.sent = true
		o.ResponseWriter.WriteHeader(status)
	}
}

func (o *onceWriter) Write(b []byte) (int, error) {
	o.sent = true
	return o.ResponseWriter.Write(b)
}

// keptPage keeps an answer's body: asynqmon writes its page piece by piece.
type keptPage struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (k *keptPage) WriteHeader(status int)      { k.status = status }
func (k *keptPage) Write(b []byte) (int, error) { return k.body.Write(b) }

// formatPayload shows a wake's ids, and nothing of a payload that is not a wake.
func formatPayload(_ string, payload []byte) string {
	var wake struct {
		Batch core.ID `json:"b"`
		Fence int64   `json:"f"`
	}
	if json.Unmarshal(payload, &wake) != nil || wake.Batch.IsZero() {
		return "(not a wake of Carillon's)"
	}
	return fmt.Sprintf("batch %s, fence %d", wake.Batch, wake.Fence)
}

// formatResult shows nothing: a wake has no result.
func formatResult(string, []byte) string { return "" }
