package host_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/plugins/host"
)

// lay writes files into a directory: by name, their mode and text.
func lay(t *testing.T, dir string, files map[string]file) {
	t.Helper()
	for name, f := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if f.link != "" {
			if err := os.Symlink(f.link, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(f.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, f.mode); err != nil { // not through the umask
			t.Fatal(err)
		}
	}
}

type file struct {
	mode os.FileMode
	text string
	link string
}

func TestDiscover(t *testing.T) {
	t.Parallel()
	const digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	type want struct{ Name, Path, SHA256, Err string } // Err: what it has in it
	for name, test := range map[string]struct {
		files map[string]file
		want  []want
	}{
		"nothing": {},
		"files, sorted, and what is none": {
			files: map[string]file{
				"twilio": {mode: 0o755}, "Ntfy.PY": {mode: 0o700}, "README.md": {mode: 0o644}, ".hidden": {mode: 0o755}, "empty/readme": {mode: 0o755},
			},
			want: []want{{Name: "ntfy", Path: "Ntfy.PY"}, {Name: "twilio", Path: "twilio"}},
		},
		"a directory with modules": {
			files: map[string]file{"slack.d/plugin": {mode: 0o755}, "slack.d/module": {mode: 0o755}, ".git/plugin": {mode: 0o755}},
			want:  []want{{Name: "slack", Path: "slack.d/plugin"}},
		},
		"links": {
			files: map[string]file{"sms": {link: ".store/sms-1.2"}, ".store/sms-1.2": {mode: 0o755}, "broken": {link: "nowhere"}},
			want:  []want{{Name: "broken", Path: "broken", Err: "no such file"}, {Name: "sms", Path: "sms"}},
		},
		"pins": {
			files: map[string]file{
				"a": {mode: 0o755}, "a.sha256": {mode: 0o644, text: strings.ToUpper(digest) + "\n"},
				"b.py": {mode: 0o755}, "b.py.sha256": {mode: 0o644, text: digest + "  ./b.py\n"},
				"c/plugin": {mode: 0o755}, "c/plugin.sha256": {mode: 0o644, text: digest + " *plugin"},
			},
			want: []want{{Name: "a", Path: "a", SHA256: digest}, {Name: "b", Path: "b.py", SHA256: digest}, {Name: "c", Path: "c/plugin", SHA256: digest}},
		},
		"pins that will not do": {
			files: map[string]file{
				"empty": {mode: 0o755}, "empty.sha256": {mode: 0o644},
				"long": {mode: 0o755}, "long.sha256": {mode: 0o644, text: strings.Repeat(digest+"\n", 100)},
				"lost.sha256": {mode: 0o644, text: digest},
				"two":         {mode: 0o755}, "two.sha256": {mode: 0o644, text: digest + "  two\n" + digest + "  three\n"},
				"other": {mode: 0o755}, "other.sha256": {mode: 0o644, text: digest + "  another"},
				"plain": {mode: 0o644}, "plain.sha256": {mode: 0o644, text: digest},
				"public": {mode: 0o755}, "public.sha256": {mode: 0o666, text: digest},
				"short": {mode: 0o755}, "short.sha256": {mode: 0o644, text: digest[:62]},
			},
			want: []want{
				{Name: "empty", Path: "empty", Err: "one SHA-256"}, {Name: "long", Path: "long", Err: "one line"}, {Name: "lost", Path: "lost", Err: "chmod +x"},
				{Name: "other", Path: "other", Err: `named "another"`}, {Name: "plain", Path: "plain", Err: "chmod +x"},
				{Name: "public", Path: "public", Err: "chmod go-w"}, {Name: "short", Path: "short", Err: "one SHA-256"}, {Name: "two", Path: "two", Err: "one SHA-256"},
			},
		},
		"what cannot be run as it lies there": {
			files: map[string]file{
				"shared": {mode: 0o775}, "sms.py": {mode: 0o755}, "SMS.sh": {mode: 0o755}, "a name": {mode: 0o755}, "d/plugin": {mode: 0o644},
				"sticky": {mode: os.ModeSticky | 0o777},
			},
			want: []want{
				{Name: "a name", Path: "a name", Err: "lower-case letters"}, {Name: "d", Path: "d/plugin", Err: "chmod +x"}, {Name: "shared", Path: "shared", Err: "chmod go-w"},
				{Name: "sms", Path: "SMS.sh", Err: "same name"}, {Name: "sms", Path: "sms.py", Err: "same name"}, {Name: "sticky", Path: "sticky", Err: "chmod go-w"},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			lay(t, dir, test.files)
			found, err := host.Discover(dir)
			if err != nil {
				t.Fatal(err)
			}
			var got []want
			for i, f := range found {
				rel, err := filepath.Rel(dir, f.Path)
				if err != nil {
					t.Fatal(err)
				}
				w := want{Name: f.Name, Path: rel, SHA256: f.SHA256}
				if f.Err != nil {
					w.Err = f.Err.Error()
				}
				if i < len(test.want) && test.want[i].Err != "" && strings.Contains(w.Err, test.want[i].Err) {
					w.Err = test.want[i].Err
				}
				got = append(got, w)
			}
			if d := cmp.Diff(test.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestDiscoverDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if found, err := host.Discover(filepath.Join(dir, "missing")); err != nil || found != nil {
		t.Errorf("a missing directory: %v, %v", found, err)
	}
	for _, mode := range []os.FileMode{0o777, 0o775, os.ModeSticky | 0o777} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := host.Discover(dir); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
			t.Errorf("a directory of mode %s: %v", mode, err)
		}
	}
	lay(t, dir, map[string]file{"file": {mode: 0o755}})
	if _, err := host.Discover(filepath.Join(dir, "file")); err == nil {
		t.Error("a file is taken for a directory")
	}
	// Whoever may write further up can put another directory in this one's place.
	lay(t, dir, map[string]file{"plugins/sms": {mode: 0o755}})
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	found, err := host.Discover(filepath.Join(dir, "plugins"))
	if err != nil || len(found) != 1 || found[0].Err == nil || !strings.Contains(found[0].Err.Error(), dir+" may be written by others") {
		t.Errorf("a directory below one that others may write: %v, %v", found, err)
	}
}
