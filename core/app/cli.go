package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/core/queue"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers/builtin"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// Main is what both programs do: it reads the command line and the settings, runs until it is told to
// stop, and returns the exit code. Whatever is wrong with the settings is one clear line.
func Main(role Role, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	cmd := command(role, os.Stdout, os.Stderr)
	cmd.SetArgs(longFlags(args))
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, cmd.Name()+": "+err.Error())
		return 1
	}
	return 0
}

// longFlags lets -workers=false be written as Go's own flags are; pflag wants two dashes.
func longFlags(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		if len(a) > 2 && a[0] == '-' && a[1] != '-' {
			a = "-" + a
		}
		out[i] = a
	}
	return out
}

// topFlags are the settings that are flags too: the top-level ones that are no secret.
var topFlags = map[string]string{
	"listen": "where the API listens, host:port", "data": "the directory of this process's files",
	"store": "sqlite or postgres://…", "queue": "embedded or redis://…",
	"workers": "whether this process delivers", "sandbox": "auto, true or false", "log-level": "debug, info, warn or error",
}

func command(role Role, out, errOut io.Writer) *cobra.Command {
	name, short := "orchestrator", "Carillon: takes notifications over REST and sees that they arrive"
	if role == Worker {
		name, short = "worker", "Carillon's delivery side alone, beside an orchestrator"
	}
	var file string
	root := &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true}
	root.SetOut(out)
	root.SetErr(errOut)
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().StringVar(&file, "config", "", "the configuration file; ./"+config.DefaultFile+" where it exists")
	for flag, doc := range topFlags {
		root.Flags().String(flag, "", doc)
	}
	root.RunE = func(cmd *cobra.Command, _ []string) error {
		flags := map[string]string{}
		cmd.Flags().Visit(func(f *pflag.Flag) {
			if _, ok := topFlags[f.Name]; ok {
				flags[f.Name] = f.Value.String()
			}
		})
		source := config.Source{File: file, Environ: os.Environ(), Flags: flags}
		if role == Worker {
			source.Overlook = []string{"workers"} // the file is the orchestrator's too, whose setting it is
		}
		cfg, warnings, err := config.Load(source)
		if err != nil {
			return err
		}
		var level slog.Level
		_ = level.UnmarshalText([]byte(cfg.LogLevel)) // config.Check knows it is one
		log := slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: level}))
		slog.SetDefault(log)
		for _, w := range warnings {
			log.Warn(w)
		}
		return run(cmd.Context(), cfg, source, role, out)
	}
	root.AddCommand(providerCommandOf())
	if role == Orchestrator {
		root.AddCommand(configCommand(&file, out), sandboxCommand(out), pluginCommand(&file, out), templatesCommand(&file, out), keysCommand(&file, out))
	}
	return root
}

// run starts everything, says what to try next, and waits. SIGHUP reads the settings anew, see Reload.
func run(ctx context.Context, cfg config.Config, source config.Source, role Role, out io.Writer) error {
	defer holdHeapFloor()()
	began := time.Now()
	log := slog.Default()
	a, err := Start(ctx, cfg, role, log)
	if err != nil {
		return err
	}
	a.readFrom(func() (config.Config, error) {
		c, _, err := config.Load(source)
		return c, err
	})
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	go func() {
		for range hangup { // until the process ends
			if _, err := a.Reload(ctx); err != nil {
				log.Error("the settings are not reloaded", "error", err)
			}
		}
	}()
	a.greet(out, time.Since(began))
	if err := a.Run(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "stopped; whatever was accepted is kept")
	return nil
}

func configCommand(file *string, out io.Writer) *cobra.Command {
	show := &cobra.Command{Use: "config", Short: "Print every setting with its default, documented", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprint(out, config.Documented)
			fmt.Fprint(out, kindSettings())
			return nil
		}}
	show.AddCommand(&cobra.Command{Use: "check", Short: "Say what is wrong with the configuration", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return checkConfig(cmd.Context(), config.Source{File: *file, Environ: os.Environ()}, out)
		}})
	return show
}

// checkConfig says what a start would refuse, or take otherwise than it looks. It opens nothing: what a kind's
// Open makes of its settings is not known.
func checkConfig(ctx context.Context, source config.Source, out io.Writer) error {
	cfg, warnings, err := config.Load(source)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintln(out, "warning: "+w)
	}
	var wrong []string
	if err := queue.CheckURL(cfg.Queue.Reveal()); err != nil {
		wrong = append(wrong, "queue: "+err.Error())
	}
	if !cfg.IsSQLite() {
		if err := store.CheckURL(cfg.Store.Reveal()); err != nil {
			wrong = append(wrong, "store: "+err.Error())
		}
	}
	if config.SameAddress(cfg.Listen, cfg.MetricsListen) {
		wrong = append(wrong, "metrics_listen: is the address of listen; give it another port, or leave it empty: listen serves the metrics, too")
	}
	for name, r := range cfg.Routes { // what the process itself completes is not missing
		if r.Kind == websocketKind && r.Settings["secret"] == nil {
			r.Settings = maps.Clone(r.Settings)
			if r.Settings == nil {
				r.Settings = config.Settings{}
			}
			r.Settings["secret"] = "completed at the start"
			cfg.Routes[name] = r
		}
	}
	routes, faults, err := describe(ctx, &cfg, newKinds(slog.New(slog.DiscardHandler)))
	var bad *config.Error
	switch {
	case errors.As(err, &bad):
		wrong = append(wrong, bad.Faults...)
	case err != nil:
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		fmt.Fprintf(out, "warning: plugin %s cannot be had: %s\n", name, faults[name])
	}
	if bad == nil && len(faults) == 0 { // else it may be the channel of what could not be had
		wrong = append(wrong, strayDefaults(&cfg, routes)...)
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return &config.Error{Faults: wrong}
	}
	fmt.Fprintln(out, "the configuration is in order")
	return nil
}

// kindSettings documents each kind's own settings, as comments below the configuration.
func kindSettings() string {
	var b strings.Builder
	b.WriteString("\n# What `settings` of a route takes, by kind. Names with dots are nested: pool.max is {pool: {max: …}}.\n")
	for _, k := range builtin.Kinds() {
		fmt.Fprintf(&b, "#\n# kind: %s (channel %s). %s\n", k.Name, k.Channel, k.Doc)
		for _, line := range settingLines(k.Settings) {
			fmt.Fprintf(&b, "#   %s\n", line)
		}
	}
	return b.String()
}

// sandboxCommand runs the stand-ins alone, for other processes to deliver to.
func sandboxCommand(out io.Writer) *cobra.Command {
	var dir, address string
	cmd := &cobra.Command{Use: "sandbox", Short: "Run the stand-ins of APNs, FCM and SMTP alone", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := sandbox.Start(sandbox.Options{Dir: dir})
			if err != nil {
				return fmt.Errorf("start the sandbox: %w", err)
			}
			defer func() { _ = s.Close() }() // it only stops listening
			l, err := listen(cmd.Context(), address)
			if err != nil {
				return err
			}
			server := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second}
			failed := make(chan error, 1)
			go func() { failed <- server.Serve(l) }()
			fmt.Fprintf(out, "sandbox: %s\nits pages: http://%s/sandbox/\nroutes to deliver there:\nroutes:\n", strings.Join([]string{s.APNsURL(), s.FCMURL(), "smtp://" + s.SMTPAddr()}, " "), l.Addr())
			for _, kind := range []string{"apns", "fcm", "email"} {
				settings, _ := s.Settings(kind)
				fmt.Fprintf(out, "  %s: {kind: %s, settings: %s}\n", kind, kind, settings)
			}
			select {
			case <-cmd.Context().Done():
			case err := <-failed:
				return ignoreClosed(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			return ignoreClosed(server.Shutdown(ctx))
		}}
	cmd.Flags().StringVar(&dir, "data", "./data/sandbox", "where its keys and certificates are kept")
	cmd.Flags().StringVar(&address, "listen", "127.0.0.1:8090", "where its pages are served")
	return cmd
}

// greet says where everything is and what to try next.
func (a *App) greet(out io.Writer, took time.Duration) {
	if a.role == Worker {
		fmt.Fprintf(out, "Carillon worker: delivers over %s (started in %s)\n", strings.Join(a.routes.names(), ", "), took.Round(time.Millisecond))
		return
	}
	fmt.Fprintf(out, "Carillon %s (started in %s)\n\n  API       %s/v1    (contract: /openapi.yaml, /docs)\n  API key   %s\n  console   %s/console/\n  queues    %s/console/queues/    (asynqmon; log in with the API key)\n",
		"is running", took.Round(time.Millisecond), a.URL(), a.shownKey(), a.URL(), a.URL())
	if a.sandbox == nil {
		return
	}
	fmt.Fprintf(out, "  live      %s/console/live?recipient=u_42    (a browser as a recipient)\n  sandbox   %s/sandbox/    (what arrived there instead of at a real service)\n\n", a.URL(), a.URL())
	if body := a.exampleBody(); body != "" {
		fmt.Fprintf(out, "Try:\n\n%s\n\n", a.tryLine(body))
	}
}

// shownKey is the key itself only where it was made here: one that was configured is known.
func (a *App) shownKey() string {
	if a.cfg.APIKey != "" {
		return "(as configured)"
	}
	return a.key + "    (kept in " + filepath.Join(a.cfg.Data, madeKeyFile) + ")"
}

// tryLine is a command that sends one notification.
func (a *App) tryLine(body string) string {
	key := a.key
	if a.cfg.APIKey != "" {
		key = "$CARILLON_API_KEY"
	}
	return fmt.Sprintf(`curl -sS %s/v1/notifications -H "Authorization: Bearer %s" -H 'Content-Type: application/json' -d '%s'`, a.URL(), key, body)
}

// local is the address in a form that a client on this machine can use.
func local(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}
