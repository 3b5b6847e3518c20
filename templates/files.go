package templates

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

// shippedFiles are the layouts and example templates that come with the server.
//
//go:embed shipped shipped/_layouts
var shippedFiles embed.FS

const (
	layoutDir = "_layouts"
	// MaxFile bounds a template's file, in bytes.
	MaxFile = 2 << 20
)

// validName is what a template may be called: it is a file's name and stands in URLs.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// ValidName says whether a template may have this name: 1 to 100 letters, digits, '.', '_' and '-', the
// first a letter or a digit.
func ValidName(name string) bool { return validName.MatchString(name) }

// files are the templates and layouts of one directory.
type files struct {
	sources map[string]Source
	from    map[string]string // the files' names
	layouts map[string]Layout
	// partials are what templates and layouts include.
	partials map[string]string
}

// readFiles reads a directory: <name>.yaml, .yml or .json for templates, _layouts/<name>.html and .txt, and
// _partials/<name>.liquid. Other files are left alone. What is wrong is added to f, and does not hide the rest.
func readFiles(dir fs.FS, f *faults) *files {
	out := &files{sources: map[string]Source{}, from: map[string]string{}, layouts: map[string]Layout{}, partials: map[string]string{}}
	out.readPartials(dir, f)
	out.readLayouts(dir, f)
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			f.file(".", CodeEncoding, "the directory cannot be read: %s", reason(err))
		}
		return out
	}
	for _, e := range entries {
		file := e.Name()
		ext := path.Ext(file)
		name := strings.TrimSuffix(file, ext)
		if ext != ".yaml" && ext != ".yml" && ext != ".json" || strings.HasPrefix(file, ".") || strings.HasPrefix(file, "_") {
			continue
		}
		if info, err := fs.Stat(dir, file); err == nil && info.IsDir() {
			continue
		}
		if !ValidName(name) {
			f.file(file, CodeName, "%q is no name for a template", clip(name))
			continue
		}
		if other, twice := out.from[name]; twice {
			f.file(file, CodeName, "the template is also in %s", other)
			continue
		}
		out.from[name] = file
		if src, ok := readSource(dir, file, f); ok {
			src.Name = name
			out.sources[name] = src
		}
	}
	return out
}

func (out *files) readLayouts(dir fs.FS, f *faults) {
	entries, err := fs.ReadDir(dir, layoutDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.file(layoutDir, CodeEncoding, "the directory cannot be read: %s", reason(err))
	}
	for _, e := range entries {
		file := path.Join(layoutDir, e.Name())
		ext := path.Ext(file)
		name := strings.TrimSuffix(e.Name(), ext)
		if ext != ".html" && ext != ".txt" || strings.HasPrefix(name, ".") {
			continue
		}
		if !ValidName(name) {
			f.file(file, CodeName, "%q is no name for a layout", clip(name))
			continue
		}
		b, ok := readFile(dir, file, f)
		if !ok {
			continue
		}
		// Checked here once, so that a fault names the layout's file and not those that use it.
		var own faults
		in := &includer{opt: Options{Partials: out.partials}, f: &own}
		l, one, text := out.layouts[name], Layout{}, in.text(string(b), "")
		if ext == ".html" {
			l.HTML, one.HTML = text, text
		} else {
			l.Text, one.Text = text, text
		}
		compileLayout(one, &own)
		for _, fault := range own.list {
			f.file(file, fault.Code, "%s", fault.Detail)
		}
		if len(own.list) == 0 {
			out.layouts[name] = l
		}
	}
}

func readSource(dir fs.FS, file string, f *faults) (Source, bool) {
	b, ok := readFile(dir, file, f)
	if !ok {
		return Source{}, false
	}
	if path.Ext(file) != ".json" {
		var doc any
		if err := yaml.Unmarshal(b, &doc); err != nil {
			f.file(file, CodeEncoding, "%s", clip(strings.Join(strings.Fields(err.Error()), " ")))
			return Source{}, false
		}
		var err error
		if b, err = encode(doc); err != nil {
			f.file(file, CodeEncoding, "the YAML has something that JSON has not, like a member whose name is no text")
			return Source{}, false
		}
	}
	var src Source
	err := strictDecode(b, &src)
	var e *Error
	switch {
	case errors.As(err, &e):
		f.files(file, e)
		return Source{}, false
	case err != nil:
		f.file(file, CodeEncoding, "the file is not JSON: %s", clip(err.Error()))
		return Source{}, false
	}
	return src, true
}

func readFile(dir fs.FS, file string, f *faults) ([]byte, bool) {
	info, err := fs.Stat(dir, file)
	if err == nil && info.Size() > MaxFile {
		f.file(file, CodeLimit, "the file is larger than %d KiB", MaxFile>>10)
		return nil, false
	}
	var b []byte
	if err == nil {
		b, err = fs.ReadFile(dir, file)
	}
	if err != nil {
		f.file(file, CodeEncoding, "the file cannot be read: %s", reason(err))
		return nil, false
	}
	return b, true
}

func (f *faults) file(file, code, format string, args ...any) {
	if len(f.list) < maxFaults {
		f.list = append(f.list, Fault{File: file, Code: code, Detail: fmt.Sprintf(format, args...)})
	}
}

// files adds a file's own faults.
func (f *faults) files(file string, e *Error) {
	for _, fault := range e.Faults {
		fault.File = file
		if len(f.list) < maxFaults {
			f.list = append(f.list, fault)
		}
	}
}

// reason is the error without the path, which is in the fault.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// shipped reads the embedded files once. They are tested to have no fault.
var shipped = sync.OnceValue(func() *files {
	dir, err := fs.Sub(shippedFiles, "shipped")
	if err != nil {
		panic(err)
	}
	var f faults
	out := readFiles(dir, &f)
	if err := f.err(); err != nil {
		panic(fmt.Errorf("shipped templates: %w", err))
	}
	return out
})

func shippedLayouts() map[string]Layout { return shipped().layouts }

var _ json.Unmarshaler = (*Source)(nil)
