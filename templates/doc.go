// Package templates finds, pins, lays out and renders the content of notifications.
//
// A template is a document per locale: title, body, url, data, and one block for each channel that
// wants more ("email", "push", a plugin's own). Every string in it is Liquid (https://shopify.github.io/liquid/),
// parsed by github.com/osteele/liquid and run by this package's own interpreter, because a template is
// written by somebody who is trusted less than the server: the library has no limits, and a loop in Go
// cannot be stopped from outside. Here every step, byte and loop is counted, and what exceeds the
// limits (see the constants) is an error, never a wait.
//
// docs/templates.md is the same for those who write templates, by examples that a test renders.
//
// # What a template sees
//
// The members of the request's data by their names, and again under data; recipient, with id,
// attributes, locale and timezone as far as they are known; unsubscribe_url, the link of an e-mail's header
// by which the recipient unsubscribes from its category, nil where there is none ({% if unsubscribe_url %}). A layout sees also content, subject and
// locale. The names data, recipient, forloop, empty and blank are taken: a member of the data with such
// a name is reached as data.<name>.
//
// # Undefined variables
//
// An undefined variable is an error wherever it stands, a condition included, with two exceptions, both
// visible in the template: as the input of the filter default ({{ recipient.attributes.name | default:
// "there" }}), and where the template's schema declares the property, whose absence then is its default
// or nil.
//
// # Escaping
//
// In the HTML of an e-mail everything that comes out of {{ }} is escaped, and there is no filter to
// defeat that. A variable must stand in text or in a quoted attribute value; not in a script, a style
// element or an event handler; at the start of a URL attribute it must not be a javascript: or data: URL;
// and the branches of a tag must all end in the same place of the HTML.
// Filters escape and escape_once do not escape twice there, newline_to_br makes real breaks when it is
// the last filter, and what capture captured is printed as it is. Everywhere else nothing is escaped.
//
// # The language
//
// Tags: assign, break, capture, case/when/else, comment, continue, cycle, for/else (limit, offset,
// reversed; ranges only as for x in (1..n)), if/elsif/else, include (of a partial named by a literal; it sees
// and sets the variables around it), raw, unless/else. Not offered: render, tablerow, increment, decrement, echo, liquid. Filters: the standard ones (see filters), without
// raw, safe and the base64 family; date knows no "now", for a message must read the same on every attempt,
// and takes a time without a zone for UTC. A {{ }} stands on one line.
//
// # Files
//
// A directory holds <name>.yaml (or .yml, .json), each the body of PUT /v1/templates/{name}, layouts in
// _layouts/<name>.html and .txt, and partials in _partials/<name>.liquid, which templates and layouts, stored
// ones too, put in by {% include "name" %}:
//
//	layout: default
//	schema: {type: object, required: [order], properties: {order: {type: integer}}}
//	locales:
//	  default:
//	    title: Order {{ order }} has shipped
//	    email: {html: "<h1>Order {{ order }}</h1>"}
//	  fr: {title: "Commande {{ order }} expédiée"}
package templates
