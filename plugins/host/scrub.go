package host

import (
	"cmp"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/carillon-notify/carillon/providers"
)

// mask stands where something was that must not be shown.
const mask = "***"

// shortSecret is the length below which a text is no secret worth looking for: it would mask half of
// every sentence.
const shortSecret = 6

// longLine is the length of a line of a secret of several lines (a key in PEM) from which on it is looked
// for alone: an error may quote one.
const longLine = 24

// scrubber takes the values of secret settings, and a message's address, out of what a plugin says.
type scrubber struct{ secrets []string } // the longest first: one may be a part of another

func newScrubber(settings []providers.Setting, values []byte) *scrubber {
	s := &scrubber{}
	var given map[string]any
	if json.Unmarshal(values, &given) != nil {
		return s
	}
	for _, setting := range settings {
		if !setting.Secret {
			continue
		}
		var value any = given
		for part := range strings.SplitSeq(setting.Name, ".") {
			m, _ := value.(map[string]any)
			value = m[part]
		}
		s.add(value)
	}
	slices.SortFunc(s.secrets, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(a, b)) })
	s.secrets = slices.Compact(s.secrets)
	return s
}

// add takes a value, and what becomes of it in a log line and in a URL.
func (s *scrubber) add(value any) {
	switch v := value.(type) {
	case string:
		if len(v) < shortSecret {
			return
		}
		s.secrets = append(s.secrets, v, url.QueryEscape(v), url.PathEscape(v))
		s.secrets = append(s.secrets, quoted(v, true), quoted(v, false))
		for line := range strings.Lines(v) {
			if line = strings.TrimSpace(line); len(line) >= longLine && line != v && !strings.HasPrefix(line, "-----") {
				s.secrets = append(s.secrets, line)
			}
		}
	case []any:
		for _, one := range v {
			s.add(one)
		}
	}
}

// quoted is a text as it stands in JSON, whose encoders differ in whether they escape HTML.
func quoted(s string, html bool) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(html)
	if e.Encode(s) != nil {
		return s
	}
	out := strings.TrimSuffix(b.String(), "\n")
	return out[1 : len(out)-1]
}

// text returns t without the secrets and without the address.
func (s *scrubber) text(t, address string) string {
	if t == "" {
		return ""
	}
	return s.secret(hide(t, address))
}

// secret returns t without the secrets, nor the beginning of one that t was cut in.
func (s *scrubber) secret(t string) string {
	for _, secret := range s.secrets {
		t = strings.ReplaceAll(t, secret, mask)
		for n := min(len(secret)-1, len(t)); n >= shortSecret; n-- {
			if strings.HasSuffix(t, secret[:n]) {
				t = t[:len(t)-n] + mask
				break
			}
		}
	}
	return t
}

// hide returns t without an address or a content, as it is and as a URL has it.
func hide(t, what string) string {
	if len(what) < shortSecret {
		return t
	}
	t = strings.ReplaceAll(t, what, mask)
	if strings.ContainsRune(t, '%') {
		t = strings.ReplaceAll(t, url.QueryEscape(what), mask)
	}
	return t
}

const (
	recentCalls = 16      // calls that ended and are still remembered: their lines may come a little later
	maxWord     = 1 << 10 // longest text that is remembered
)

// calls are the addresses and words that a plugin may be talking about: those of the calls under way, and
// of the last that ended.
type calls struct {
	mu     sync.Mutex
	open   map[int][]providers.Message
	recent [recentCalls][]string // a batch is its caller's again when its call has ended
	next   int
}

// begin notes a call, and returns its number for end.
func (c *calls) begin(batch []providers.Message) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[int][]providers.Message{}
	}
	c.next++
	c.open[c.next] = batch
	return c.next
}

func (c *calls) end(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recent[n%recentCalls] = appendWords(c.recent[n%recentCalls][:0], c.open[n])
	delete(c.open, n)
}

// hide returns t without the addresses and words of the calls.
func (c *calls) hide(t string) string {
	c.mu.Lock()
	var all []string
	for _, batch := range c.open {
		all = appendWords(all, batch)
	}
	for _, ws := range c.recent {
		all = append(all, ws...)
	}
	c.mu.Unlock()
	return hideAll(t, all)
}

// hideBatch returns t without the addresses and words of a batch.
func hideBatch(t string, batch []providers.Message) string {
	return hideAll(t, appendWords(nil, batch))
}

func hideAll(t string, what []string) string {
	for _, w := range what {
		t = hide(t, w)
	}
	return t
}

// appendWords appends what of a batch must not be shown. A campaign's messages have the same words.
func appendWords(to []string, batch []providers.Message) []string {
	var last [5]string
	for i := range batch {
		m := &batch[i]
		for k, w := range [...]string{m.Address, m.Name, m.Title, m.Body, m.Unsubscribe} {
			if len(w) >= shortSecret && len(w) <= maxWord && w != last[k] {
				to = append(to, w)
				last[k] = w
			}
		}
	}
	return to
}
