package app

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/providers"
)

// settingsJSON makes what Kind.Open takes out of a route's settings: checked against the kind's list,
// values from the environment turned into their types, the pool's beside them. Every fault is named.
func settingsJSON(route string, k providers.Kind, r config.Route) ([]byte, []string) {
	known := map[string]providers.Setting{}
	for _, s := range k.Settings {
		known[s.Name] = s
	}
	flat := map[string]any{}
	flatten("", r.Settings, known, flat)
	for name, v := range r.Pool {
		flat["pool."+name] = v
	}
	var faults []string
	out := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(flat)) {
		at := "routes." + route + ".settings." + name
		if strings.HasPrefix(name, "pool.") {
			at = "routes." + route + "." + name
		}
		s, ok := known[name]
		if !ok {
			faults = append(faults, fmt.Sprintf("%s: kind %s has no such setting; it has %s", at, k.Name, strings.Join(slices.Sorted(maps.Keys(known)), ", ")))
			continue
		}
		v, err := typed(s, flat[name])
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s: %s", at, err))
			continue
		}
		place(out, strings.Split(name, "."), v)
	}
	for _, s := range k.Settings {
		if _, given := flat[s.Name]; s.Required && !given {
			faults = append(faults, fmt.Sprintf("routes.%s.settings.%s: is required: %s", route, s.Name, s.Doc))
		}
	}
	text, err := json.Marshal(out)
	if err != nil {
		faults = append(faults, fmt.Sprintf("routes.%s.settings: hold a value that is none of a text, number, bool or list", route))
	}
	return text, faults
}

// flatten joins the names of nested settings with dots, as a kind lists them.
func flatten(prefix string, in map[string]any, known map[string]providers.Setting, out map[string]any) {
	for name, v := range in {
		if nested, ok := v.(map[string]any); ok {
			if _, leaf := known[prefix+name]; !leaf {
				flatten(prefix+name+".", nested, known, out)
				continue
			}
		}
		out[prefix+name] = v
	}
}

func place(out map[string]any, path []string, v any) {
	for _, p := range path[:len(path)-1] {
		next, ok := out[p].(map[string]any)
		if !ok {
			next = map[string]any{}
			out[p] = next
		}
		out = next
	}
	out[path[len(path)-1]] = v
}

// typed turns a value, perhaps a text from the environment, into the JSON value of its setting. Its
// errors do not repeat the value: it may be secret.
func typed(s providers.Setting, v any) (any, error) {
	text, isText := v.(string)
	switch s.Type {
	case providers.Int:
		if n, err := strconv.Atoi(fmt.Sprint(v)); err == nil {
			return n, nil
		}
		return nil, fmt.Errorf("must be a whole number")
	case providers.Bool:
		if b, err := strconv.ParseBool(fmt.Sprint(v)); err == nil {
			return b, nil
		}
		return nil, fmt.Errorf("must be true or false")
	case providers.Duration:
		if d, err := time.ParseDuration(fmt.Sprint(v)); err == nil {
			return d.String(), nil
		}
		return nil, fmt.Errorf("must be a duration such as 90s")
	case providers.Choice:
		if !slices.Contains(s.Values, fmt.Sprint(v)) {
			return nil, fmt.Errorf("must be one of %s", strings.Join(s.Values, ", "))
		}
		return fmt.Sprint(v), nil
	case providers.List:
		if isText {
			return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }), nil
		}
		return v, nil
	default:
		if isText {
			return text, nil
		}
		switch v.(type) {
		case int, float64, bool:
			return fmt.Sprint(v), nil // a key id of digits alone is a number in YAML
		}
		return nil, fmt.Errorf("must be a text")
	}
}
