package templates

import (
	"errors"
	"sort"

	"github.com/osteele/liquid/expressions"
	"github.com/osteele/liquid/values"
)

// node is a step of a compiled part.
type node interface{ render(m *machine) error }

var (
	errBreak    = errors.New("break outside a loop")
	errContinue = errors.New("continue outside a loop")
)

type textNode string

func (n textNode) render(m *machine) error { return m.write(string(n)) }

// printNode is {{ expression }}.
type printNode struct {
	x   *expr
	url bool // it begins a URL attribute
}

func (n *printNode) render(m *machine) error {
	v, err := m.eval(n.x)
	if err != nil {
		return err
	}
	if n.url {
		s, err := m.str(v)
		if err != nil {
			return at(err, n.x.line)
		}
		if !safeURL(s) {
			return &stop{CodeEscape, "the URL's scheme could run code; only links may stand in a URL attribute", n.x.line}
		}
	}
	return at(m.print(v), n.x.line)
}

// contentNode is {{ content }} in a layout.
type contentNode struct{}

func (contentNode) render(m *machine) error { return m.write(m.inner) }

type assignNode struct {
	name string
	x    *expr
}

func (n *assignNode) render(m *machine) error {
	v, err := m.eval(n.x)
	if err != nil {
		return err
	}
	m.set(n.name, v)
	return nil
}

type captureNode struct {
	name string
	body []node
}

func (n *captureNode) render(m *machine) error {
	s, err := m.capture(n.body)
	if m.html {
		m.set(n.name, markup(s))
	} else {
		m.set(n.name, s)
	}
	if err == nil {
		err = m.spend(bytes16(len(s)) + 1)
	}
	return err
}

// condNode is if and unless, with their clauses.
type condNode struct {
	tests  []condition // the first is negated for unless
	bodies [][]node
	not    bool
	other  []node
}

func (n *condNode) render(m *machine) error {
	for i := range n.tests {
		holds, err := n.tests[i].holds(m, 0)
		if err != nil {
			return err
		}
		if holds != (n.not && i == 0) {
			return m.run(n.bodies[i])
		}
	}
	return m.run(n.other)
}

type caseNode struct {
	x     *expr
	whens []when
	other []node
}

type when struct {
	values []*expr
	body   []node
}

func (n *caseNode) render(m *machine) error {
	v, err := m.eval(n.x)
	if err != nil {
		return err
	}
	for _, w := range n.whens {
		for _, x := range w.values {
			o, err := m.eval(x)
			if err != nil {
				return err
			}
			same, err := m.same(v, o)
			if err != nil {
				return at(err, x.line)
			}
			if same {
				return m.run(w.body)
			}
		}
	}
	return m.run(n.other)
}

// same is equal for use outside of an expression, where nobody catches fail's panic.
func (m *machine) same(a, b any) (ok bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, failed := r.(expressions.InterpreterError); !failed || m.failure == nil {
				panic(r)
			}
			err = m.failure
		}
	}()
	return m.equal(a, b), nil
}

type cycleNode struct {
	group  *expr // nil: key says which cycle it is
	key    any
	values []*printNode
}

func (n *cycleNode) render(m *machine) error {
	if m.cycles == nil {
		m.cycles = map[any]int{}
	}
	key := n.key
	if n.group != nil {
		v, err := m.eval(n.group)
		if err != nil {
			return err
		}
		if key, err = m.str(v); err != nil {
			return at(err, n.group.line)
		}
	}
	i := m.cycles[key]
	m.cycles[key] = (i + 1) % len(n.values)
	return n.values[i%len(n.values)].render(m)
}

type jumpNode struct{ err error }

func (n jumpNode) render(*machine) error { return n.err }

type forNode struct {
	name          string
	x             *expr
	limit, offset *expr
	reversed      bool
	body, other   []node
}

func (n *forNode) render(m *machine) error {
	v, err := m.eval(n.x)
	if err != nil {
		return err
	}
	size, item, err := n.items(m, v)
	if err != nil {
		return at(err, n.x.line)
	}
	from, to, err := n.window(m, size)
	if err != nil {
		return err
	}
	if to-from > MaxItems {
		return &stop{CodeLimit, tooMany(to-from).Error() + " cannot be looped over", n.x.line}
	}
	if from == to {
		return m.run(n.other)
	}
	return n.loop(m, from, to, item)
}

// items is the size of what is looped over, and how to get at one.
func (n *forNode) items(m *machine, v any) (int, func(i int) any, error) {
	switch v := v.(type) {
	case nil:
		return 0, nil, nil
	case values.Range:
		return max(0, v.Len()), v.Index, nil
	case *value:
		switch c := v.v.(type) {
		case []any:
			shape := v.shape.items()
			return len(c), func(i int) any { return &value{m: m, v: plain(c[i]), shape: shape, key: n.name} }, nil
		case map[string]any:
			if err := tooMany(len(c)); err != nil {
				return 0, nil, err
			}
			keys := make([]string, 0, len(c))
			for k := range c {
				keys = append(keys, k)
			}
			sort.Strings(keys)
			return len(keys), func(i int) any { return []any{keys[i], c[keys[i]]} }, m.spend(len(keys))
		}
	}
	return 0, nil, stopf(CodeValue, "%s cannot be looped over", describe(v))
}

// window applies offset and limit, in this order as Liquid does.
func (n *forNode) window(m *machine, size int) (from, to int, err error) {
	number := func(x *expr, most int) (int, error) {
		v, err := m.eval(x)
		if err != nil {
			return 0, err
		}
		i, err := whole(v)
		if err != nil {
			return 0, at(err, x.line)
		}
		return min(max(i, 0), most), nil
	}
	to = size
	if n.offset != nil {
		if from, err = number(n.offset, size); err != nil {
			return 0, 0, err
		}
	}
	if n.limit != nil {
		count, err := number(n.limit, size-from)
		if err != nil {
			return 0, 0, err
		}
		to = from + count
	}
	return from, to, nil
}

func (n *forNode) loop(m *machine, from, to int, item func(int) any) error {
	outer, hadOuter := m.vars["forloop"]
	shadowed, hadShadowed := m.vars[n.name]
	loop := &forloop{m: m, n: to - from, parent: m.loop}
	m.loop = loop
	m.vars["forloop"] = loop
	defer func() {
		m.loop = loop.parent
		restore(m.vars, "forloop", outer, hadOuter)
		restore(m.vars, n.name, shadowed, hadShadowed)
	}()
	for i := range to - from {
		if m.passes++; m.passes > MaxIterations {
			return &stop{CodeLimit, "the loops take more than 10,000 passes together", n.x.line}
		}
		loop.i = i
		k := from + i
		if n.reversed {
			k = to - 1 - i
		}
		m.set(n.name, item(k))
		switch err := m.run(n.body); err {
		case nil, errContinue: //nolint:errorlint // these two are never wrapped
		case errBreak:
			return nil
		default:
			return err
		}
		if err := m.spend(len(n.body) + 2); err != nil {
			return at(err, n.x.line)
		}
	}
	return nil
}

func restore(vars map[string]any, name string, v any, had bool) {
	if had {
		vars[name] = v
	} else {
		delete(vars, name)
	}
}
