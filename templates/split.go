package templates

import (
	"strings"

	"github.com/osteele/liquid/parser"
)

// condition is the tests of an if, joined by and and or. Liquid has no precedence between them: it reads from
// the right, a or b and c is a or (b and c), a and b or c is a and (b or c). The library's parser does not.
type condition struct {
	parts []*expr
	ands  []bool // what joins a part with the rest: and, else or
}

// condition parses the condition of an if, unless or elsif.
func (c *compiler) condition(b *parser.ASTBlock) (out condition, ok bool) {
	sources, ands := splitLogic(b.Args)
	for _, src := range sources {
		x, err := parseExpr(src)
		if err != nil {
			c.fault(b.SourceLoc.LineNo, CodeSyntax, "the condition of %s is malformed", b.Name)
			return out, false
		}
		out.parts = append(out.parts, c.expr(x, src, b.SourceLoc.LineNo))
	}
	out.ands = ands
	return out, true
}

// holds reports whether the condition from part i on is true. What follows is not looked at where it does not matter.
func (n *condition) holds(m *machine, i int) (bool, error) {
	v, err := m.eval(n.parts[i])
	if err != nil {
		return false, err
	}
	truth := v != nil && v != false
	if i == len(n.ands) || truth != n.ands[i] {
		return truth, nil
	}
	return n.holds(m, i+1)
}

// splitLogic cuts a condition at the words and and or that stand outside of texts and brackets.
func splitLogic(src string) (parts []string, ands []bool) {
	from := 0
	scan(src, func(i int, word string) bool {
		if word == "and" || word == "or" {
			parts = append(parts, src[from:i])
			ands = append(ands, word == "and")
			from = i + len(word)
		}
		return true
	})
	return append(parts, src[from:]), ands
}

// scan calls f with each word and each other byte of an expression that stands outside of texts and brackets,
// until f returns false. A property's name (after a dot) and a named argument (before a colon) are no words.
func scan(src string, f func(i int, word string) bool) {
	depth := 0
	for i := 0; i < len(src); {
		from := i
		switch c := src[i]; {
		case c == '"' || c == '\'':
			i = textEnd(src, i)
			continue
		case c == '(' || c == '[':
			depth++
			i++
		case c == ')' || c == ']':
			depth--
			i++
		case wordByte(c):
			for i < len(src) && (wordByte(src[i]) || src[i] == '-' || src[i] >= '0' && src[i] <= '9') {
				i++
			}
			if from > 0 && src[from-1] == '.' || i < len(src) && src[i] == ':' {
				continue
			}
		default:
			i++
		}
		if depth == 0 && !f(from, src[from:i]) {
			return
		}
	}
}

// cycle parses the arguments of a cycle: values, after a group's name and a colon if it has one.
func (c *compiler) cycle(n *parser.ASTTag) node {
	line := n.SourceLoc.LineNo
	malformed := func() node {
		c.fault(line, CodeSyntax, "cycle is written {%% cycle \"one\", \"two\" %%}")
		return textNode("")
	}
	url := false
	if c.part.html {
		wrong := ""
		if wrong, url = c.html.variable(); wrong != "" {
			c.fault(line, CodeEscape, "%s", wrong)
		}
	}
	out := &cycleNode{}
	args, literal := n.Args, true
	if i := colon(args); i >= 0 {
		x, err := parseExpr(args[:i])
		if err != nil {
			return malformed()
		}
		out.group, args = c.expr(x, args[:i], line), args[i+1:]
	}
	sources := splitList(args)
	for _, src := range sources {
		x, err := parseExpr(src)
		if err != nil {
			return malformed()
		}
		literal = literal && len(look(src).roots) == 0
		out.values = append(out.values, &printNode{x: c.expr(x, src, line), url: url})
	}
	if len(sources) == 0 {
		return malformed()
	}
	if out.key = strings.Join(sources, "\x00"); !literal { // one with variables is a cycle of its own
		out.key = out
	}
	return out
}

// colon is where a cycle's group ends; -1 for none.
func colon(args string) int {
	if t := strings.TrimSpace(args); t != "" && (t[0] == '"' || t[0] == '\'') {
		end := textEnd(args, strings.IndexByte(args, t[0]))
		if rest := strings.TrimLeft(args[end:], " \t"); strings.HasPrefix(rest, ":") {
			return len(args) - len(rest)
		}
		return -1
	}
	i := strings.IndexAny(args, ":,\"'")
	if i < 0 || args[i] != ':' {
		return -1
	}
	return i
}

// splitList cuts a list of expressions at its commas; there may be one after the last.
func splitList(args string) (out []string) {
	from := 0
	scan(args, func(i int, word string) bool {
		if word == "," {
			out = append(out, strings.TrimSpace(args[from:i]))
			from = i + 1
		}
		return true
	})
	if rest := strings.TrimSpace(args[from:]); rest != "" || len(out) == 0 && args != "" {
		out = append(out, rest)
	}
	return out
}
