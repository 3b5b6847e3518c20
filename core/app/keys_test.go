package app_test

import (
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const nextKey = "car_the_key_that_follows_it"

// keyed asks for the routes with a key and returns the status.
func keyed(t *testing.T, base, key string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/v1/routes", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// accepts compares the statuses of keys, by what each is.
func accepts(t *testing.T, base, when string, want map[string]int) {
	t.Helper()
	for key, status := range want {
		if got := keyed(t, base, key); got != status {
			t.Errorf("%s: the key %.20s… is answered %d, not %d", when, key, got, status)
		}
	}
}

// keyRing is one installation, with its command line.
type keyRing struct {
	t   *testing.T
	dir string // with carillon.yaml, where the commands run
	on  backing
}

func newKeyRing(t *testing.T, on backing) *keyRing {
	return &keyRing{t, t.TempDir(), on}
}

// configure writes the configuration with an api_key.
func (k *keyRing) configure(key string) {
	k.t.Helper()
	text := fmt.Sprintf("listen: 127.0.0.1:0\napi_key: %q\n%s\n", key, k.on.yaml(filepath.Join(k.dir, "data")))
	if err := os.WriteFile(filepath.Join(k.dir, "carillon.yaml"), []byte(text), 0o600); err != nil {
		k.t.Fatal(err)
	}
}

func (k *keyRing) start() *process {
	return startProcess(k.t, "orchestrator", []string{"-config", filepath.Join(k.dir, "carillon.yaml")}, nil)
}

func (k *keyRing) stop(p *process) {
	k.t.Helper()
	if err := p.interrupt(); err != nil {
		k.t.Errorf("stop: %v\n%s", err, p.said())
	}
}

func (k *keyRing) command(args ...string) string {
	k.t.Helper()
	out, err := runCommand(k.t, k.dir, append([]string{"keys"}, args...)...)
	if err != nil {
		k.t.Fatalf("keys %v: %v\n%s", args, err, out)
	}
	return out
}

var addedKey = regexp.MustCompile(`(?s)^id +([0-9a-f]{12})\n.*\nkey +(car_\w+)\n`)

func (k *keyRing) add(args ...string) (id, key string) {
	k.t.Helper()
	out := k.command(append([]string{"add"}, args...)...)
	m := addedKey.FindStringSubmatch(out)
	if m == nil {
		k.t.Fatalf("keys add says %s", out)
	}
	return m[1], m[2]
}

// idOf finds the id of the line of `keys list` that has a text.
func (k *keyRing) idOf(text string) string {
	k.t.Helper()
	list := k.command("list")
	for line := range strings.Lines(list) {
		if strings.Contains(line, text) {
			return strings.Fields(line)[0]
		}
	}
	k.t.Fatalf("no line with %q in\n%s", text, list)
	return ""
}

// TestFirstKeyChanges: a start with another api_key, or with one where one was made, withdraws the former, and
// nobody else's key.
func TestFirstKeyChanges(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, on backing) {
		k := newKeyRing(t, on)
		k.configure("")
		p := k.start()
		text, err := os.ReadFile(filepath.Join(k.dir, "data", "api-key"))
		if err != nil {
			t.Fatal(err)
		}
		made := strings.TrimSpace(string(text))
		accepts(t, p.base, "at the first start", map[string]int{made: 200, testKey: 401})
		k.stop(p)

		_, added := k.add()
		k.configure(testKey)
		p = k.start()
		accepts(t, p.base, "configured", map[string]int{made: 401, testKey: 200, added: 200})
		k.stop(p)
		p = k.start() // nothing changes
		accepts(t, p.base, "again", map[string]int{made: 401, testKey: 200, added: 200})
		k.stop(p)

		k.configure(nextKey)
		p = k.start()
		accepts(t, p.base, "changed", map[string]int{made: 401, testKey: 401, nextKey: 200, added: 200})
		k.stop(p) // after which all is here that it said
		if said := p.said(); !strings.Contains(said, "the former is withdrawn") || strings.Contains(said, testKey) || strings.Contains(said, nextKey) {
			t.Errorf("it says %s", said)
		}
		if list := k.command("list"); strings.Count(list, "\n") != 3 || strings.Contains(list, nextKey) || strings.Contains(list, added) {
			t.Errorf("the list:\n%s", list)
		}
	})
}

// TestFirstKeysOfTwo: each orchestrator of one store may have a first key of its own; the start of one leaves the
// other's alone.
func TestFirstKeysOfTwo(t *testing.T) {
	t.Parallel()
	on := servers(t)
	one, two := newKeyRing(t, on), newKeyRing(t, on)
	one.configure(testKey)
	two.configure("car_the_key_of_the_other_one")
	a := one.start()
	two.start()
	one.stop(a)
	one.configure(nextKey)
	a = one.start()
	accepts(t, a.base, "one of two changed", map[string]int{testKey: 401, nextKey: 200, "car_the_key_of_the_other_one": 200})
}

// TestRotation is docs/operations.md's: the new key is added, clients change over, then it is configured, and the
// old one is revoked while the orchestrator runs.
func TestRotation(t *testing.T) {
	t.Parallel()
	k := newKeyRing(t, servers(t))
	k.configure(testKey)
	p := k.start()
	_, fresh := k.add()
	accepts(t, p.base, "both", map[string]int{testKey: 200, fresh: 200})
	out := k.command("revoke", k.idOf("api_key"))
	if !strings.Contains(out, "the next start puts it back") {
		t.Errorf("revoke of the configured key says %s", out)
	}
	eventually(t, 30*time.Second, "the old key is refused", func() bool { return keyed(t, p.base, testKey) == http.StatusUnauthorized })
	accepts(t, p.base, "after it", map[string]int{fresh: 200})
	k.stop(p)

	k.configure(fresh)
	p = k.start()
	accepts(t, p.base, "configured", map[string]int{testKey: 401, fresh: 200})
	if id := k.idOf("api_key"); id == "" || strings.Count(k.command("list"), "\n") != 2 {
		t.Errorf("the list:\n%s", k.command("list"))
	}
}

// TestKeysOfSQLite: while an orchestrator has the store the command says what to do, and does nothing.
func TestKeysOfSQLite(t *testing.T) {
	t.Parallel()
	k := newKeyRing(t, backing{})
	k.configure(testKey)
	refuse := func(want string, args ...string) {
		t.Helper()
		out, err := runCommand(t, k.dir, append([]string{"keys"}, args...)...)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("keys %v: %v %s", args, err, out)
		}
	}
	refuse("there is no store at", "list")
	if _, err := os.Stat(filepath.Join(k.dir, "data")); !os.IsNotExist(err) {
		t.Errorf("the command made a data directory: %v", err)
	}
	p := k.start()
	for _, args := range [][]string{{"list"}, {"add"}, {"revoke", "0123456789ab"}} {
		refuse("stop the orchestrator, run this command again, and start it", args...)
	}
	k.stop(p)
	refuse("there is no key with that id", "revoke", testKey)
	refuse("there is no key with that id", "revoke", "")
	refuse(`there is no scope "write"`, "add", "--scopes", "write")
	refuse("--scopes: name one", "add", "--scopes", "")
	refuse("--app:", "add", "--app", "a b")
	id, reader := k.add("--app", "shop", "--scopes", "read,read")
	_, operator := k.add("--scopes", "admin,send")
	if line := k.command("list"); !regexp.MustCompile(id+` +shop +read +20\S+Z +-\n`).MatchString(line) || !regexp.MustCompile(`default +send,admin +20`).MatchString(line) {
		t.Errorf("the list:\n%s", line)
	}
	p = k.start()
	accepts(t, p.base, "added", map[string]int{testKey: 200, reader: 403, operator: 200})
	k.stop(p)
	k.command("revoke", strings.ToUpper(id))
	p = k.start()
	accepts(t, p.base, "revoked", map[string]int{testKey: 200, reader: 401, operator: 200})
}

// TestOneLogin: who logged in at one orchestrator is logged in at the other of the same PostgreSQL.
func TestOneLogin(t *testing.T) {
	t.Parallel()
	on := servers(t)
	var bases []string
	for range 2 {
		_, c := startApp(t, on.set)
		bases = append(bases, c.base)
	}
	jar, err := cookiejar.New(nil) // of the host: ports are all one to cookies
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	do := func(method, url, form string, want int) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(form))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := browser.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s %s answered %d, not %d", method, url, resp.StatusCode, want)
		}
	}
	do(http.MethodGet, bases[1]+"/console/", "", http.StatusSeeOther)
	do(http.MethodPost, bases[0]+"/console/login", url.Values{"key": {testKey}}.Encode(), http.StatusSeeOther)
	for _, base := range bases {
		do(http.MethodGet, base+"/console/", "", http.StatusOK)
	}
}
