package intake

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/templates"
)

// Routing knows which channels there are, which kinds and routes serve them, and what their addresses
// and contents look like. It is immutable.
type Routing struct {
	kinds    map[string]*servedKind
	channels map[string]*channel
	order    []string // channel names as configured, then by name
	blocks   *Blocks
}

type servedKind struct {
	providers.Kind
	address *regexp.Regexp
	routes  []core.Route // in the order of the channel's list, behind them those that no channel lists
	listed  int          // how many a channel lists; the others are reached by name only
}

type channel struct {
	name   string
	kinds  []*servedKind
	schema *jsonschema.Schema // of the channel's block; nil: none allowed
}

// NewRouting builds a Routing. channels lists each channel's routes by name, in order; a route that
// no channel lists is reached by naming it only. Of kinds that no route has, templates may have blocks.
func NewRouting(routes []core.Route, channels map[string][]string, kinds map[string]providers.Kind) (*Routing, error) {
	r := &Routing{kinds: map[string]*servedKind{}, channels: map[string]*channel{}}
	byName := map[string]core.Route{}
	for _, route := range routes {
		byName[route.Name] = route
		if _, done := r.kinds[route.Kind]; done {
			continue
		}
		k, ok := kinds[route.Kind]
		if !ok {
			return nil, fmt.Errorf("route %s: there is no provider of kind %q", route.Name, route.Kind)
		}
		address, err := regexp.Compile(`^(?:` + k.Address + `)$`)
		if err != nil {
			return nil, fmt.Errorf("kind %s: its address pattern is no RE2: %w", k.Name, err)
		}
		r.kinds[route.Kind] = &servedKind{Kind: k, address: address}
	}
	for _, name := range slices.Sorted(maps.Keys(channels)) {
		c := &channel{name: name}
		for _, rn := range channels[name] {
			route, ok := byName[rn]
			if !ok {
				return nil, fmt.Errorf("channel %s: there is no route %q", name, rn)
			}
			k := r.kinds[route.Kind]
			if k.Channel != name {
				return nil, fmt.Errorf("channel %s: route %s is of kind %s, which serves %s", name, rn, route.Kind, k.Channel)
			}
			k.routes, k.listed = append(k.routes, route), k.listed+1
			if !slices.Contains(c.kinds, k) {
				c.kinds = append(c.kinds, k)
			}
			delete(byName, rn)
		}
		r.channels[name] = c
		r.order = append(r.order, name)
	}
	if err := r.describeBlocks(kinds); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		k := r.kinds[byName[name].Kind]
		k.routes = append(k.routes, byName[name])
	}
	return r, nil
}

// describeBlocks learns what the channels' blocks may hold. A channel that is not configured may have one in a
// template, if there is a kind for it: the template may be for later, or for other servers too.
func (r *Routing) describeBlocks(kinds map[string]providers.Kind) error {
	var known []providers.Kind
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		if r.channels[kinds[name].Channel] == nil {
			known = append(known, kinds[name])
		}
	}
	for _, name := range r.order {
		for _, k := range r.channels[name].kinds {
			known = append(known, k.Kind)
		}
	}
	var err error
	if r.blocks, err = NewBlocks(known...); err != nil {
		return err
	}
	for _, name := range r.order {
		if r.channels[name].schema, err = compileBlock(name, r.blocks.schemas[name]); err != nil {
			return err
		}
	}
	return nil
}

// CheckTemplate says which blocks and members of a template no channel knows, as Blocks.Check does.
func (r *Routing) CheckTemplate(src templates.Source) error { return r.blocks.Check(src) }

// Channels returns the names of the channels.
func (r *Routing) Channels() []string { return slices.Clone(r.order) }

// Kind returns what is known of a kind that some route has.
func (r *Routing) Kind(name string) (providers.Kind, bool) {
	k, ok := r.kinds[name]
	if !ok {
		return providers.Kind{}, false
	}
	return k.Kind, true
}

// maxAddress bounds an address of any kind, in bytes; the longest that a service gives out (an FCM
// token) has some hundreds.
const maxAddress = 4096

// UnknownKindError says that no route has a kind.
type UnknownKindError struct {
	Kind  string
	Known []string // those that some route has, sorted
}

// Error implements error.
func (e *UnknownKindError) Error() string {
	return fmt.Sprintf("there is no route of kind %q; configured kinds are %s", e.Kind, strings.Join(e.Known, ", "))
}

// CheckAddress reports what is wrong with an address of a kind; nil if nothing is. The error is an *UnknownKindError
// where it is not the address.
func (r *Routing) CheckAddress(kind, address string) error {
	k, err := r.kind(kind)
	if err != nil {
		return err
	}
	if err := k.checkForm(address); err != nil {
		return err
	}
	return k.checkAddress(address)
}

func (r *Routing) kind(name string) (*servedKind, error) {
	k, ok := r.kinds[name]
	if !ok {
		return nil, &UnknownKindError{Kind: name, Known: slices.Sorted(maps.Keys(r.kinds))}
	}
	return k, nil
}

// checkForm holds an address against its kind's pattern.
func (k *servedKind) checkForm(address string) error {
	if len(address) > maxAddress {
		return fmt.Errorf("not an address of kind %s: it has %d bytes, more than %d", k.Name, len(address), maxAddress)
	}
	if !utf8.ValidString(address) || !k.address.MatchString(address) {
		return fmt.Errorf("not an address of kind %s: it must match %s", k.Name, k.Address)
	}
	return nil
}

// checkAddress asks the kind about an address alone, which a message without an ID does: what it says of the
// content that is made up for that does not matter.
func (k *servedKind) checkAddress(address string) error {
	if k.Check == nil {
		return nil
	}
	if err := k.Check(&providers.Message{Address: address, Title: "-"}); errors.Is(err, providers.ErrAddress) {
		return err
	}
	return nil
}

// route finds the route for an address of a kind: the one named, or the first usable one of those listed
// that serves the app. Where none is usable the first one holds what it is given until it is.
func (in *Intake) route(k *servedKind, app, name string) (core.Route, bool) {
	first := -1
	for i, r := range k.routes {
		if !r.Serves(app) || r.Name != name && (name != "" || i >= k.listed) {
			continue
		}
		if len(k.routes) == 1 || in.usable == nil || in.usable(r.Name) {
			return r, true
		}
		if first < 0 {
			first = i
		}
	}
	if first < 0 {
		return core.Route{}, false
	}
	return k.routes[first], true
}

// compileBlock compiles the schema of a channel's block; nil for none.
func compileBlock(name string, union map[string]any) (*jsonschema.Schema, error) {
	if union == nil {
		return nil, nil
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(noLoader{})
	url := "mem:///" + name
	if err := c.AddResource(url, union); err != nil {
		return nil, fmt.Errorf("channel %s: content schema: %w", name, err)
	}
	s, err := c.Compile(url)
	if err != nil {
		return nil, fmt.Errorf("channel %s: content schema: %w", name, err)
	}
	return s, nil
}

// noLoader refuses every reference out of a schema: nothing is fetched or read for one.
type noLoader struct{}

func (noLoader) Load(url string) (any, error) {
	return nil, errors.New("references out of a content schema are not followed")
}

// checkBlock checks a channel's content block and adds its faults below the pointer. It reports whether
// there are none.
func (c *channel) checkBlock(block json.RawMessage, pointer string, f *faults) bool {
	if len(block) == 0 || c == nil {
		return true
	}
	if c.schema == nil {
		f.add(pointer, FaultContent, "channel %s takes no block of its own, only title, body, url and data", c.name)
		return false
	}
	var doc any
	if err := jsonv2.Unmarshal(block, &doc); err != nil {
		f.add(pointer, FaultInvalid, "not valid JSON")
		return false
	}
	var bad *jsonschema.ValidationError
	if !errors.As(c.schema.Validate(doc), &bad) {
		return true
	}
	found := blockFaults(bad, pointer, nil)
	slices.SortStableFunc(found, func(a, b Fault) int { return strings.Compare(a.Pointer, b.Pointer) })
	for _, fault := range found {
		f.add(fault.Pointer, fault.Code, "%s", fault.Detail)
	}
	return false
}

// blockFaults lists the errors that a schema's error consists of.
func blockFaults(e *jsonschema.ValidationError, pointer string, out []Fault) []Fault {
	at := pointer + pointerOf(e.InstanceLocation)
	switch k := e.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		for _, name := range k.Properties {
			out = append(out, Fault{at + "/" + escapePointer(name), FaultContent, "there is no such field"})
		}
		return out
	case *kind.PropertyNames:
		at = pointer + ownerOfNames(e.SchemaURL) + "/" + escapePointer(k.Property)
		return append(out, Fault{at, FaultContent, "cannot be a name there: it " + schemaDetail(e.Causes[0])})
	}
	if len(e.Causes) == 0 {
		return append(out, Fault{at, FaultContent, schemaDetail(e)})
	}
	for _, c := range e.Causes {
		out = blockFaults(c, pointer, out)
	}
	return out
}

// ownerOfNames is the place of the object that a propertyNames stands for, as the schema's own place
// tells: jsonschema v6.0.3 shares the memory of that error's location with others, so that it is often
// another's. Below a list the place is not known, and the block's own must do.
func ownerOfNames(schemaURL string) string {
	_, path, _ := strings.Cut(schemaURL, "#")
	path = strings.TrimSuffix(path, "/propertyNames")
	var b strings.Builder
	for path != "" {
		rest, ok := strings.CutPrefix(path, "/properties/")
		if !ok {
			return ""
		}
		name, _, _ := strings.Cut(rest, "/")
		b.WriteString("/" + name)
		path = rest[len(name):]
	}
	return b.String()
}

func pointerOf(location []string) string {
	var b strings.Builder
	for _, part := range location {
		b.WriteString("/" + escapePointer(part))
	}
	return b.String()
}

// schemaDetail explains a schema error without repeating the value.
func schemaDetail(e *jsonschema.ValidationError) string {
	switch k := e.ErrorKind.(type) {
	case *kind.Pattern:
		return "must match " + k.Want
	case *kind.Format:
		return "must be a " + k.Want
	default:
		return e.ErrorKind.LocalizedString(printer)
	}
}

var printer = message.NewPrinter(language.English)

func escapePointer(s string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(s)
}

func unescapePointer(s string) string {
	return strings.NewReplacer("~1", "/", "~0", "~").Replace(s)
}
