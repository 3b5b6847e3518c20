package templates

import (
	"regexp"
	"strings"

	"github.com/osteele/liquid/parser"
)

// syntax tells the library's parser which tags enclose others.
type syntax struct {
	name    string
	end     bool
	parents []string // of an end or a clause
}

func (s *syntax) TagName() string      { return s.name }
func (s *syntax) IsBlock() bool        { return true }
func (s *syntax) IsBlockStart() bool   { return s.parents == nil }
func (s *syntax) IsBlockEnd() bool     { return s.end }
func (s *syntax) IsClause() bool       { return s.parents != nil && !s.end }
func (s *syntax) RequiresParent() bool { return s.parents != nil }
func (s *syntax) ParentTags() []string { return s.parents }

func (s *syntax) CanHaveParent(p parser.BlockSyntax) bool {
	for _, name := range s.parents {
		if p != nil && p.TagName() == name {
			return true
		}
	}
	return s.parents == nil
}

type grammar map[string]*syntax

// BlockSyntax implements parser.Grammar.
func (g grammar) BlockSyntax(name string) (parser.BlockSyntax, bool) {
	s, ok := g[name]
	return s, ok
}

var language = parser.NewConfig(newGrammar())

func newGrammar() grammar {
	g := grammar{}
	for _, name := range []string{"capture", "case", "comment", "for", "if", "raw", "unless"} {
		g[name] = &syntax{name: name}
		g["end"+name] = &syntax{name: "end" + name, end: true, parents: []string{name}}
	}
	g["else"] = &syntax{name: "else", parents: []string{"if", "unless", "case", "for"}}
	g["elsif"] = &syntax{name: "elsif", parents: []string{"if", "unless"}}
	g["when"] = &syntax{name: "when", parents: []string{"case"}}
	return g
}

// words is what a look at an expression's source finds. The library's compiled expressions are
// functions, so that there is nothing else to look at.
type words struct {
	roots   []string // variables that are looked up by name; some may be none
	filters []string
	ranges  bool // there is a ".." outside of texts
}

// look finds the words of an expression that the library has parsed without an error.
func look(src string) (w words) {
	const start, property, filterName = 0, 1, 2
	next := start
	for i := 0; i < len(src); {
		c := src[i]
		switch {
		case c == '"' || c == '\'':
			i = textEnd(src, i)
			next = start
		case strings.HasPrefix(src[i:], ".."):
			w.ranges = true
			i += 2
			next = start
		case c == '.':
			i++
			next = property
		case c == '|':
			next = filterName
			i++
		case c >= '0' && c <= '9':
			for i < len(src) && src[i] >= '0' && src[i] <= '9' {
				i++
			}
			next = start
		case wordByte(c):
			from := i
			for i < len(src) && (wordByte(src[i]) || src[i] == '-' || src[i] >= '0' && src[i] <= '9') {
				i++
			}
			if i < len(src) && src[i] == '?' {
				i++
			}
			word := src[from:i]
			switch {
			case next == filterName:
				w.filters = append(w.filters, word)
			case next == property, i < len(src) && src[i] == ':': // a named argument or a loop's modifier
			case !reserved[word]:
				w.roots = append(w.roots, word)
			}
			next = start
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
		default:
			i++
			next = start
		}
	}
	return w
}

// textEnd is the index after the string literal that begins at i, by the library's rules: a backslash
// escapes in double quotes alone.
func textEnd(src string, i int) int {
	quote := src[i]
	for i++; i < len(src); i++ {
		switch {
		case src[i] == '\\' && quote == '"':
			i++
		case src[i] == quote:
			return i + 1
		}
	}
	return len(src)
}

func wordByte(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

var reserved = map[string]bool{
	"true": true, "false": true, "nil": true, "and": true, "or": true, "contains": true, "in": true, "reversed": true,
}

const pathRE = `[\pL_][\pL\pN\pM_-]*(?:\.[\pL_][\pL\pN\pM_-]*)*`

// rangeLoop is the one form in which a range may stand. A range is refused everywhere else because the
// library hands its methods to templates: {{ (1..2000000000).AsArray }} allocates 32 GB.
var rangeLoop = regexp.MustCompile(`^\s*[\pL_][\pL\pN\pM_-]*\s+in\s+\(\s*(-?\d+|` + pathRE + `)\s*\.\.\s*(-?\d+|` + pathRE + `)\s*\)` +
	`(?:\s+reversed|\s+(?:limit|offset):\s*(?:\d+|` + pathRE + `))*\s*$`)

// variable is what assign, capture and for may bind.
var variable = regexp.MustCompile(`^[\pL_][\pL\pN\pM_-]*$`)

var taken = map[string]bool{"data": true, "recipient": true, "forloop": true, "empty": true, "blank": true, "content": true}

// unclosed finds a {{ or {% that the parser took for text.
func unclosed(s string) bool { return strings.Contains(s, "{{") || strings.Contains(s, "{%") }
