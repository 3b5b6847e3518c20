package templates

import (
	"regexp"
	"strings"
)

// DefaultLocale is the name of the document that is used when no locale matches.
const DefaultLocale = "default"

var localeTag = regexp.MustCompile(`^[a-z]{1,8}(-[a-z0-9]{1,8}){0,8}$`)

// canonical brings a language tag to the form in which tags are compared: they are case-insensitive
// (RFC 5646 section 2.1.1), and fr_CA is how POSIX and Java people write fr-CA.
func canonical(tag string) string { return strings.ToLower(strings.ReplaceAll(tag, "_", "-")) }

// lookup finds the document for a language range as RFC 4647 section 3.4 says: the range is shortened
// from its end until something matches, and a single letter or digit (an extension's or private use's
// singleton) goes with what followed it. index goes from the canonical form to the name as written.
func lookup(index map[string]string, locale string) string {
	if len(locale) > 100 {
		return DefaultLocale
	}
	tag := canonical(locale)
	for tag != "" {
		if name, ok := index[tag]; ok {
			return name
		}
		i := strings.LastIndexByte(tag, '-')
		if i < 0 {
			break
		}
		if i >= 2 && tag[i-2] == '-' {
			i -= 2
		}
		tag = tag[:i]
	}
	return DefaultLocale
}
