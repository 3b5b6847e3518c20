package templates

import "strings"

// htmlContext follows the HTML of a part far enough to know where a variable stands. Escaping is enough
// in text and in a quoted attribute value and nowhere else: a value between attributes, or in one
// without quotes, needs no quote or bracket to become an attribute of its own.
type htmlContext struct {
	state htmlState
	tag   string // the element whose tag, or whose raw text, this is
	attr  string // the attribute's name
	fresh bool   // nothing but white space stands in the attribute's value yet
	quote byte
}

type htmlState uint8

const (
	inText htmlState = iota
	inComment
	inDeclaration // <!doctype …>, <!--[if mso]> …
	inRaw         // script, style
	inTagName
	inTag       // between attributes
	inAttrName  //
	afterEquals // before an attribute's value
	inQuoted
	inUnquoted
)

// urlAttributes are the attributes whose value is fetched, or followed on a click.
var urlAttributes = map[string]bool{
	"href": true, "src": true, "action": true, "formaction": true, "background": true, "cite": true,
	"poster": true, "srcset": true, "xlink:href": true, "data": true, "longdesc": true, "ping": true,
}

// feed goes on over the template's own text.
func (c *htmlContext) feed(s string) {
	for i := 0; i < len(s); i++ {
		switch b := s[i]; c.state {
		case inText:
			i = c.text(s, i)
		case inComment:
			if strings.HasPrefix(s[i:], "-->") {
				c.state = inText
				i += 2
			}
		case inDeclaration:
			if b == '>' {
				c.state = inText
			}
		case inRaw:
			end := "</" + c.tag
			if len(s)-i >= len(end) && strings.EqualFold(s[i:i+len(end)], end) {
				c.state, c.tag = inDeclaration, ""
			}
		case inTagName:
			switch {
			case b == '>':
				c.closeTag()
			case space(b) || b == '/' && c.tag != "":
				c.state = inTag
			default:
				c.tag += lower(b)
			}
		case inQuoted:
			if b == c.quote {
				c.state = inTag
			} else if !space(b) {
				c.fresh = false
			}
		default:
			c.inside(b)
		}
	}
}

func (c *htmlContext) text(s string, i int) int {
	rest := s[i:]
	switch {
	case rest[0] != '<':
	case strings.HasPrefix(rest, "<!--[if"), strings.HasPrefix(rest, "<![endif"):
		// Outlook reads what is between the two, so a variable there stands in HTML, not in a comment.
		c.state = inDeclaration
	case strings.HasPrefix(rest, "<!--"):
		c.state = inComment
		return i + 3
	case strings.HasPrefix(rest, "<!"), strings.HasPrefix(rest, "<?"):
		c.state = inDeclaration
	case len(rest) == 1, rest[1] == '/', letter(rest[1]):
		c.state, c.tag = inTagName, ""
	}
	return i
}

// inside goes on between a tag's name and its end, outside of quotes.
func (c *htmlContext) inside(b byte) {
	switch {
	case b == '>':
		c.closeTag()
	case c.state == afterEquals && (b == '"' || b == '\''):
		c.state, c.quote, c.fresh = inQuoted, b, true
	case space(b):
		if c.state != afterEquals {
			c.state = inTag
		}
	case c.state == afterEquals:
		c.state = inUnquoted
	case c.state == inUnquoted:
	case b == '=':
		c.state = afterEquals
	case c.state == inTag && b != '/':
		c.state, c.attr = inAttrName, lower(b)
	case c.state == inAttrName:
		c.attr += lower(b)
	}
}

func (c *htmlContext) closeTag() {
	c.state = inText
	if c.codes() {
		c.state = inRaw
	}
}

// variable says what is wrong with a variable here, "" for nothing, and whether its value begins a URL.
func (c *htmlContext) variable() (wrong string, url bool) {
	switch c.state {
	case inRaw:
		return "a variable may not stand in a " + c.tag + " element; use a quoted attribute of a tag", false
	case inTagName, inTag, inAttrName:
		return "a variable may not stand inside a tag but in a quoted attribute value", false
	case afterEquals, inUnquoted:
		c.state = inUnquoted
		return "put the attribute's value in quotes", false
	case inQuoted:
		if strings.HasPrefix(c.attr, "on") || c.attr == "srcdoc" {
			return "a variable may not stand in the attribute " + c.attr, false
		}
		url = c.fresh && urlAttributes[c.attr]
		c.fresh = false
	}
	return "", url
}

// merge is where the HTML goes on after branches that end at c and o. ok says that it is one place: after
// branches that end in different ones nobody could say where a variable stands.
func (c htmlContext) merge(o htmlContext) (_ htmlContext, ok bool) {
	a, b := c.place(), o.place()
	if a != b {
		return c, false
	}
	switch a {
	case inTag:
		c.state = inTag
		return c, c.tag == o.tag || !c.codes() && !o.codes()
	case inRaw:
		return c, c.tag == o.tag
	case inQuoted:
		c.fresh = c.fresh || o.fresh // with care: the value may begin here
		return c, c.quote == o.quote && c.attr == o.attr
	}
	return c, true
}

// place is the state, but that inside of a tag all that is not a value is one.
func (c htmlContext) place() htmlState {
	if c.state == inTagName || c.state == inAttrName {
		return inTag
	}
	return c.state
}

func (c htmlContext) codes() bool { return c.tag == "script" || c.tag == "style" }

func space(b byte) bool  { return b == ' ' || b == '\t' || b == '\n' || b == '\r' || b == '\f' }
func letter(b byte) bool { return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' }

func lower(b byte) string {
	if b >= 'A' && b <= 'Z' {
		b += 'a' - 'A'
	}
	return string(rune(b))
}

// safeURL says whether a value may begin a URL attribute. An app's own scheme may; those that run code,
// or show a page of the value's own making, may not. Browsers take out tabs, line breaks and leading
// control characters before they look at the scheme (https://url.spec.whatwg.org/#url-parsing), so this
// does, too.
func safeURL(s string) bool {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' {
			return -1
		}
		return r
	}, s[:min(len(s), 256)])
	i := strings.IndexAny(s, ":/?#")
	if i < 0 || s[i] != ':' {
		return true
	}
	switch strings.ToLower(s[:i]) {
	case "javascript", "vbscript", "data", "file", "blob", "livescript", "mocha":
		return false
	}
	return true
}
