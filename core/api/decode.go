package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/carillon-notify/carillon/core/intake"
)

// The limits of a body.
const (
	MaxBody           = 256 << 10 // of a request, and of a line of a bulk stream
	MaxBodyAttachment = 8 << 20   // of a notification with attachments
	MaxDepth          = 32        // of nested objects and arrays

	// freeBody is how much of a body is not counted: who sends little is not refused for those who send much.
	freeBody = 16 << 10
)

// Nullable is a text that a merge patch sets, removes (null) or leaves alone (not given).
type Nullable struct {
	Set   bool // it was given
	Value string
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *Nullable) UnmarshalJSON(b []byte) error {
	n.Set, n.Value = true, ""
	return json.Unmarshal(b, &n.Value)
}

// MarshalJSON implements json.Marshaler.
func (n Nullable) MarshalJSON() ([]byte, error) {
	if n.Value == "" {
		return []byte("null"), nil
	}
	return json.Marshal(n.Value)
}

// Version is a template's version as a request names it: a number, or a text of one, kept as a text. "" is none.
type Version string

// UnmarshalJSON implements json.Unmarshaler.
func (v *Version) UnmarshalJSON(b []byte) error {
	switch jsontext.Value(b).Kind() {
	case 'n':
		*v = ""
	case '0':
		*v = Version(b)
	default:
		return json.Unmarshal(b, (*string)(v))
	}
	return nil
}

// number is the version, 0 for none or what is no version.
func (v Version) number() int {
	if v == "" {
		return 0 // mostly; Atoi would make an error of it
	}
	n, err := strconv.Atoi(string(v))
	if err != nil {
		return 0
	}
	return max(n, 0)
}

// decodeBody reads a request's JSON body into dst, a pointer to one of the generated types. What
// cannot be read at all is an error; faults of fields are kept in the call, for the operation's
// check to add its own to.
func decodeBody(r *http.Request, dst any) error {
	c := callOf(r.Context())
	if err := checkType(r.Header.Get("Content-Type")); err != nil {
		return err
	}
	if err := checkCoding(r); err != nil {
		return err
	}
	limit := int64(MaxBody)
	if _, ok := dst.(*NotificationRequest); ok {
		limit = MaxBodyAttachment
	}
	body, err := readAll(&counted{http.MaxBytesReader(c.w, r.Body, limit), c, freeBody}, r.ContentLength)
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &long):
		return tooLarge(limit)
	case errors.Is(err, errNoRoom):
		return err
	case err != nil:
		return refuse(http.StatusBadRequest, "The body could not be read to its end.")
	case len(body) == 0:
		return errNoBody
	}
	c.body = body
	c.faults, err = decode(body, dst)
	if n, ok := dst.(*NotificationRequest); ok && err == nil && len(body) > MaxBody && !hasAttachments(n) {
		return tooLarge(MaxBody)
	}
	return err
}

var errNoRoom = &failure{status: http.StatusServiceUnavailable, detail: "More large requests are being read than can be at once. Try again in a moment.", retry: 1}

// counted takes of the room for all bodies what is read, as it is read: what is only announced takes none. Who finds no
// room is refused and does not wait, for it holds what others may wait for.
type counted struct {
	io.Reader
	call *call
	free int64
}

func (r *counted) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.free -= int64(n)
	if more := -r.free; more > 0 {
		if !r.call.bodies.TryAcquire(more) {
			return n, errNoRoom
		}
		r.call.held, r.free = r.call.held+more, 0
	}
	return n, err
}

// readAll reads a body to its end, in one piece where it is as long as its header says.
func readAll(from io.Reader, length int64) ([]byte, error) {
	var b bytes.Buffer
	b.Grow(int(min(max(length, 0), MaxBody)) + bytes.MinRead)
	_, err := b.ReadFrom(from)
	return b.Bytes(), err
}

// errNoBody is io.EOF to the generated code, which lets it pass where no body is needed.
var errNoBody = errors.Join(refuse(http.StatusBadRequest, "Send a JSON body."), io.EOF)

func checkType(given string) error {
	if given == "" || given == "application/json" {
		return nil
	}
	media, _, err := mime.ParseMediaType(given)
	if err == nil && (media == "application/json" || strings.HasSuffix(media, "+json")) {
		return nil
	}
	return refuse(http.StatusUnsupportedMediaType, "Send JSON with Content-Type: application/json.")
}

// checkCoding refuses a body that is packed. All of the header's lines count.
func checkCoding(r *http.Request) error {
	for _, coding := range r.Header.Values("Content-Encoding") {
		if coding != "" && !strings.EqualFold(coding, "identity") {
			return refuse(http.StatusUnsupportedMediaType, "Send the body as it is, without Content-Encoding.")
		}
	}
	return nil
}

func tooLarge(limit int64) error {
	return refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("The body is larger than %d KiB.", limit>>10))
}

func hasAttachments(n *NotificationRequest) bool {
	var c struct {
		Email struct {
			Attachments []jsontext.Value `json:"attachments"`
		} `json:"email"`
	}
	return len(n.Content) > 0 && json.Unmarshal(n.Content, &c) == nil && len(c.Email.Attachments) > 0
}

// decode reads a JSON text strictly: exact names, none unknown or twice, valid UTF-8, nothing behind
// it, at most MaxDepth deep, no NUL. encoding/json would match names whatever their case and let
// repeated ones and broken UTF-8 pass, so its successor's semantics are used. A text that is no JSON
// is an error; one whose fields are wrong gives faults, and dst holds the rest.
func decode(body []byte, dst any) ([]intake.Fault, error) {
	if !utf8.Valid(body) {
		return nil, refuse(http.StatusBadRequest, fmt.Sprintf("The body is not valid UTF-8 at byte %d.", invalidAt(body)))
	}
	if !shallow(body) {
		return nil, refuse(http.StatusBadRequest, fmt.Sprintf("The body is nested more than %d deep.", MaxDepth))
	}
	raw, isRaw := dst.(*TemplateSource)
	if !isRaw && !bytes.Contains(body, []byte(`\u0000`)) {
		if json.Unmarshal(body, dst, json.RejectUnknownMembers(true)) == nil && body[firstByte(body)] == '{' {
			return nil, nil // the parts that are kept as they are were checked on the way
		}
	}
	if err := checkRaw(body); err != nil {
		return nil, err
	}
	if isRaw {
		*raw = body
	}
	return diagnose(body, dst)
}

// checkRaw checks the JSON of the parts that are kept as they are, too.
func checkRaw(body []byte) error {
	d := jsontext.NewDecoder(bytes.NewBuffer(body)) // a buffer is not copied
	_, err := d.ReadValue()
	if err == nil {
		if _, err = d.ReadToken(); errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			return refuse(http.StatusBadRequest, "There is something behind the JSON text.")
		}
	}
	var syntax *jsontext.SyntacticError
	if !errors.As(err, &syntax) {
		return &failure{status: http.StatusBadRequest, detail: fmt.Sprintf("The body is not valid JSON at byte %d: it ends too early.", len(body))}
	}
	f := &failure{status: http.StatusBadRequest, detail: fmt.Sprintf("The body is not valid JSON at byte %d.", syntax.ByteOffset)}
	if errors.Is(err, jsontext.ErrDuplicateName) {
		f.status, f.detail = http.StatusUnprocessableEntity, "A field is given twice."
		f.faults = []intake.Fault{{Pointer: string(syntax.JSONPointer), Code: "duplicate_field", Detail: "is given twice"}}
	}
	return f
}

func firstByte(b []byte) int { return len(b) - len(bytes.TrimLeft(b, " \t\r\n")) }

func invalidAt(b []byte) int {
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n <= 1 {
			return i
		}
		i += n
	}
	return len(b)
}

// shallow reports whether a text is nested at most MaxDepth deep, without parsing it.
func shallow(b []byte) bool {
	depth, text := 0, false
	for i := 0; i < len(b); i++ {
		switch ch := b[i]; {
		case text && ch == '\\':
			i++
		case ch == '"':
			text = !text
		case text:
		case ch == '{' || ch == '[':
			if depth++; depth > MaxDepth {
				return false
			}
		case ch == '}' || ch == ']':
			depth--
		}
	}
	return true
}

// gathers are the operations that add their use case's faults to those found before, and answer then.
var gathers = []string{"SendNotification", "PreviewNotification", "CreateCampaign"}

// check is the one validation of every operation: what decoding found, and validator's rules.
func (a *API) check(next StrictHandlerFunc, operation string) StrictHandlerFunc {
	return func(ctx context.Context, w http.ResponseWriter, r *http.Request, request any) (any, error) {
		c := callOf(ctx)
		c.faults = merge(c.faults, a.violations(ctx, request))
		if keys := r.Header.Values("Idempotency-Key"); len(keys) > 0 && keys[0] == "" { // the generated code takes it for none
			c.faults = merge(c.faults, []intake.Fault{{Pointer: "/Idempotency-Key", Code: intake.FaultRange, Detail: "must have 1 to 255 characters; leave the header out for none"}})
		}
		if len(c.faults) > 0 && !slices.Contains(gathers, operation) {
			return nil, invalid(c.faults)
		}
		return next(ctx, w, r, request)
	}
}
