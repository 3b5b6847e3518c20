package host_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
)

// TestHandshake has programs that do not become a plugin: each is refused, and says why.
func TestHandshake(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		part, arg string
		want      string
	}{
		"a TCP listener":         {"greet", "1|1|tcp|127.0.0.1:4711|grpc|", "it must listen on a unix socket"},
		"a socket elsewhere":     {"greet", "1|1|unix|/var/run/docker.sock|grpc|", "it must listen on a unix socket"},
		"a socket further up":    {"greet", "1|1|unix|DIR/../other|grpc|", "it must listen on a unix socket"},
		"net/rpc":                {"greet", "1|1|unix|DIR/plugin|netrpc|", `unsupported plugin protocol "netrpc"`},
		"net/rpc unsaid":         {"greet", "1|1|unix|DIR/plugin", `unsupported plugin protocol "netrpc"`},
		"another version":        {"greet", "1|7|unix|DIR/plugin|grpc|", "Plugin version: 7, Client versions: [1]"},
		"another go-plugin":      {"greet", "2|1|unix|DIR/plugin|grpc|", "Plugin version: 2, Core version: 1"},
		"nobody at the socket":   {"greet", "1|1|unix|DIR/plugin|grpc|", "no such file or directory"},
		"no handshake":           {"mute", "", "it was not ready within 1s"},
		"another line":           {"greet", "hello, host|1", "it was not ready within 1s"},
		"no TLS":                 {"plaintext", "", "first record does not look like a TLS handshake"},
		"an untold certificate":  {"own-tls", "", "tls: "},
		"a kind's name":          {"described", `{"Name":"SMS Gateway"}`, `its kind's name "SMS Gateway" is not of lower-case letters`},
		"no name":                {"described", `{"Name":""}`, `its kind's name "" is not`},
		"a channel":              {"described", `{"Channel":"a/b"}`, `its channel's name "a/b" is not`},
		"no batches":             {"described", `{"MaxBatch":0}`, "its batches are of 0 messages; they must be of 1 to 100"},
		"large batches":          {"described", `{"MaxBatch":101}`, "its batches are of 101 messages"},
		"an address pattern":     {"described", `{"Address":"("}`, "its address pattern: error parsing regexp"},
		"a schema":               {"described", `{"Content":"WzFd"}`, "its content schema is no JSON object"},
		"a setting's type":       {"described", `{"Settings":[{"Name":"a","Type":"float"}]}`, `its setting "a" is of the type "float", which is none of`},
		"a setting without name": {"described", `{"Settings":[{"Type":"string"}]}`, `its setting "" is of`},
		"a setting twice":        {"described", `{"Settings":[{"Name":"a","Type":"string"},{"Name":"a","Type":"int"}]}`, `its setting "a" is there twice`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := spec(t, test.part, test.arg)
			if strings.Contains(test.want, "not ready") {
				s.Timing.Start = time.Second
			}
			_, err := host.Describe(t.Context(), s)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestChatty has a plugin that prints what it likes before it shakes hands.
func TestChatty(t *testing.T) {
	t.Parallel()
	s := spec(t, "chatty")
	l := newLog(t)
	s.Logger = l.logger()
	pidOf(t, open(t, s, `{}`))
	texts := map[string]bool{}
	for _, r := range l.find("the plugin wrote") {
		texts[fmt.Sprint(attr(r, "text"))] = true
	}
	for _, want := range []string{"Loading model weights ... 100 %", "no newline at the end of this one", strings.Repeat("x", 8<<10)} {
		if !texts[want] {
			t.Errorf("%.40q is not in the log", want)
		}
	}
}

// TestEnvironment looks at what a plugin sees of the world: its own directory and nothing of the host's.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	at := filepath.Join(t.TempDir(), "sight")
	s := spec(t, "environment", at)
	s.Memory = 1 << 30
	open(t, s, `{"key":"sesame-sesame"}`)
	b, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	var saw sight
	if err := json.Unmarshal(b, &saw); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	for _, v := range saw.Environ {
		name, value, _ := strings.Cut(v, "=")
		if _, twice := names[name]; twice {
			t.Errorf("%s is there twice", name)
		}
		names[name] = value
	}
	dir := names["PLUGIN_UNIX_SOCKET_DIR"]
	if !strings.HasPrefix(dir, filepath.Join(os.TempDir(), dirPrefix())) {
		t.Errorf("its directory is %q", dir)
	}
	if !strings.Contains(names["PLUGIN_CLIENT_CERT"], "BEGIN CERTIFICATE") || strings.Contains(names["PLUGIN_CLIENT_CERT"], "PRIVATE") {
		t.Error("PLUGIN_CLIENT_CERT is no certificate alone")
	}
	delete(names, "PLUGIN_CLIENT_CERT")
	want := map[string]string{
		"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": dir, "TMPDIR": dir, "GOMEMLIMIT": fmt.Sprint(1 << 30 / 10 * 9),
		"CARILLON_PLUGIN": names["CARILLON_PLUGIN"], "PLUGIN_MIN_PORT": "10000", "PLUGIN_MAX_PORT": "25000", "PLUGIN_PROTOCOL_VERSIONS": "1",
		"PLUGIN_UNIX_SOCKET_DIR": dir,
	}
	if d := cmp.Diff(want, names); d != "" {
		t.Error(d)
	}
	if saw.DirMode != os.ModeDir|0o700 {
		t.Errorf("the mode of its directory is %s", saw.DirMode)
	}
	for fd, to := range saw.Files {
		switch {
		case fd == "0" && to == "/dev/null", (fd == "1" || fd == "2") && strings.HasPrefix(to, "pipe:"):
		case strings.HasPrefix(to, "anon_inode:"), strings.HasPrefix(to, "/proc/"), strings.HasPrefix(to, "/sys/"): // of its own runtime
		default:
			t.Errorf("it holds %s, which is %s", fd, to)
		}
	}
}

// TestSettings opens with wrong settings, and with a panic: the error says so, without the secrets.
func TestSettings(t *testing.T) {
	t.Parallel()
	kind, err := host.Describe(t.Context(), spec(t, "obedient"))
	if err != nil {
		t.Fatal(err)
	}
	for greeting, want := range map[string]string{
		"wrong": `the settings of plugin obedient: greeting: "wrong" is not polite; neither is ***`,
		"panic": "the settings of plugin obedient: Open panicked: string",
	} {
		_, err := kind.Open(t.Context(), []byte(`{"greeting":"`+greeting+`","key":"sesame-sesame"}`))
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v", greeting, err)
		}
	}
}

// TestCancelled gives up a start, before it and while it is under way.
func TestCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := host.Describe(ctx, spec(t, "obedient")); !errors.Is(err, context.Canceled) {
		t.Errorf("described: %v", err)
	}
	if _, err := host.Isolate(obedientKind(), spec(t, "obedient")).Open(ctx, []byte(`{}`)); !errors.Is(err, context.Canceled) {
		t.Errorf("opened: %v", err)
	}
	began := time.Now()
	if _, err := host.Describe(ctx, spec(t, "mute")); !errors.Is(err, context.Canceled) { // it would never say anything
		t.Errorf("described: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := host.Describe(ctx, spec(t, "mute")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("described: %v", err)
	}
	if took := time.Since(began); took > quick.Start/2 {
		t.Errorf("a start was given up after %s", took)
	}
}

// TestShapeShifter has a file that is of another kind when it is started again.
func TestShapeShifter(t *testing.T) {
	t.Parallel()
	sign := filepath.Join(t.TempDir(), "sign")
	s := spec(t, "shape-shifter", sign)
	p := open(t, s, `{}`)
	pid := pidOf(t, p)
	if err := os.WriteFile(sign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kill(t, pid, syscall.SIGKILL)
	eventually(t, "the quarantine", func() bool {
		got, _ := deliver(t, p, patient, messages("a"))
		return strings.Contains(got["id-0"].Reason, "the file is of another kind now: other of the channel test")
	})
}

// TestDigest starts the file that the configuration names, and no other.
func TestDigest(t *testing.T) {
	t.Parallel()
	s := spec(t, "obedient")
	digest, err := host.Digest(s.Command)
	if err != nil {
		t.Fatal(err)
	}
	// A copy, which is replaced later on.
	dir := t.TempDir()
	copied := filepath.Join(dir, "plugin")
	if err := os.Link(s.Command, copied); err != nil {
		copyFile(t, s.Command, copied)
	}
	s.Command = copied
	for _, wrong := range []string{strings.Repeat("0", 64), digest[1:] + "0"} {
		s.SHA256 = wrong
		if _, err := host.Describe(t.Context(), s); !errors.Is(err, host.ErrDigest) || !strings.Contains(err.Error(), digest) {
			t.Errorf("another file is described: %v", err)
		}
	}
	for _, malformed := range []string{"abc", digest + "00", strings.Repeat("x", 64)} {
		s.SHA256 = malformed
		if _, err := host.Describe(t.Context(), s); err == nil || !strings.Contains(err.Error(), "64 hexadecimal digits") {
			t.Errorf("the digest %q: %v", malformed, err)
		}
	}
	s.SHA256 = " " + strings.ToUpper(digest) + "\n"
	p := open(t, s, `{}`)
	pid := pidOf(t, p)
	if err := os.WriteFile(copied+".new", []byte("#!/bin/sh\ntouch "+dir+"/ran\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(copied+".new", 0o755), os.Rename(copied+".new", copied)); err != nil {
		t.Fatal(err)
	}
	kill(t, pid, syscall.SIGKILL)
	var got answers
	eventually(t, "the quarantine", func() bool {
		got, _ = deliver(t, p, patient, messages("a"))
		return got["id-0"].Outcome == providers.Denied
	})
	if r := got["id-0"]; !strings.Contains(r.Reason, host.ErrDigest.Error()) {
		t.Errorf("a file that was replaced: %+v", r)
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("the file that took its place was run")
	}
	// Opened without a description, it is denied at once.
	q := openKind(t, host.Isolate(obedientKind(), s), `{}`)
	if got, err := deliver(t, q, patient, messages("a")); err != nil || got["id-0"].Outcome != providers.Denied {
		t.Errorf("another file: %v, %v", got, err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestWhoMayWrite refuses what others may change.
func TestWhoMayWrite(t *testing.T) {
	t.Parallel()
	const script = "#!/bin/sh\nexit 9\n"
	for name, test := range map[string]struct {
		file, dir, above os.FileMode
		want             string // "": it is run, and ends
	}{
		"nobody":                        {0o755, 0o755, 0o755, ""},
		"a sticky directory":            {0o755, os.ModeSticky | 0o777, 0o755, ""},
		"the file, its group":           {0o775, 0o755, 0o755, "chmod go-w it"},
		"the file, all":                 {0o757, 0o755, 0o755, "chmod go-w it"},
		"a sticky file":                 {os.ModeSticky | 0o777, 0o755, 0o755, "chmod go-w it"},
		"the directory, its group":      {0o755, 0o775, 0o755, "chmod go-w it"},
		"the directory, all":            {0o755, 0o777, 0o755, "chmod go-w it"},
		"the directory further up, all": {0o755, 0o755, 0o777, "chmod go-w it"},
		"not executable":                {0o644, 0o755, 0o755, "chmod +x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			above := t.TempDir()
			lay(t, above, map[string]file{"dir/plugin": {mode: test.file, text: script}})
			if err := errors.Join(os.Chmod(filepath.Join(above, "dir"), test.dir), os.Chmod(above, test.above)); err != nil {
				t.Fatal(err)
			}
			s := spec(t, "plugin")
			s.Command = filepath.Join(above, "dir", "plugin")
			_, err := host.Describe(t.Context(), s)
			want := test.want
			if want == "" {
				want = "exit code 9"
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestDir makes the private directories where it is told, clears away what a host that was killed left
// there, and says so where sockets do not fit.
func TestDir(t *testing.T) {
	t.Parallel()
	base, err := os.MkdirTemp("", "d") // the test's own name is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	lay(t, base, map[string]file{
		"carillon-plugin-999999-1/plugin1": {mode: 0o600}, "carillon-plugin-" + fmt.Sprint(os.Getpid()) + "-12/plugin1": {mode: 0o600},
		"carillon-plugin-backup/file": {mode: 0o600}, "carillon-plugin-7-7": {mode: 0o600}, "carillon-plugin-8-8": {link: "carillon-plugin-backup"},
	})
	s := spec(t, "obedient")
	s.Dir = base
	p := open(t, s, `{}`)
	q := open(t, s, `{}`) // its sweep leaves the other's alone
	pidOf(t, p)
	names := func() (out []string) {
		entries, err := os.ReadDir(base)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := e.Name()
			if strings.HasPrefix(name, dirPrefix()) {
				name = "own"
			}
			out = append(out, name)
		}
		slices.Sort(out)
		return out
	}
	kept := []string{"carillon-plugin-7-7", "carillon-plugin-8-8", "carillon-plugin-backup"}
	if d := cmp.Diff(append(slices.Clone(kept), "own", "own"), names()); d != "" {
		t.Error(d)
	}
	if err := errors.Join(p.Close(t.Context()), q.Close(t.Context())); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(kept, names()); d != "" {
		t.Error(d)
	}
	s.Dir = filepath.Join(base, strings.Repeat("deep", 20))
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Describe(t.Context(), s); err == nil || !strings.Contains(err.Error(), "give plugins a shorter one") {
		t.Errorf("a deep directory: %v", err)
	}
}
