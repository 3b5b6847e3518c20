package campaign

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
	"github.com/expr-lang/expr/vm"

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
		return nil, told(err)
	}
	var g guard
	if ast.Walk(&tree.Node, &g); g.bad != "" {
		return nil, errors.New(g.bad)
	}
	program, err := expr.Compile(text, options...)
	if err != nil {
		return nil, told(err)
	}
	return &Filter{program}, nil
}

// told is the library's error in a line.
func told(err error) error {
	var at *file.Error
	if errors.As(err, &at) {
		return fmt.Errorf("cannot be understood at line %d, column %d: %s", at.Line, at.Column+1, at.Message)
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(first)
}

// guard finds what a filter must not hold: loops, ranges, variables, statements. The library's own switch
// for functions leaves those in that take a condition, such as all and map.
type guard struct{ bad string }

// Visit implements ast.Visitor.
func (g *guard) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.BuiltinNode:
		if !slices.Contains(builtins, n.Name) {
			g.bad = fmt.Sprintf("there is no function %s; there are %s", n.Name, strings.Join(builtins, ", "))
		}
	case *ast.BinaryNode:
		if n.Operator == ".." || n.Operator == "**" || n.Operator == "^" {
			g.bad = "there is no operator " + n.Operator
		}
	case *ast.IdentifierNode:
		if strings.HasPrefix(n.Value, "$") {
			g.bad = "there is no " + n.Value
		}
	case *ast.PredicateNode, *ast.PointerNode, *ast.VariableDeclaratorNode, *ast.SequenceNode:
		g.bad = "it must be one condition, without variables and loops"
	}
}

// Matches reports whether a recipient is meant. One for whom the condition makes no sense, a number held
// against a text, say, or an attribute that is not there, is not.
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
