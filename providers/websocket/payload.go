package websocket

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/carillon-notify/carillon/providers"
)

// channelOf names the channel of one recipient of one app. It is injective: the escaped app holds no
// '/', so the first '/' always ends it, whatever the recipient's id is.
func channelOf(app, recipient string) string { return url.PathEscape(app) + "/" + recipient }

// splitChannel undoes channelOf.
func splitChannel(channel string) (app, recipient string, ok bool) {
	escaped, recipient, ok := strings.Cut(channel, "/")
	if !ok {
		return "", "", false
	}
	app, err := url.PathUnescape(escaped)
	return app, recipient, err == nil
}

// validRecipient says whether s matches addressPattern and is UTF-8; it runs for every message, where
// the pattern itself would cost more than the publication.
func validRecipient(s string) bool {
	if s == "" || len(s) > 255*utf8.UTFMax || !utf8.ValidString(s) || utf8.RuneCountInString(s) > 255 {
		return false
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == '/' {
			return false
		}
	}
	return true
}

// encode appends the publication's data, {id,title,body,url,data,category,created_at}, to b. All seven
// members are always there, so that a client need not ask which. It is written by hand because it runs
// for every message: encoding/json would cost a third of a publication to a few clients.
func encode(b []byte, m *providers.Message) ([]byte, error) {
	data, err := dataOf(m)
	if err != nil {
		return nil, err
	}
	b = append(b, `{"id":`...)
	b = appendString(b, m.ID)
	b = append(b, `,"title":`...)
	b = appendString(b, m.Title)
	b = append(b, `,"body":`...)
	b = appendString(b, m.Body)
	b = append(b, `,"url":`...)
	b = appendString(b, m.URL)
	b = append(b, `,"data":`...)
	b = append(b, data...)
	b = append(b, `,"category":`...)
	b = appendString(b, m.Category)
	b = append(b, `,"created_at":"`...)
	b = m.CreatedAt.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `"}`...)
	if len(b) > MaxPayload {
		return nil, tooLarge(len(b))
	}
	return b, nil
}

var errNotObject = errors.New("not a JSON object")

// dataOf is the message's data with the content block's data laid over it, on one line: a line break
// between two tokens would end the frame of a client on SSE or HTTP streaming.
func dataOf(m *providers.Message) ([]byte, error) {
	data, err := object(m.Data)
	if err != nil {
		return nil, fmt.Errorf("read the message's data: %w", err)
	}
	if len(m.Content) == 0 {
		return data, nil
	}
	var block struct {
		Data json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(m.Content, &block); err != nil {
		return nil, fmt.Errorf("read the in_app content block: %w", errNotObject)
	}
	over, err := object(block.Data)
	if err != nil {
		return nil, fmt.Errorf("read data of the in_app content block: %w", err)
	}
	if len(over) == len("{}") {
		return data, nil
	}
	return mergePatch(data, over)
}

// object returns raw as an object on one line; nothing and null are {}.
func object(raw json.RawMessage) ([]byte, error) {
	if len(raw) == 0 {
		return []byte("{}"), nil
	}
	if !json.Valid(raw) {
		return nil, errNotObject
	}
	if bytes.ContainsAny(raw, "\r\n") || raw[0] != '{' {
		var compact bytes.Buffer
		if err := json.Compact(&compact, raw); err != nil {
			return nil, errNotObject
		}
		raw = compact.Bytes()
	}
	switch {
	case raw[0] == '{':
		return raw, nil
	case string(raw) == "null":
		return []byte("{}"), nil
	}
	return nil, errNotObject
}

// mergePatch lays patch over target as RFC 7396 does; both are objects. Numbers keep their spelling.
func mergePatch(target, patch []byte) ([]byte, error) {
	var t, p map[string]any
	for _, in := range []struct {
		raw  []byte
		into *map[string]any
	}{{target, &t}, {patch, &p}} {
		dec := json.NewDecoder(bytes.NewReader(in.raw))
		dec.UseNumber()
		if err := dec.Decode(in.into); err != nil {
			return nil, fmt.Errorf("lay the in_app content block over data: %w", errNotObject)
		}
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(merge(t, p)); err != nil {
		return nil, fmt.Errorf("lay the in_app content block over data: %w", err)
	}
	return bytes.TrimRight(out.Bytes(), "\n"), nil
}

func merge(target, patch map[string]any) map[string]any {
	merged := maps.Clone(target)
	if merged == nil {
		merged = make(map[string]any, len(patch))
	}
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(merged, k)
		case map[string]any:
			under, _ := merged[k].(map[string]any)
			merged[k] = merge(under, v)
		default:
			merged[k] = v
		}
	}
	return merged
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string (RFC 8259 section 7); bytes that are not UTF-8 become U+FFFD,
// and U+2028 and U+2029 are escaped because they end a line in JavaScript source.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			b = append(b, s[start:i]...)
			b = appendEscaped(b, c)
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 || r == '\u2028' || r == '\u2029' {
			b = append(b, s[start:i]...)
			b = append(b, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
			start = i + size
		}
		i += size
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

func appendEscaped(b []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(b, '\\', c)
	case '\n':
		return append(b, '\\', 'n')
	case '\r':
		return append(b, '\\', 'r')
	case '\t':
		return append(b, '\\', 't')
	}
	return append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}
