package app

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/plugins/sdk"
	"github.com/carillon-notify/carillon/providers"
)

// providerCommandOf plays one of our own kinds in a process of its own; the host starts it.
func providerCommandOf() *cobra.Command {
	return &cobra.Command{Use: providerCommand + " KIND", Short: "Play a built-in provider to the process that started this one", Hidden: true,
		Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
			kind, ok := builtInKind(args[0])
			if !ok {
				return fmt.Errorf("there is no built-in kind %q", args[0])
			}
			sdk.Serve(kind)
			return nil
		}}
}

// pluginCommand helps a plugin's author and the operator.
func pluginCommand(file *string, out io.Writer) *cobra.Command {
	cmd := &cobra.Command{Use: "plugin", Short: "List, inspect and test provider plugins", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	verbose := cmd.PersistentFlags().BoolP("verbose", "v", false, "show what the plugin logs and prints")
	log := func() *slog.Logger {
		if !*verbose {
			return slog.New(slog.DiscardHandler)
		}
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	cmd.AddCommand(&cobra.Command{Use: "list", Short: "List the plugins of the plugins directory", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := config.Load(config.Source{File: *file, Environ: os.Environ()})
			if err != nil {
				return err
			}
			return listPlugins(cmd.Context(), &cfg, newKinds(log()), out)
		}})
	cmd.AddCommand(&cobra.Command{Use: "inspect PATH", Short: "Show what a plugin says it is, and its digest", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspectPlugin(cmd.Context(), args[0], log(), out)
		}})
	cmd.AddCommand(testPluginCommand(out))
	return cmd
}

func listPlugins(ctx context.Context, cfg *config.Config, k *kinds, out io.Writer) error {
	plugins, err := k.discover(ctx, cfg.Plugins.Dir)
	if err != nil {
		return err
	}
	if len(plugins) == 0 {
		fmt.Fprintf(out, "there is no plugin in %s: put an executable file there, or a directory with one named plugin\n", cfg.Plugins.Dir)
		return nil
	}
	own := unasked(cfg, plugins, k.log)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PLUGIN\tKIND\tCHANNEL\tROUTE\tFILE")
	for _, f := range plugins {
		if f.err != nil {
			fmt.Fprintf(w, "%s\t-\t-\tcannot be had: %s\t%s\n", f.Name, f.err, f.Path)
			continue
		}
		route := "none: configure one with kind: " + f.kind.Name
		if _, ok := own[f.kind.Name]; ok {
			route = f.kind.Name + " (by itself)"
		}
		var configured []string
		for name, r := range cfg.Routes {
			if r.Kind == f.kind.Name || r.Command != "" && sameFile(r.Command, f.Path) {
				configured = append(configured, name)
			}
		}
		if len(configured) > 0 {
			route = strings.Join(configured, ", ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", f.Name, f.kind.Name, f.kind.Channel, route, f.Path)
	}
	return w.Flush()
}

func inspectPlugin(ctx context.Context, path string, log *slog.Logger, out io.Writer) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, "plugin") // as in the plugins directory
	}
	digest, err := host.Digest(path)
	if err != nil {
		return err
	}
	kind, err := host.Describe(ctx, host.Spec{Name: path, Command: path, Logger: log})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "kind      %s\nchannel   %s\n", kind.Name, kind.Channel)
	if kind.Doc != "" {
		fmt.Fprintf(out, "what      %s\n", kind.Doc)
	}
	fmt.Fprintf(out, "address   %s\nbatches   of up to %d messages\nsha256    %s\n", kind.Address, kind.MaxBatch, digest)
	if len(kind.Settings) > 0 {
		fmt.Fprintln(out, "\nsettings")
		for _, line := range settingLines(kind.Settings) {
			fmt.Fprintln(out, "  "+line)
		}
	}
	if kind.Content != nil {
		fmt.Fprintf(out, "\ncontent block (JSON Schema)\n  %s\n", kind.Content)
	}
	fmt.Fprintf(out, "\nroutes:\n  %s: {command: %s, sha256: %s, settings: {%s}}\n", kind.Name, path, digest, strings.Join(requiredSettings(&kind), ", "))
	return nil
}

func requiredSettings(k *providers.Kind) []string {
	var out []string
	for _, s := range k.Settings {
		if s.Required {
			out = append(out, s.Name+": ...")
		}
	}
	return out
}

// settingLines document settings, one a line.
func settingLines(settings []providers.Setting) []string {
	out := make([]string, 0, len(settings))
	for _, s := range settings {
		notes := []string{string(s.Type)}
		if s.Required {
			notes = append(notes, "required")
		}
		if s.Secret {
			notes = append(notes, "secret")
		}
		if s.Default != "" {
			notes = append(notes, "default "+s.Default)
		}
		if len(s.Values) > 0 {
			notes = append(notes, strings.Join(s.Values, " | "))
		}
		out = append(out, fmt.Sprintf("%-30s %s (%s)", s.Name, s.Doc, strings.Join(notes, ", ")))
	}
	return out
}
