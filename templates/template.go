package templates

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
)

// Options says what a template is compiled with.
type Options struct {
	// Layouts are those that a template may name, by name. Nil stands for the shipped ones.
	Layouts map[string]Layout
	// Partials are those that a template may include, by name.
	Partials map[string]string
	// Server says that layouts and partials are a running server's, for what is said of one that it does not have.
	Server bool
}

// remedy says what to do about a file that is missing.
func (o Options) remedy(file string) string {
	if o.Server {
		return "put " + file + " into the directory templates.dir of the server and have it look again (SIGHUP, or POST /v1/routes/reload)"
	}
	return "it would be the file " + file
}

// owner is who does not have it.
func (o Options) owner() string {
	if o.Server {
		return "the server has"
	}
	return "there is"
}

// Template is a compiled template. It never changes, and is safe for concurrent use.
type Template struct {
	source  Source
	version int
	hash    string
	schema  *schema
	docs    map[string]*document
	index   map[string]string // canonical tags to the locales' names
	html    *part             // the layout's, nil for none
	text    *part
}

// document is one locale, compiled.
type document struct {
	title, body, url *part
	data             block
	channels         []channel
}

type channel struct {
	name  string
	block block
}

// Compile checks a template and prepares it for rendering. The error is an *Error with every fault.
func Compile(src Source, opt Options) (*Template, error) {
	var f faults
	t := &Template{source: src, docs: map[string]*document{}, index: map[string]string{}}
	in := &includer{opt: opt, f: &f}
	whole := make(map[string]Parts, len(src.Locales))
	t.layout(src.Layout, opt, &f)
	if src.Schema != nil {
		t.schema = compileSchema(src.Schema, &f)
	}
	if _, ok := src.Locales[DefaultLocale]; !ok {
		f.add("/locales", CodeLocale, "the locale %q is missing; it is used when no other matches", DefaultLocale)
	}
	const maxLocales = 200
	if len(src.Locales) > maxLocales {
		f.add("/locales", CodeLimit, "more than %d locales", maxLocales)
		return nil, f.err()
	}
	for _, name := range sorted(src.Locales) {
		at := pointer("/locales", name)
		tag := canonical(name)
		switch other, twice := t.index[tag]; {
		case !localeTag.MatchString(tag):
			f.add(at, CodeLocale, "%q is no language tag (BCP 47), like \"fr\" or \"pt-BR\"", clip(name))
		case twice:
			f.add(at, CodeLocale, "the locale is there twice, also as %q", other)
		}
		t.index[tag] = name
		whole[name] = in.parts(src.Locales[name], at)
		t.docs[name] = compileDocument(whole[name], at, &f)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	t.hash = t.sum(layoutsOf(opt.Layouts)[src.Layout], whole)
	return t, nil
}

// sum computes the hash: over every text, each with its length before it.
func (t *Template) sum(l Layout, whole map[string]Parts) string {
	h := sha256.New()
	add := func(texts ...string) {
		for _, s := range texts {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s))))
			h.Write([]byte(s))
		}
	}
	add(t.source.Layout, l.HTML, l.Text, string(t.source.Schema))
	for _, name := range sorted(whole) {
		p := whole[name]
		add("locale", name, p.Title, p.Body, p.URL, string(p.Data))
		for _, channel := range sorted(p.Channels) {
			add("channel", channel, string(p.Channels[channel]))
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

func layoutsOf(given map[string]Layout) map[string]Layout {
	if given == nil {
		return shippedLayouts()
	}
	return given
}

// layout compiles the layout that the template names.
func (t *Template) layout(name string, opt Options, f *faults) {
	if name == "" {
		return
	}
	layouts := layoutsOf(opt.Layouts)
	l, ok := layouts[name]
	if !ok {
		f.add("/layout", CodeLayout, "%s no layout %q, only %s; %s", opt.owner(), clip(name), strings.Join(sorted(layouts), ", "), opt.remedy(layoutDir+"/"+clip(name)+".html (or .txt)"))
		return
	}
	t.html, t.text = compileLayout(l, f)
}

func compileLayout(l Layout, f *faults) (html, text *part) {
	wrap := func(src string, html bool) *part {
		if src == "" {
			return nil
		}
		before := len(f.list)
		p := parse(src, &part{at: "/layout", html: html}, true, f)
		if !p.wraps && len(f.list) == before {
			f.add("/layout", CodeSyntax, "the layout has no {{ content }}")
		}
		return p
	}
	return wrap(l.HTML, true), wrap(l.Text, false)
}

func compileDocument(p Parts, at string, f *faults) *document {
	d := &document{
		title: parse(p.Title, &part{at: pointer(at, "title"), trim: true}, false, f),
		body:  parse(p.Body, &part{at: pointer(at, "body"), trim: true}, false, f),
		url:   parse(p.URL, &part{at: pointer(at, "url"), trim: true}, false, f),
	}
	if p.Data != nil {
		d.data = compileBlock(p.Data, pointer(at, "data"), false, f)
	}
	for _, name := range sorted(p.Channels) {
		b := compileBlock(p.Channels[name], pointer(at, name), name == emailChannel, f)
		d.channels = append(d.channels, channel{name, b})
	}
	parts := 0
	for _, b := range append([]channel{{block: d.data}}, d.channels...) {
		parts += len(b.block)
	}
	if parts > MaxParts {
		f.add(at, CodeLimit, "more than %d texts with Liquid in them", MaxParts)
	}
	return d
}

// Name is the template's name.
func (t *Template) Name() string { return t.source.Name }

// Version is the stored version's number, 0 for a template from a file or a shipped one.
func (t *Template) Version() int { return t.version }

// Hash identifies the template's document and layout: SHA-256, in hexadecimal.
func (t *Template) Hash() string { return t.hash }

// Source is the template as it was written. It must not be changed.
func (t *Template) Source() Source { return t.source }

// Locale is the name of the document that Render uses for a locale: the locale's own, one of a shorter
// tag (fr for fr-CA, RFC 4647 section 3.4), or "default".
func (t *Template) Locale(locale string) string { return lookup(t.index, locale) }

// Recipient is what a template may know of the recipient. What is empty is undefined.
type Recipient struct {
	ID, Locale, Timezone string
	// Attributes are the recipient's own, of the types that encoding/json makes.
	Attributes map[string]any
	// Unsubscribe is the link by which the recipient unsubscribes from what the message is of; "" for none.
	Unsubscribe string
}

// Input is what a template is rendered with.
type Input struct {
	// Data is the request's, of the types that encoding/json makes, json.Number included. It is not
	// changed and not kept.
	Data      map[string]any
	Recipient Recipient
	// Locale is the one that was asked for; "" is the recipient's.
	Locale string
	// Channels are the blocks to render; nil is all.
	Channels []string
}

// Content is what was rendered.
type Content struct {
	// Locale is the name of the document that was used, as the template has it; "" for inline content.
	Locale           string
	Title, Body, URL string
	// Data is a JSON object, or nil.
	Data json.RawMessage
	// Channels holds a JSON object for each channel that has a block.
	Channels map[string]json.RawMessage
}

// Render renders the document of the input's locale. The error is an *Error with every fault: with
// pointers under /data for what the schema refuses, else to the part that could not be rendered.
// White space around title, body, url and an e-mail's subject and text is taken off.
func (t *Template) Render(in Input) (Content, error) {
	var f faults
	t.check(in, &f)
	if err := f.err(); err != nil {
		return Content{}, err
	}
	locale := in.Locale
	if locale == "" {
		locale = in.Recipient.Locale
	}
	name := t.Locale(locale)
	d := t.docs[name]
	m := machines.Get().(*machine)
	m.reset()
	defer m.release()
	r := &rendering{t: t, m: m, in: in, f: &f, locale: name}
	r.data = &value{m: m, v: in.Data, key: "data"}
	if in.Data == nil {
		r.data.v = map[string]any{}
	}
	if t.schema != nil {
		r.data.shape = t.schema.shape
	}
	c := Content{Locale: name}
	c.Title = r.text(d.title)
	c.Body = r.text(d.body)
	c.URL = r.text(d.url)
	r.subject = c.Title
	if d.data != nil {
		c.Data = r.block(d.data)
	}
	for _, ch := range d.channels {
		if !wanted(in.Channels, ch.name) {
			continue
		}
		if c.Channels == nil {
			c.Channels = make(map[string]json.RawMessage, len(d.channels))
		}
		c.Channels[ch.name] = r.block(ch.block)
	}
	if err := f.err(); err != nil {
		return Content{}, err
	}
	return c, nil
}

func wanted(channels []string, name string) bool {
	for _, c := range channels {
		if c == name {
			return true
		}
	}
	return channels == nil
}

// check looks at the data before anything is rendered with it.
func (t *Template) check(in Input, f *faults) {
	c := dataCheck{f: f}
	ok := c.walk(in.Data, make([]string, 0, 8), 0)
	r := dataCheck{f: &faults{}}
	if !r.walk(in.Recipient.Attributes, make([]string, 0, 8), 0) {
		f.add("/recipient/attributes", CodeType, "the recipient's attributes are too many, too deep or no JSON")
	}
	if ok && t.schema != nil {
		data := in.Data
		if data == nil {
			data = map[string]any{}
		}
		t.schema.validate(data, c.values+bytes16(c.bytes), f)
	}
}

// rendering is one Render on its way.
type rendering struct {
	t         *Template
	m         *machine
	in        Input
	f         *faults
	locale    string
	data      *value
	recipient *value
	subject   string // the e-mail's, else the title
	mail      string // the e-mail's own
	html      string // the e-mail's HTML without its layout
}

// text renders a part; what goes wrong is a fault.
func (r *rendering) text(p *part) string {
	if p.nodes == nil {
		return p.plain
	}
	b, ok := r.part(p, "")
	if !ok {
		return ""
	}
	s := string(b)
	if p.trim {
		s = strings.TrimSpace(s)
	}
	return s
}

// part renders a part into the machine's buffer. content is what a layout is laid around.
func (r *rendering) part(p *part, content string) (out []byte, ok bool) {
	m := r.m
	m.clear()
	m.html, m.inner = p.html, content
	r.bind(p)
	if err := m.safely(p.nodes); err != nil {
		var s *stop
		if !errors.As(err, &s) {
			s = stopf(CodeValue, "the template cannot be rendered with this data")
		}
		r.f.add(p.at, s.code, "%s", s.Error())
		return nil, false
	}
	return m.buf, true
}

// safely is run behind a recover: the library panics on what its authors did not think of, and a
// template must not take the server down.
func (m *machine) safely(nodes []node) (err error) {
	defer func() {
		if recover() != nil {
			err = stopf(CodeValue, "an expression cannot be evaluated with this data")
		}
	}()
	return m.run(nodes)
}

// bind gives the machine the variables that the part looks up.
func (r *rendering) bind(p *part) {
	m := r.m
	for _, name := range p.roots {
		switch name {
		case "data":
			m.vars[name] = r.data
		case "recipient":
			m.vars[name] = r.recipientValue()
		case "unsubscribe_url":
			m.vars[name] = r.unsubscribeURL()
		case "empty", "blank":
			m.vars[name] = &special{m, name}
		case "content", "subject", "locale":
			if p.wraps {
				m.vars[name] = r.layoutVariable(name)
				continue
			}
			m.vars[name] = r.lookup(name)
		default:
			m.vars[name] = r.lookup(name)
		}
	}
}

func (r *rendering) layoutVariable(name string) any {
	switch name {
	case "subject":
		return r.m.wrap(r.subject)
	case "locale":
		if r.locale == DefaultLocale {
			return r.m.wrap("")
		}
		return r.m.wrap(r.locale)
	}
	if r.m.html {
		return r.m.wrap(markup(r.m.inner))
	}
	return r.m.wrap(r.m.inner)
}

// unsubscribeURL is the recipient's link, nil where there is none, unless the data has a member of that name.
func (r *rendering) unsubscribeURL() any {
	const name = "unsubscribe_url"
	x := r.lookup(name)
	if _, none := x.(*missing); !none {
		return x
	}
	if link := r.in.Recipient.Unsubscribe; link != "" {
		return r.m.wrap(link)
	}
	return &value{m: r.m, key: name}
}

// lookup is a member of the data under its own name.
func (r *rendering) lookup(name string) any {
	shape := r.data.shape.property(name)
	x, ok := r.data.v.(map[string]any)[name]
	switch {
	case ok:
		return &value{m: r.m, v: plain(x), shape: shape, key: name}
	case shape != nil:
		return &value{m: r.m, v: plain(shape.def), shape: shape, key: name}
	}
	return &missing{m: r.m, key: name}
}

func (r *rendering) recipientValue() *value {
	if r.recipient == nil {
		o := map[string]any{"attributes": map[string]any{}}
		if a := r.in.Recipient.Attributes; a != nil {
			o["attributes"] = a
		}
		for name, s := range map[string]string{"id": r.in.Recipient.ID, "locale": r.in.Recipient.Locale, "timezone": r.in.Recipient.Timezone} {
			if s != "" {
				o[name] = s
			}
		}
		r.recipient = &value{m: r.m, v: o, key: "recipient"}
	}
	return r.recipient
}

// block renders a JSON value.
func (r *rendering) block(b block) json.RawMessage {
	for _, s := range b {
		if s.role == mailSubject { // before the HTML, whose layout may show it
			r.mail = r.text(s.part)
			if r.mail != "" {
				r.subject = r.mail
			}
		}
	}
	r.m.out = r.m.out[:0]
	for _, s := range b {
		r.m.out = append(r.m.out, s.json...)
		if s.part != nil {
			r.segment(s)
		}
	}
	return bytes.Clone(r.m.out)
}

// segment appends a part as a JSON string.
func (r *rendering) segment(s segment) {
	m := r.m
	switch s.role {
	case ordinary:
		m.out = appendQuoted(m.out, r.text(s.part))
	case mailSubject:
		m.out = appendQuoted(m.out, r.mail)
	case mailHTML:
		r.html = r.text(s.part)
		m.out = appendQuoted(m.out, r.wrap(r.t.html, r.html))
	case mailText:
		m.out = appendQuoted(m.out, bytes.TrimSpace(r.wrap(r.t.text, r.text(s.part))))
	case madeText:
		m.out = appendQuoted(m.out, bytes.TrimSpace(r.wrap(r.t.text, PlainText(r.html))))
	}
}

// wrap lays a layout around a part. The result is good until the next part.
func (r *rendering) wrap(layout *part, content string) []byte {
	if layout == nil {
		return []byte(content)
	}
	b, _ := r.part(layout, content)
	return b
}
