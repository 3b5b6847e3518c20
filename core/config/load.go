package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
)

// DefaultFile is read when no file is named and it exists.
const DefaultFile = "carillon.yaml"

// Source says where settings come from.
type Source struct {
	File    string            // "": DefaultFile when it exists
	Environ []string          // as of os.Environ
	Flags   map[string]string // top-level keys given as flags
	// Overlook are top-level keys that the file says for other processes than this one.
	Overlook []string
}

// delim joins the levels of a key; no key holds it.
const delim = "\x1f"

// Load reads the settings and checks them. warnings name what in the environment looks like a setting
// and is none. The error is an *Error that lists every fault.
func Load(src Source) (c Config, warnings []string, err error) {
	k := koanf.New(delim)
	file, err := readFile(src)
	if err != nil {
		return Config{}, nil, err
	}
	for _, key := range src.Overlook {
		delete(file, key)
	}
	if err := k.Load(confmap.Provider(file, ""), nil); err != nil {
		return Config{}, nil, fmt.Errorf("take the file's settings: %w", err)
	}
	env, warnings, err := readEnv(src.Environ)
	if err != nil {
		return Config{}, nil, err
	}
	flags := map[string]any{}
	for name, v := range src.Flags {
		flags[strings.ReplaceAll(name, "-", "_")] = v
	}
	for _, over := range []map[string]any{env, flags} {
		if err := k.Load(confmap.Provider(over, delim), nil); err != nil {
			return Config{}, nil, fmt.Errorf("lay settings over the file's: %w", err)
		}
	}
	c = Default()
	if err := decode(k.Raw(), &c); err != nil {
		return Config{}, warnings, err
	}
	return c, warnings, c.Check()
}

// decode fills c from nested maps and refuses what c has no place for.
func decode(raw map[string]any, c *Config) error {
	var meta mapstructure.Metadata
	d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		TagName: "koanf", Result: c, Metadata: &meta, WeaklyTypedInput: true,
		DecodeHook: mapstructure.ComposeDecodeHookFunc(strictHook, mapstructure.StringToTimeDurationHookFunc(), listHook),
	})
	if err != nil {
		return fmt.Errorf("make the decoder of settings: %w", err)
	}
	var f []string
	if err := d.Decode(raw); err != nil {
		f = append(f, decodeFaults(err)...)
	}
	for _, key := range meta.Unused {
		f = append(f, fmt.Sprintf("%s: there is no such setting; `orchestrator config` lists them all", plainKey(key)))
	}
	if len(f) > 0 {
		slices.Sort(f)
		return &Error{f}
	}
	return nil
}

// decodeFaults says of each value that does not fit where it is, and not what it is: it may be secret.
func decodeFaults(err error) []string {
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		var out []string
		for _, e := range many.Unwrap() {
			out = append(out, decodeFaults(e)...)
		}
		return out
	}
	var one *mapstructure.DecodeError
	if errors.As(err, &one) {
		return []string{plainKey(one.Name()) + ": " + formOf(plainKey(one.Name()))}
	}
	return []string{"a value has the wrong form"}
}

var indexed = regexp.MustCompile(`\[([^\]]*)\]`)

// plainKey turns mapstructure's "Routes[apns].rate" into "routes.apns.rate".
func plainKey(s string) string { return strings.ToLower(indexed.ReplaceAllString(s, ".$1")) }

var durationType = reflect.TypeFor[time.Duration]()

// formOf says what a key's value has to be.
func formOf(key string) string {
	t := reflect.TypeFor[Config]()
	for part := range strings.SplitSeq(key, ".") {
		switch t.Kind() {
		case reflect.Struct:
			f, ok := fieldOf(t, part)
			if !ok {
				return "has a value of the wrong form"
			}
			t = f
		case reflect.Map, reflect.Slice:
			t = t.Elem()
		default:
			return "has a value of the wrong form"
		}
	}
	switch {
	case t == durationType:
		return "must be a number with a unit, such as 500ms, 3s, 10m or 720h (there is none for days)"
	case t.Kind() == reflect.Bool:
		return "must be true or false"
	case t.Kind() == reflect.Int:
		return "must be a whole number"
	case t.Kind() == reflect.Float64:
		return "must be a number"
	case t.Kind() == reflect.String:
		return "must be a text"
	case t.Kind() == reflect.Slice:
		return "must be a list such as [one, two]"
	case t.Kind() == reflect.Struct:
		var names []string
		for i := range t.NumField() {
			names = append(names, t.Field(i).Tag.Get("koanf")+": …")
		}
		return "must be settings of its own: {" + strings.Join(names, ", ") + "}"
	default:
		return "must be names with their values: {name: …}"
	}
}

var errForm = errors.New("the value is of another form")

// strictHook refuses what the decoder would take for something else: 3 for 3ns, 3 for true, 1.5 for 1. A duration
// of 0 needs no unit.
func strictHook(from, to reflect.Type, v any) (any, error) {
	number, fraction := isNumber(from.Kind()), false
	if f, ok := v.(float64); ok {
		fraction = f != math.Trunc(f)
	}
	switch {
	case to == durationType && from.Kind() == reflect.Bool,
		to == durationType && number && fmt.Sprint(v) != "0",
		to.Kind() == reflect.Bool && number,
		isNumber(to.Kind()) && from.Kind() == reflect.Bool,
		to.Kind() == reflect.Int && fraction:
		return nil, errForm
	}
	return v, nil
}

func isNumber(k reflect.Kind) bool { return k >= reflect.Int && k <= reflect.Float64 }

// listHook reads a list from the environment: values parted by commas. sandbox: true in YAML is a
// bool, and a text here.
func listHook(from, to reflect.Type, v any) (any, error) {
	if from.Kind() == reflect.String && to.Kind() == reflect.Slice {
		var out []string
		for _, part := range strings.Split(v.(string), ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
		return out, nil
	}
	if from.Kind() == reflect.Bool && to.Kind() == reflect.String {
		return fmt.Sprint(v), nil
	}
	return v, nil
}

func readFile(src Source) (map[string]any, error) {
	name := src.File
	if name == "" {
		name = DefaultFile
	}
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) && src.File == "" {
		return map[string]any{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	m, err := yaml.Parser().Unmarshal(text)
	if err != nil {
		return nil, fmt.Errorf("%s is no YAML: %w", filepath.Base(name), err)
	}
	env := map[string]string{}
	for _, kv := range src.Environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	var missing []string
	out := expand(m, env, &missing)
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, &Error{Faults: missing}
	}
	return out.(map[string]any), nil
}

var reference = regexp.MustCompile(`^\$\{([A-Za-z_][A-Za-z0-9_]*)\}$`)

// expand replaces each value that is wholly ${NAME} by the environment's.
func expand(v any, env map[string]string, missing *[]string) any {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Collect(maps.Keys(v)) {
			v[k] = expand(v[k], env, missing)
		}
	case []any:
		for i := range v {
			v[i] = expand(v[i], env, missing)
		}
	case string:
		if m := reference.FindStringSubmatch(v); m != nil {
			value, ok := env[m[1]]
			if !ok {
				*missing = append(*missing, fmt.Sprintf("the file asks for ${%s}, which is not in the environment", m[1]))
			}
			return value
		}
	}
	return v
}

const envPrefix = "CARILLON_"

// notSettings are names with our prefix that mean something else.
var notSettings = []string{"CARILLON_REQUIRE_SERVERS"}

// readEnv takes the settings in the environment. A name that is no key but is one plus _FILE reads its
// value from that file.
func readEnv(environ []string) (map[string]any, []string, error) {
	out := map[string]any{}
	var warnings []string
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		rest, ours := strings.CutPrefix(name, envPrefix)
		if !ours || slices.Contains(notSettings, name) {
			continue
		}
		path := strings.Split(strings.ToLower(rest), "__")
		if !isKey(path) {
			last := len(path) - 1
			base, isFile := strings.CutSuffix(path[last], "_file")
			path[last] = base
			if !isFile || !isKey(path) {
				warnings = append(warnings, name+" is no setting of Carillon and is passed over")
				continue
			}
			text, err := os.ReadFile(value)
			if err != nil {
				return nil, nil, fmt.Errorf("read the file that %s names: %w", name, err)
			}
			value = strings.TrimRight(string(text), "\r\n")
		}
		out[strings.Join(path, delim)] = value
	}
	slices.Sort(warnings)
	return out, warnings, nil
}

// fileSettings are providers' settings whose own name ends in _file; all other names that do are a
// setting plus _FILE.
var fileSettings = []string{"key_file", "credentials_file", "ca_file", "cert_file"}

// isKey reports whether a path names a setting, by Config's own fields.
func isKey(path []string) bool {
	t := reflect.TypeFor[Config]()
	for i, part := range path {
		switch t.Kind() {
		case reflect.Struct:
			f, ok := fieldOf(t, part)
			if !ok {
				return false
			}
			t = f
		case reflect.Map:
			if t.Elem().Kind() == reflect.Interface { // a provider's settings: any name
				last := path[len(path)-1]
				return part != "" && (!strings.HasSuffix(last, "_file") || slices.Contains(fileSettings, last))
			}
			t = t.Elem()
		default:
			return false
		}
		if part == "" || i == len(path)-1 && (t.Kind() == reflect.Struct || t.Kind() == reflect.Map) {
			return false
		}
	}
	return true
}

func fieldOf(t reflect.Type, key string) (reflect.Type, bool) {
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("koanf") == key {
			return t.Field(i).Type, true
		}
	}
	return nil, false
}

// Changed names the settings that differ between two configurations, as "retention.finished"; a map is one setting. It tells
// no values.
func Changed(a, b Config) []string { return changed("", reflect.ValueOf(a), reflect.ValueOf(b)) }

func changed(at string, a, b reflect.Value) (out []string) {
	for i := range a.NumField() {
		name := at + a.Type().Field(i).Tag.Get("koanf")
		switch x, y := a.Field(i), b.Field(i); {
		case x.Kind() == reflect.Struct:
			out = append(out, changed(name+".", x, y)...)
		case !reflect.DeepEqual(x.Interface(), y.Interface()):
			out = append(out, name)
		}
	}
	return out
}
