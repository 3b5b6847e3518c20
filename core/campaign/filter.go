package campaign

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
	"github.com/expr-lang/expr/vm"
	"github.com/expr-lang/expr/vm/runtime"

	"github.com/carillon-notify/carillon/core"
)

// Bounds of a filter. One has no loops, so that its cost is bounded by its length and the attributes'.
const (
	maxFilter      = 2000 // bytes
	maxFilterNodes = 400
)

// filterEnv is what a filter sees of a recipient.
type filterEnv struct {
	ID         string         `expr:"id"`
	Locale     string         `expr:"locale"`
	Timezone   string         `expr:"timezone"`
	Attributes map[string]any `expr:"attributes"`
}

// builtins are the functions that a filter may call: none of them loops over a closure or grows memory.
var builtins = []string{"len", "lower", "upper", "hasPrefix", "hasSuffix", "trim", "int", "float", "string", "abs"}

// Filter is a condition on a recipient, such as: attributes.plan == "pro" and attributes.age >= 18.
type Filter struct{ program *vm.Program }

// NewFilter compiles a filter. The error says what is wrong and where, in a line.
func NewFilter(text string) (*Filter, error) {
	if len(text) > maxFilter {
		return nil, fmt.Errorf("has %d bytes, more than %d", len(text), maxFilter)
	}
	options := []expr.Option{expr.Env(filterEnv{}), expr.AsBool(), expr.MaxNodes(maxFilterNodes), expr.DisableAllBuiltins()}
	for _, name := range builtins {
		options = append(options, expr.EnableBuiltin(name))
	}
	tree, err := parser.Parse(text) // looked at before anything of it is worked out
	if err != nil {
		return nil, told(text, err)
	}
	var g guard
	if ast.Walk(&tree.Node, &g); g.bad != "" {
		return nil, errors.New(g.bad)
	}
	program, err := expr.Compile(text, options...)
	if err == nil && g.divides { // only now: the types of a call are not checked as those of an operator are
		program, err = expr.Compile(text, append(options, expr.Patch(divider{}), expr.Function(divideName, divide, new(func(any, any) float64)))...)
	}
	if err != nil {
		return nil, told(text, err)
	}
	return &Filter{program}, nil
}

// divideName is what the function that divides is called: no filter can name it.
const divideName = "/"

// divider has divisions done by divide.
type divider struct{}

// Visit implements ast.Visitor.
func (divider) Visit(node *ast.Node) {
	if n, ok := (*node).(*ast.BinaryNode); ok && n.Operator == "/" {
		ast.Patch(node, &ast.CallNode{Callee: &ast.IdentifierNode{Value: divideName}, Arguments: []ast.Node{n.Left, n.Right}})
	}
}

var errNoNumber = errors.New("the quotient is no number")

// divide is the library's division, but for what has no result: infinity is more than any number, and would mean
// everybody.
func divide(of ...any) (any, error) {
	q := runtime.Divide(of[0], of[1]) // it panics on what is no number, which fails the filter
	if math.IsInf(q, 0) || math.IsNaN(q) {
		return nil, errNoNumber
	}
	return q, nil
}

// told is the library's error in a line, with what to write instead where that can be guessed.
func told(text string, err error) error {
	var at *file.Error
	if errors.As(err, &at) {
		return fmt.Errorf("cannot be understood at line %d, column %d: %s", at.Line, at.Column+1, cmp.Or(hint([]rune(text), at.From), at.Message))
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(first)
}

// hint tells what is wrong with a text that is not understood from a place on; "" if that is nothing common.
func hint(text []rune, from int) string {
	if from >= len(text) {
		return ""
	}
	rest := string(text[from:])
	if strings.HasPrefix(rest, "=") && !strings.HasPrefix(rest, "==") && (from == 0 || !strings.ContainsRune("=!<>", text[from-1])) {
		return "there is no operator =; use == to compare"
	}
	for _, word := range []string{"AND", "OR", "NOT", "IN"} {
		if strings.HasPrefix(rest, word+" ") {
			return fmt.Sprintf("write %s in small letters", word)
		}
	}
	return ""
}

// guard finds what a filter must not hold: loops, ranges, variables, statements. The library's own switch
// for functions leaves those in that take a condition, such as all and map.
type guard struct {
	bad     string
	divides bool
}

// names are what a filter may name.
var names = []string{"id", "locale", "timezone", "attributes"}

// Visit implements ast.Visitor.
func (g *guard) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.BuiltinNode:
		if !slices.Contains(builtins, n.Name) {
			g.noFunction(n.Name)
		}
	case *ast.CallNode:
		if callee, ok := n.Callee.(*ast.IdentifierNode); ok {
			g.noFunction(callee.Value)
		}
	case *ast.BinaryNode:
		if n.Operator == ".." || n.Operator == "**" || n.Operator == "^" {
			g.bad = "there is no operator " + n.Operator
		}
		if n.Operator == "/" || n.Operator == "%" {
			g.divides = true
			if isZero(n.Right) {
				g.bad = "nothing can be divided by zero"
			}
		}
	case *ast.IdentifierNode:
		if !slices.Contains(names, n.Value) {
			g.bad = fmt.Sprintf("there is no name %s; there are %s, and what attributes hold is named like attributes.plan", n.Value, strings.Join(names, ", "))
		}
	case *ast.PredicateNode, *ast.PointerNode, *ast.VariableDeclaratorNode, *ast.SequenceNode:
		g.bad = "it must be one condition, without variables and loops"
	}
}

func (g *guard) noFunction(name string) {
	g.bad = fmt.Sprintf("there is no function %s; there are %s", name, strings.Join(builtins, ", "))
}

func isZero(node ast.Node) bool {
	switch n := node.(type) {
	case *ast.IntegerNode:
		return n.Value == 0
	case *ast.FloatNode:
		return n.Value == 0
	}
	return false
}

// Matches reports whether a recipient is meant. One for whom the condition makes no sense, a number held
// against a text, say, an attribute that is not there, or a division by zero, is not.
func (f *Filter) Matches(r *core.Recipient) bool {
	env := filterEnv{ID: r.ID, Locale: r.Locale, Timezone: r.Timezone, Attributes: map[string]any{}}
	if len(r.Attributes) > 0 {
		if err := json.NewDecoder(bytes.NewReader(r.Attributes)).Decode(&env.Attributes); err != nil {
			return false
		}
	}
	out, err := expr.Run(f.program, env)
	yes, ok := out.(bool)
	return err == nil && ok && yes
}
