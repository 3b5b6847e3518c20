package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/templates"
)

func templateOf(v *core.TemplateVersion) Template {
	return Template{Name: v.Name, Version: v.Version, Origin: string(templates.Stored), Source: v.Source, CreatedAt: &v.CreatedAt}
}

// fileOf is the template of a name that is in the directory or shipped; none is core.ErrNotFound.
func (a *API) fileOf(name string) (Template, error) {
	t, origin, ok := a.Catalog.File(name)
	if !ok {
		return Template{}, core.ErrNotFound
	}
	source, err := json.Marshal(t.Source())
	if err != nil {
		return Template{}, fmt.Errorf("encode template %s: %w", name, err)
	}
	return Template{Name: name, Origin: string(origin), Source: source}, nil
}

// PutTemplate implements StrictServerInterface.
func (a *API) PutTemplate(ctx context.Context, q PutTemplateRequestObject) (PutTemplateResponseObject, error) {
	if !templates.ValidName(q.Name) {
		return nil, fault("/name", intake.FaultInvalid, "a template's name is of letters, digits, '-', '_' and '.'")
	}
	src := templates.Source{Name: q.Name}
	if err := json.Unmarshal(*q.Body, &src); err != nil {
		return nil, err
	}
	_, err := a.Catalog.Compile(src)
	if err := templates.Join(err, a.Addresses.CheckTemplate(src)); err != nil {
		return nil, err
	}
	app := callOf(ctx).principal.App
	version, err := a.Stored.PutTemplate(ctx, app, q.Name, bytes.Clone(*q.Body))
	if err != nil {
		return nil, err
	}
	v, err := a.Stored.Template(ctx, app, q.Name, version)
	if err != nil {
		return nil, err
	}
	return PutTemplate201JSONResponse(templateOf(v)), nil
}

// GetTemplate implements StrictServerInterface.
func (a *API) GetTemplate(ctx context.Context, q GetTemplateRequestObject) (GetTemplateResponseObject, error) {
	v, err := a.Stored.Template(ctx, callOf(ctx).principal.App, q.Name, 0)
	switch {
	case err == nil:
		return GetTemplate200JSONResponse(templateOf(v)), nil
	case !errors.Is(err, core.ErrNotFound):
		return nil, err
	}
	file, err := a.fileOf(q.Name)
	if err != nil {
		return nil, err
	}
	return GetTemplate200JSONResponse(file), nil
}

// GetTemplateVersion implements StrictServerInterface.
func (a *API) GetTemplateVersion(ctx context.Context, q GetTemplateVersionRequestObject) (GetTemplateVersionResponseObject, error) {
	if q.Version < 1 {
		return nil, core.ErrNotFound
	}
	v, err := a.Stored.Template(ctx, callOf(ctx).principal.App, q.Name, q.Version)
	if err != nil {
		return nil, err
	}
	return GetTemplateVersion200JSONResponse(templateOf(v)), nil
}

// ListTemplates implements StrictServerInterface.
func (a *API) ListTemplates(ctx context.Context, q ListTemplatesRequestObject) (ListTemplatesResponseObject, error) {
	p, err := namePage(ctx, q.Params.Limit, q.Params.Cursor)
	if err != nil {
		return nil, err
	}
	vs, next, err := a.Stored.Templates(ctx, callOf(ctx).principal.App, p)
	if err != nil {
		return nil, err
	}
	out := ListTemplates200JSONResponse{Data: make([]Template, 0, len(vs)), NextCursor: nameCursor(next)}
	for i := range vs {
		out.Data = append(out.Data, templateOf(&vs[i]))
	}
	return out, nil
}

// ListTemplateVersions implements StrictServerInterface.
func (a *API) ListTemplateVersions(ctx context.Context, q ListTemplateVersionsRequestObject) (ListTemplateVersionsResponseObject, error) {
	vs, err := a.Stored.TemplateVersions(ctx, callOf(ctx).principal.App, q.Name)
	if err != nil && !errors.Is(err, core.ErrNotFound) {
		return nil, err
	}
	out := ListTemplateVersions200JSONResponse{Data: make([]Template, 0, len(vs))}
	if len(vs) == 0 {
		file, err := a.fileOf(q.Name)
		if err != nil {
			return nil, err
		}
		out.Data = append(out.Data, file)
	}
	for i := range vs {
		out.Data = append(out.Data, templateOf(&vs[i]))
	}
	return out, nil
}

// PreviewTemplate implements StrictServerInterface.
func (a *API) PreviewTemplate(ctx context.Context, q PreviewTemplateRequestObject) (PreviewTemplateResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	b := q.Body
	if b.Version != "" && b.Version.number() == 0 {
		return nil, fault("/version", intake.FaultConflict, "is a template's version, from 1 on")
	}
	t, c, err := a.Intake.PreviewTemplate(ctx, callOf(ctx).principal.App, &intake.TemplatePreview{
		Name: q.Name, Version: b.Version.number(), Data: b.Data, Locale: b.Locale, Channel: b.Channel, Recipient: b.Recipient})
	if err != nil {
		return nil, err
	}
	out := PreviewTemplate200JSONResponse{Name: t.Name(), Version: t.Version(), Locale: c.Locale, Title: c.Title, Body: c.Body, Url: c.URL, Data: c.Data}
	if len(c.Channels) > 0 {
		if out.Channels, err = json.Marshal(c.Channels); err != nil {
			return nil, fmt.Errorf("encode the rendering: %w", err)
		}
	}
	return out, nil
}
