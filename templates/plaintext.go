package templates

import (
	"bytes"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// PlainText makes the text part of an e-mail from its HTML: paragraphs, list items, and links with
// their targets; what is hidden, and images without a text, is left out. It is one pass over the tokens
// and its result is not larger than the HTML by more than the marks it adds to tags.
func PlainText(source string) string {
	w := plainWriter{}
	w.b.Grow(len(source) / 4)
	z := html.NewTokenizer(strings.NewReader(source))
	for {
		switch z.Next() {
		case html.ErrorToken:
			return w.finish()
		case html.TextToken:
			if w.hidden == 0 {
				w.text(z.Text())
			}
		case html.StartTagToken:
			w.start(z, false)
		case html.SelfClosingTagToken:
			w.start(z, true)
		case html.EndTagToken:
			name, _ := z.TagName()
			w.end(atom.Lookup(name))
		}
	}
}

// plainWriter writes words and remembers how many line breaks are due before the next one.
type plainWriter struct {
	b      strings.Builder
	breaks int  // line breaks due
	gap    bool // a space is due
	prefix string
	href   []string  // of the links that are open
	marks  []int     // where their texts began
	hidden int       // how deep inside of something that is not shown, counted in
	hider  atom.Atom // elements of the name that hides: others need not be closed
	pre    int
}

// void are the elements without an end tag (HTML, section 13.1.2).
var void = map[atom.Atom]bool{
	atom.Area: true, atom.Base: true, atom.Br: true, atom.Col: true, atom.Embed: true, atom.Hr: true, atom.Img: true,
	atom.Input: true, atom.Link: true, atom.Meta: true, atom.Source: true, atom.Track: true, atom.Wbr: true,
}

// blocks are the elements that begin a line, with the number of line breaks around them.
var blocks = map[atom.Atom]int{
	atom.Address: 1, atom.Article: 1, atom.Aside: 1, atom.Blockquote: 2, atom.Body: 1, atom.Center: 1, atom.Dd: 1, atom.Div: 1,
	atom.Dl: 2, atom.Dt: 1, atom.Footer: 1, atom.Form: 1, atom.H1: 2, atom.H2: 2, atom.H3: 2, atom.H4: 2, atom.H5: 2, atom.H6: 2,
	atom.Header: 1, atom.Hr: 2, atom.Li: 1, atom.Main: 1, atom.Ol: 2, atom.P: 2, atom.Pre: 2, atom.Section: 1, atom.Table: 2,
	atom.Tr: 1, atom.Ul: 2,
}

func (w *plainWriter) start(z *html.Tokenizer, closed bool) {
	name, more := z.TagName()
	tag := atom.Lookup(name)
	var href, alt string
	invisible := false
	for more {
		var key, val []byte
		key, val, more = z.TagAttr()
		switch string(key) {
		case "href":
			href = string(val)
		case "alt":
			alt = string(val)
		case "hidden":
			invisible = true
		case "style":
			invisible = invisible || hides(val)
		}
	}
	if closed || void[tag] {
		if w.hidden == 0 && !invisible {
			w.single(tag, alt)
		}
		return
	}
	switch tag {
	case atom.Script, atom.Style, atom.Head, atom.Title, atom.Template, atom.Noscript:
		invisible = true
	}
	if w.hidden > 0 || invisible {
		if w.hidden == 0 || tag == w.hider {
			w.hidden++
			w.hider = tag
		}
		return
	}
	w.breaks = max(w.breaks, blocks[tag])
	switch tag {
	case atom.Li:
		w.prefix = "- "
	case atom.Td, atom.Th:
		w.gap = true
	case atom.Pre:
		w.pre++
	case atom.A:
		w.href = append(w.href, href)
		w.marks = append(w.marks, w.b.Len())
	}
}

func (w *plainWriter) single(tag atom.Atom, alt string) {
	switch tag {
	case atom.Br:
		w.breaks++
	case atom.Hr:
		w.breaks = 2
		w.text([]byte("---"))
		w.breaks = 2
	case atom.Img:
		w.text([]byte(alt))
	}
}

func (w *plainWriter) end(tag atom.Atom) {
	if void[tag] {
		return
	}
	if w.hidden > 0 {
		if tag == w.hider {
			w.hidden--
		}
		return
	}
	w.breaks = max(w.breaks, blocks[tag])
	switch tag {
	case atom.Pre:
		w.pre = max(0, w.pre-1)
	case atom.A:
		w.endLink()
	}
}

// endLink writes a link's target behind its text, unless the text is the target.
func (w *plainWriter) endLink() {
	n := len(w.href) - 1
	if n < 0 {
		return
	}
	href, mark := strings.TrimSpace(w.href[n]), w.marks[n]
	w.href, w.marks = w.href[:n], w.marks[:n]
	shown := strings.TrimSpace(w.b.String()[mark:])
	if href == "" || strings.HasPrefix(href, "#") || shown == href || strings.TrimPrefix(href, "mailto:") == shown {
		return
	}
	if shown == "" {
		w.word(href)
		return
	}
	w.gap = true
	w.word("<" + href + ">")
}

func (w *plainWriter) text(s []byte) {
	if w.pre > 0 {
		for i, line := range bytes.Split(s, []byte{'\n'}) {
			if i > 0 {
				w.breaks++
			}
			w.words(bytes.TrimRight(line, " \t\r"))
		}
		return
	}
	for len(s) > 0 {
		n := run(s)
		w.words(s[:n])
		for s = s[n:]; len(s) > 0 && space(s[0]); s = s[1:] {
			w.gap = true
		}
	}
}

// run is how much of a text, from its beginning, can be written as it is: words with one blank between them.
func run(s []byte) int {
	for i, c := range s {
		if space(c) && (c != ' ' || i == 0 || i+1 == len(s) || space(s[i+1])) {
			return i
		}
	}
	return len(s)
}

// hides says whether a style attribute makes its element invisible.
func hides(style []byte) bool {
	if !mentions(style, "none") && !mentions(style, "hidden") { // most say neither
		return false
	}
	text := strings.ToLower(strings.Join(strings.Fields(string(style)), ""))
	return strings.Contains(text, "display:none") || strings.Contains(text, "visibility:hidden")
}

// mentions says whether a lower-case word of ASCII letters is somewhere in a text, in whichever case.
func mentions(text []byte, word string) bool {
	for i := range len(text) - len(word) + 1 {
		if text[i]|0x20 == word[0] && strings.EqualFold(string(text[i:i+len(word)]), word) {
			return true
		}
	}
	return false
}

func (w *plainWriter) words(s []byte) {
	if len(s) > 0 {
		w.lead()
		w.b.Write(s)
	}
}

func (w *plainWriter) word(s string) {
	w.lead()
	w.b.WriteString(s)
}

// lead writes what is due before the next word.
func (w *plainWriter) lead() {
	switch {
	case w.b.Len() == 0:
	case w.breaks > 0:
		w.b.WriteString("\n\n"[:min(w.breaks, 2)])
	case w.gap:
		w.b.WriteByte(' ')
	}
	w.b.WriteString(w.prefix)
	w.breaks, w.gap, w.prefix = 0, false, ""
}

func (w *plainWriter) finish() string {
	return strings.TrimSpace(strings.ReplaceAll(w.b.String(), "\u00a0", " "))
}
