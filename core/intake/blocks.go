package intake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/templates"
)

// Blocks knows what members the channels' blocks of templates may have. Names alone are looked at, for they are
// never Liquid: whether a value is right is known when it is rendered. It is immutable but for Allow.
type Blocks struct {
	schemas map[string]map[string]any // of the blocks, by channel; nil: the channel takes none
	allowed map[string]bool           // channels whose blocks may hold anything
}

// NewBlocks returns what the blocks of the kinds' channels may hold. The error names a kind whose schema is no JSON.
func NewBlocks(kinds ...providers.Kind) (*Blocks, error) {
	b := &Blocks{schemas: map[string]map[string]any{}, allowed: map[string]bool{}}
	by := map[string][]providers.Kind{}
	for _, k := range kinds {
		by[k.Channel] = append(by[k.Channel], k)
	}
	for name, of := range by {
		schema, err := unionOf(of)
		if err != nil {
			return nil, err
		}
		b.schemas[name] = schema
	}
	return b, nil
}

// Allow has the blocks of a channel that is not known here pass as they are.
func (b *Blocks) Allow(channel string) { b.allowed[channel] = true }

// unionOf is the schema of a channel's block: the union of its kinds' properties; nil where no kind has any.
func unionOf(kinds []providers.Kind) (map[string]any, error) {
	props, defs := map[string]any{}, map[string]any{}
	var required []any
	for _, k := range kinds {
		if k.Content == nil {
			continue
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(k.Content))
		if err != nil {
			return nil, fmt.Errorf("kind %s: its content schema is no JSON: %w", k.Name, err)
		}
		m, _ := doc.(map[string]any)
		if p, ok := m["properties"].(map[string]any); ok {
			maps.Copy(props, p)
		}
		if d, ok := m["$defs"].(map[string]any); ok {
			maps.Copy(defs, d)
		}
		if q, ok := m["required"].([]any); ok && len(kinds) == 1 {
			required = q
		}
	}
	if len(props) == 0 {
		return nil, nil
	}
	union := map[string]any{"type": "object", "additionalProperties": false, "properties": props, "$defs": defs}
	if required != nil {
		union["required"] = required
	}
	return union, nil
}

// Check says which blocks and members of a template no channel knows. The error is a *templates.Error with
// every fault, or nil.
func (b *Blocks) Check(src templates.Source) error {
	c := nameCheck{steps: maxNameSteps}
	for _, locale := range slices.Sorted(maps.Keys(src.Locales)) {
		blocks := src.Locales[locale].Channels
		for _, channel := range slices.Sorted(maps.Keys(blocks)) {
			at := "/locales/" + escapePointer(locale) + "/" + escapePointer(channel)
			schema, known := b.schemas[channel]
			switch {
			case b.allowed[channel]:
			case !known:
				c.add(at, "there is no field or channel %q; fields are title, body, url and data, channels %s", channel, strings.Join(b.channels(), ", "))
			case schema == nil:
				c.add(at, "channel %s takes no block of its own, only title, body, url and data", channel)
			default:
				var doc any
				if json.Unmarshal(blocks[channel], &doc) == nil { // else compiling it says so
					c.root = schema
					c.walk(schema, doc, at, channel)
				}
			}
		}
	}
	if len(c.found) == 0 {
		return nil
	}
	return &templates.Error{Faults: c.found}
}

func (b *Blocks) channels() []string {
	all := maps.Clone(b.allowed)
	for name := range b.schemas {
		all[name] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// maxNameSteps bounds the looks of one check: a plugin's schema may lead back to itself.
const maxNameSteps = 100_000

// nameCheck walks a block beside its schema. It refuses only what the schema refuses whatever the values are:
// conditions and alternatives are left to the schema itself, which sees the rendered block.
type nameCheck struct {
	root  map[string]any // where references lead
	steps int
	found []templates.Fault
}

func (c *nameCheck) add(at, format string, args ...any) {
	known := slices.ContainsFunc(c.found, func(f templates.Fault) bool { return f.Pointer == at })
	if !known && len(c.found) < maxFaults {
		c.found = append(c.found, templates.Fault{Pointer: at, Code: templates.CodeMember, Detail: fmt.Sprintf(format, args...)})
	}
}

// walk checks v, which stands at a pointer and is called name.
func (c *nameCheck) walk(schema, v any, at, name string) {
	s, ok := schema.(map[string]any)
	if c.steps--; !ok || c.steps < 0 {
		return
	}
	if ref, ok := s["$ref"].(string); ok {
		c.walk(c.definition(ref), v, at, name)
	}
	all, _ := s["allOf"].([]any)
	for _, part := range all {
		c.walk(part, v, at, name)
	}
	switch v := v.(type) {
	case []any:
		first, _ := s["prefixItems"].([]any)
		for i, x := range v {
			of := s["items"]
			if i < len(first) {
				of = first[i]
			}
			c.walk(of, x, fmt.Sprintf("%s/%d", at, i), fmt.Sprintf("%s.%d", name, i))
		}
	case map[string]any:
		for _, member := range slices.Sorted(maps.Keys(v)) {
			c.member(s, member, v[member], [2]string{at, name})
		}
	}
}

// member checks a member of the object that is at place[0] and called place[1].
func (c *nameCheck) member(s map[string]any, member string, v any, place [2]string) {
	at, name := place[0]+"/"+escapePointer(member), place[1]+"."+member
	props, _ := s["properties"].(map[string]any)
	patterns, _ := s["patternProperties"].(map[string]any)
	if names, ok := s["propertyNames"].(map[string]any); ok {
		if pattern, ok := names["pattern"].(string); ok && !matches(pattern, member) {
			c.add(at, "%q cannot be a name in %s: it must match %s", member, place[1], pattern)
			return
		}
	}
	p, known := props[member]
	if known {
		c.walk(p, v, at, name)
	}
	for _, pattern := range slices.Sorted(maps.Keys(patterns)) {
		if matches(pattern, member) {
			known = true
			c.walk(patterns[pattern], v, at, name)
		}
	}
	switch extra, given := s["additionalProperties"]; {
	case known || !given:
	case extra == false && len(props) == 0:
		c.add(at, "%s has no fields", place[1])
	case extra == false:
		c.add(at, "%s has no field %q; it has %s", place[1], member, strings.Join(slices.Sorted(maps.Keys(props)), ", "))
	default:
		c.walk(extra, v, at, name)
	}
}

// matches reports whether a name matches a schema's pattern; with one that is not known to us it does.
func matches(pattern, name string) bool {
	re, err := regexp.Compile(pattern)
	return err != nil || re.MatchString(name)
}

// definition finds what a reference into the schema leads to, nil if nothing.
func (c *nameCheck) definition(ref string) any {
	path, ok := strings.CutPrefix(ref, "#")
	if !ok {
		return nil
	}
	var v any = c.root
	for _, token := range strings.Split(path, "/")[1:] {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[unescapePointer(token)]
	}
	return v
}
