package app

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/core/store"
)

// keysCommand lists, makes and withdraws API keys in the store.
func keysCommand(file *string, out io.Writer) *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "List, add and revoke API keys", Args: cobra.NoArgs,
		Long: "List, add and revoke API keys, in the store of the configuration and the environment (CARILLON_STORE, CARILLON_DATA).\n" +
			"With PostgreSQL orchestrators may run meanwhile. A SQLite store belongs to one process: stop the orchestrator first.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	k := &keyStore{file: file, out: out}
	cmd.AddCommand(&cobra.Command{Use: "list", Short: "List the API keys: what each may do, never the key", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return k.with(cmd.Context(), k.list) }})
	var app string
	var scopes []string
	add := &cobra.Command{Use: "add", Short: "Make an API key and print it, this once", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := keyHolder(app, scopes)
			if err != nil {
				return err
			}
			return k.with(cmd.Context(), func(ctx context.Context, s *store.Store) error { return k.add(ctx, s, p) })
		}}
	add.Flags().StringVar(&app, "app", defaultApp, "the app that it belongs to: it sees that app's recipients and notifications alone")
	add.Flags().StringSliceVar(&scopes, "scopes", allScopes, "what it may do: send, read, admin (which includes the others)")
	cmd.AddCommand(add)
	cmd.AddCommand(&cobra.Command{Use: "revoke ID", Short: "Withdraw an API key by its id", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.with(cmd.Context(), func(ctx context.Context, s *store.Store) error { return k.revoke(ctx, s, args[0]) })
		}})
	return cmd
}

// appName is what an app of a new key may be called.
var appName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// keyHolder checks whom a new key is to stand for.
func keyHolder(app string, scopes []string) (core.Principal, error) {
	if !appName.MatchString(app) {
		return core.Principal{}, errors.New("--app: must be 1 to 63 of a-z, 0-9, - and _, and begin with a letter or a digit")
	}
	if len(scopes) == 0 {
		return core.Principal{}, errors.New("--scopes: name one at least of send, read and admin")
	}
	for _, s := range scopes {
		if !slices.Contains(allScopes, s) {
			return core.Principal{}, fmt.Errorf("--scopes: there is no scope %q; there are send, read and admin", s)
		}
	}
	p := core.Principal{App: app}
	for _, s := range allScopes { // each once, in one order
		if slices.Contains(scopes, s) {
			p.Scopes = append(p.Scopes, s)
		}
	}
	return p, nil
}

type keyStore struct {
	file *string
	out  io.Writer
	cfg  config.Config
}

// with opens the store for do.
func (k *keyStore) with(ctx context.Context, do func(context.Context, *store.Store) error) (err error) {
	if k.cfg, _, err = config.Load(config.Source{File: *k.file, Environ: os.Environ()}); err != nil {
		return err
	}
	if k.cfg.IsSQLite() {
		path := sqlitePath(&k.cfg)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) { // opening it would make an empty one
			return fmt.Errorf("there is no store at %s: set data (CARILLON_DATA) to the orchestrator's directory, or start the orchestrator once, which makes it", path)
		}
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := store.Open(ctx, store.Options{URL: storeURL(&k.cfg), Logger: log})
	switch {
	case errors.Is(err, store.ErrLocked):
		return fmt.Errorf("stop the orchestrator, run this command again, and start it: %w", err)
	case err != nil:
		return ofSetting("store", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return do(ctx, s)
}

// first says where the first key of this configuration is from, and its id; "" if there is none yet.
func (k *keyStore) first() (id, from string) {
	key, from := k.cfg.APIKey.Reveal(), "api_key"
	if key == "" {
		from = filepath.Join(k.cfg.Data, madeKeyFile)
		text, _ := os.ReadFile(from) // without it there is none, or it is not ours to read
		key = strings.TrimSpace(string(text))
	}
	if key == "" {
		return "", ""
	}
	return core.APIKey{Hash: sha256.Sum256([]byte(key))}.ID(), from
}

func (k *keyStore) list(ctx context.Context, s *store.Store) error {
	keys, err := s.Keys(ctx)
	if err != nil {
		return err
	}
	first, from := k.first()
	w := tabwriter.NewWriter(k.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tAPP\tSCOPES\tCREATED\tFIRST KEY")
	for _, key := range keys {
		source := "-"
		if key.ID() == first {
			source = from
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", key.ID(), key.App, strings.Join(key.Scopes, ","), key.CreatedAt.UTC().Format(time.RFC3339), source)
	}
	return w.Flush()
}

func (k *keyStore) add(ctx context.Context, s *store.Store, p core.Principal) error {
	key := newKey()
	made := core.APIKey{Hash: sha256.Sum256([]byte(key)), Principal: p}
	if err := s.PutKey(ctx, made.Hash, p); err != nil {
		return err
	}
	_, err := fmt.Fprintf(k.out, "id      %s\napp     %s\nscopes  %s\nkey     %s\n\nThe key is shown this once: only its hash is kept.\n", made.ID(), p.App, strings.Join(p.Scopes, ","), key)
	return err
}

func (k *keyStore) revoke(ctx context.Context, s *store.Store, id string) error {
	keys, err := s.Keys(ctx)
	if err != nil {
		return err
	}
	keys = slices.DeleteFunc(keys, func(key core.APIKey) bool { return key.ID() != strings.ToLower(id) })
	switch len(keys) {
	case 0:
		return errors.New("there is no key with that id; see orchestrator keys list") // not what was given: it may be a key
	case 1:
	default:
		return fmt.Errorf("%d keys have the id %s: none is withdrawn", len(keys), id)
	}
	if err := s.DeleteKey(ctx, keys[0].Hash); err != nil && !errors.Is(err, core.ErrNotFound) { // else another was faster
		return err
	}
	fmt.Fprintf(k.out, "%s is withdrawn; orchestrators that run refuse it within 10 s\n", keys[0].ID())
	if first, from := k.first(); first == keys[0].ID() {
		fmt.Fprintf(k.out, "It is still the first key here (%s): the next start puts it back. Change or remove it there.\n", from)
	}
	return nil
}
