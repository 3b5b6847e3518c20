package templates

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"sort"
	"sync/atomic"
)

// Store holds the templates that were put by the API, by app, in immutable versions from 1 on.
type Store interface {
	// LatestTemplate is the number of the newest version, or an error that is ErrNotFound.
	LatestTemplate(ctx context.Context, app, name string) (int, error)
	// Template is one version, or an error that is ErrNotFound.
	Template(ctx context.Context, app, name string, version int) (Source, error)
}

// Origin says where a template is from.
type Origin string

// The origins, in the order in which a name is looked for.
const (
	Stored  Origin = "stored"
	File    Origin = "file"
	Shipped Origin = "shipped"
)

// Info describes a template that is in the files or shipped.
type Info struct {
	Name   string
	Origin Origin
	Hash   string
}

// Catalog finds templates by name: the app's stored ones first, then those in the directory, then the
// shipped ones. What it gave out stays as it is; Reload and new versions show in the next Find. It is
// safe for concurrent use.
type Catalog struct {
	dir   fs.FS
	store Store
	seen  atomic.Pointer[library]
}

// library is what the files hold, compiled, and the stored templates that were compiled with its layouts.
type library struct {
	cache     *cache
	layouts   map[string]Layout
	partials  map[string]string
	templates map[string]*Template
	origins   map[string]Origin
	from      map[string]string // the names of the directory's files
}

// New makes a catalog of the shipped templates, over which come those in dir after Reload, and those in
// store. Either may be nil. dir is usually os.DirFS of the setting templates.dir.
func New(dir fs.FS, store Store) *Catalog {
	c := &Catalog{dir: dir, store: store}
	var f faults
	c.seen.Store(load(nil, &f))
	return c
}

// Reload reads the directory again. The error is an *Error that names every file with a fault; the
// files without one are in use all the same, and of the others the shipped template of that name, if
// there is one, is not: a template that is broken does not turn into another. A directory that does not
// exist is an empty one.
func (c *Catalog) Reload() error {
	var f faults
	c.seen.Store(load(c.dir, &f))
	return f.err()
}

// CheckFiles has a check look at each template of the directory that is in use. Its *Errors come back as one, each
// fault with its file.
func (c *Catalog) CheckFiles(check func(Source) error) error {
	l := c.seen.Load()
	var f faults
	for _, name := range sorted(l.templates) {
		if l.origins[name] != File {
			continue
		}
		var e *Error
		switch err := check(l.templates[name].source); {
		case errors.As(err, &e):
			f.files(l.from[name], e)
		case err != nil:
			return fmt.Errorf("check template %q: %w", name, err)
		}
	}
	return f.err()
}

func load(dir fs.FS, f *faults) *library {
	base := shipped()
	own := &files{}
	if dir != nil {
		own = readFiles(dir, f)
	}
	const cacheBytes = 32 << 20
	l := &library{
		cache: newCache(cacheBytes), layouts: maps.Clone(base.layouts), partials: own.partials,
		templates: map[string]*Template{}, origins: map[string]Origin{}, from: own.from,
	}
	maps.Copy(l.layouts, own.layouts)
	for _, name := range sorted(base.sources) {
		if _, hidden := own.from[name]; !hidden {
			l.add(base.sources[name], Shipped, base.from[name], f)
		}
	}
	for _, name := range sorted(own.sources) {
		l.add(own.sources[name], File, own.from[name], f)
	}
	return l
}

func (l *library) add(src Source, from Origin, file string, f *faults) {
	t, err := Compile(src, Options{Layouts: l.layouts, Partials: l.partials})
	var e *Error
	switch {
	case errors.As(err, &e):
		f.files(file, e)
	case err != nil:
		f.file(file, CodeEncoding, "%s", err)
	default:
		l.templates[src.Name], l.origins[src.Name] = t, from
	}
}

// Compile checks a template with the catalog's layouts, as PUT does before it is stored.
func (c *Catalog) Compile(src Source) (*Template, error) {
	if !ValidName(src.Name) {
		return nil, &Error{[]Fault{{Code: CodeName, Detail: "a template's name has 1 to 100 letters, digits, '.', '_' and '-', and begins with a letter or digit"}}}
	}
	lib := c.seen.Load()
	return Compile(src, Options{Layouts: lib.layouts, Partials: lib.partials, Server: true})
}

// Find gives a template: version 0 is the latest, and any other number a stored version. The error is
// ErrNotFound when there is none, an *Error when a stored one no longer compiles, or the store's.
func (c *Catalog) Find(ctx context.Context, app, name string, version int) (*Template, error) {
	if version < 0 || !ValidName(name) {
		return nil, fmt.Errorf("find a template: %w", ErrNotFound)
	}
	if c.store != nil {
		t, err := c.stored(ctx, app, name, version)
		if err == nil || !errors.Is(err, ErrNotFound) {
			return t, err
		}
	}
	if version == 0 {
		if t, ok := c.seen.Load().templates[name]; ok {
			return t, nil
		}
	}
	return nil, fmt.Errorf("find a template: %w", ErrNotFound)
}

// File gives the template of a name that is in the directory or shipped, and which of both; false for none.
func (c *Catalog) File(name string) (*Template, Origin, bool) {
	l := c.seen.Load()
	t, ok := l.templates[name]
	return t, l.origins[name], ok
}

func (c *Catalog) stored(ctx context.Context, app, name string, version int) (*Template, error) {
	if version == 0 {
		var err error
		if version, err = c.store.LatestTemplate(ctx, app, name); err != nil {
			return nil, fmt.Errorf("look up the latest version of a template: %w", err)
		}
	}
	lib := c.seen.Load()
	key := cacheKey{app, name, version}
	if t, ok := lib.cache.get(key); ok {
		return t, nil
	}
	src, err := c.store.Template(ctx, app, name, version)
	if err != nil {
		return nil, fmt.Errorf("read a template: %w", err)
	}
	src.Name = name
	t, err := Compile(src, Options{Layouts: lib.layouts, Partials: lib.partials, Server: true})
	if err != nil {
		return nil, fmt.Errorf("compile stored template %q version %d: %w", name, version, err)
	}
	t.version = version
	lib.cache.put(key, t)
	return t, nil
}

// List describes the templates in the directory and the shipped ones, by name.
func (c *Catalog) List() []Info {
	l := c.seen.Load()
	out := make([]Info, 0, len(l.templates))
	for name, t := range l.templates {
		out = append(out, Info{Name: name, Origin: l.origins[name], Hash: t.hash})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Layouts are the names of the layouts that a template may use.
func (c *Catalog) Layouts() []string { return sorted(c.seen.Load().layouts) }
