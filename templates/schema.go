package templates

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

// The limits of data and schema.
const (
	// MaxDataDepth bounds the nesting of the data.
	MaxDataDepth = 32
	// MaxDataValues bounds the values of the data, those inside lists and objects included.
	MaxDataValues = 10_000
	// MaxDataBytes bounds the texts and names in the data together.
	MaxDataBytes = 256 << 10
	// MaxSchema bounds the subschemas of a schema, each counted as often as references lead to it.
	MaxSchema = 1000
	// maxChecks bounds a schema's subschemas times the data's values (16 bytes of text count as one), for
	// that many checks there may be: some 50 ms.
	maxChecks = 250_000
)

// shape is what a schema declares of a value: which properties it has, and what stands for those that
// the data leaves out.
type shape struct {
	def   any // the default, or nil
	props map[string]*shape
	item  *shape
}

func (s *shape) property(name string) *shape {
	if s == nil {
		return nil
	}
	return s.props[name]
}

func (s *shape) items() *shape {
	if s == nil {
		return nil
	}
	return s.item
}

// schema is a compiled schema of data.
type schema struct {
	s     *jsonschema.Schema
	size  int
	shape *shape
}

const schemaURL = "template:///schema"

// compileSchema compiles a schema that refers to nothing outside of itself and cannot take long: the
// library follows references for ever deeper data, and two that lead back to the schema itself double
// the work with every level.
func compileSchema(raw json.RawMessage, f *faults) *schema {
	const at = "/schema"
	var doc any
	if len(raw) > MaxPart {
		f.add(at, CodeLimit, "the schema is larger than %d KiB", MaxPart>>10)
		return nil
	}
	if err := strictDecode(raw, &doc); err != nil {
		f.add(at, CodeEncoding, "the schema is not JSON")
		return nil
	}
	root, ok := doc.(map[string]any)
	if !ok {
		f.add(at, CodeType, "the schema is a JSON object")
		return nil
	}
	w := schemaWalk{root: root, f: f, sizes: map[string]int{}}
	before := len(f.list)
	size := w.size(root, at, true)
	if size > MaxSchema {
		f.add(at, CodeLimit, "the schema has more than %d subschemas, each counted as often as references lead to it", MaxSchema)
	}
	if len(f.list) > before {
		return nil
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(jsonschema.SchemeURLLoader{}) // knows no scheme: nothing is ever loaded
	c.AssertFormat()
	if err := c.AddResource(schemaURL, doc); err != nil {
		f.add(at, CodeSchema, "the schema cannot be read")
		return nil
	}
	s, err := c.Compile(schemaURL)
	if err != nil {
		schemaFault(err, f)
		return nil
	}
	return &schema{s: s, size: size, shape: w.shape(root, 0)}
}

// schemaFault says where a schema is no schema.
func schemaFault(err error, f *faults) {
	const at = "/schema"
	var invalid *jsonschema.SchemaValidationError
	var ve *jsonschema.ValidationError
	if errors.As(err, &invalid) && errors.As(invalid.Err, &ve) {
		leaves(ve, func(leaf *jsonschema.ValidationError) {
			f.add(pointer(at, leaf.InstanceLocation...), CodeSchema, "the schema is not valid here: %s", explain(leaf.ErrorKind))
		})
		return
	}
	var re *jsonschema.InvalidRegexError
	if errors.As(err, &re) {
		f.add(at, CodeSchema, "a pattern is no regular expression (RE2 syntax)")
		return
	}
	f.add(at, CodeSchema, "the schema cannot be compiled")
}

// schemaWalk looks through a schema before the library does.
type schemaWalk struct {
	root  map[string]any
	f     *faults
	sizes map[string]int // of the definitions; -1 while one is being looked at
}

// size counts the subschemas under v, following references.
func (w *schemaWalk) size(v any, at string, root bool) int {
	n := 0
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			n += w.size(x, at, false)
		}
	case map[string]any:
		n = 1
		for _, name := range sorted(v) {
			x := v[name]
			if s, ok := x.(string); ok {
				n += w.keyword(name, s, pointer(at, name), root)
				continue
			}
			switch name {
			case "enum", "const", "default", "examples":
			case "$defs", "definitions":
				if !root {
					w.f.add(pointer(at, name), CodeSchema, "%s may stand only at the top of the schema", name)
				}
			default:
				n += w.size(x, pointer(at, name), false)
			}
			if n > MaxSchema {
				break
			}
		}
	}
	return min(n, MaxSchema+1)
}

func (w *schemaWalk) keyword(name, value, at string, root bool) int {
	switch name {
	case "$ref":
		def, body := w.definition(value)
		if body == nil {
			w.f.add(at, CodeSchema, "a reference must lead to a definition of this schema: \"#/$defs/name\"")
			return 0
		}
		switch n, known := w.sizes[def]; {
		case n < 0:
			w.f.add(at, CodeSchema, "a definition must not lead back to itself")
			return 0
		case known:
			return n
		}
		w.sizes[def] = -1
		w.sizes[def] = w.size(body, pointer("/schema", strings.Split(def, "/")...), false)
		return w.sizes[def]
	case "$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor":
		w.f.add(at, CodeSchema, "%s is not offered; use $ref and $defs", name)
	case "$id", "id":
		if !root && name == "$id" {
			w.f.add(at, CodeSchema, "$id may stand only at the top of the schema")
		}
	}
	return 0
}

// definition finds what a reference leads to.
func (w *schemaWalk) definition(ref string) (string, any) {
	for _, place := range []string{"$defs", "definitions"} {
		if name, ok := strings.CutPrefix(ref, "#/"+place+"/"); ok && !strings.ContainsAny(name, "/~%") {
			defs, _ := w.root[place].(map[string]any)
			return place + "/" + name, defs[name]
		}
	}
	return "", nil
}

// shape reads what the schema declares. size has refused what leads back to itself.
func (w *schemaWalk) shape(v any, depth int) *shape {
	o, ok := v.(map[string]any)
	if !ok || depth > MaxDataDepth {
		return &shape{}
	}
	s := &shape{}
	if ref, ok := o["$ref"].(string); ok {
		_, body := w.definition(ref)
		s = w.shape(body, depth+1)
	}
	if def, ok := o["default"]; ok {
		s.def = def
	}
	if items, ok := o["items"]; ok {
		s.item = w.shape(items, depth+1)
	}
	if props, ok := o["properties"].(map[string]any); ok {
		if s.props == nil {
			s.props = make(map[string]*shape, len(props))
		}
		for name, p := range props {
			s.props[name] = w.shape(p, depth+1)
		}
	}
	return s
}

// validate adds what the schema says against data of this weight: its values, and its texts by 16 bytes.
func (s *schema) validate(data map[string]any, weight int, f *faults) {
	if s.size*weight > maxChecks {
		f.add("/data", CodeLimit, "the data is too large for a schema of %d subschemas", s.size)
		return
	}
	err := s.s.Validate(data)
	var ve *jsonschema.ValidationError
	if errors.As(err, &ve) {
		leaves(ve, func(leaf *jsonschema.ValidationError) {
			f.add(pointer("/data", leaf.InstanceLocation...), CodeSchema, "%s", explain(leaf.ErrorKind))
		})
	} else if err != nil {
		f.add("/data", CodeSchema, "the data cannot be checked")
	}
}

func leaves(e *jsonschema.ValidationError, visit func(*jsonschema.ValidationError)) {
	if len(e.Causes) == 0 {
		visit(e)
	}
	for _, c := range e.Causes {
		leaves(c, visit)
	}
}

// explain says what a keyword is not content with, without the value, which is somebody's data.
func explain(k jsonschema.ErrorKind) string {
	switch k := k.(type) {
	case *kind.Type:
		return fmt.Sprintf("must be %s, not %s", strings.Join(k.Want, " or "), k.Got)
	case *kind.Required:
		return fmt.Sprintf("lacks the required %q", k.Missing)
	case *kind.AdditionalProperties:
		return fmt.Sprintf("has %q, which the schema does not know", k.Properties)
	case *kind.Format:
		return "must be in the format " + k.Want
	case *kind.FalseSchema:
		return "must not be there"
	}
	path := k.KeywordPath()
	if len(path) == 0 {
		return "does not satisfy the schema"
	}
	return fmt.Sprintf("does not satisfy the schema's %q", path[len(path)-1])
}

// dataCheck counts what there is in the data. Its types are those that encoding/json makes, and int.
type dataCheck struct {
	f             *faults
	values, bytes int
}

func (c *dataCheck) walk(v any, at []string, depth int) bool {
	c.values++
	switch {
	case depth > MaxDataDepth:
		return c.fault(at, CodeLimit, "the data is nested deeper than %d", MaxDataDepth)
	case c.values > MaxDataValues:
		return c.fault(nil, CodeLimit, "the data has more than %d values", MaxDataValues)
	}
	switch v := v.(type) {
	case nil, bool, int:
		return true
	case int64:
		return true
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return c.fault(at, CodeType, "not a number that JSON has")
		}
		return true
	case json.Number:
		// A number beyond float64 would become an integer of a billion digits in the schema's arithmetic.
		if f, err := v.Float64(); len(v) > 400 || err != nil || math.IsInf(f, 0) {
			return c.fault(at, CodeLimit, "the number is out of range")
		}
		return true
	case string:
		return c.text(v, at)
	case []any:
		for i, x := range v {
			if !c.walk(x, append(at, itoa(i)), depth+1) {
				return false
			}
		}
		return true
	case map[string]any:
		for k, x := range v {
			if !c.text(k, at) || !c.walk(x, append(at, k), depth+1) {
				return false
			}
		}
		return true
	}
	return c.fault(at, CodeType, "not a value that JSON has")
}

func (c *dataCheck) text(s string, at []string) bool {
	if c.bytes += len(s); c.bytes > MaxDataBytes {
		return c.fault(nil, CodeLimit, "the data has more than %d KiB of text", MaxDataBytes>>10)
	}
	if !utf8.ValidString(s) {
		return c.fault(at, CodeEncoding, "the text is not UTF-8")
	}
	return true
}

func (c *dataCheck) fault(at []string, code, format string, args ...any) bool {
	c.f.add(pointer("/data", at...), code, format, args...)
	return false
}
