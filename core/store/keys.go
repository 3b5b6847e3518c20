package store

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"

	"github.com/carillon-notify/carillon/core"
)

// PutKey keeps an API key's hash and whom it stands for.
func (s *Store) PutKey(ctx context.Context, hash [32]byte, p core.Principal) error {
	return s.write(ctx, "keep an API key", func(t tx) error {
		_, err := t.exec(ctx, `INSERT INTO api_keys (hash, app, scopes, created_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (hash) DO UPDATE SET app = excluded.app, scopes = excluded.scopes`, hash[:], p.App, strings.Join(p.Scopes, " "), micros(s.Now()))
		return err
	})
}

// Principal says whom an API key's hash stands for; core.ErrNotFound if for nobody.
func (s *Store) Principal(ctx context.Context, hash [32]byte) (core.Principal, error) {
	var p core.Principal
	var scopes string
	found := false
	err := s.read(ctx, "look an API key up", "SELECT app, scopes FROM api_keys WHERE hash = $1", func(r row) error {
		found = true
		return r.Scan(&p.App, &scopes)
	}, hash[:])
	if err != nil {
		return core.Principal{}, err
	}
	if !found {
		return core.Principal{}, core.ErrNotFound
	}
	p.Scopes = strings.Fields(scopes)
	return p, nil
}

// Keys lists all API keys, the oldest first.
func (s *Store) Keys(ctx context.Context) (out []core.APIKey, err error) {
	err = s.read(ctx, "list the API keys", "SELECT hash, app, scopes, created_at FROM api_keys ORDER BY created_at, hash", func(r row) error {
		var k core.APIKey
		var hash []byte
		var scopes string
		if err := r.Scan(&hash, &k.App, &scopes, stamp{&k.CreatedAt}); err != nil {
			return err
		}
		copy(k.Hash[:], hash)
		k.Scopes = strings.Fields(scopes)
		out = append(out, k)
		return nil
	})
	return out, err
}

// DeleteKey withdraws the API key with a hash; core.ErrNotFound if there is none.
func (s *Store) DeleteKey(ctx context.Context, hash [32]byte) error {
	var n int64
	err := s.write(ctx, "withdraw an API key", func(t tx) (err error) {
		n, err = t.exec(ctx, "DELETE FROM api_keys WHERE hash = $1", hash[:])
		return err
	})
	if err == nil && n == 0 {
		err = core.ErrNotFound
	}
	return err
}

const templateColumns = "app, name, version, source, created_at"

func scanTemplate(r row) (v core.TemplateVersion, err error) {
	var source []byte
	err = r.Scan(&v.App, &v.Name, &v.Version, &source, stamp{&v.CreatedAt})
	v.Source = source
	return v, err
}

// PutTemplate keeps a template's source as its next version and returns the version. A source equal to
// the latest one's gives that one's back.
func (s *Store) PutTemplate(ctx context.Context, app, name string, source json.RawMessage) (version int, err error) {
	put := func() (int, error) {
		return writeFor(ctx, s, "keep a template", func(t tx) (version int, err error) {
			var last []byte
			err = t.query(ctx, "SELECT version, source FROM templates WHERE app = $1 AND name = $2 ORDER BY version DESC LIMIT 1",
				func(r row) error { return r.Scan(&version, &last) }, app, name)
			if err != nil || version > 0 && bytes.Equal(last, source) {
				return version, err
			}
			version++
			_, err = t.exec(ctx, "INSERT INTO templates (app, name, version, source, created_at) VALUES ($1, $2, $3, $4, $5)",
				app, name, int64(version), []byte(source), micros(s.Now()))
			return version, err
		})
	}
	for range 3 { // two writers of one name may ask for the same version: the second asks again
		if version, err = put(); err == nil {
			return version, nil
		}
	}
	return 0, err
}

// Template returns a version of a template, the latest for 0; core.ErrNotFound if there is none.
func (s *Store) Template(ctx context.Context, app, name string, version int) (*core.TemplateVersion, error) {
	var out *core.TemplateVersion
	err := s.read(ctx, "read a template", "SELECT "+templateColumns+` FROM templates WHERE app = $1 AND name = $2 AND (version = $3 OR CAST($3 AS BIGINT) = 0)
		ORDER BY version DESC LIMIT 1`, func(r row) error {
		v, err := scanTemplate(r)
		out = &v
		return err
	}, app, name, int64(version))
	if err == nil && out == nil {
		err = core.ErrNotFound
	}
	return out, err
}

// Templates lists the latest version of each of an app's templates by name; next is "" at the end.
func (s *Store) Templates(ctx context.Context, app string, p core.Page) (out []core.TemplateVersion, next string, err error) {
	limit := limitOf(p)
	err = s.read(ctx, "list templates", "SELECT "+templateColumns+` FROM templates t WHERE app = $1 AND name > $2
		AND version = (SELECT max(version) FROM templates u WHERE u.app = t.app AND u.name = t.name) ORDER BY name LIMIT $3`, func(r row) error {
		v, err := scanTemplate(r)
		out = append(out, v)
		return err
	}, app, p.Cursor, int64(limit+1))
	if len(out) > limit {
		out = out[:limit]
		next = out[limit-1].Name
	}
	return out, next, err
}

// TemplateVersions lists a template's versions, the latest first; none if there is no such template.
func (s *Store) TemplateVersions(ctx context.Context, app, name string) (out []core.TemplateVersion, err error) {
	err = s.read(ctx, "list a template's versions", "SELECT "+templateColumns+" FROM templates WHERE app = $1 AND name = $2 ORDER BY version DESC", func(r row) error {
		v, err := scanTemplate(r)
		out = append(out, v)
		return err
	}, app, name)
	return out, err
}
