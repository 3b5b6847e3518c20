package host

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// pinSuffix ends the name of the file that pins the one it is named after.
const pinSuffix = ".sha256"

// entryPoint is what is run of a plugin that is a directory.
const entryPoint = "plugin"

// maxPin bounds what is read of a pin, in bytes.
const maxPin = 4 << 10

// Found is a plugin that lies in a directory.
type Found struct {
	// Name is the base name of the file, or of its directory, in lower case and without extension.
	Name string
	// Path is the file to run: Spec.Command.
	Path string
	// SHA256 is the digest that the file beside it asks for, "" where there is none: Spec.SHA256.
	SHA256 string
	// Err says why it cannot be run as it lies there, and what to do.
	Err error
}

// Discover lists the plugins in a directory, sorted by name. A plugin is an executable file, or a
// directory that holds one named "plugin", so that a script can have its modules beside it. A file named
// like it with ".sha256" added, as sha256sum writes it, pins it. Names that start with a dot are left
// out, and so is every other file. A directory that does not exist holds none; one that others may write
// is an error, for they would decide what this server runs. Nothing is started, and no file is digested.
func Discover(dir string) ([]Found, error) {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look into the plugins directory: %w", err)
	}
	// A sticky directory would do for a file that is named; here whatever is put into it would be run.
	if err := unshared(dir, info); err != nil {
		return nil, fmt.Errorf("the plugins directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look into the plugins directory: %w", err)
	}
	var out []Found
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if f, ok := found(dir, e.Name()); ok {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b Found) int {
		return strings.Compare(a.Name+"\x00"+a.Path, b.Name+"\x00"+b.Path)
	})
	for i := 1; i < len(out); i++ {
		if a, b := &out[i-1], &out[i]; a.Name == b.Name {
			a.Err = errors.Join(a.Err, fmt.Errorf("%s has the same name; rename one of them", b.Path))
			b.Err = errors.Join(b.Err, fmt.Errorf("%s has the same name; rename one of them", a.Path))
		}
	}
	return out, nil
}

// found looks at one entry, and reports whether it is a plugin, or was meant to be one.
func found(dir, entry string) (Found, bool) {
	path := filepath.Join(dir, entry)
	if file, isPin := strings.CutSuffix(path, pinSuffix); isPin {
		// The one it pins is found by its own name. A pin alone is a plugin that was lost on its way.
		if info, err := os.Stat(file); err == nil && runnable(info) {
			return Found{}, false
		}
		return Found{Name: pluginName(file), Path: file, Err: fmt.Errorf("%s pins it, and it is no executable file; put it there and chmod +x it", path)}, true
	}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		path = filepath.Join(path, entryPoint)
		if _, err = os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return Found{}, false
		}
	} else if err == nil && !runnable(info) {
		return Found{}, false
	}
	f := Found{Name: pluginName(entry), Path: path}
	if !namePattern.MatchString(f.Name) {
		f.Err = fmt.Errorf("the name %.70q is not of lower-case letters, digits, '-' and '_'; rename %s", f.Name, path)
		return f, true
	}
	if err != nil {
		f.Err = fmt.Errorf("look at the plugin's file: %w", err)
		return f, true
	}
	if _, f.Err = located(path); f.Err == nil {
		f.SHA256, f.Err = pin(path)
	}
	return f, true
}

func runnable(info fs.FileInfo) bool {
	return info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

func pluginName(path string) string {
	base := filepath.Base(path)
	return strings.ToLower(strings.TrimSuffix(base, filepath.Ext(base)))
}

// pin reads the digest beside a file, "" if there is none.
func pin(path string) (string, error) {
	at := path + pinSuffix
	info, err := os.Stat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look at the plugin's pin: %w", err)
	}
	if err := unshared(at, info); err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxPin {
		return "", fmt.Errorf("%s is no file of one line; write it with sha256sum", at)
	}
	b, err := os.ReadFile(at)
	if err != nil {
		return "", fmt.Errorf("read the plugin's pin: %w", err)
	}
	// "DIGEST  NAME", or "DIGEST *NAME" for one read as binary; the name may be left out.
	digest, name, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	if raw, err := hex.DecodeString(digest); err != nil || len(raw) != 32 || strings.Contains(name, "\n") {
		return "", fmt.Errorf("%s does not hold one SHA-256; write it with sha256sum", at)
	}
	if name = strings.TrimLeft(name, " *"); name != "" && filepath.Base(name) != filepath.Base(path) {
		return "", fmt.Errorf("%s is of a file named %.100q, not of %s; write it with sha256sum", at, name, filepath.Base(path))
	}
	return strings.ToLower(digest), nil
}
