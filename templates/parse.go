package templates

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/osteele/liquid/expressions"
	"github.com/osteele/liquid/parser"
)

// The limits of a template's source.
const (
	// MaxPart bounds the source of one part, in bytes.
	MaxPart = 64 << 10
	// MaxDepth bounds the nesting of tags.
	MaxDepth = 20
	// MaxLoops bounds the nesting of for tags.
	MaxLoops = 3
	// maxExpression bounds an expression: its evaluation recurses.
	maxExpression = 2 << 10
)

// part is one compiled piece of text.
type part struct {
	at    string // its JSON pointer
	html  bool
	trim  bool // white space around the output is taken off
	plain string
	nodes []node   // nil: plain is all
	roots []string // the variables that must be bound before
	wraps bool     // a layout's: it has {{ content }}
}

// parse compiles the source of a part. What is wrong is added to f.
func parse(src string, p *part, isLayout bool, f *faults) *part {
	switch {
	case len(src) > MaxPart:
		f.add(p.at, CodeLimit, "the source is larger than %d KiB", MaxPart>>10)
		return p
	case !utf8.ValidString(src):
		f.add(p.at, CodeEncoding, "the source is not UTF-8")
		return p
	case !unclosed(src):
		p.plain = src
		if p.trim {
			p.plain = strings.TrimSpace(src)
		}
		return p
	}
	root, err := parseTree(src)
	if err != nil {
		code := CodeSyntax
		var s *stop
		if errors.As(err, &s) {
			code = s.code
		}
		f.add(p.at, code, "%s", err)
		return p
	}
	c := compiler{part: p, f: f, layout: isLayout, roots: map[string]bool{}}
	p.nodes = c.nodes(root.(*parser.ASTSeq).Children, 0, 0)
	p.roots = sorted(c.roots)
	return p
}

// parseTree runs the library's parser, which panics on some malformed expressions
// ({{ 99999999999999999999 }}).
func parseTree(src string) (root parser.ASTNode, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("an expression is malformed")
		}
	}()
	for _, tok := range parser.Scan(src, parser.SourceLoc{LineNo: 1}, language.Delims) {
		if len(tok.Args) > maxExpression { // before the parser recurses into it
			return nil, &stop{CodeLimit, fmt.Sprintf("an expression is longer than %d bytes", maxExpression), tok.SourceLoc.LineNo}
		}
	}
	tree, perr := language.Parse(src, parser.SourceLoc{LineNo: 1})
	if perr != nil {
		return nil, syntaxError(perr)
	}
	return tree, nil
}

func syntaxError(e parser.Error) error {
	s := strings.TrimPrefix(e.Error(), "Liquid error")
	if i := strings.Index(s, ": "); i >= 0 {
		s = s[i+2:]
	}
	return fmt.Errorf("line %d: %s", e.LineNumber(), clip(s))
}

// compiler turns the library's tree into nodes, and checks on the way whatever can be checked before
// there is data.
type compiler struct {
	part   *part
	f      *faults
	layout bool
	roots  map[string]bool
	html   htmlContext
}

func (c *compiler) fault(line int, code, format string, args ...any) {
	c.f.add(c.part.at, code, "line %d: %s", line, fmt.Sprintf(format, args...))
}

func (c *compiler) nodes(list []parser.ASTNode, depth, loops int) []node {
	out := make([]node, 0, len(list))
	for i, n := range list {
		switch n := n.(type) {
		case *parser.ASTText:
			s := n.Source
			if unclosed(s) {
				c.fault(n.SourceLoc.LineNo, CodeSyntax, "a {{ or {%% is not closed on its line; to write one as text, use {%% raw %%}")
			}
			if i > 0 && trims(list[i-1], parser.Right) {
				s = strings.TrimLeftFunc(s, unicode.IsSpace)
			}
			if i+1 < len(list) && trims(list[i+1], parser.Left) {
				s = strings.TrimRightFunc(s, unicode.IsSpace)
			}
			out = c.text(out, s)
		case *parser.ASTRaw:
			out = c.text(out, strings.Join(n.Slices, ""))
		case *parser.ASTObject:
			out = append(out, c.object(n))
		case *parser.ASTTag:
			out = append(out, c.tag(n, loops))
		case *parser.ASTBlock:
			if depth >= MaxDepth {
				c.fault(n.SourceLoc.LineNo, CodeLimit, "tags are nested deeper than %d", MaxDepth)
				return out
			}
			out = append(out, c.block(n, depth+1, loops))
		}
	}
	return out
}

func trims(n parser.ASTNode, d parser.TrimDirection) bool {
	t, ok := n.(*parser.ASTTrim)
	return ok && t.TrimDirection == d
}

func (c *compiler) text(out []node, s string) []node {
	if s == "" {
		return out
	}
	if c.part.html {
		c.html.feed(s)
	}
	return append(out, textNode(s))
}

func (c *compiler) object(n *parser.ASTObject) node {
	line := n.SourceLoc.LineNo
	var wrong string
	var url bool
	if c.part.html {
		if wrong, url = c.html.variable(); wrong != "" {
			c.fault(line, CodeEscape, "%s", wrong)
		}
	}
	if c.layout && strings.TrimSpace(n.Args) == "content" {
		if c.part.html && c.html.state != inText {
			c.fault(line, CodeEscape, "{{ content }} must stand in the text of the layout")
		}
		c.part.wraps = true
		return contentNode{}
	}
	return &printNode{x: c.expr(n.Expr, n.Args, line), url: url}
}

// expr checks an expression by its source and gives it its price.
func (c *compiler) expr(x expressions.Expression, src string, line int) *expr {
	w := c.look(src, line)
	if t := strings.TrimSpace(src); strings.HasPrefix(t, "%") || strings.HasPrefix(t, "{%") {
		// The library's selectors of statements ("%loop ") are tokens of its expression language.
		c.fault(line, CodeSyntax, "an expression is malformed")
	}
	if w.ranges {
		c.fault(line, CodeSyntax, "a range may stand only as {%% for x in (1..n) %%}")
	}
	return c.priced(x, src, line)
}

func (c *compiler) priced(x expressions.Expression, src string, line int) *expr {
	return &expr{x: x, cost: 4 + len(src)/4, line: line}
}

func (c *compiler) look(src string, line int) words {
	w := look(src)
	for _, name := range w.filters {
		if _, ok := filters[name]; !ok {
			c.fault(line, CodeFilter, "the filter %q is not offered", clip(name))
		}
	}
	for _, name := range w.roots {
		c.roots[name] = true
	}
	return w
}

func (c *compiler) tag(n *parser.ASTTag, loops int) node {
	line := n.SourceLoc.LineNo
	switch n.Name {
	case "assign":
		stmt, err := statement(expressions.AssignStatementSelector, n.Args)
		if err != nil || stmt.Assignment.Variable == "" {
			c.fault(line, CodeSyntax, "assign is written {%% assign name = expression %%}")
			return textNode("")
		}
		_, src, _ := strings.Cut(n.Args, "=")
		name := stmt.Assignment.Variable
		c.binds(name, line)
		return &assignNode{name: name, x: c.expr(stmt.Assignment.ValueFn, src, line)}
	case "cycle":
		return c.cycle(n)
	case "break", "continue":
		if loops == 0 {
			c.fault(line, CodeSyntax, "%s stands outside of a loop", n.Name)
		}
		if n.Name == "break" {
			return jumpNode{errBreak}
		}
		return jumpNode{errContinue}
	}
	c.fault(line, CodeTag, "the tag %q is not offered", clip(n.Name))
	return textNode("")
}

func (c *compiler) binds(name string, line int) {
	if !variable.MatchString(name) || taken[name] || reserved[name] {
		c.fault(line, CodeSyntax, "%q cannot be a variable of the template's own", clip(name))
	}
}

func (c *compiler) block(n *parser.ASTBlock, depth, loops int) node {
	before := c.html
	var ends []htmlContext
	body := func(nodes []parser.ASTNode, loops int) []node {
		c.html = before // each branch goes on from where the tag stands
		out := c.nodes(nodes, depth, loops)
		ends = append(ends, c.html)
		return out
	}
	line := n.SourceLoc.LineNo
	switch n.Name {
	case "if", "unless":
		defer func() { c.join(n, before, ends) }()
		return c.cond(n, body, loops)
	case "case":
		defer func() { c.join(n, before, ends) }()
		return c.cases(n, body, loops)
	case "for":
		if loops >= MaxLoops {
			c.fault(line, CodeLimit, "loops are nested deeper than %d", MaxLoops)
			return textNode("")
		}
		defer func() { c.join(n, before, append(ends, before)) }() // a pass begins where the one before ended
		return c.loop(n, body, loops)
	case "capture":
		name := strings.TrimSpace(n.Args)
		c.binds(name, line)
		outer := before
		before = htmlContext{}
		inner := body(n.Body, loops)
		c.html = outer
		if c.part.html && ends[0].place() != inText {
			c.fault(line, CodeEscape, "what is captured must be whole: text, with its tags closed")
		}
		return &captureNode{name: name, body: inner}
	}
	c.fault(line, CodeTag, "the tag %q is not offered", clip(n.Name))
	return textNode("")
}

// join goes on behind a block, whose branches must all end in the same place of the HTML.
func (c *compiler) join(n *parser.ASTBlock, before htmlContext, ends []htmlContext) {
	if !c.part.html {
		return
	}
	if k := len(n.Clauses); k == 0 || n.Clauses[k-1].Name != "else" {
		ends = append(ends, before) // the branch that is not there
	}
	c.html = before
	for i, end := range ends {
		merged, ok := end, true
		if i > 0 {
			merged, ok = c.html.merge(end)
		}
		if !ok {
			c.fault(n.SourceLoc.LineNo, CodeEscape, "the branches of %s end in different places of the HTML; close in a branch what it opens", n.Name)
			return
		}
		c.html = merged
	}
}

type bodyFunc func(nodes []parser.ASTNode, loops int) []node

func (c *compiler) cond(n *parser.ASTBlock, body bodyFunc, loops int) node {
	out := &condNode{not: n.Name == "unless"}
	test := func(b *parser.ASTBlock) {
		if x, ok := c.condition(b); ok {
			out.tests = append(out.tests, x)
			out.bodies = append(out.bodies, body(b.Body, loops))
		}
	}
	test(n)
	for i, clause := range n.Clauses {
		if clause.Name == "elsif" {
			test(clause)
			continue
		}
		c.last(n, i)
		out.other = body(clause.Body, loops)
	}
	return out
}

// last faults an else that is not the last clause.
func (c *compiler) last(n *parser.ASTBlock, i int) {
	if i != len(n.Clauses)-1 {
		c.fault(n.Clauses[i].SourceLoc.LineNo, CodeSyntax, "else must be the last clause of %s", n.Name)
	}
}

func (c *compiler) cases(n *parser.ASTBlock, body bodyFunc, loops int) node {
	x, err := parseExpr(n.Args)
	if err != nil {
		c.fault(n.SourceLoc.LineNo, CodeSyntax, "the expression of case is malformed")
		return textNode("")
	}
	out := &caseNode{x: c.expr(x, n.Args, n.SourceLoc.LineNo)}
	for _, b := range n.Body {
		if t, ok := b.(*parser.ASTText); ok && strings.TrimSpace(t.Source) == "" || isTrim(b) {
			continue
		}
		c.fault(n.SourceLoc.LineNo, CodeSyntax, "nothing may stand between case and its first when")
		break
	}
	for i, clause := range n.Clauses {
		if clause.Name == "else" {
			c.last(n, i)
			out.other = body(clause.Body, loops)
			continue
		}
		line := clause.SourceLoc.LineNo
		stmt, err := statement(expressions.WhenStatementSelector, clause.Args)
		if err != nil {
			c.fault(line, CodeSyntax, "when is written {%% when value, value %%}")
			continue
		}
		w := when{}
		src := clause.Args
		for _, x := range stmt.When.Exprs {
			w.values = append(w.values, c.expr(x, src, line))
			src = "" // looked at and paid for once
		}
		w.body = body(clause.Body, loops)
		out.whens = append(out.whens, w)
	}
	return out
}

func isTrim(n parser.ASTNode) bool {
	_, ok := n.(*parser.ASTTrim)
	return ok
}

func (c *compiler) loop(n *parser.ASTBlock, body bodyFunc, loops int) node {
	line := n.SourceLoc.LineNo
	stmt, err := statement(expressions.LoopStatementSelector, n.Args)
	if err != nil || stmt.Loop.Cols != nil {
		c.fault(line, CodeSyntax, "for is written {%% for x in list %%}, with limit:, offset: and reversed after it")
		return textNode("")
	}
	w := c.look(n.Args, line)
	if w.ranges {
		c.rangeOf(n.Args, line)
	}
	l := stmt.Loop
	c.binds(l.Variable, line)
	out := &forNode{name: l.Variable, x: c.priced(l.Expr, n.Args, line), reversed: l.Reversed}
	if l.Limit != nil {
		out.limit = c.priced(l.Limit, "", line)
	}
	if l.Offset != nil {
		out.offset = c.priced(l.Offset, "", line)
	}
	out.body = body(n.Body, loops+1)
	for i, clause := range n.Clauses {
		c.last(n, i)
		out.other = body(clause.Body, loops)
	}
	return out
}

// rangeOf checks a range in a for tag: its form, and its size where that is written.
func (c *compiler) rangeOf(args string, line int) {
	m := rangeLoop.FindStringSubmatch(args)
	if m == nil {
		c.fault(line, CodeSyntax, "a range may stand only as {%% for x in (1..n) %%}, with numbers or variables as its ends")
		return
	}
	from, err1 := strconv.Atoi(m[1])
	to, err2 := strconv.Atoi(m[2])
	if err1 == nil && err2 == nil && to >= from && uint64(to)-uint64(from) >= MaxItems { //nolint:gosec // the difference is exact in uint64
		c.fault(line, CodeLimit, "a range of more than %d numbers", MaxItems)
	}
}

// parseExpr and statement run the library's expression parser, which panics on some malformed input.
func parseExpr(src string) (x expressions.Expression, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("malformed")
		}
	}()
	return expressions.Parse(src)
}

func statement(selector, src string) (s *expressions.Statement, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("malformed")
		}
	}()
	return expressions.ParseStatement(selector, src)
}
