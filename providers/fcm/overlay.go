package fcm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"firebase.google.com/go/v4/messaging"
)

// blockOf gives the `fcm` member of a push content block, or nil.
func blockOf(content json.RawMessage) (map[string]any, error) {
	if len(content) == 0 {
		return nil, nil
	}
	var c struct {
		FCM json.RawMessage `json:"fcm"`
	}
	if err := json.Unmarshal(content, &c); err != nil {
		return nil, errors.New("push must be an object")
	}
	if len(c.FCM) == 0 || string(c.FCM) == "null" {
		return nil, nil
	}
	block, err := object(c.FCM)
	if err != nil {
		return nil, errors.New("fcm: must be an object")
	}
	for _, k := range []string{"token", "topic", "condition", "name"} {
		if _, there := block[k]; there {
			return nil, fmt.Errorf("fcm.%s: where a message goes is decided by its endpoint; leave it out", k)
		}
	}
	return block, nil
}

// object decodes a JSON object and keeps its numbers as they were written.
func object(raw []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return nil, err
	}
	return m, nil
}

// misfit says which field the library could not read, without the names of its types.
func misfit(err error) error {
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong) && wrong.Field != "":
		return fmt.Errorf("fcm: not an FCM v1 message: %s cannot be a %s", wrong.Field, wrong.Value)
	case errors.As(err, &wrong):
		return fmt.Errorf("fcm: not an FCM v1 message: a %s stands where it cannot", wrong.Value)
	}
	return fmt.Errorf("fcm: not an FCM v1 message: %w", err)
}

// overlay lays block over the built message as RFC 7396 does: objects are merged, null removes, anything
// else replaces. The library's types do not hold everything that FCM v1 has, so what they would lose on
// the way is an error here instead of a silent change.
func overlay(built *messaging.Message, block map[string]any) (_ *messaging.Message, err error) {
	// The library's own conversions index into strings without looking (a short colour of
	// light_settings): a panic there is a message that it cannot build.
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("fcm: the FCM library cannot build this message (light_settings.color?)")
		}
	}()
	raw, err := json.Marshal(built)
	if err != nil {
		return nil, fmt.Errorf("fcm: encode the message: %w", err)
	}
	want, err := object(raw)
	if err != nil {
		return nil, fmt.Errorf("fcm: read the message back: %w", err)
	}
	merge(want, block)
	normalise(want)
	if data, ok := want["data"].(map[string]any); ok {
		data[deliveryKey] = built.Data[deliveryKey]
	} else {
		want["data"] = map[string]any{deliveryKey: built.Data[deliveryKey]}
	}
	if raw, err = json.Marshal(want); err != nil {
		return nil, fmt.Errorf("fcm: encode the merged message: %w", err)
	}
	out := new(messaging.Message)
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, misfit(err)
	}
	if raw, err = json.Marshal(out); err != nil {
		return nil, fmt.Errorf("fcm: not an FCM v1 message: %w", err)
	}
	got, err := object(raw)
	if err != nil {
		return nil, fmt.Errorf("fcm: read the merged message back: %w", err)
	}
	if path := lost("fcm", want, got); path != "" {
		return nil, fmt.Errorf("%s: not a field of an FCM v1 message, or one that the FCM library "+
			"(firebase.google.com/go v4.19) cannot carry; check its name and type", path)
	}
	return out, nil
}

// merge lays patch over dst (RFC 7396).
func merge(dst, patch map[string]any) {
	for k, v := range patch {
		if v == nil {
			delete(dst, k)
			continue
		}
		p, isObject := v.(map[string]any)
		if !isObject {
			dst[k] = v
			continue
		}
		d, ok := dst[k].(map[string]any)
		if !ok {
			d = map[string]any{}
			dst[k] = d
		}
		merge(d, p)
	}
}

// lost finds the first member of want that is not the same in got. What is empty in want may be absent
// from got: it is the default of every field of the protocol.
func lost(path string, want, got any) string {
	switch w := want.(type) {
	case map[string]any:
		g, _ := got.(map[string]any)
		for _, k := range slices.Sorted(maps.Keys(w)) {
			if p := lost(path+"."+k, w[k], g[k]); p != "" {
				return p
			}
		}
		return ""
	case []any:
		g, _ := got.([]any)
		if len(g) != len(w) {
			return path
		}
		for i := range w {
			if p := lost(path+"["+strconv.Itoa(i)+"]", w[i], g[i]); p != "" {
				return p
			}
		}
		return ""
	case nil:
		return ""
	case json.Number:
		return lostNumber(path, w, got)
	default:
		if reflect.DeepEqual(want, got) || got == nil && reflect.ValueOf(want).IsZero() {
			return ""
		}
		return path
	}
}

func lostNumber(path string, want json.Number, got any) string {
	w, err := want.Float64()
	g, ok := got.(json.Number)
	if err == nil && got == nil && w == 0 {
		return ""
	}
	if !ok {
		return path
	}
	if f, e := g.Float64(); err != nil || e != nil || f != w {
		return path
	}
	return ""
}

// shortFraction is a protobuf duration with a fraction of fewer than nine digits, which the library's
// parser reads as that many nanoseconds: "3.5s" would become 3.000000005 s.
var shortFraction = regexp.MustCompile(`^(\d{1,12})\.(\d{1,8})s$`)

// normalise rewrites what protobuf's JSON lets one write in several ways into the one way that the
// library reads correctly: durations and the event's time.
func normalise(m map[string]any) {
	android, _ := m["android"].(map[string]any)
	n, _ := android["notification"].(map[string]any)
	light, _ := n["light_settings"].(map[string]any)
	duration(android, "ttl")
	duration(light, "light_on_duration")
	duration(light, "light_off_duration")
	if timings, ok := n["vibrate_timings"].([]any); ok {
		for i, t := range timings {
			timings[i] = nanos(t)
		}
	}
	if s, ok := n["event_time"].(string); ok {
		if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
			n["event_time"] = t.UTC().Format("2006-01-02T15:04:05.000000000Z")
		}
	}
}

func duration(m map[string]any, key string) {
	if v, ok := m[key]; ok {
		m[key] = nanos(v)
	}
}

func nanos(v any) any {
	s, ok := v.(string)
	if !ok {
		return v
	}
	p := shortFraction.FindStringSubmatch(s)
	switch {
	case p == nil:
		return v
	case strings.Trim(p[2], "0") == "":
		return p[1] + "s"
	}
	return p[1] + "." + p[2] + strings.Repeat("0", 9-len(p[2])) + "s"
}
