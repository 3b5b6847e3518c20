package templates

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
)

// ErrNotFound is what Catalog.Find and a Store return when no template, or no such version of it, exists.
var ErrNotFound = errors.New("no such template")

// The codes of faults. They are stable; the details are for people.
const (
	CodeSyntax    = "syntax"             // not Liquid, or not as this package offers it
	CodeTag       = "unknown_tag"        // a tag that is not offered
	CodeFilter    = "unknown_filter"     // a filter that is not offered
	CodeValue     = "bad_value"          // a filter or tag was given what it cannot work on
	CodeUndefined = "undefined_variable" // a variable that neither the data nor the schema has
	CodeLimit     = "limit"              // too large, too deep, too long, too often
	CodeEscape    = "unsafe_context"     // a variable where escaping cannot make it safe
	CodeSchema    = "schema"             // the data fails the schema, or the schema is no schema
	CodeLayout    = "unknown_layout"     // no layout of that name
	CodeLocale    = "locale"             // a locale's name is malformed, twice there, or "default" is missing
	CodeMember    = "unknown_member"     // a JSON member that has no meaning here
	CodeType      = "type"               // a JSON value of the wrong type
	CodeOffered   = "not_offered"        // known, but not offered by this version
	CodeEncoding  = "encoding"           // not UTF-8, not JSON, not YAML
	CodeName      = "name"               // a template's name that is malformed or given twice
)

// Fault is one thing that is wrong.
type Fault struct {
	// File is the file that it is in, relative to the directory, for a template from a file.
	File string `json:"file,omitempty"`
	// Pointer is a JSON pointer (RFC 6901) into the template's document ("/locales/fr/email/html"), or
	// under "/data" into the request's data.
	Pointer string `json:"pointer"`
	Code    string `json:"code"`
	// Detail says what is wrong and what to do, in one sentence. It holds template source, never data.
	Detail string `json:"detail"`
}

// Error lists every fault that was found, in the order of their files and pointers.
type Error struct{ Faults []Fault }

// Error names the first faults and how many there are.
func (e *Error) Error() string {
	const shown = 3
	parts := make([]string, 0, shown+1)
	for i, f := range e.Faults {
		if i == shown {
			parts = append(parts, fmt.Sprintf("and %d more", len(e.Faults)-shown))
			break
		}
		where := f.Pointer
		if f.File != "" {
			where = f.File + "#" + where
		}
		parts = append(parts, where+": "+f.Detail)
	}
	return "template: " + strings.Join(parts, "; ")
}

// Join is one *Error of several, with one fault for each place, or nil. An error that is no *Error is returned as
// it is.
func Join(errs ...error) error {
	var all faults
	seen := map[[2]string]bool{}
	for _, err := range errs {
		var e *Error
		if err != nil && !errors.As(err, &e) {
			return err
		}
		if e == nil {
			continue
		}
		var now []Fault
		for _, f := range e.Faults {
			if !seen[[2]string{f.File, f.Pointer}] {
				now = append(now, f)
			}
		}
		for _, f := range now {
			seen[[2]string{f.File, f.Pointer}] = true
		}
		all.list = append(all.list, now...)
	}
	return all.err()
}

// faults collects what is wrong on the way through a document.
type faults struct{ list []Fault }

// maxFaults bounds a list of faults: whoever made more than that has one mistake many times.
const maxFaults = 100

func (f *faults) add(pointer, code, format string, args ...any) {
	if len(f.list) < maxFaults {
		f.list = append(f.list, Fault{Pointer: pointer, Code: code, Detail: fmt.Sprintf(format, args...)})
	}
}

func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	sort.SliceStable(f.list, func(i, j int) bool {
		a, b := f.list[i], f.list[j]
		if a.File != b.File {
			return a.File < b.File
		}
		return a.Pointer < b.Pointer
	})
	return &Error{Faults: f.list}
}

// stop is why the rendering of a part ended early.
type stop struct {
	code, detail string
	line         int
}

func (s *stop) Error() string {
	if s.line > 0 {
		return "line " + strconv.Itoa(s.line) + ": " + s.detail
	}
	return s.detail
}

func stopf(code, format string, args ...any) *stop {
	return &stop{code: code, detail: fmt.Sprintf(format, args...)}
}

// pointer joins JSON pointer tokens (RFC 6901 section 3: "~" is "~0", "/" is "~1").
func pointer(base string, tokens ...string) string {
	for _, t := range tokens {
		base += "/" + strings.ReplaceAll(strings.ReplaceAll(t, "~", "~0"), "/", "~1")
	}
	return base
}
