package store

import (
	lists "container/list"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/klauspost/compress/zstd"

	"github.com/carillon-notify/carillon/core"
)

const (
	pageBytes      = 128 << 10 // a page is closed when its contents are that large
	pageCacheBytes = 32 << 20  // decoded pages kept in memory
	maxUnpacked    = 64 << 20  // no page or result record unpacks to more
)

var (
	packer, _   = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))
	unpacker, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(maxUnpacked))
)

// pack compresses what is worth it; unpack tells the two by zstd's magic number, which no JSON text
// begins with.
func pack(b []byte) []byte {
	if len(b) < 256 {
		return b
	}
	return packer.EncodeAll(b, make([]byte, 0, len(b)/3))
}

func unpack(b []byte) ([]byte, error) {
	if len(b) == 0 || b[0] != 0x28 { // RFC 8878 3.1.1: 0xFD2FB528, little-endian
		return b, nil
	}
	return unpacker.DecodeAll(b, nil)
}

// page is the contents of one commit, or a part of them.
type page struct {
	id       core.ID
	contents []core.Content
	size     int
}

// binder lays the contents of a group out in pages, identical ones once.
type binder struct {
	now   time.Time
	seen  map[[32]byte]core.ContentRef
	texts [][]json.RawMessage // by page
	pages []*page
	refs  map[core.ID]int // deliveries that point at each page
}

// contentText is a content as it is kept. It is made by whoever records it, for a group's writer works for everybody.
type contentText struct {
	text []byte
	sum  [32]byte
}

func encodeContents(cs []core.Content) ([]contentText, error) {
	out := make([]contentText, len(cs))
	for i := range cs {
		text, err := encodeContent(cs[i])
		if err != nil {
			return nil, fmt.Errorf("encode a content: %w", err)
		}
		out[i] = contentText{text, sha256.Sum256(text)}
	}
	return out, nil
}

func (b *binder) add(c core.Content, as contentText) core.ContentRef {
	if ref, ok := b.seen[as.sum]; ok {
		return ref
	}
	last := len(b.pages) - 1
	if last < 0 || b.pages[last].size > pageBytes {
		b.pages = append(b.pages, &page{id: core.NewID(b.now)})
		b.texts = append(b.texts, nil)
		last++
	}
	p := b.pages[last]
	ref := core.ContentRef{Page: p.id, Slot: len(p.contents)}
	p.contents, p.size = append(p.contents, c), p.size+len(as.text)
	b.texts[last] = append(b.texts[last], as.text)
	b.seen[as.sum] = ref
	return ref
}

// encodeContent is json.Marshal but for the channel's block, which may be 8 KB of HTML: that is looked through once
// and taken as it is, where json.Marshal would write it anew and escape each of its brackets.
func encodeContent(c core.Content) ([]byte, error) {
	block := jsontext.Value(c.Block)
	if len(block) == 0 || !block.IsValid() {
		return json.Marshal(c) // which says what is wrong with it
	}
	c.Block = nil
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	out := append(make([]byte, 0, len(text)+len(block)+6), text[:len(text)-1]...)
	if len(out) > 1 {
		out = append(out, ',')
	}
	return append(append(append(out, `"c":`...), block...), '}'), nil
}

func (b *binder) rows() [][]any {
	rows := make([][]any, len(b.pages))
	for i, p := range b.pages {
		text := list(b.texts[i], p.size)
		rows[i] = []any{p.id[:], pack(text), int64(b.refs[p.id])}
	}
	return rows
}

// list is texts as a JSON list. Encoding them as one would read them all over again.
func list(texts []json.RawMessage, size int) []byte {
	out := make([]byte, 0, size+len(texts)+2)
	out = append(out, '[')
	for i, text := range texts {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, text...)
	}
	return append(out, ']')
}

// pageCache keeps decoded pages, the least recently used ones go first.
type pageCache struct {
	mu    sync.Mutex
	max   int
	size  int
	order *lists.List
	byID  map[core.ID]*lists.Element
}

func newPageCache(maxBytes int) *pageCache {
	return &pageCache{max: maxBytes, order: lists.New(), byID: map[core.ID]*lists.Element{}}
}

func (c *pageCache) get(id core.ID) *page {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byID[id]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*page)
}

func (c *pageCache) add(pages []*page) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range pages {
		if c.byID[p.id] != nil {
			continue
		}
		c.byID[p.id] = c.order.PushFront(p)
		c.size += p.size + 200*len(p.contents)
	}
	for c.size > c.max && c.order.Len() > 1 {
		e := c.order.Back()
		p := c.order.Remove(e).(*page)
		delete(c.byID, p.id)
		c.size -= p.size + 200*len(p.contents)
	}
}

// errPage says that a page is not what was written.
var errPage = errors.New("a page is damaged")

// content finds what a delivery's reference points at; nil where it was erased.
func (s *Store) content(ctx context.Context, ref core.ContentRef) (*core.Content, error) {
	if ref.Page.IsZero() {
		return nil, nil
	}
	p := s.pages.get(ref.Page)
	if p == nil {
		var err error
		if p, err = s.loadPage(ctx, ref.Page); err != nil || p == nil {
			return nil, err
		}
		s.pages.add([]*page{p})
	}
	if ref.Slot < 0 || ref.Slot >= len(p.contents) {
		return nil, fmt.Errorf("%w: %s has no content %d", errPage, ref.Page, ref.Slot)
	}
	return &p.contents[ref.Slot], nil
}

func (s *Store) loadPage(ctx context.Context, id core.ID) (*page, error) {
	var body []byte
	err := s.read(ctx, "read a page", "SELECT body FROM pages WHERE id = $1", func(r row) error { return r.Scan(&body) }, id[:])
	if err != nil || body == nil {
		return nil, err
	}
	text, err := unpack(body)
	if err != nil {
		return nil, fmt.Errorf("%w: unpack %s: %w", errPage, id, err)
	}
	p := &page{id: id, size: len(text)}
	if err := json.Unmarshal(text, &p.contents); err != nil {
		return nil, fmt.Errorf("%w: decode %s: %w", errPage, id, err)
	}
	return p, nil
}
