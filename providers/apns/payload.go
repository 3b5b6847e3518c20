package apns

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sideshow/apns2"

	"github.com/carillon-notify/carillon/providers"
)

// pushTypes are the values of apns-push-type, and what Apple wants appended to the bundle id as their
// topic ("Sending notification requests to APNs"; mdm has a topic of its own).
var pushTypes = map[string]string{
	"alert":        "",
	"background":   "",
	"complication": ".complication",
	"controls":     ".push-type.controls",
	"fileprovider": ".pushkit.fileprovider",
	"liveactivity": ".push-type.liveactivity",
	"location":     ".location-query",
	"mdm":          "",
	"pushtotalk":   ".voip-ptt",
	"voip":         ".voip",
	"widgets":      ".push-type.widgets",
}

func pushTypeNames() []string { return slices.Sorted(maps.Keys(pushTypes)) }

// Apple's priorities: at once, and when it suits the device's battery.
const (
	priorityNow   = 10
	prioritySaves = 5
)

// maxCollapseID is how many bytes an apns-collapse-id may have.
const maxCollapseID = 64

// push is a message as it will be asked of APNs.
type push struct {
	payload    []byte
	size       int // of the payload as it goes over the wire
	pushType   string
	topic      string
	priority   int
	collapseID string
	expiration time.Time // zero: none
}

// block is the kind's part of the content block.
type block struct {
	Headers map[string]string `json:"headers"`
	Payload json.RawMessage   `json:"payload"`
}

// payload is what is built from a message's own fields.
type payload struct {
	Title, Body      string
	ContentAvailable bool
	URL, DeliveryID  string
}

// json encodes the payload. It is written out, for encoding/json takes an eighth of a push's CPU for it.
func (p *payload) json() []byte {
	const rest = 100 // names and punctuation
	out := make([]byte, 0, len(p.Title)+len(p.Body)+len(p.URL)+len(p.DeliveryID)+rest)
	out = append(out, `{"aps":{`...)
	sep := ""
	if p.alerts() {
		out = append(out, `"alert":{`...)
		out, sep = appendMember(out, "", "title", p.Title)
		out, _ = appendMember(out, sep, "body", p.Body)
		out, sep = append(out, '}'), ","
	}
	if p.ContentAvailable {
		out = append(append(out, sep...), `"content-available":1`...)
	}
	out, _ = appendMember(append(out, '}'), ",", "url", p.URL)
	return append(appendText(append(out, `,"delivery_id":`...), p.DeliveryID), '}')
}

// alerts says whether there is something to show.
func (p *payload) alerts() bool { return p.Title != "" || p.Body != "" }

// appendMember appends a member of an object behind sep, unless it is empty, and tells what stands before
// the next one.
func appendMember(to []byte, sep, name, value string) ([]byte, string) {
	if value == "" {
		return to, sep
	}
	return appendText(append(append(append(append(to, sep...), '"'), name...), `":`...), value), ","
}

// appendText appends a JSON string. Most need nothing done to them; encoding/json does the rest.
func appendText(to []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			text, _ := json.Marshal(s) // a string always can be
			return append(to, text...)
		}
	}
	return append(append(append(to, '"'), s...), '"')
}

// build makes a push of a message; topic is the route's. Its errors name what is wrong and hold nothing
// of the message.
func build(m *providers.Message, topic string) (*push, error) {
	over, err := overlay(m.Content)
	if err != nil {
		return nil, err
	}
	n := &push{priority: priorityNow, expiration: m.ExpiresAt}
	if m.Priority == providers.Bulk {
		n.priority = prioritySaves
	}
	n.collapseID = collapseID(m.CollapseKey)
	base := payload{Title: m.Title, Body: m.Body, URL: m.URL, DeliveryID: m.ID}
	silent := !base.alerts()
	if over == nil || len(over.Payload) == 0 {
		if over == nil || over.Headers["apns-push-type"] == "" {
			base.ContentAvailable = silent // nothing to show: data alone, for the app to fetch
		}
		if n.payload, err = encode(base, m.Data); err != nil {
			return nil, err
		}
	} else if silent, err = n.lay(base, m.Data, over); err != nil {
		return nil, err
	}
	n.pushType = "alert"
	if silent {
		n.pushType = "background"
	}
	if over != nil {
		if err := n.setHeaders(over.Headers); err != nil {
			return nil, err
		}
	}
	if err := n.settle(over, topic); err != nil {
		return nil, err
	}
	n.size = len(n.payload)
	return n, nil
}

// settle decides what depends on the push type.
func (n *push) settle(over *block, topic string) error {
	suffix := pushTypes[n.pushType]
	if n.topic == "" && topic != "" {
		n.topic = topic
		if !strings.HasSuffix(topic, suffix) {
			n.topic += suffix
		}
	}
	if n.pushType != "background" {
		return nil
	}
	if over != nil && over.Headers["apns-priority"] == "10" {
		return errors.New(`apns-priority 10 is an error with apns-push-type "background": leave it out or say 5`)
	}
	n.priority = min(n.priority, prioritySaves)
	return nil
}

// overlay reads the kind's part of the content block; nil is none.
func overlay(content json.RawMessage) (*block, error) {
	if len(content) == 0 {
		return nil, nil
	}
	var c struct {
		APNs *block `json:"apns"`
	}
	if err := json.Unmarshal(content, &c); err != nil {
		return nil, errors.New(`push.apns must be an object with the members "headers" (texts by name) and "payload" (an object)`)
	}
	if c.APNs != nil && bytes.Equal(bytes.TrimSpace(c.APNs.Payload), []byte("null")) {
		c.APNs.Payload = nil
	}
	return c.APNs, nil
}

// encode writes the payload with the application's data beside aps.
func encode(base payload, data json.RawMessage) ([]byte, error) {
	out := base.json()
	members, err := dataMembers(base, data)
	if err != nil || len(members) == 0 {
		return out, err
	}
	rest, err := json.Marshal(members) // sorted: every attempt sends the same bytes
	if err != nil {
		return nil, fmt.Errorf("encode the push payload: %w", err)
	}
	out[len(out)-1] = ','
	return append(out, rest[1:]...), nil
}

// dataMembers is the application's data without the names that the payload already has.
func dataMembers(base payload, data json.RawMessage) (map[string]json.RawMessage, error) {
	if len(data) == 0 {
		return nil, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		return nil, errors.New("data must be a JSON object")
	}
	if _, ok := members["aps"]; ok {
		return nil, errors.New(`data must not have a member "aps", which is Apple's: put it into push.apns.payload`)
	}
	delete(members, "delivery_id")
	if base.URL != "" {
		delete(members, "url")
	}
	return members, nil
}

// lay builds the payload and lays the block's over it. It says whether the result shows nothing.
func (n *push) lay(base payload, data json.RawMessage, over *block) (silent bool, err error) {
	built, err := encode(base, data)
	if err != nil {
		return false, err
	}
	doc, err := object(built)
	if err != nil {
		return false, err
	}
	patch, err := object(over.Payload)
	if err != nil {
		return false, errors.New("push.apns.payload must be a JSON object")
	}
	merge(doc, patch)
	silent = false
	switch a := doc["aps"].(type) {
	case map[string]any:
		_, alert := a["alert"]
		_, badge := a["badge"]
		_, sound := a["sound"]
		silent = !alert && !badge && !sound
		if len(a) == 0 && over.Headers["apns-push-type"] == "" {
			a["content-available"] = 1
		}
	case nil: // taken out, as for mdm
	default:
		return false, errors.New("push.apns.payload.aps must be an object")
	}
	if n.payload, err = json.Marshal(doc); err != nil {
		return false, fmt.Errorf("encode the push payload: %w", err)
	}
	return silent, nil
}

// object decodes a JSON object, its numbers as they are written.
func object(raw []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var out map[string]any
	if err := d.Decode(&out); err != nil {
		return nil, fmt.Errorf("decode a JSON object: %w", err)
	}
	return out, nil
}

// merge lays patch over doc as RFC 7396 says: objects member by member, null removes, the rest replaces.
func merge(doc, patch map[string]any) {
	for name, value := range patch {
		switch v := value.(type) {
		case nil:
			delete(doc, name)
		case map[string]any:
			inner, ok := doc[name].(map[string]any)
			if !ok {
				inner = map[string]any{}
			}
			merge(inner, v)
			doc[name] = inner
		default:
			doc[name] = v
		}
	}
}

// setHeaders takes over the sender's headers. The schema has checked them already; a header that could
// smuggle another one is worth a second look.
func (n *push) setHeaders(headers map[string]string) error {
	for name, value := range headers {
		if !printable(value) {
			return fmt.Errorf("push.apns.headers.%s must be one line of printable ASCII", headerName(name))
		}
		switch name {
		case "apns-push-type":
			if _, ok := pushTypes[value]; !ok {
				return fmt.Errorf("apns-push-type must be one of %s", strings.Join(pushTypeNames(), ", "))
			}
			n.pushType = value
		case "apns-priority":
			if value != "1" && value != "5" && value != "10" {
				return errors.New("apns-priority must be 1, 5 or 10")
			}
			n.priority, _ = strconv.Atoi(value)
		case "apns-topic":
			if value == "" || len(value) > 255 || strings.ContainsAny(value, " /\\:") {
				return errors.New("apns-topic must be a bundle id, with its suffix where the push type has one")
			}
			n.topic = value
		case "apns-collapse-id":
			if value == "" || len(value) > maxCollapseID {
				return fmt.Errorf("apns-collapse-id must have 1 to %d bytes", maxCollapseID)
			}
			n.collapseID = value
		case "apns-expiration":
			at, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return errors.New("apns-expiration must be a time in Unix seconds, or 0")
			}
			n.expire(at)
		default:
			return fmt.Errorf("push.apns.headers.%s cannot be set; there are apns-push-type, apns-priority, apns-topic, apns-collapse-id and apns-expiration", headerName(name))
		}
	}
	return nil
}

// expire shortens the life of the push to at, in Unix seconds.
func (n *push) expire(at uint64) {
	t := time.Unix(int64(at), 0) //nolint:gosec // parsed as 32 bits
	if at == 0 {
		// "Now or never." apns2 leaves the header out for anything up to the epoch and sends whole
		// seconds: a nanosecond later it sends the 0.
		t = time.Unix(0, 1)
	}
	if n.expiration.IsZero() || t.Before(n.expiration) {
		n.expiration = t
	}
}

// collapseID makes an apns-collapse-id of a collapse key: the key itself where it can be one, else its
// digest, which is as good at telling keys apart.
func collapseID(key string) string {
	if len(key) <= maxCollapseID && printable(key) {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// headerName makes a name that somebody sent us safe to show.
func headerName(s string) string {
	if len(s) > 64 || !printable(s) {
		return "(a name that is none)"
	}
	return s
}

// notification is the push as apns2 takes it.
func (n *push) notification(m *providers.Message) *apns2.Notification {
	out := &apns2.Notification{
		CollapseID:  n.collapseID,
		DeviceToken: m.Address,
		Topic:       n.topic,
		Expiration:  n.expiration,
		Priority:    n.priority,
		Payload:     n.payload,
		PushType:    apns2.EPushType(n.pushType),
	}
	if isUUID(m.ID) { // anything else APNs refuses; it then makes an id of its own
		out.ApnsID = strings.ToLower(m.ID)
	}
	return out
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if s[i] != '-' {
				return false
			}
		} else if !isHex(s[i]) {
			return false
		}
	}
	return true
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// isToken says whether an address is safe to become a part of a path, as addressPattern has it.
func isToken(s string) bool {
	if len(s) < 64 || len(s) > 200 {
		return false
	}
	for i := range len(s) {
		if !isHex(s[i]) {
			return false
		}
	}
	return true
}
