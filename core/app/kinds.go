package app

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/builtin"
)

// providerCommand is the hidden subcommand by which this program plays one of its own kinds.
const providerCommand = "provider"

// kinds finds the kinds of providers: those built in, and those that plugins describe. What a file
// described is remembered by its digest, so that a reload asks only what changed.
type kinds struct {
	self string // this program's file
	log  *slog.Logger

	mu        sync.Mutex
	described map[string]providers.Kind // by what was run
}

// newKinds returns the kinds. A program that does not know its own file cannot isolate its kinds.
func newKinds(log *slog.Logger) *kinds {
	self, err := os.Executable()
	if err != nil {
		log.Debug("this program's file is not known; isolation: process is not available", "error", err)
	}
	return &kinds{self: self, log: log, described: map[string]providers.Kind{}}
}

func builtInKind(name string) (providers.Kind, bool) {
	for _, k := range builtin.Kinds() {
		if k.Name == name {
			return k, true
		}
	}
	return providers.Kind{}, false
}

// found is a plugin that lies in the plugins directory, described.
type found struct {
	host.Found
	kind providers.Kind
	err  error // why it cannot be used; kind is empty then
}

// discover describes the plugins of the directory, side by side.
func (k *kinds) discover(ctx context.Context, dir string) ([]found, error) {
	files, err := host.Discover(dir)
	if err != nil {
		return nil, err
	}
	out := make([]found, len(files))
	var work sync.WaitGroup
	for i, f := range files {
		work.Go(func() {
			out[i] = found{Found: f, err: f.Err}
			if f.Err == nil {
				out[i].kind, out[i].err = k.describe(ctx, host.Spec{Name: f.Name, Command: f.Path, SHA256: f.SHA256, Logger: k.log})
			}
		})
	}
	work.Wait()
	return out, nil
}

// describe is host.Describe, remembered, and refuses the names of built-in kinds.
func (k *kinds) describe(ctx context.Context, spec host.Spec) (providers.Kind, error) {
	digest, err := host.Digest(spec.Command)
	if err != nil {
		return providers.Kind{}, err
	}
	key := fmt.Sprintf("%s\x00%s\x00%s\x00%s\x00%d", spec.Name, spec.Command, digest, spec.SHA256, spec.Memory)
	k.mu.Lock()
	kind, ok := k.described[key]
	k.mu.Unlock()
	if ok {
		return kind, nil
	}
	if kind, err = host.Describe(ctx, spec); err != nil {
		return providers.Kind{}, err
	}
	if _, ours := builtInKind(kind.Name); ours {
		return providers.Kind{}, fmt.Errorf("plugin %s calls its kind %s, which is built in; its author has to choose another name", spec.Name, kind.Name)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.described[key] = kind
	return kind, nil
}

// choice is what a configured route comes to.
type choice struct {
	kind      providers.Kind
	isolation string
	digest    string // of a plugin's file
	fault     string // a mistake of the configuration
}

// of finds a configured route's kind. The error is a plugin's trouble, which may pass.
func (k *kinds) of(ctx context.Context, name string, rc config.Route, plugins []found) (c choice, err error) {
	memory, _ := config.ParseSize(rc.Memory) // config.Check read it
	spec := host.Spec{Name: name, Command: rc.Command, SHA256: rc.SHA256, Memory: memory, Logger: k.log}
	kind, builtIn := builtInKind(rc.Kind)
	switch {
	case builtIn && rc.SHA256 != "":
		return choice{fault: fmt.Sprintf("routes.%s.sha256: is of a plugin's file; %s is built in", name, kind.Name)}, nil
	case builtIn && rc.Isolation != config.IsolationProcess:
		if memory > 0 {
			return choice{fault: fmt.Sprintf("routes.%s.memory: bounds a process of its own; set isolation to process", name)}, nil
		}
		return choice{kind: kind, isolation: config.IsolationNone}, nil
	case builtIn:
		if k.self == "" {
			return choice{fault: fmt.Sprintf("routes.%s.isolation: this program does not know its own file; set it to none", name)}, nil
		}
		spec.Command, spec.Args = k.self, []string{providerCommand, kind.Name}
		return choice{kind: host.Isolate(kind, spec), isolation: config.IsolationProcess}, nil
	case rc.Command == "":
		i := slices.IndexFunc(plugins, func(f found) bool { return f.err == nil && f.kind.Name == rc.Kind })
		if i < 0 {
			return choice{fault: fmt.Sprintf("routes.%s.kind: there is no kind %q; there are %v", name, rc.Kind, kindNames(plugins))}, brokenPlugin(rc.Kind, plugins)
		}
		if rc.Isolation == config.IsolationNone {
			return choice{fault: fmt.Sprintf("routes.%s.isolation: a plugin is a process of its own; leave isolation out", name)}, nil
		}
		spec.Command = plugins[i].Path
		if spec.SHA256 == "" {
			spec.SHA256 = plugins[i].SHA256
		}
	}
	c = choice{isolation: config.IsolationProcess}
	if c.digest, err = host.Digest(spec.Command); err != nil {
		return c, err
	}
	c.kind, err = k.describe(ctx, spec)
	return c, err
}

// brokenPlugin is the trouble of a plugin that may be the one that brings a kind.
func brokenPlugin(kind string, plugins []found) error {
	for _, f := range plugins {
		if f.err != nil && f.Name == kind {
			return f.err
		}
	}
	return nil
}

// kindNames are the kinds that a route may name.
func kindNames(plugins []found) []string {
	names := map[string]bool{}
	for _, k := range builtin.Kinds() {
		names[k.Name] = true
	}
	for _, f := range plugins {
		if f.err == nil {
			names[f.kind.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// unasked are routes for the plugins of the directory that no configured route uses and that need no
// settings; each is named as its kind. Others, and those whose name is taken, are told of.
func unasked(c *config.Config, plugins []found, log *slog.Logger) map[string]config.Route {
	out := map[string]config.Route{}
	for _, f := range plugins {
		if f.err != nil || used(c, f) {
			continue
		}
		for _, s := range f.kind.Settings {
			if s.Required {
				log.Info("a plugin waits for a route: it has settings that it needs", "plugin", f.Name, "kind", f.kind.Name, "setting", s.Name)
				f.err = errNeedsSettings
				break
			}
		}
		if _, taken := c.Routes[f.kind.Name]; f.err != nil || taken || out[f.kind.Name].Command != "" {
			continue
		}
		out[f.kind.Name] = config.Route{Command: f.Path, SHA256: f.SHA256}
	}
	return out
}

var errNeedsSettings = fmt.Errorf("it needs settings: configure a route of its kind")

// used reports whether a configured route is of the plugin's kind or runs its file.
func used(c *config.Config, f found) bool {
	for _, r := range c.Routes {
		if r.Kind == f.kind.Name || r.Command != "" && sameFile(r.Command, f.Path) {
			return true
		}
	}
	return false
}

func sameFile(a, b string) bool {
	x, errX := filepath.Abs(a)
	y, errY := filepath.Abs(b)
	return errX == nil && errY == nil && x == y
}
