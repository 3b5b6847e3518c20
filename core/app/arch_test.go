package app_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/carillon-notify/carillon/"

// imports are what each package of ours imports, tests left out.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		all[strings.TrimPrefix(fields[0], module)] = fields[1:]
	}
	if len(all) < 20 {
		t.Fatalf("go list found %d packages only", len(all))
	}
	return all
}

// floor is how high in the house a package stands; imports go downward or stay on the floor.
func floor(pkg string) int {
	for i, tops := range [][]string{{"providers"}, {"plugins", "templates"}, {"core"}, {"cmd"}} {
		for _, top := range tops {
			if pkg == top || strings.HasPrefix(pkg, top+"/") {
				return i
			}
		}
	}
	return -1
}

// TestHouse holds the house of docs/architecture.md: no arrow up, one door for each big dependency, use cases that know
// no adapter. (The compiler refuses cycles.)
func TestHouse(t *testing.T) {
	t.Parallel()
	doors := map[string][]string{
		"github.com/hibiken/":            {"core/queue", "core/console"},
		"database/sql":                   {"core/store"},
		"github.com/jackc/pgx":           {"core/store"},
		"modernc.org/sqlite":             {"core/store"},
		"github.com/hashicorp/go-plugin": {"plugins/wire", "plugins/sdk", "plugins/host"},
		module + "providers/redistls":    {"core/queue", "providers/websocket"},
	}
	for pkg, list := range imports(t) {
		for _, imported := range list {
			ours, isOurs := strings.CutPrefix(imported, module)
			if isOurs && floor(ours) > floor(pkg) {
				t.Errorf("%s imports %s, which stands above it", pkg, ours)
			}
			if isOurs && pkg == "core" && ours != "providers" {
				t.Errorf("the domain imports %s", ours)
			}
			if pkg == "providers" && strings.Contains(imported, ".") {
				t.Errorf("the contract imports %s, which is not of the standard library", imported)
			}
			for dependency, through := range doors {
				if strings.HasPrefix(imported, dependency) && !slices.Contains(through, pkg) {
					t.Errorf("%s imports %s, whose door is %v", pkg, imported, through)
				}
			}
			useCase := slices.Contains([]string{"core/intake", "core/dispatch"}, pkg)
			if useCase && (imported == "net/http" || slices.Contains([]string{"core/store", "core/queue", "core/gate", "core/api"}, ours)) {
				t.Errorf("use case %s imports the adapter %s", pkg, imported)
			}
		}
	}
}

// TestPluginIsLight holds what a third party's plugin drags in of ours: the contract and the way to serve it.
func TestPluginIsLight(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", module+"plugins/sdk", module+"plugins/examples/sms", module+"plugins/examples/webhook").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var ours []string
	for line := range strings.Lines(string(out)) {
		if pkg, ok := strings.CutPrefix(strings.TrimSpace(line), module); ok {
			ours = append(ours, pkg)
		}
	}
	slices.Sort(ours)
	want := []string{"plugins/examples/sms", "plugins/examples/webhook", "plugins/providerv1", "plugins/sdk", "plugins/wire", "providers"}
	if !slices.Equal(ours, want) {
		t.Errorf("a plugin drags in %v; want %v", ours, want)
	}
}
