package templates

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/osteele/liquid/values"
)

// value is a value of the data as an expression sees it. It takes the place of the library's own
// wrappers because those go through reflection, compare whole trees at no charge, and do not know the
// name of what they did not find.
type value struct {
	m      *machine
	v      any // nil, bool, int, float64, string, markup, []any, map[string]any
	shape  *shape
	parent *value // where it was found, for the name in an error
	key    string
}

// markup is HTML that is safe to print as it is: made of the template's own text and of values that
// were escaped on the way in.
type markup string

func (m *machine) wrap(v any) values.Value {
	if w, ok := v.(values.Value); ok {
		return w
	}
	return &value{m: m, v: plain(v)}
}

// plain brings the numbers of decoded JSON to int or float64: a whole number is an int, so that Liquid's
// whole-number arithmetic applies to it. One beyond an int stays the text it was, so that no digit of an
// id is lost as it is printed.
func plain(v any) any {
	switch n := v.(type) {
	case float64:
		if i := int(n); n == math.Trunc(n) && math.Abs(n) < 1<<53 {
			return i
		}
	case json.Number:
		if i, err := strconv.Atoi(string(n)); err == nil {
			return i
		}
		if !strings.ContainsAny(string(n), ".eE") {
			return string(n)
		}
		f, err := n.Float64()
		if err != nil {
			return nil // check has refused it
		}
		return plain(f)
	case int64:
		return int(n)
	}
	return v
}

// Interface gives back the scalar itself, and for a list or an object the *value, so that whatever
// looks inside is charged.
func (v *value) Interface() any {
	switch v.v.(type) {
	case []any, map[string]any:
		return v
	}
	return v.v
}

// String is what the library calls on the right side of "text" contains value: it must be a text, and
// to print a tree would be at no charge.
func (v *value) String() string { return v.m.misuse(v) }

func (v *value) Int() int {
	n, ok := v.v.(int)
	if !ok {
		v.m.fail(stopf(CodeValue, "a whole number is needed here, not %s", describe(v.Interface())))
	}
	return n
}

func (v *value) Equal(o values.Value) bool { return v.m.equal(v.Interface(), o.Interface()) }
func (v *value) Less(o values.Value) bool  { return v.m.less(v.Interface(), o.Interface()) }
func (v *value) Test() bool                { return v.v != nil && v.v != false }

func (v *value) Contains(o values.Value) bool {
	switch c := v.v.(type) {
	case string, markup:
		sub, err := v.m.str(o.Interface())
		if err != nil {
			return false
		}
		s, _ := v.m.str(c)
		v.m.mustSpend(bytes16(len(s) + len(sub)))
		return strings.Contains(s, sub)
	case []any:
		for _, item := range c {
			v.m.mustSpend(1)
			if v.m.equal(v.m.wrap(item).Interface(), o.Interface()) {
				return true
			}
		}
	case map[string]any:
		key, ok := o.Interface().(string)
		if ok {
			_, ok = c[key]
		}
		return ok
	}
	return false
}

func (v *value) IndexValue(o values.Value) values.Value {
	if x, ok := o.(*missing); ok {
		return x // it is the index that is undefined
	}
	switch i := o.Interface().(type) {
	case string:
		return v.member(i)
	case int:
		if items, ok := v.v.([]any); ok {
			n := i
			if n < 0 {
				n += len(items)
			}
			if n >= 0 && n < len(items) {
				return v.child(items[n], v.shape.items(), "["+strconv.Itoa(i)+"]")
			}
		}
		return &missing{m: v.m, parent: v, key: "[" + strconv.Itoa(i) + "]"}
	}
	return &missing{m: v.m, parent: v, key: "[…]"}
}

func (v *value) PropertyValue(o values.Value) values.Value {
	name, _ := o.Interface().(string)
	switch c := v.v.(type) {
	case []any:
		switch {
		case name == "size":
			return v.child(len(c), nil, name)
		case name == "first" && len(c) > 0:
			return v.child(c[0], v.shape.items(), name)
		case name == "last" && len(c) > 0:
			return v.child(c[len(c)-1], v.shape.items(), name)
		case name == "first" || name == "last":
			return v.child(nil, v.shape.items(), name)
		}
	case string:
		if name == "size" {
			v.m.mustSpend(bytes16(len(c)))
			return v.child(utf8.RuneCountInString(c), nil, name)
		}
	}
	return v.member(name)
}

// member is the property of an object: found, declared by the schema, or missing.
func (v *value) member(name string) values.Value {
	o, isObject := v.v.(map[string]any)
	if x, ok := o[name]; ok {
		return v.child(x, v.shape.property(name), name)
	}
	if isObject || v.v == nil {
		if p := v.shape.property(name); p != nil {
			return v.child(p.def, p, name)
		}
	}
	if isObject && name == "size" {
		return v.child(len(o), nil, name)
	}
	return &missing{m: v.m, parent: v, key: name}
}

func (v *value) child(x any, s *shape, key string) *value {
	return &value{m: v.m, v: plain(x), shape: s, parent: v, key: key}
}

// path is the value's name as a template would write it.
func (v *value) path() string {
	if v == nil || v.key == "" {
		return ""
	}
	return join(v.parent.path(), v.key)
}

func join(parent, key string) string {
	if parent == "" || strings.HasPrefix(key, "[") {
		return parent + key
	}
	return parent + "." + key
}

// missing is an undefined variable. Only the filter default may take it.
type missing struct {
	m      *machine
	parent *value
	above  *missing // it was looked for in something that is itself missing
	key    string
}

func (x *missing) path() string {
	if x.above != nil {
		return join(x.above.path(), x.key)
	}
	return join(x.parent.path(), x.key)
}

func (x *missing) undefined() *stop {
	return stopf(CodeUndefined, "undefined variable %q; give it in the data, declare it in the schema, or use the filter default", clip(x.path()))
}

// Interface hands the missing value out and remembers that; unless default takes it, eval fails.
func (x *missing) Interface() any {
	x.m.nloose++
	x.m.loose = x
	return x
}

func (x *missing) String() string             { return "" }
func (x *missing) Int() int                   { x.m.fail(x.undefined()); return 0 }
func (x *missing) Equal(values.Value) bool    { x.m.fail(x.undefined()); return false }
func (x *missing) Less(values.Value) bool     { x.m.fail(x.undefined()); return false }
func (x *missing) Contains(values.Value) bool { x.m.fail(x.undefined()); return false }
func (x *missing) Test() bool                 { x.m.fail(x.undefined()); return false }

func (x *missing) IndexValue(o values.Value) values.Value {
	key, ok := o.Interface().(string)
	if !ok {
		key = "[…]"
	}
	return &missing{m: x.m, above: x, key: key}
}

func (x *missing) PropertyValue(o values.Value) values.Value {
	key, _ := o.Interface().(string)
	return &missing{m: x.m, above: x, key: key}
}

// special is one of the words empty and blank, which exist to be compared with.
type special struct {
	m    *machine
	name string
}

func (s *special) String() string                            { return s.m.misuse(s) }
func (s *special) Interface() any                            { return s }
func (s *special) Test() bool                                { return true }
func (s *special) Less(values.Value) bool                    { return false }
func (s *special) Contains(values.Value) bool                { return false }
func (s *special) Equal(o values.Value) bool                 { return s.m.equal(s, o.Interface()) }
func (s *special) Int() int                                  { s.m.fail(stopf(CodeValue, "%s is no number", describe(s))); return 0 }
func (s *special) IndexValue(o values.Value) values.Value    { return s.PropertyValue(o) }
func (s *special) PropertyValue(o values.Value) values.Value { return none(s.m, s.name, o) }

// matches says whether a value is empty, or blank (Liquid: nil, false, and white space alone, too).
func (s *special) matches(v any) bool {
	switch v := v.(type) {
	case nil:
		return s.name == "blank"
	case bool:
		return s.name == "blank" && !v
	case string:
		if s.name == "blank" {
			s.m.mustSpend(bytes16(len(v)))
			v = strings.TrimSpace(v)
		}
		return v == ""
	case markup:
		return s.matches(string(v))
	case *value:
		switch c := v.v.(type) {
		case []any:
			return len(c) == 0
		case map[string]any:
			return len(c) == 0
		}
	}
	return false
}

// forloop is the variable of that name inside a loop.
type forloop struct {
	m      *machine
	i, n   int
	parent *forloop
}

func (l *forloop) String() string                         { return l.m.misuse(l) }
func (l *forloop) Interface() any                         { return l }
func (l *forloop) Test() bool                             { return true }
func (l *forloop) Less(values.Value) bool                 { return false }
func (l *forloop) Contains(values.Value) bool             { return false }
func (l *forloop) Equal(values.Value) bool                { return false }
func (l *forloop) Int() int                               { l.m.fail(stopf(CodeValue, "%s is no number", describe(l))); return 0 }
func (l *forloop) IndexValue(o values.Value) values.Value { return l.PropertyValue(o) }

func (l *forloop) PropertyValue(o values.Value) values.Value {
	name, _ := o.Interface().(string)
	switch name {
	case "index":
		return l.m.wrap(l.i + 1)
	case "index0":
		return l.m.wrap(l.i)
	case "rindex":
		return l.m.wrap(l.n - l.i)
	case "rindex0":
		return l.m.wrap(l.n - l.i - 1)
	case "first":
		return l.m.wrap(l.i == 0)
	case "last":
		return l.m.wrap(l.i == l.n-1)
	case "length":
		return l.m.wrap(l.n)
	case "parentloop":
		if l.parent == nil {
			return l.m.wrap(nil)
		}
		return l.parent
	}
	return none(l.m, "forloop", o)
}

func none(m *machine, parent string, o values.Value) values.Value {
	name, _ := o.Interface().(string)
	return &missing{m: m, above: &missing{m: m, key: parent}, key: name}
}

// equal is == on what Interface gave. Lists and objects are compared item by item, at their price.
func (m *machine) equal(a, b any) bool {
	m.mustSpend(1)
	for _, x := range []any{a, b} {
		if x, ok := x.(*missing); ok {
			m.fail(x.undefined())
		}
	}
	if s, ok := a.(*special); ok {
		a, b = b, s
	}
	if s, ok := b.(*special); ok {
		return s.matches(a)
	}
	va, aok := a.(*value)
	vb, bok := b.(*value)
	if aok != bok {
		return false
	}
	if aok {
		return m.equalTrees(va.v, vb.v)
	}
	if s, ok := a.(string); ok {
		m.mustSpend(bytes16(len(s)))
	}
	return values.Equal(a, b)
}

func (m *machine) equalTrees(a, b any) bool {
	m.mustSpend(1)
	switch a := a.(type) {
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !m.equalTrees(a[i], b[i]) {
				return false
			}
		}
		return true
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k, x := range a {
			y, ok := b[k]
			if !ok || !m.equalTrees(x, y) {
				return false
			}
		}
		return true
	}
	switch b.(type) {
	case []any, map[string]any:
		return false
	}
	return m.equal(plain(a), plain(b))
}

// less is < on what Interface gave; what cannot be compared is not less.
func (m *machine) less(a, b any) bool {
	m.mustSpend(1)
	for _, x := range []any{a, b} {
		if x, ok := x.(*missing); ok {
			m.fail(x.undefined())
		}
	}
	if s, ok := a.(string); ok {
		m.mustSpend(bytes16(len(s)))
	}
	return values.Less(a, b)
}

func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	for i := most; i > 0; i-- {
		if utf8.RuneStart(s[i]) {
			return s[:i] + "…"
		}
	}
	return "…"
}
