package templates

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"
)

const (
	partialDir = "_partials"
	partialExt = ".liquid"
	// MaxIncludes bounds how deep partials include others.
	MaxIncludes = 5
)

// includeTag is {% include "name" %}: a partial is named by a literal, so that all of a template is known as
// it is compiled.
var includeTag = regexp.MustCompile(`\{%-?\s*include\s+(?:"([^"%]*)"|'([^'%]*)')\s*-?%\}`)

// rawBlock is what is printed as it stands.
var rawBlock = regexp.MustCompile(`(?s)\{%-?\s*raw\s*-?%\}.*?\{%-?\s*endraw\s*-?%\}`)

// includer puts partials into texts, before these are parsed: a partial sees and sets the variables around it,
// and is checked and escaped by where it stands.
type includer struct {
	opt Options
	f   *faults
}

// text is a text with its partials in place.
func (in *includer) text(src, at string) string { return in.expand(src, at, 0) }

func (in *includer) expand(src, at string, depth int) string {
	if !strings.Contains(src, "include") {
		return src
	}
	var out strings.Builder
	rest := src
	for {
		raw := rawBlock.FindStringIndex(rest)
		upto := len(rest)
		if raw != nil {
			upto = raw[0]
		}
		out.WriteString(includeTag.ReplaceAllStringFunc(rest[:upto], func(tag string) string { return in.one(tag, at, depth) }))
		if raw == nil || out.Len() > MaxPart {
			return out.String()
		}
		out.WriteString(rest[raw[0]:raw[1]])
		rest = rest[raw[1]:]
	}
}

func (in *includer) one(tag, at string, depth int) string {
	m := includeTag.FindStringSubmatch(tag)
	name := m[1] + m[2]
	body, ok := in.opt.Partials[name]
	switch {
	case !ok:
		in.f.add(at, CodeSyntax, "%s no partial %q; %s", in.opt.owner(), clip(name), in.opt.remedy(partialDir+"/"+clip(name)+partialExt))
		return ""
	case depth >= MaxIncludes:
		in.f.add(at, CodeLimit, "partials include one another deeper than %d", MaxIncludes)
		return ""
	}
	body = in.expand(body, at, depth+1)
	if len(body) > MaxPart {
		in.f.add(at, CodeLimit, "with its partials the source is larger than %d KiB", MaxPart>>10)
		return ""
	}
	if strings.HasPrefix(tag, "{%-") { // as the tag would have trimmed
		body = strings.TrimLeft(body, " \t\r\n")
	}
	return body
}

// parts is a document with its partials in place.
func (in *includer) parts(p Parts, at string) Parts {
	p.Title, p.Body, p.URL = in.text(p.Title, pointer(at, "title")), in.text(p.Body, pointer(at, "body")), in.text(p.URL, pointer(at, "url"))
	p.Data = in.block(p.Data, pointer(at, "data"))
	channels := make(map[string]json.RawMessage, len(p.Channels))
	for _, name := range sorted(p.Channels) {
		channels[name] = in.block(p.Channels[name], pointer(at, name))
	}
	if p.Channels != nil {
		p.Channels = channels
	}
	return p
}

// block is a JSON block with the partials of its texts in place.
func (in *includer) block(raw json.RawMessage, at string) json.RawMessage {
	if !strings.Contains(string(raw), "include") {
		return raw
	}
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	var tree any
	if d.Decode(&tree) != nil {
		return raw // the compiler says so
	}
	out, err := encode(in.walk(tree, at))
	if err != nil {
		return raw
	}
	return out
}

func (in *includer) walk(v any, at string) any {
	switch v := v.(type) {
	case string:
		return in.text(v, at)
	case []any:
		for i := range v {
			v[i] = in.walk(v[i], fmt.Sprintf("%s/%d", at, i))
		}
	case map[string]any:
		for _, name := range sorted(v) {
			v[name] = in.walk(v[name], pointer(at, name))
		}
	}
	return v
}

// readPartials reads _partials/<name>.liquid.
func (out *files) readPartials(dir fs.FS, f *faults) {
	entries, err := fs.ReadDir(dir, partialDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.file(partialDir, CodeEncoding, "the directory cannot be read: %s", reason(err))
	}
	for _, e := range entries {
		file := path.Join(partialDir, e.Name())
		name, ok := strings.CutSuffix(e.Name(), partialExt)
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		if !ValidName(name) {
			f.file(file, CodeName, "%q is no name for a partial", clip(name))
			continue
		}
		if b, ok := readFile(dir, file, f); ok {
			out.partials[name] = strings.TrimSuffix(string(b), "\n")
		}
	}
}
