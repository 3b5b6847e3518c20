package api

import (
	"bytes"
	"encoding"
	stdjson "encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core/intake"
	"github.com/go-json-experiment/json"
	"github.com/go-playground/validator/v10"
)

// maxFaults bounds an answer.
const maxFaults = 100

// diagnosis walks a JSON tree beside a Go type and finds everything that does not fit.
type diagnosis struct{ faults []intake.Fault }

// diagnose finds all faults of a valid JSON text and puts what fits into dst.
func diagnose(body []byte, dst any) ([]intake.Fault, error) {
	d := stdjson.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		return nil, refuse(http.StatusBadRequest, "The body is not valid JSON.")
	}
	if _, ok := tree.(map[string]any); !ok {
		return nil, fault("", intake.FaultInvalid, "must be an object")
	}
	var g diagnosis
	g.walk(reflect.TypeOf(dst).Elem(), tree, "")
	if _, raw := dst.(*TemplateSource); raw {
		return g.faults, nil
	}
	clean, err := stdjson.Marshal(tree)
	if err == nil {
		err = json.Unmarshal(clean, dst)
	}
	if err != nil && len(g.faults) == 0 {
		g.add("", intake.FaultInvalid, "does not have the form that it must have")
	}
	return g.faults, nil
}

func (g *diagnosis) add(pointer, code, detail string) {
	if len(g.faults) < maxFaults {
		g.faults = append(g.faults, intake.Fault{Pointer: pointer, Code: code, Detail: detail})
	}
}

var (
	rawType      = reflect.TypeFor[stdjson.RawMessage]()
	timeType     = reflect.TypeFor[time.Time]()
	versionType  = reflect.TypeFor[Version]()
	nullableType = reflect.TypeFor[Nullable]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// walk reports whether v fits t; members and elements that do not are taken out of the tree.
func (g *diagnosis) walk(t reflect.Type, v any, at string) bool {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case v == nil:
		return true
	case t == rawType:
		return g.walkRaw(v, at)
	case t == timeType:
		s, ok := v.(string)
		if ok {
			_, err := time.Parse(time.RFC3339, s)
			ok = err == nil
		}
		return g.must(ok, at, "must be a time such as 2026-12-01T09:00:00Z (RFC 3339)")
	case t == versionType:
		_, number := v.(stdjson.Number)
		s, text := v.(string)
		return g.must(number || text && !strings.ContainsRune(s, 0), at, "must be a version, a whole number from 1 on")
	case t == nullableType, t.Kind() == reflect.String, reflect.PointerTo(t).Implements(textType):
		s, ok := v.(string)
		if ok && strings.ContainsRune(s, 0) {
			return g.must(false, at, "must not hold a NUL character")
		}
		return g.must(ok, at, "must be a text")
	}
	switch t.Kind() {
	case reflect.Bool:
		_, ok := v.(bool)
		return g.must(ok, at, "must be true or false")
	case reflect.Int, reflect.Int64:
		n, ok := v.(stdjson.Number)
		if ok {
			_, err := n.Int64()
			ok = err == nil
		}
		return g.must(ok, at, "must be a whole number")
	case reflect.Slice:
		list, ok := v.([]any)
		if !g.must(ok, at, "must be a list") {
			return false
		}
		for i := range list {
			if !g.walk(t.Elem(), list[i], fmt.Sprintf("%s/%d", at, i)) {
				list[i] = nil
			}
		}
		return true
	case reflect.Struct:
		return g.walkStruct(t, v, at)
	case reflect.Map:
		return g.walkMap(t, v, at)
	}
	return true
}

// walkMap walks an object whose members have any name.
func (g *diagnosis) walkMap(t reflect.Type, v any, at string) bool {
	members, ok := v.(map[string]any)
	if !g.must(ok, at, "must be an object") {
		return false
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		pointer := at + "/" + escapePointer(name)
		fits := g.must(members[name] != nil, pointer, "must not be null; leave it out")
		fits = g.must(!strings.ContainsRune(name, 0), pointer, "must not hold a NUL character") && fits
		if !fits || !g.walk(t.Elem(), members[name], pointer) {
			delete(members, name)
		}
	}
	return true
}

func (g *diagnosis) walkStruct(t reflect.Type, v any, at string) bool {
	members, ok := v.(map[string]any)
	if !g.must(ok, at, "must be an object") {
		return false
	}
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		fields[name] = t.Field(i).Type
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		pointer := at + "/" + escapePointer(name)
		field, known := fields[name]
		if !known {
			detail := "there is no such field"
			for other := range fields {
				if strings.EqualFold(other, name) {
					detail += "; it is written " + other
				}
			}
			g.add(pointer, "unknown_field", detail)
		}
		if !known || !g.walk(field, members[name], pointer) {
			delete(members, name)
		}
	}
	return true
}

// walkRaw looks for NULs in what is kept as it is.
func (g *diagnosis) walkRaw(v any, at string) bool {
	fits := true
	switch v := v.(type) {
	case string:
		return g.must(!strings.ContainsRune(v, 0), at, "must not hold a NUL character")
	case []any:
		for i := range v {
			fits = g.walkRaw(v[i], fmt.Sprintf("%s/%d", at, i)) && fits
		}
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			pointer := at + "/" + escapePointer(name)
			fits = g.must(!strings.ContainsRune(name, 0), pointer, "must not hold a NUL character") && fits
			fits = g.walkRaw(v[name], pointer) && fits
		}
	}
	return fits
}

func (g *diagnosis) must(ok bool, at, detail string) bool {
	if !ok {
		g.add(at, intake.FaultInvalid, detail)
	}
	return ok
}

// merge adds faults of a later look, but none at a place that has one already.
func merge(faults, more []intake.Fault) []intake.Fault {
	had := len(faults)
	for _, f := range more {
		known := slices.ContainsFunc(faults[:had], func(e intake.Fault) bool {
			return e.Pointer == f.Pointer || strings.HasPrefix(e.Pointer, f.Pointer+"/") || strings.HasPrefix(f.Pointer, e.Pointer+"/")
		})
		if !known && len(faults) < maxFaults {
			faults = append(faults, f)
		}
	}
	return faults
}

func escapePointer(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "~", "~0"), "/", "~1")
}

func newValidator() *validator.Validate {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(func(f reflect.StructField) string {
		for _, tag := range []string{"json", "form"} {
			if name, _, _ := strings.Cut(f.Tag.Get(tag), ","); name != "" {
				return name
			}
		}
		return f.Name
	})
	v.RegisterCustomTypeFunc(func(f reflect.Value) any {
		n, _ := f.Interface().(Nullable)
		return n.Value
	}, Nullable{})
	if err := v.RegisterValidation("goduration", func(l validator.FieldLevel) bool {
		_, err := time.ParseDuration(l.Field().String())
		return err == nil
	}); err != nil {
		panic(err) // only for an empty tag
	}
	skipPlain(v, NotificationRequest{}, Target{})
	return v
}

// ValidatorValue implements validator.Valuer: validator looks at a copy, for of each field of what could be changed it
// makes a copy of its own.
func (n *NotificationRequest) ValidatorValue() any { return *n }

// skipPlain has validator pass over the fields that it has no rule for and looks for none in: it would ask each
// whether it is a validator.Valuer, which takes a copy.
func skipPlain(v *validator.Validate, structs ...any) {
	valuer := reflect.TypeFor[validator.Valuer]()
	for _, s := range structs {
		skip := map[string]string{}
		for _, f := range reflect.VisibleFields(reflect.TypeOf(s)) {
			kind := f.Type.Kind()
			nests := kind == reflect.Pointer || kind == reflect.Interface || kind == reflect.Struct && f.Type != reflect.TypeFor[time.Time]()
			if _, ruled := f.Tag.Lookup("validate"); !ruled && !nests && !f.Type.Implements(valuer) {
				skip[f.Name] = "-"
			}
		}
		v.RegisterStructValidationMapRules(skip, s)
	}
}
