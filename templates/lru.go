package templates

import (
	"container/list"
	"sync"
)

// cacheKey names a stored version of an app's template.
type cacheKey struct {
	app, name string
	version   int
}

// cache keeps compiled templates, those used last, as long as their sources are not too large together.
type cache struct {
	mu    sync.Mutex
	max   int // bytes of source
	size  int
	items map[cacheKey]*list.Element
	order *list.List // the one used last in front
}

type cached struct {
	key  cacheKey
	t    *Template
	size int
}

func newCache(max int) *cache {
	return &cache{max: max, items: map[cacheKey]*list.Element{}, order: list.New()}
}

func (c *cache) get(k cacheKey) (*Template, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.items[k]
	if !ok {
		return nil, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached).t, true
}

func (c *cache) put(k cacheKey, t *Template) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.items[k]; ok {
		return
	}
	size := sourceSize(t.source)
	c.items[k] = c.order.PushFront(&cached{k, t, size})
	for c.size += size; c.size > c.max && c.order.Len() > 1; {
		e := c.order.Back()
		old := c.order.Remove(e).(*cached)
		delete(c.items, old.key)
		c.size -= old.size
	}
}

// sourceSize is about what a template weighs: its text, and something for the compiled parts.
func sourceSize(s Source) int {
	n := 4096 + len(s.Schema)
	for _, p := range s.Locales {
		n += 1024 + len(p.Title) + len(p.Body) + len(p.URL) + len(p.Data)
		for name, b := range p.Channels {
			n += 256 + len(name) + len(b)
		}
	}
	return n
}
