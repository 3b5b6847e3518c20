package plugintest

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
)

// flatten names nested settings as a Kind lists them: "pool.max".
func flatten(settings map[string]any) map[string]any {
	out := map[string]any{}
	for name, v := range settings {
		nested, ok := v.(map[string]any)
		if !ok {
			out[name] = v
			continue
		}
		for inner, v := range flatten(nested) {
			out[name+"."+inner] = v
		}
	}
	return out
}

// lay puts settings over others; nil takes one away.
func lay(settings map[string]any, over ...map[string]any) map[string]any {
	out := flatten(settings)
	for _, o := range over {
		maps.Copy(out, flatten(o))
	}
	maps.DeleteFunc(out, func(_ string, v any) bool { return v == nil })
	return out
}

// settingsJSON is what Open takes.
func settingsJSON(t testing.TB, settings map[string]any, over ...map[string]any) []byte {
	t.Helper()
	out := map[string]any{}
	for name, v := range lay(settings, over...) {
		at, path := out, strings.Split(name, ".")
		for _, p := range path[:len(path)-1] {
			next, ok := at[p].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[p] = next
			}
			at = next
		}
		at[path[len(path)-1]] = v
	}
	raw, err := json.Marshal(out)
	if err != nil {
		t.Fatalf("the exam's settings are no JSON: %v", err)
	}
	return raw
}
