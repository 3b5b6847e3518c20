package templates

import (
	"errors"
	"strconv"
	"strings"
	"sync"

	"github.com/osteele/liquid/expressions"
)

// The limits of a rendering. They hold for one Render: all its parts draw on one budget.
const (
	// MaxOutput bounds each rendered part, in bytes.
	MaxOutput = 256 << 10
	// MaxString bounds whatever a filter or a capture makes, in bytes.
	MaxString = 64 << 10
	// MaxItems bounds the items of a list that is looped over or made by a filter.
	MaxItems = 1000
	// MaxIterations bounds the passes of all loops together.
	MaxIterations = 10_000
	// maxWork bounds everything else: a unit is a step of the interpreter, or 16 bytes read or written.
	// It is some 30 ms on one slow core when all of it goes to the dearest operations; a table of 1,000
	// rows with six columns takes a fifth of it.
	maxWork = 500_000
)

// machine is one rendering: the variables, the output, and what is left of the budget. It is used by
// one goroutine at a time and comes from a pool, because its filters are bound to it: a filter of the
// library gets no context, and a budget that filters cannot see bounds nothing.
type machine struct {
	cfg  expressions.Config
	ctx  expressions.Context
	vars map[string]any

	out   []byte // what the channel's block has so far, as JSON
	buf   []byte // what the part has written so far
	limit int    // what buf's length must not exceed
	html  bool   // the part is HTML
	inner string // the part that a layout is laid around

	work, passes int
	loop         *forloop
	cycles       map[any]int

	misused *stop    // why an expression's result does not count, found where nothing can be returned
	failure *stop    // why the library was made to give up; its own error types hold no code
	loose   *missing // an undefined variable that no default filter has taken yet
	nloose  int
}

var machines = sync.Pool{New: func() any { return newMachine() }}

func newMachine() *machine {
	m := &machine{vars: map[string]any{}}
	m.cfg = expressions.NewConfig()
	m.cfg.StrictVariables = true
	for name, f := range filters {
		m.cfg.AddFilter(name, m.bind(name, f))
	}
	m.ctx = expressions.NewContext(m.vars, m.cfg)
	return m
}

// reset makes the machine ready for another Render.
func (m *machine) reset() {
	m.work, m.passes = maxWork, 0
	m.clear()
}

// clear makes it ready for another part of the same Render, and lets go of the data.
func (m *machine) clear() {
	clear(m.vars)
	clear(m.cycles)
	m.buf, m.limit, m.html, m.inner = m.buf[:0], MaxOutput, false, ""
	m.loop, m.failure, m.misused, m.loose, m.nloose = nil, nil, nil, nil, 0
}

// release puts the machine back, unless a large part has made it too heavy to keep.
func (m *machine) release() {
	if cap(m.buf)+cap(m.out) > 2*MaxOutput {
		m.buf, m.out = nil, nil
	}
	m.clear()
	machines.Put(m)
}

// spend takes n units out of the budget.
func (m *machine) spend(n int) error {
	if m.work -= n; m.work < 0 {
		return stopf(CodeLimit, "the template does too much work; loop over less, or over shorter texts")
	}
	return nil
}

// mustSpend is spend for the inside of an expression, where only a panic gets out (see fail).
func (m *machine) mustSpend(n int) {
	if err := m.spend(n); err != nil {
		m.fail(err.(*stop)) //nolint:errorlint // spend makes nothing else
	}
}

// bytes16 is the price of reading or writing n bytes.
func bytes16(n int) int { return n >> 4 }

// fail ends the evaluation of the current expression. The library turns the panic into an error; eval
// gives back s.
func (m *machine) fail(s *stop) {
	m.failure = s
	panic(expressions.InterpreterError(s.detail))
}

// write puts text into the part.
func (m *machine) write(s string) error {
	if len(m.buf)+len(s) > m.limit {
		return stopf(CodeLimit, "the output is larger than %d KiB", m.limit>>10)
	}
	m.buf = append(m.buf, s...)
	return m.spend(bytes16(len(s)) + 1)
}

// writeEscaped is write with the characters escaped that render.HtmlEscaper of the library escapes, in
// the same way.
func (m *machine) writeEscaped(s string) error {
	from := 0
	for i := range len(s) {
		var esc string
		switch s[i] {
		case '&':
			esc = "&amp;"
		case '\'':
			esc = "&#39;"
		case '<':
			esc = "&lt;"
		case '>':
			esc = "&gt;"
		case '"':
			esc = "&#34;"
		default:
			continue
		}
		if len(m.buf)+i-from+len(esc) > m.limit {
			break
		}
		m.buf = append(append(m.buf, s[from:i]...), esc...)
		from = i + 1
	}
	if err := m.spend(bytes16(len(s))); err != nil {
		return err
	}
	return m.write(s[from:])
}

// print writes the value of an expression, as {{ }} does.
func (m *machine) print(v any) error {
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		if m.html {
			return m.writeEscaped(v)
		}
		return m.write(v)
	case markup:
		return m.write(string(v))
	case int:
		var a [20]byte
		return m.write(string(strconv.AppendInt(a[:0], int64(v), 10)))
	case bool:
		return m.write(strconv.FormatBool(v))
	case float64:
		return m.write(formatFloat(v))
	case *value:
		return m.printList(v)
	}
	return stopf(CodeValue, "%s cannot be printed", describe(v))
}

func (m *machine) printList(v *value) error {
	items, ok := v.v.([]any)
	if !ok {
		return stopf(CodeValue, "an object cannot be printed; print its members, or use the filter json")
	}
	for _, item := range items {
		if err := m.spend(1); err != nil {
			return err
		}
		if err := m.print(m.wrap(item).Interface()); err != nil {
			return err
		}
	}
	return nil
}

// expr is a compiled expression.
type expr struct {
	x    expressions.Expression
	cost int
	line int
}

// eval evaluates an expression. The result is nil, a bool, int, float64, string, markup, a *value that
// is a list or an object, an expressions.Range or one of this package's special values.
func (m *machine) eval(e *expr) (any, error) {
	if err := m.spend(e.cost); err != nil {
		return nil, at(err, e.line)
	}
	m.failure, m.misused, m.loose, m.nloose = nil, nil, nil, 0
	v, err := e.x.Evaluate(m.ctx)
	if err != nil {
		return nil, at(m.reason(err), e.line)
	}
	if m.nloose > 0 {
		return nil, at(m.loose.undefined(), e.line)
	}
	if m.misused != nil {
		return nil, at(m.misused, e.line)
	}
	return v, nil
}

// misuse notes that something was to be a text that is none. It is called by fmt, which catches panics.
func (m *machine) misuse(v any) string {
	m.misused = stopf(CodeValue, "a text is needed here, not %s", describe(v))
	return ""
}

// reason makes a stop of the library's error.
func (m *machine) reason(err error) error {
	if m.failure != nil {
		return m.failure
	}
	var fe expressions.FilterError
	if errors.As(err, &fe) {
		var s *stop
		if errors.As(fe.Err, &s) { // FilterError does not unwrap
			return s
		}
		return stopf(CodeValue, "the filter %s cannot work on this value", fe.FilterName)
	}
	var ie expressions.InterpreterError
	if errors.As(err, &ie) && strings.Contains(string(ie), "undefined variable") {
		return stopf(CodeUndefined, "undefined variable")
	}
	return stopf(CodeValue, "the expression cannot be evaluated")
}

// at adds the line to a stop that has none.
func at(err error, line int) error {
	if err == nil {
		return nil
	}
	var s *stop
	if errors.As(err, &s) && s.line == 0 {
		s.line = line
	}
	return err
}

// run renders nodes, one after the other.
func (m *machine) run(nodes []node) error {
	for _, n := range nodes {
		if err := n.render(m); err != nil {
			return err
		}
	}
	return nil
}

// capture renders nodes and gives back what they wrote instead of writing it.
func (m *machine) capture(nodes []node) (string, error) {
	start, limit := len(m.buf), m.limit
	m.limit = min(limit, start+MaxString)
	err := m.run(nodes)
	s := string(m.buf[start:])
	m.buf, m.limit = m.buf[:start], limit
	return s, err
}

// set binds a variable.
func (m *machine) set(name string, v any) { m.vars[name] = m.wrap(v) }

func formatFloat(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// describe names a value's sort for an error, without the value.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "nil"
	case bool:
		return "a boolean"
	case int, float64:
		return "a number"
	case string, markup:
		return "a string"
	case *value:
		if _, ok := v.v.([]any); ok {
			return "a list"
		}
		return "an object"
	case *special:
		return "the word " + v.name
	case *forloop:
		return "the variable forloop"
	}
	return "this value"
}
