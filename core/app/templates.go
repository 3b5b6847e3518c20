package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/carillon-notify/carillon/core/client"
	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/builtin"
	"github.com/carillon-notify/carillon/templates"
)

// templatesCommand helps people who keep their templates as files.
func templatesCommand(file *string, out io.Writer) *cobra.Command {
	cmd := &cobra.Command{Use: "templates", Short: "Check and render template files, and exchange them with a server", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	t := &templateFiles{out: out, file: file}
	cmd.PersistentFlags().StringVar(&t.dir, "dir", "", "the directory of the files; templates.dir of the configuration if left out")
	remote := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&t.url, "url", "", "the server; listen of the configuration if left out")
		return c
	}
	lint := &cobra.Command{Use: "lint", Short: "Check every template, layout and partial, and say what is wrong where", Args: cobra.NoArgs,
		Long: "Check every template, layout and partial, and say what is wrong where. The channels are those of the built-in\nproviders, and of the plugins in plugins.dir and of the configured routes, which are asked; name others by --channel.",
		RunE: func(cmd *cobra.Command, _ []string) error { return t.lint(cmd.Context()) }}
	lint.Flags().StringArrayVar(&t.channels, "channel", nil, "a channel of a plugin that is not here, whose block is not checked; may be given again")
	cmd.AddCommand(lint)
	render := &cobra.Command{Use: "render NAME", Short: "Render a template from its file", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return t.render(cmd.Context(), args[0]) }}
	render.Flags().StringVar(&t.data, "data", "{}", "the data, a JSON object, or @FILE with one")
	render.Flags().StringVar(&t.recipient, "recipient", "{}", "the recipient: a JSON object of id, locale, timezone and attributes, or @FILE with one")
	render.Flags().StringVar(&t.locale, "locale", "", "the locale; the recipient's if left out")
	cmd.AddCommand(render)
	cmd.AddCommand(remote(&cobra.Command{Use: "push [NAME...]", Short: "Make new versions on the server of the templates whose files differ from it; the key is CARILLON_API_KEY",
		Long: "Make new versions on the server of the templates whose files differ from it; the key is CARILLON_API_KEY.\nLayouts and partials are not pushed: the server has those in its own templates.dir, and looks there again at SIGHUP or POST /v1/routes/reload.",
		RunE: func(cmd *cobra.Command, args []string) error { return t.push(cmd.Context(), args) }}))
	cmd.AddCommand(remote(&cobra.Command{Use: "pull [NAME...]", Short: "Write the server's stored templates into files that differ from them; the key is CARILLON_API_KEY",
		RunE: func(cmd *cobra.Command, args []string) error { return t.pull(cmd.Context(), args) }}))
	return cmd
}

type templateFiles struct {
	out                               io.Writer
	file                              *string
	dir, url, data, recipient, locale string
	channels                          []string
}

// settle fills in from the configuration what was not said.
func (t *templateFiles) settle() (config.Config, error) {
	cfg, _, err := config.Load(config.Source{File: *t.file, Environ: os.Environ()})
	if err != nil {
		return cfg, err
	}
	if t.dir == "" {
		t.dir = cfg.Templates.Dir
	}
	if t.url == "" {
		t.url = "http://" + cfg.Listen
	}
	return cfg, nil
}

// catalog reads the files. Its error lists their faults, a line each; the catalog has the others.
func (t *templateFiles) catalog() (*templates.Catalog, error) {
	if _, err := t.settle(); err != nil {
		return nil, err
	}
	if info, err := os.Stat(t.dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("%s is no directory; name the one with the templates by --dir", t.dir)
	}
	c := templates.New(os.DirFS(t.dir), nil)
	return c, c.Reload()
}

// faultLines are the faults of files, one a line.
func faultLines(err error) error {
	var bad *templates.Error
	if !errors.As(err, &bad) {
		return err
	}
	lines := make([]string, len(bad.Faults))
	for i, f := range bad.Faults {
		place := f.File
		if f.Pointer != "" {
			place += " " + f.Pointer
		}
		lines[i] = strings.TrimSpace(place) + ": " + f.Detail
	}
	return fmt.Errorf("%d faults\n%s", len(lines), strings.Join(lines, "\n"))
}

func (t *templateFiles) lint(ctx context.Context) error {
	c, err := t.catalog()
	if c == nil {
		return err
	}
	blocks, missing, blocksErr := t.blocks(ctx)
	if blocksErr != nil {
		return blocksErr
	}
	if err := templates.Join(err, c.CheckFiles(blocks.Check)); err != nil {
		return errors.Join(append([]error{faultLines(err)}, missing...)...)
	}
	fmt.Fprintf(t.out, "%d templates, no faults\n", len(fileNames(c)))
	return nil
}

// blocks knows the blocks of the channels that there can be here, configured or not. missing are plugins that cannot
// be asked for theirs.
func (t *templateFiles) blocks(ctx context.Context) (b *intake.Blocks, missing []error, err error) {
	cfg, err := t.settle()
	if err != nil {
		return nil, nil, err
	}
	k := newKinds(slog.New(slog.DiscardHandler))
	plugins, err := k.discover(ctx, cfg.Plugins.Dir)
	if err != nil {
		return nil, nil, err
	}
	known := map[string]providers.Kind{}
	for _, kind := range builtin.Kinds() {
		known[kind.Name] = kind
	}
	for _, f := range plugins {
		if f.err != nil {
			missing = append(missing, fmt.Errorf("plugin %s cannot be had, so its channel is not known: %w", f.Name, f.err))
			continue
		}
		known[f.kind.Name] = f.kind
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Routes)) {
		if cfg.Routes[name].Command == "" {
			continue
		}
		c, err := k.of(ctx, name, cfg.Routes[name], plugins)
		if err == nil && c.fault != "" {
			err = errors.New(c.fault)
		}
		if err != nil {
			missing = append(missing, fmt.Errorf("route %s cannot be had, so its channel is not known: %w", name, err))
			continue
		}
		known[c.kind.Name] = c.kind
	}
	b, err = intake.NewBlocks(slices.Collect(maps.Values(known))...)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range t.channels {
		b.Allow(name)
	}
	return b, missing, nil
}

// readTemplates reads the template files anew and tells what is wrong with them. A block or member that no channel
// knows is told of and let pass: a plugin that cannot be had for a while takes nothing away from other channels.
func (a *App) readTemplates(routing *intake.Routing) {
	if err := a.catalog.Reload(); err != nil {
		a.log.Warn("template files have faults; those are not offered", "error", err)
	}
	if err := a.catalog.CheckFiles(routing.CheckTemplate); err != nil {
		a.log.Warn("template files have what no channel knows", "error", err)
	}
}

// fileNames are the templates that the directory has.
func fileNames(c *templates.Catalog) (names []string) {
	for _, i := range c.List() {
		if i.Origin == templates.File {
			names = append(names, i.Name)
		}
	}
	return names
}

func (t *templateFiles) render(ctx context.Context, name string) error {
	c, err := t.catalog()
	if c == nil {
		return err
	}
	found, missing := c.Find(ctx, "", name, 0)
	if missing != nil {
		return errors.Join(fmt.Errorf("there is no template %q to be rendered", name), faultLines(err))
	}
	in := templates.Input{Locale: t.locale}
	var who struct {
		ID, Locale, Timezone string
		Attributes           map[string]any
	}
	for _, part := range []struct {
		flag, text string
		into       any
	}{{"data", t.data, &in.Data}, {"recipient", t.recipient, &who}} {
		if err := argument(part.text, part.into); err != nil {
			return fmt.Errorf("--%s: %w", part.flag, err)
		}
	}
	in.Recipient = templates.Recipient{ID: who.ID, Locale: who.Locale, Timezone: who.Timezone, Attributes: who.Attributes}
	content, err := found.Render(in)
	if err != nil {
		return faultLines(err)
	}
	text, err := json.MarshalIndent(struct {
		Locale   string                     `json:"locale"`
		Title    string                     `json:"title,omitempty"`
		Body     string                     `json:"body,omitempty"`
		URL      string                     `json:"url,omitempty"`
		Data     json.RawMessage            `json:"data,omitempty"`
		Channels map[string]json.RawMessage `json:"channels,omitempty"`
	}(content), "", "  ")
	if err != nil {
		return fmt.Errorf("encode the rendering: %w", err)
	}
	fmt.Fprintln(t.out, string(text))
	return nil
}

// argument reads a JSON argument, or the file that it names after an @.
func argument(text string, into any) error {
	if name, ok := strings.CutPrefix(text, "@"); ok {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		text = string(b)
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return errors.New("is no JSON object")
	}
	return nil
}

// server is the client of the server's API, with the key of the environment or of the data directory.
func (t *templateFiles) server() (*client.Client, error) {
	cfg, err := t.settle()
	if err != nil {
		return nil, err
	}
	key := cfg.APIKey.Reveal()
	if key == "" {
		text, err := os.ReadFile(filepath.Join(cfg.Data, madeKeyFile))
		if err != nil {
			return nil, errors.New("no key: set CARILLON_API_KEY to one with the scope admin")
		}
		key = strings.TrimSpace(string(text))
	}
	return client.New(client.Options{URL: t.url, Key: key})
}

// chosen are the names asked for, or all.
func chosen(asked, all []string) ([]string, error) {
	if len(asked) == 0 {
		return all, nil
	}
	for _, name := range asked {
		found := false
		for _, have := range all {
			found = found || have == name
		}
		if !found {
			return nil, fmt.Errorf("there is no template %q", name)
		}
	}
	return asked, nil
}

func (t *templateFiles) push(ctx context.Context, asked []string) error {
	files, err := t.catalog()
	if err != nil {
		return faultLines(err)
	}
	c, err := t.server()
	if err != nil {
		return err
	}
	names, err := chosen(asked, fileNames(files))
	if err != nil {
		return err
	}
	for _, name := range names {
		found, err := files.Find(ctx, "", name, 0)
		if err != nil {
			return err
		}
		source, err := json.Marshal(found.Source())
		if err != nil {
			return fmt.Errorf("encode template %s: %w", name, err)
		}
		now, err := c.Template(ctx, name)
		switch {
		case err == nil && now.Version > 0 && sameJSON(now.Source, source): // a file of the server's is not stored
			fmt.Fprintf(t.out, "%s: unchanged, version %d\n", name, now.Version)
			continue
		case err != nil && !client.IsNotFound(err):
			return fmt.Errorf("read template %s: %w", name, err)
		}
		made, err := c.PutTemplate(ctx, name, source)
		if err != nil {
			return fmt.Errorf("put template %s: %w", name, err)
		}
		fmt.Fprintf(t.out, "%s: version %d\n", name, made.Version)
	}
	return nil
}

func (t *templateFiles) pull(ctx context.Context, asked []string) error {
	c, err := t.server()
	if err != nil {
		return err
	}
	stored := map[string]client.Template{}
	var all []string
	for p := (client.Page{Limit: 200}); ; {
		page, next, err := c.Templates(ctx, p)
		if err != nil {
			return fmt.Errorf("list the templates: %w", err)
		}
		for _, s := range page {
			stored[s.Name], all = s, append(all, s.Name)
		}
		if p.Cursor = next; next == "" {
			break
		}
	}
	names, err := chosen(asked, all)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(t.dir, 0o755); err != nil {
		return fmt.Errorf("make the directory of the files: %w", err)
	}
	have := templates.New(os.DirFS(t.dir), nil)
	_ = have.Reload() // a file with faults is replaced
	for _, name := range names {
		if err := t.keep(ctx, have, stored[name]); err != nil {
			return err
		}
	}
	return nil
}

// keep writes a stored template into its file, unless that says the same.
func (t *templateFiles) keep(ctx context.Context, have *templates.Catalog, s client.Template) error {
	if !templates.ValidName(s.Name) {
		return fmt.Errorf("the server has a template whose name is no file's: %q", s.Name)
	}
	if found, err := have.Find(ctx, "", s.Name, 0); err == nil {
		if own, err := json.Marshal(found.Source()); err == nil && sameJSON(own, s.Source) {
			fmt.Fprintf(t.out, "%s: unchanged, version %d\n", s.Name, s.Version)
			return nil
		}
	}
	file := filepath.Join(t.dir, s.Name+".json")
	for _, ext := range []string{".yaml", ".yml"} {
		other := filepath.Join(t.dir, s.Name+ext)
		if _, err := os.Stat(other); err == nil {
			return fmt.Errorf("%s says something else than version %d of the server: move it away, or push it", other, s.Version)
		}
	}
	var text bytes.Buffer
	if err := json.Indent(&text, s.Source, "", "  "); err != nil {
		return fmt.Errorf("template %s is no JSON: %w", s.Name, err)
	}
	if err := os.WriteFile(file, append(text.Bytes(), '\n'), 0o644); err != nil {
		return fmt.Errorf("write a template: %w", err)
	}
	fmt.Fprintf(t.out, "%s: version %d into %s\n", s.Name, s.Version, file)
	return nil
}

// sameJSON compares what two texts say.
func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
