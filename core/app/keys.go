package app

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/carillon-notify/carillon/core"
)

// defaultApp is the app of the first key.
const defaultApp = "default"

// keyPrefix marks an API key, so that one is known when it is seen where it should not be.
const keyPrefix = "car_"

// madeKeyFile is the file in the data directory with the first key that was made here.
const madeKeyFile = "api-key"

// allScopes are what a key may do.
var allScopes = []string{"send", "read", "admin"}

func newKey() string { return keyPrefix + rand.Text() + rand.Text() }

// firstKey makes sure that somebody can use the API: the configured key, the one made at an earlier
// start, or a new one. That of the last start is withdrawn if it is another.
func (a *App) firstKey(ctx context.Context) error {
	a.key = a.cfg.APIKey.Reveal()
	if a.key == "" {
		key, err := a.keep(madeKeyFile, newKey)
		if err != nil {
			return fmt.Errorf("keep the first API key: %w", err)
		}
		a.key = key
	}
	hash := sha256.Sum256([]byte(a.key))
	err := a.store.PutKey(ctx, hash, core.Principal{App: defaultApp, Scopes: allScopes})
	if err != nil {
		return fmt.Errorf("record the first API key: %w", err)
	}
	return a.withdrawFormer(ctx, hash)
}

// withdrawFormer withdraws the first key of this data directory's last start, unless it is still the first key.
// The directory and not the store remembers it: each orchestrator of a store may have another first key, and
// must not withdraw that of a running one.
func (a *App) withdrawFormer(ctx context.Context, hash [32]byte) error {
	path := filepath.Join(a.cfg.Data, "first-key")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read which API key was the first one at the last start: %w", err)
	}
	now := hex.EncodeToString(hash[:])
	last := strings.TrimSpace(string(text))
	if last == now {
		return nil
	}
	former, err := hex.DecodeString(last)
	switch {
	case err != nil || len(former) != 0 && len(former) != len(hash):
		a.log.Warn("which API key was the first one at the last start cannot be read; see whether it is still accepted: orchestrator keys list", "file", path)
	case len(former) == len(hash):
		switch err := a.store.DeleteKey(ctx, [32]byte(former)); {
		case err == nil:
			a.log.Info("the first API key is another one now; the former is withdrawn")
		case !errors.Is(err, core.ErrNotFound): // else it was revoked before
			return fmt.Errorf("withdraw the former first API key: %w", err)
		}
	}
	fresh := path + ".new" // a file that is cut short would leave the next change without what it has to withdraw
	if err := os.WriteFile(fresh, []byte(now+"\n"), 0o600); err != nil {
		return fmt.Errorf("remember which API key is the first one: %w", err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("remember which API key is the first one: %w", err)
	}
	return nil
}
