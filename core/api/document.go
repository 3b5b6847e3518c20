package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ChannelDoc describes what a kind brings to a channel, for /openapi.yaml.
type ChannelDoc struct {
	Channel string
	Kind    string
	Doc     string // one sentence
	Content []byte // JSON Schema (draft 2020-12) of the channel's content block; nil: it has none
	Address string // RE2 pattern of an address
}

// describedBy returns the document with the channels that there are: the properties of the request's
// content, and the kinds that an entry of `to` may name. A property of OpenAPI 3.0 says less than a JSON
// Schema can, so that stands beside it, whole, as x-json-schema.
func describedBy(document []byte, channels []ChannelDoc) ([]byte, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(document, &root); err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	schemas := at(&root, "components", "schemas")
	properties, kind := at(schemas, "Content", "properties"), at(schemas, "Target", "properties", "kind")
	if properties == nil || kind == nil {
		return nil, fmt.Errorf("the document has no schema of content or of an entry of to")
	}
	blocks := map[string]map[string]any{}
	kinds := map[string]any{}
	for _, c := range channels {
		kinds[c.Kind] = map[string]any{"channel": c.Channel, "address": c.Address, "description": c.Doc}
		block := blocks[c.Channel]
		if block == nil {
			block = map[string]any{"type": "object", "description": "The block of channel " + c.Channel + ".", "properties": map[string]any{}, "x-json-schema": map[string]any{}}
			blocks[c.Channel] = block
		}
		block["description"] = fmt.Sprintf("%s Kind %s: %s", block["description"], c.Kind, c.Doc)
		if len(c.Content) == 0 {
			continue
		}
		var schema map[string]any
		if err := json.Unmarshal(c.Content, &schema); err != nil {
			return nil, fmt.Errorf("read the content schema of kind %s: %w", c.Kind, err)
		}
		block["x-json-schema"].(map[string]any)[c.Kind] = schema
		own, _ := schema["properties"].(map[string]any)
		for name, p := range own {
			block["properties"].(map[string]any)[name] = plain(p)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(blocks)) {
		if err := set(properties, name, blocks[name]); err != nil {
			return nil, err
		}
	}
	if err := set(kind, "description", "One of "+strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")+"; see x-kinds for their addresses."); err != nil {
		return nil, err
	}
	if err := set(kind, "x-kinds", kinds); err != nil {
		return nil, err
	}
	out, err := yaml.Marshal(&root)
	if err != nil {
		return nil, fmt.Errorf("write the document: %w", err)
	}
	return out, nil
}

// plain is what OpenAPI 3.0 can say of a property's schema.
func plain(schema any) map[string]any {
	out := map[string]any{}
	m, _ := schema.(map[string]any)
	for _, key := range []string{"description", "enum", "format", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems"} {
		if v, ok := m[key]; ok {
			out[key] = v
		}
	}
	if t, ok := m["type"].(string); ok {
		out["type"] = t
		if t == "array" {
			out["items"] = plain(m["items"])
		}
	}
	return out
}

// at is the node below a mapping that the keys lead to, nil for none.
func at(n *yaml.Node, keys ...string) *yaml.Node {
	if n != nil && n.Kind == yaml.DocumentNode {
		n = n.Content[0]
	}
	for _, key := range keys {
		if n == nil || n.Kind != yaml.MappingNode {
			return nil
		}
		i := keyIndex(n, key)
		if i < 0 {
			return nil
		}
		n = n.Content[i+1]
	}
	return n
}

func keyIndex(n *yaml.Node, key string) int {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return i
		}
	}
	return -1
}

// set puts a value under a key of a mapping.
func set(n *yaml.Node, key string, value any) error {
	var v yaml.Node
	if err := v.Encode(value); err != nil {
		return fmt.Errorf("describe %s: %w", key, err)
	}
	n.Style &^= yaml.FlowStyle // a line a member is easier to read
	if i := keyIndex(n, key); i >= 0 {
		n.Content[i+1] = &v
		return nil
	}
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, &v)
	return nil
}

// operation is a method of a path, for the page about the document.
type operation struct{ Method, Summary, Scope string }

// pathOf is a path with its operations, in the document's order.
type pathOf struct {
	Path       string
	Operations []operation
}

// operationRows are the table of the page about the document.
var operationRows = template.Must(template.New("operations").Parse(`<table>
{{range .}}<tr><td><code>{{.Path}}</code></td><td>{{range .Operations}}<div><code>{{.Method}}</code> {{.Summary}}{{with .Scope}} ({{.}}){{end}}</div>{{end}}</td></tr>
{{end}}</table>`))

// operationsOf renders every operation of the document as HTML.
func operationsOf(document []byte) ([]byte, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(document, &root); err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	paths := at(&root, "paths")
	if paths == nil {
		return nil, errors.New("the document has no paths")
	}
	var all []pathOf
	for i := 0; i+1 < len(paths.Content); i += 2 {
		p := pathOf{Path: paths.Content[i].Value}
		item := paths.Content[i+1]
		for j := 0; j+1 < len(item.Content); j += 2 {
			if at(item.Content[j+1], "operationId") == nil {
				continue // the parameters that they share
			}
			o := operation{Method: strings.ToUpper(item.Content[j].Value)}
			for key, to := range map[string]*string{"summary": &o.Summary, "x-scope": &o.Scope} {
				if n := at(item.Content[j+1], key); n != nil {
					*to = n.Value
				}
			}
			if own := at(item.Content[j+1], "security"); own != nil && len(own.Content) > 0 {
				o.Scope = "recipient"
			}
			p.Operations = append(p.Operations, o)
		}
		all = append(all, p)
	}
	var out bytes.Buffer
	if err := operationRows.Execute(&out, all); err != nil {
		return nil, fmt.Errorf("list the operations: %w", err)
	}
	return out.Bytes(), nil
}
