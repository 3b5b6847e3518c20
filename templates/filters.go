package templates

import (
	"encoding/json"
	"html"
	"maps"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/osteele/liquid/values"
)

// filter is one filter: how many arguments it takes and what it does. in and the arguments are what
// Interface of the value gave, never missing but for default's.
type filter struct {
	min, max int
	fn       func(m *machine, in any, args []any) (any, error)
}

// filters are the filters that are offered, after https://shopify.github.io/liquid/. Left out: raw and
// safe (nothing defeats escaping), base64 and the URL-safe family (they have no place in a message).
// They are this package's own because the library's do not know how large their results get: replace
// alone makes 4 GiB out of two strings of 64 KiB.
var filters = union(stringFilters, listFilters, numberFilters, otherFilters)

func union(groups ...map[string]filter) map[string]filter {
	all := map[string]filter{}
	for _, group := range groups {
		maps.Copy(all, group)
	}
	return all
}

// bind makes the function that the library calls for a filter.
func (m *machine) bind(name string, f filter) func(args ...any) (any, error) {
	return func(args ...any) (any, error) {
		in, rest := args[0], args[1:]
		if name == "default" {
			return m.defaultFilter(in, rest)
		}
		if len(rest) < f.min || len(rest) > f.max {
			return nil, stopf(CodeValue, "the filter %s takes %s", name, arity(f))
		}
		cost := 4
		for _, a := range args {
			switch a := a.(type) {
			case *missing:
				return nil, a.undefined()
			case string:
				cost += bytes16(len(a))
			case markup:
				cost += bytes16(len(a))
			case map[string]any:
				return nil, stopf(CodeValue, "the filter %s takes no named argument", name)
			}
		}
		if err := m.spend(cost); err != nil {
			return nil, err
		}
		out, err := f.fn(m, in, rest)
		if err != nil {
			return nil, filterError(err, name)
		}
		if s, ok := out.(string); ok {
			if len(s) > MaxString {
				return nil, filterError(tooLong(), name)
			}
			if err := m.spend(bytes16(len(s))); err != nil {
				return nil, err
			}
		}
		return m.wrap(out), nil
	}
}

func filterError(err error, name string) error {
	if s, ok := err.(*stop); ok { //nolint:errorlint // filters make nothing else
		return stopf(s.code, "the filter %s: %s", name, s.detail)
	}
	return err
}

func arity(f filter) string {
	if f.min == f.max {
		return strconv.Itoa(f.min) + " argument(s)"
	}
	return strconv.Itoa(f.min) + " to " + strconv.Itoa(f.max) + " argument(s)"
}

func tooLong() *stop {
	return stopf(CodeLimit, "the result is larger than %d KiB", MaxString>>10)
}

// defaultFilter is the one filter that takes undefined variables.
func (m *machine) defaultFilter(in any, args []any) (any, error) {
	if err := m.spend(4); err != nil {
		return nil, err
	}
	allowFalse := false
	if n := len(args); n > 0 {
		if named, ok := args[n-1].(map[string]any); ok {
			args = args[:n-1]
			for name, v := range named {
				if name != "allow_false" {
					return nil, stopf(CodeValue, "the filter default knows the named argument allow_false alone")
				}
				allowFalse = v != nil && v != false
			}
		}
	}
	if len(args) != 1 {
		return nil, stopf(CodeValue, "the filter default takes 1 argument")
	}
	for _, v := range []any{in, args[0]} {
		if _, ok := v.(*missing); ok {
			m.nloose--
		}
	}
	if _, ok := in.(*missing); ok || in == nil || in == false && !allowFalse || emptied(in) {
		return m.wrap(args[0]), nil
	}
	return m.wrap(in), nil
}

func emptied(v any) bool {
	switch v := v.(type) {
	case string:
		return v == ""
	case markup:
		return v == ""
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

// str is a value as a filter's text.
func (m *machine) str(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	case markup:
		return string(v), nil
	case int:
		return strconv.Itoa(v), nil
	case float64:
		return formatFloat(v), nil
	case bool:
		return strconv.FormatBool(v), nil
	case *value:
		if items, ok := v.v.([]any); ok {
			return m.join(items, "")
		}
	}
	return "", stopf(CodeValue, "a text is needed, not %s", describe(v))
}

// num is a value as a number: an int or a float64. A string that is a number counts as one.
func num(v any) (any, error) {
	switch n := v.(type) {
	case int, float64:
		return n, nil
	case string:
		s := strings.TrimSpace(n)
		if len(s) > 40 {
			break
		}
		if i, err := strconv.Atoi(s); err == nil {
			return i, nil
		}
		if f, err := strconv.ParseFloat(s, 64); err == nil && finite(f) && !strings.ContainsAny(s, "xXpP_") {
			return f, nil
		}
		return nil, stopf(CodeValue, "a number is needed, not this text")
	}
	return nil, stopf(CodeValue, "a number is needed, not %s", describe(v))
}

func float(v any) (float64, error) {
	n, err := num(v)
	if i, ok := n.(int); ok {
		return float64(i), err
	}
	f, _ := n.(float64)
	return f, err
}

func whole(v any) (int, error) {
	n, err := num(v)
	if err != nil {
		return 0, err
	}
	i, ok := n.(int)
	if !ok {
		return 0, stopf(CodeValue, "a whole number is needed")
	}
	return i, nil
}

func finite(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }

func number(f float64) (any, error) {
	if !finite(f) {
		return nil, stopf(CodeValue, "the result is no number")
	}
	return f, nil
}

// toInt rounds towards zero what is already whole.
func toInt(f float64) (any, error) {
	if !finite(f) || math.Abs(f) >= 1<<63 {
		return nil, stopf(CodeValue, "the result is out of range")
	}
	return int(f), nil
}

// decimal is a number as people read it: 0.1 is a tenth.
func decimal(v any) (*big.Rat, bool) {
	if i, ok := v.(int); ok {
		return new(big.Rat).SetInt64(int64(i)), true
	}
	f, _ := v.(float64)
	if !finite(f) {
		return nil, false
	}
	return new(big.Rat).SetString(strconv.FormatFloat(f, 'g', -1, 64))
}

// arithmetic applies exact to two ints, exactly or not at all, and real to anything else: by decimals, as
// Liquid does, so that 0.1 and 0.2 are 0.3.
func arithmetic(exact func(z, a, b *big.Int) *big.Int, real func(z, a, b *big.Rat) *big.Rat) filter {
	return filter{1, 1, func(_ *machine, in any, args []any) (any, error) {
		a, err := num(in)
		if err != nil {
			return nil, err
		}
		b, err := num(args[0])
		if err != nil {
			return nil, err
		}
		x, xok := a.(int)
		y, yok := b.(int)
		if xok && yok {
			z := exact(new(big.Int), big.NewInt(int64(x)), big.NewInt(int64(y)))
			if !z.IsInt64() {
				return nil, stopf(CodeValue, "the result is out of range")
			}
			return int(z.Int64()), nil
		}
		fa, aok := decimal(a)
		fb, bok := decimal(b)
		if !aok || !bok {
			return nil, stopf(CodeValue, "the result is no number")
		}
		f, _ := real(new(big.Rat), fa, fb).Float64()
		return number(f)
	}}
}

func rounding(round func(float64) float64) filter {
	return filter{0, 0, func(_ *machine, in any, _ []any) (any, error) {
		n, err := num(in)
		if err != nil {
			return nil, err
		}
		if i, ok := n.(int); ok {
			return i, nil
		}
		return toInt(round(n.(float64)))
	}}
}

func bound(pick func(a, b float64) bool) filter {
	return filter{1, 1, func(_ *machine, in any, args []any) (any, error) {
		a, err := num(in)
		if err != nil {
			return nil, err
		}
		b, err := num(args[0])
		if err != nil {
			return nil, err
		}
		fa, _ := float(a)
		fb, _ := float(b)
		if pick(fa, fb) {
			return a, nil
		}
		return b, nil
	}}
}

var numberFilters = map[string]filter{
	"plus":     arithmetic((*big.Int).Add, (*big.Rat).Add),
	"minus":    arithmetic((*big.Int).Sub, (*big.Rat).Sub),
	"times":    arithmetic((*big.Int).Mul, (*big.Rat).Mul),
	"ceil":     rounding(math.Ceil),
	"floor":    rounding(math.Floor),
	"at_least": bound(func(a, b float64) bool { return a >= b }),
	"at_most":  bound(func(a, b float64) bool { return a <= b }),
	"abs": {0, 0, func(_ *machine, in any, _ []any) (any, error) {
		n, err := num(in)
		if i, ok := n.(int); ok && i != math.MinInt {
			return max(i, -i), nil
		}
		f, _ := float(n)
		return math.Abs(f), err
	}},
	// Whole numbers divide to a whole number, rounded down, as Ruby does it.
	"divided_by": division(func(a, b int) int {
		q := a / b
		if a%b != 0 && (a < 0) != (b < 0) {
			q--
		}
		return q
	}, func(a, b float64) float64 { return a / b }),
	"modulo": division(func(a, b int) int { return ((a % b) + b) % b },
		func(a, b float64) float64 { return a - b*math.Floor(a/b) }),
	"round": {0, 1, func(_ *machine, in any, args []any) (any, error) {
		f, err := float(in)
		if err != nil {
			return nil, err
		}
		places := 0
		if len(args) > 0 {
			if places, err = whole(args[0]); err != nil {
				return nil, err
			}
		}
		if places < 0 || places > 15 {
			return nil, stopf(CodeValue, "round takes 0 to 15 places")
		}
		if places == 0 {
			return toInt(math.Round(f))
		}
		// By way of the decimal text, for 1.005 is not what it looks like.
		f, _ = strconv.ParseFloat(strconv.FormatFloat(f, 'f', places, 64), 64)
		return number(f)
	}},
}

func division(exact func(a, b int) int, real func(a, b float64) float64) filter {
	return filter{1, 1, func(_ *machine, in any, args []any) (any, error) {
		a, err := num(in)
		if err != nil {
			return nil, err
		}
		b, err := num(args[0])
		if err != nil {
			return nil, err
		}
		x, xok := a.(int)
		y, yok := b.(int)
		fb, _ := float(b)
		if fb == 0 {
			return nil, stopf(CodeValue, "division by zero")
		}
		if xok && yok {
			if x == math.MinInt && y == -1 {
				return nil, stopf(CodeValue, "the result is out of range")
			}
			return exact(x, y), nil
		}
		fa, _ := float(a)
		return number(real(fa, fb))
	}}
}

var otherFilters = map[string]filter{
	"default": {1, 1, nil}, // see bind
	"date":    {1, 1, dateFilter},
	"json": {0, 0, func(m *machine, in any, _ []any) (any, error) {
		if v, ok := in.(*value); ok {
			if err := m.spendTree(v.v); err != nil {
				return nil, err
			}
			in = v.v
		}
		switch in.(type) {
		case nil, bool, int, float64, string, []any, map[string]any:
		default:
			return nil, stopf(CodeValue, "%s has no JSON", describe(in))
		}
		b, err := encode(in)
		if err != nil {
			return nil, stopf(CodeValue, "this value has no JSON")
		}
		return string(b), nil
	}},
	"size": {0, 0, func(m *machine, in any, _ []any) (any, error) {
		switch v := in.(type) {
		case string:
			return utf8.RuneCountInString(v), nil
		case *value:
			switch c := v.v.(type) {
			case []any:
				return len(c), nil
			case map[string]any:
				return len(c), nil
			}
		}
		return 0, nil
	}},
	"escape": {0, 0, func(m *machine, in any, _ []any) (any, error) {
		s, err := m.str(in)
		if m.html { // it is escaped when it is printed
			return s, err
		}
		return html.EscapeString(s), err
	}},
	"escape_once": {0, 0, func(m *machine, in any, _ []any) (any, error) {
		s, err := m.str(in)
		s = html.UnescapeString(s)
		if m.html {
			return s, err
		}
		return html.EscapeString(s), err
	}},
	"newline_to_br": {0, 0, func(m *machine, in any, _ []any) (any, error) {
		s, err := m.str(in)
		if err != nil {
			return nil, err
		}
		if _, safe := in.(markup); m.html && !safe {
			if s = html.EscapeString(s); len(s) > MaxString {
				return nil, tooLong()
			}
		}
		s, err = replaced(strings.ReplaceAll(s, "\r\n", "\n"), "\n", "<br />\n")
		if m.html {
			return markup(s), err
		}
		return s, err
	}},
}

// spendTree charges for every value and byte of a tree.
func (m *machine) spendTree(v any) error {
	cost := 1
	switch v := v.(type) {
	case string:
		cost += bytes16(len(v))
	case json.Number:
		cost += bytes16(len(v))
	case []any:
		for _, x := range v {
			if err := m.spendTree(x); err != nil {
				return err
			}
		}
	case map[string]any:
		for k, x := range v {
			cost += 1 + bytes16(len(k))
			if err := m.spendTree(x); err != nil {
				return err
			}
		}
	}
	return m.spend(cost)
}

// toList is a value as the items of a list.
func toList(v any) ([]any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case *value:
		if items, ok := v.v.([]any); ok {
			return items, tooMany(len(items))
		}
	case values.Range:
		return nil, stopf(CodeValue, "a range may stand in a for tag alone")
	}
	return nil, stopf(CodeValue, "a list is needed, not %s", describe(v))
}

func tooMany(n int) error {
	if n > MaxItems {
		return stopf(CodeLimit, "a list of more than %d items", MaxItems)
	}
	return nil
}
