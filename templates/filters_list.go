package templates

import (
	"sort"
	"strings"
)

// lists makes a filter of a function on the items of its input.
func lists(min, max int, fn func(m *machine, items []any, args []any) (any, error)) filter {
	return filter{min, max, func(m *machine, in any, args []any) (any, error) {
		items, err := toList(in)
		if err != nil {
			return nil, err
		}
		if err := m.spend(len(items)); err != nil {
			return nil, err
		}
		return fn(m, items, args)
	}}
}

// oneOf picks an item of a list, or a character of a text.
func oneOf(pick func(n int) int) filter {
	list := lists(0, 0, func(_ *machine, items []any, _ []any) (any, error) {
		if len(items) == 0 {
			return nil, nil
		}
		return items[pick(len(items))], nil
	})
	return filter{0, 0, func(m *machine, in any, args []any) (any, error) {
		s, ok := in.(string)
		if !ok {
			return list.fn(m, in, args)
		}
		if err := m.spend(bytes16(len(s)) + 1); err != nil || s == "" {
			return "", err
		}
		letters := []rune(s)
		return string(letters[pick(len(letters))]), nil
	}}
}

var listFilters = map[string]filter{
	"join": lists(0, 1, func(m *machine, items []any, args []any) (any, error) {
		sep := " "
		if len(args) > 0 {
			var err error
			if sep, err = m.str(args[0]); err != nil {
				return nil, err
			}
		}
		return m.join(items, sep)
	}),
	"first": oneOf(func(int) int { return 0 }),
	"last":  oneOf(func(n int) int { return n - 1 }),
	"compact": lists(0, 1, func(m *machine, items []any, args []any) (any, error) {
		out := make([]any, 0, len(items))
		for _, x := range items {
			v := x
			if len(args) > 0 {
				var err error
				if v, err = m.property(x, args[0]); err != nil {
					return nil, err
				}
			}
			if v != nil {
				out = append(out, x)
			}
		}
		return out, nil
	}),
	"concat": lists(1, 1, func(_ *machine, items []any, args []any) (any, error) {
		more, err := toList(args[0])
		if err != nil {
			return nil, err
		}
		if err := tooMany(len(items) + len(more)); err != nil {
			return nil, err
		}
		return append(append(make([]any, 0, len(items)+len(more)), items...), more...), nil
	}),
	"reverse": lists(0, 0, func(_ *machine, items []any, _ []any) (any, error) {
		out := make([]any, len(items))
		for i, x := range items {
			out[len(out)-1-i] = x
		}
		return out, nil
	}),
	"map": lists(1, 1, func(m *machine, items []any, args []any) (any, error) {
		out := make([]any, len(items))
		for i, x := range items {
			v, err := m.property(x, args[0])
			if err != nil {
				return nil, err
			}
			out[i] = v
		}
		return out, nil
	}),
	"where": lists(1, 2, func(m *machine, items []any, args []any) (any, error) {
		out := []any{}
		for _, x := range items {
			v, err := m.property(x, args[0])
			if err != nil {
				return nil, err
			}
			got := m.wrap(v).Interface()
			if len(args) == 1 && got != nil && got != false || len(args) == 2 && m.equal(got, args[1]) {
				out = append(out, x)
			}
		}
		return out, nil
	}),
	"sum": lists(0, 1, func(m *machine, items []any, args []any) (any, error) {
		plus := numberFilters["plus"].fn
		var total any = 0
		for _, x := range items {
			if len(args) > 0 {
				var err error
				if x, err = m.property(x, args[0]); err != nil {
					return nil, err
				}
			}
			var err error
			if total, err = plus(m, total, []any{plain(x)}); err != nil {
				return nil, err
			}
		}
		return total, nil
	}),
	"uniq": lists(0, 1, func(m *machine, items []any, args []any) (any, error) {
		seen := make(map[string]bool, len(items))
		out := []any{}
		for _, x := range items {
			key := x
			if len(args) > 0 {
				var err error
				if key, err = m.property(x, args[0]); err != nil {
					return nil, err
				}
			}
			if err := m.spend(8); err != nil { // a JSON encoder each
				return nil, err
			}
			if err := m.spendTree(key); err != nil {
				return nil, err
			}
			b, err := encode(plain(key))
			if err != nil {
				return nil, stopf(CodeValue, "an item has no JSON")
			}
			if !seen[string(b)] {
				seen[string(b)] = true
				out = append(out, x)
			}
		}
		return out, nil
	}),
	"sort": lists(0, 1, func(m *machine, items []any, args []any) (any, error) {
		return m.sorted(items, args, func(a, b any) bool { return m.less(a, b) })
	}),
	"sort_natural": lists(0, 1, func(m *machine, items []any, args []any) (any, error) {
		return m.sorted(items, args, func(a, b any) bool {
			s, _ := m.str(a)
			t, _ := m.str(b)
			m.mustSpend(bytes16(len(s)+len(t)) + 1)
			return strings.ToLower(s) < strings.ToLower(t)
		})
	}),
}

// join concatenates the items' texts, and stops before the result is too long.
func (m *machine) join(items []any, sep string) (string, error) {
	var b strings.Builder
	for i, x := range items {
		s, err := m.str(m.wrap(x).Interface())
		if err != nil {
			return "", err
		}
		if i > 0 {
			b.WriteString(sep)
		}
		if b.Len()+len(s)+len(sep) > MaxString {
			return "", tooLong()
		}
		b.WriteString(s)
		if err := m.spend(1 + bytes16(len(s)+len(sep))); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

// property is the member that map, where, sort and their like look at: nil where an object has none.
func (m *machine) property(item, name any) (any, error) {
	key, err := m.str(name)
	if err != nil {
		return nil, err
	}
	o, ok := item.(map[string]any)
	if !ok {
		if v, isValue := item.(*value); isValue {
			o, ok = v.v.(map[string]any)
		}
	}
	if !ok {
		return nil, stopf(CodeValue, "a list of objects is needed")
	}
	return o[key], nil
}

// sorted is a sorted copy, stable, with nil at the end.
func (m *machine) sorted(items, args []any, less func(a, b any) bool) (any, error) {
	keys := make([]any, len(items))
	for i, x := range items {
		if len(args) > 0 {
			var err error
			if x, err = m.property(x, args[0]); err != nil {
				return nil, err
			}
		}
		keys[i] = m.wrap(x).Interface()
	}
	order := make([]int, len(items))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool {
		a, b := keys[order[i]], keys[order[j]]
		if a == nil || b == nil {
			return a != nil
		}
		return less(a, b)
	})
	out := make([]any, len(items))
	for i, j := range order {
		out[i] = items[j]
	}
	return out, nil
}
