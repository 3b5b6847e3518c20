package app_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfigCheck: what a start would refuse, or take for something else, is told by `config check`, in words that say
// what to write and hold no secret.
func TestConfigCheck(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"queue: 'redis://u:geheim@h/0?tls=1'":    "queue: the parameter tls must be true or false",
		"queue: 'redis://u:geheim@h/0?tsl=true'": "queue: there is no parameter tsl for redis://; there are tls, ca_file",
		"queue: 'redis://u:geheim@h/0?tls=true'": "",
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "carillon.yaml"), []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := runCommand(t, dir, "config", "check")
			if (err != nil) != (want != "") || !strings.Contains(out, want) || strings.Contains(out, "geheim") {
				t.Errorf("it says %q, %v; want %q", out, err, want)
			}
		})
	}
}
