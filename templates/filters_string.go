package templates

import (
	"math"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/osteele/tuesday"
)

// texts makes a filter of a function on its input's text and the texts of its arguments.
func texts(n int, fn func(s string, a []string) (string, error)) filter {
	return filter{n, n, func(m *machine, in any, args []any) (any, error) {
		s, err := m.str(in)
		if err != nil {
			return nil, err
		}
		var buf [2]string
		a := buf[:0]
		for _, arg := range args {
			t, err := m.str(arg)
			if err != nil {
				return nil, err
			}
			a = append(a, t)
		}
		return fn(s, a)
	}}
}

// simple is texts for a function that takes the input alone and cannot fail.
func simple(fn func(string) string) filter {
	return texts(0, func(s string, _ []string) (string, error) { return fn(s), nil })
}

// replaced is strings.ReplaceAll, refused before it is done when its result is too long.
func replaced(s, old, with string) (string, error) {
	if grow := len(with) - len(old); grow > 0 && len(s)+strings.Count(s, old)*grow > MaxString {
		return "", tooLong()
	}
	return strings.ReplaceAll(s, old, with), nil
}

func splice(s string, i int, old, with string) string {
	if i < 0 {
		return s
	}
	return s[:i] + with + s[i+len(old):]
}

// stripHTML takes out script and style elements with what is in them, comments and tags, in one pass.
// It is for the looks of a text, not for its safety: what is printed in HTML is escaped anyway.
func stripHTML(s string) string {
	var b strings.Builder
	var never [3]bool // no end of this sort of block is left: do not look again, or this were quadratic
	for {
		i := strings.IndexByte(s, '<')
		if i < 0 {
			break
		}
		b.WriteString(s[:i])
		s = s[i:]
		end := strings.IndexByte(s, '>')
		for k, block := range [...][2]string{{"<script", "</script>"}, {"<style", "</style>"}, {"<!--", "-->"}} {
			if len(s) >= len(block[0]) && strings.EqualFold(s[:len(block[0])], block[0]) {
				if j := indexFold(s, block[1], never[k]); j >= 0 {
					end = j + len(block[1]) - 1
				} else {
					never[k] = true
				}
				break
			}
		}
		if end < 0 {
			break
		}
		s = s[end+1:]
	}
	b.WriteString(s)
	return b.String()
}

// indexFold is strings.Index for an ASCII text in any case; with never it does not look.
func indexFold(s, sub string, never bool) int {
	for i := 0; !never && i+len(sub) <= len(s); i++ {
		if s[i] == sub[0] && strings.EqualFold(s[i:i+len(sub)], sub) {
			return i
		}
	}
	return -1
}

var stringFilters = map[string]filter{
	"append":       texts(1, func(s string, a []string) (string, error) { return s + a[0], nil }),
	"prepend":      texts(1, func(s string, a []string) (string, error) { return a[0] + s, nil }),
	"downcase":     simple(strings.ToLower),
	"upcase":       simple(strings.ToUpper),
	"strip":        simple(strings.TrimSpace),
	"lstrip":       simple(func(s string) string { return strings.TrimLeftFunc(s, unicode.IsSpace) }),
	"rstrip":       simple(func(s string) string { return strings.TrimRightFunc(s, unicode.IsSpace) }),
	"url_encode":   simple(url.QueryEscape),
	"remove":       texts(1, func(s string, a []string) (string, error) { return strings.ReplaceAll(s, a[0], ""), nil }),
	"replace":      texts(2, func(s string, a []string) (string, error) { return replaced(s, a[0], a[1]) }),
	"remove_first": texts(1, func(s string, a []string) (string, error) { return splice(s, strings.Index(s, a[0]), a[0], ""), nil }),
	"remove_last": texts(1, func(s string, a []string) (string, error) {
		return splice(s, strings.LastIndex(s, a[0]), a[0], ""), nil
	}),
	"replace_first": texts(2, func(s string, a []string) (string, error) {
		return splice(s, strings.Index(s, a[0]), a[0], a[1]), nil
	}),
	"replace_last": texts(2, func(s string, a []string) (string, error) {
		return splice(s, strings.LastIndex(s, a[0]), a[0], a[1]), nil
	}),
	"strip_newlines": simple(func(s string) string {
		return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", ""), "\n", "")
	}),
	"strip_html": simple(stripHTML),
	"capitalize": simple(func(s string) string {
		r, n := utf8.DecodeRuneInString(s)
		if n == 0 {
			return s
		}
		return string(unicode.ToTitle(r)) + strings.ToLower(s[n:])
	}),
	"url_decode": texts(0, func(s string, _ []string) (string, error) {
		out, err := url.QueryUnescape(s)
		if err != nil || !utf8.ValidString(out) {
			return "", stopf(CodeValue, "the text is not URL-encoded")
		}
		return out, nil
	}),
	"split": {1, 1, func(m *machine, in any, args []any) (any, error) {
		s, err := m.str(in)
		if err != nil {
			return nil, err
		}
		sep, err := m.str(args[0])
		if err != nil {
			return nil, err
		}
		var parts []string
		if sep == " " { // Ruby's awk mode: any white space
			parts = strings.Fields(s)
		} else {
			// One more than allowed is enough to know that it is too many.
			parts = strings.SplitN(s, sep, MaxItems+2)
			for len(parts) > 0 && parts[len(parts)-1] == "" {
				parts = parts[:len(parts)-1]
			}
		}
		if err := tooMany(len(parts)); err != nil {
			return nil, err
		}
		out := make([]any, len(parts))
		for i, p := range parts {
			out[i] = p
		}
		return out, nil
	}},
	"slice": {1, 2, sliceFilter},
	"truncate": {0, 2, func(m *machine, in any, args []any) (any, error) {
		s, n, more, err := m.truncation(in, args, 50)
		if err != nil {
			return nil, err
		}
		runes := []rune(s)
		if len(runes) <= n {
			return s, nil
		}
		keep := max(0, n-utf8.RuneCountInString(more))
		return string(runes[:keep]) + more, nil
	}},
	"truncatewords": {0, 2, func(m *machine, in any, args []any) (any, error) {
		s, n, more, err := m.truncation(in, args, 15)
		if err != nil {
			return nil, err
		}
		words := strings.Fields(s)
		if n = max(n, 1); len(words) <= n {
			return s, nil
		}
		return strings.Join(words[:n], " ") + more, nil
	}},
}

// truncation reads what truncate and truncatewords take: a length and an ellipsis.
func (m *machine) truncation(in any, args []any, n int) (s string, length int, more string, err error) {
	more = "..."
	if s, err = m.str(in); err != nil {
		return
	}
	if len(args) > 0 {
		if n, err = whole(args[0]); err != nil {
			return
		}
	}
	if len(args) > 1 {
		more, err = m.str(args[1])
	}
	return s, max(n, 0), more, err
}

func sliceFilter(m *machine, in any, args []any) (any, error) {
	start, err := whole(args[0])
	if err != nil {
		return nil, err
	}
	n := 1
	if len(args) > 1 {
		if n, err = whole(args[1]); err != nil {
			return nil, err
		}
	}
	window := func(size int) (int, int) {
		if start < 0 {
			start += size
		}
		if start < 0 || start > size || n <= 0 {
			return 0, 0
		}
		return start, start + min(n, size-start)
	}
	if v, ok := in.(*value); ok {
		items, err := toList(v)
		if err != nil {
			return nil, err
		}
		from, to := window(len(items))
		return items[from:to], nil
	}
	s, err := m.str(in)
	if err != nil {
		return nil, err
	}
	runes := []rune(s)
	from, to := window(len(runes))
	return string(runes[from:to]), nil
}

// dateLayouts are the texts that date takes, besides seconds since 1970: RFC 3339, with and without
// fractions, and the forms that databases print. Without a zone they are UTC, for the machine's own zone
// is no business of a message.
var dateLayouts = []string{
	time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05 -0700",
	"2006-01-02 15:04:05 MST", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02", time.RFC1123Z, time.RFC1123,
	"January 2, 2006", "Jan 2, 2006", "2 January 2006", "2 Jan 2006",
}

// strftimeWidth finds a width of three digits or more: %999999Y is a megabyte.
var strftimeWidth = regexp.MustCompile(`%[-_^#0]*[0-9]{3,}`)

func dateFilter(m *machine, in any, args []any) (any, error) {
	format, err := m.str(args[0])
	if err != nil {
		return nil, err
	}
	if in == nil || in == "" || format == "" {
		return in, nil
	}
	t, err := date(in)
	if err != nil {
		return nil, err
	}
	if len(format) > 200 || strftimeWidth.MatchString(format) {
		return nil, stopf(CodeLimit, "a format of more than 200 bytes, or a width of more than 99")
	}
	if err := m.spend(40 + 8*len(format)); err != nil { // the format is parsed every time
		return nil, err
	}
	out, err := tuesday.Strftime(format, t)
	if err != nil {
		return nil, stopf(CodeValue, "the format is none of strftime")
	}
	return out, nil
}

func date(in any) (time.Time, error) {
	const farthest = 1 << 40 // some 35,000 years; time.Time is exact within
	switch v := in.(type) {
	case int:
		if v > -farthest && v < farthest {
			return time.Unix(int64(v), 0).UTC(), nil
		}
	case float64:
		if v > -farthest && v < farthest {
			whole, fraction := math.Modf(v)
			return time.Unix(int64(whole), int64(fraction*1e9)).UTC(), nil
		}
	case string:
		s := strings.TrimSpace(v)
		if s == "now" || s == "today" {
			return time.Time{}, stopf(CodeValue, "%q is not known to a template, for a message must read the same on every attempt; give the time in the data", s)
		}
		if len(s) <= 64 {
			for _, layout := range dateLayouts {
				if t, err := time.Parse(layout, s); err == nil {
					return t, nil
				}
			}
		}
	}
	return time.Time{}, stopf(CodeValue, "a date is needed: RFC 3339 (\"2026-12-01T09:00:00Z\"), \"2026-12-01\" or seconds since 1970")
}
