package api_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/api"
)

// attributesOf is attributes of so many bytes without white space, and some of that.
func attributesOf(n int) string {
	const frame = `{"a": "",  "b":1}`
	bare := len(frame) - 3
	return strings.Replace(frame, `""`, `"`+strings.Repeat("x", n-bare)+`"`, 1)
}

// A recipient's attributes have a bound, whichever way they come.
func TestAttributesBound(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	most, more := attributesOf(core.MaxAttributes), attributesOf(core.MaxAttributes+1)
	tooLarge := map[string]string{"/attributes": "too_large"}
	for _, method := range []string{"PUT", "PATCH"} {
		path := "/v1/recipients/" + strings.ToLower(method)
		if diff := cmp.Diff(tooLarge, r.must(422, method, path, sendKey, `{"attributes":`+more+`}`).faults(t)); diff != "" {
			t.Errorf("%s: %s", method, diff)
		}
		r.must(404, "GET", path, readKey, "")
		r.must(201, method, path, sendKey, `{"attributes":`+most+`}`)
		r.must(200, "PATCH", path, sendKey, `{"attributes":{"b":2}}`)
		if diff := cmp.Diff(tooLarge, r.must(422, "PATCH", path, sendKey, `{"attributes":{"c":1}}`).faults(t)); diff != "" {
			t.Errorf("merged after %s: %s", method, diff)
		}
		r.must(200, "PATCH", path, sendKey, `{"attributes":{"a":null,"c":1}}`)
		var got api.Recipient
		if r.must(200, "GET", path, readKey, "").into(t, &got); string(got.Attributes) != `{"b":2,"c":1}` {
			t.Errorf("after %s it has %.40s", method, got.Attributes)
		}
	}
	events := r.imported("application/x-ndjson", `{"id":"i1","attributes":`+most+"}\n"+`{"id":"i2","attributes":`+more+"}")
	tells(t, events, map[int]string{2: "/attributes too_large"}, 2, 1, 0)
	column := strings.Repeat("x", core.MaxAttributes)
	events = r.imported("text/csv", "id,attributes.a\nc1,"+column[len(`{"a":""}`):]+"\nc2,"+column)
	tells(t, events, map[int]string{3: "/attributes too_large"}, 3, 1, 0)
}

// chunks notes how large the chunks of an import are.
type chunks struct {
	api.Recipients
	mu    sync.Mutex
	sizes []int
}

func (c *chunks) ImportRecipients(ctx context.Context, app string, all []core.Import, rules *core.Rules) (int, error) {
	c.mu.Lock()
	c.sizes = append(c.sizes, len(all))
	c.mu.Unlock()
	return c.Recipients.ImportRecipients(ctx, app, all, rules)
}

// Of long lines fewer are kept in one transaction.
func TestImportChunks(t *testing.T) {
	t.Parallel()
	var c chunks
	r := newRig(t, func(o *api.Options) { c.Recipients, o.Recipients = o.Recipients, &c })
	var body strings.Builder
	const long, short = 60, 500
	var address [30]string // each nearly as long as one may be
	for i := range address {
		address[i] = fmt.Sprintf(`{"kind":"fcm","address":"%04000d"}`, i)
	}
	for i := range long {
		fmt.Fprintf(&body, `{"id":"long-%d","endpoints":[%s]}`+"\n", i, strings.Join(address[:], ","))
	}
	for i := range short {
		fmt.Fprintf(&body, `{"id":"short-%d"}`+"\n", i)
	}
	tells(t, r.imported("application/x-ndjson", body.String()), map[int]string{}, long+short, long+short, 0)
	if diff := cmp.Diff([]int{35, 250, 250, 25}, c.sizes); diff != "" { // 35 of 120 KB are 4 MiB
		t.Error(diff)
	}
}

// Preferences take more memory than their text says, and count for that.
func TestImportChunksOfPreferences(t *testing.T) {
	t.Parallel()
	var c chunks
	r := newRig(t, func(o *api.Options) { c.Recipients, o.Recipients = o.Recipients, &c })
	categories := make([]string, core.MaxCategories)
	for i := range categories {
		categories[i] = fmt.Sprintf(`"%03d":{"*":true}`, i)
	}
	var body strings.Builder
	const people = 100
	for i := range people {
		fmt.Fprintf(&body, `{"id":"%03d","preferences":{%s}}`+"\n", i, strings.Join(categories, ","))
	}
	tells(t, r.imported("application/x-ndjson", body.String()), map[int]string{}, people, people, 0)
	if diff := cmp.Diff([]int{81, 19}, c.sizes); diff != "" { // 81 of 52 KB are 4 MiB
		t.Error(diff)
	}
}

// What is escaped for HTML elsewhere counts as it was given, when merged and in a CSV.
func TestAttributesUnescaped(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	text := strings.Repeat("<&>", core.MaxAttributes/4)
	r.must(201, "PUT", "/v1/recipients/u1", sendKey, `{"attributes":{"a":"`+text+`"}}`)
	r.must(200, "PATCH", "/v1/recipients/u1", sendKey, `{"attributes":{"b":1}}`)
	tells(t, r.imported("text/csv", "id,attributes.a\nu2,"+text), map[int]string{}, 2, 1, 0)
}

// A recipient has any number of endpoints, a hundred to a call.
func TestManyEndpoints(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	const path = "/v1/recipients/u1"
	for n := range 3 {
		var all []string
		for i := range 100 {
			all = append(all, fmt.Sprintf(`{"kind":"fcm","address":"device-%d-%d"}`, n, i))
		}
		r.must([]int{201, 200, 200}[n], "PATCH", path, sendKey, `{"endpoints":[`+strings.Join(all, ",")+`]}`)
	}
	r.must(204, "PUT", path+"/endpoints/fcm/device-last", sendKey, "")
	var got api.Recipient
	if r.must(200, "GET", path, readKey, "").into(t, &got); len(got.Endpoints) != 301 {
		t.Errorf("it has %d endpoints", len(got.Endpoints))
	}
}

// A locale has a bound, whichever way it comes.
func TestLocaleBound(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	long, tooLarge := "en-x"+strings.Repeat("-aaaaaaaa", 7), map[string]string{"/locale": "too_large"} // 67 characters
	for _, method := range []string{"PUT", "PATCH"} {
		if diff := cmp.Diff(tooLarge, r.must(422, method, "/v1/recipients/u1", sendKey, `{"locale":"`+long+`"}`).faults(t)); diff != "" {
			t.Errorf("%s: %s", method, diff)
		}
	}
	r.must(201, "PUT", "/v1/recipients/u1", sendKey, `{"locale":"en-x`+strings.Repeat("-aaaaaaaa", 6)+`"}`)
	r.must(200, "PATCH", "/v1/recipients/u1", sendKey, `{"locale":null}`)
	bad := map[int]string{1: "/locale too_large"}
	tells(t, r.imported("application/x-ndjson", `{"id":"u2","locale":"`+long+`"}`), bad, 1, 0, 0)
	tells(t, r.imported("text/csv", "id,locale\nu2,"+long), map[int]string{2: "/locale too_large"}, 2, 0, 0)
}

// keeper holds on to all that an import hands over.
type keeper struct {
	api.Recipients
	kept []core.Import
}

func (k *keeper) ImportRecipients(ctx context.Context, app string, all []core.Import, rules *core.Rules) (int, error) {
	k.kept = append(k.kept, all...)
	return k.Recipients.ImportRecipients(ctx, app, all, rules)
}

// heapInUse is the memory of what is still reachable: nothing else may run.
func heapInUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what pools held for one cycle more
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Of a long line of which little is taken little is kept in memory.
func TestImportKeepsNoPadding(t *testing.T) { //nolint:paralleltest // it measures the memory of the process
	const people, padding = 600, 200_000
	blanks := strings.Repeat(" ", padding)
	for media, c := range map[string]struct{ head, line string }{
		"text/csv":             {"id,topics\n", "u%d," + blanks + "a\n"},
		"application/x-ndjson": {"", `{"id":"u%d","attributes":{` + blanks + `"a":1}}` + "\n"},
	} {
		t.Run(media, func(t *testing.T) { //nolint:paralleltest // as above
			var k keeper
			r := newRig(t, func(o *api.Options) { k.Recipients, o.Recipients = o.Recipients, &k })
			var body strings.Builder
			body.WriteString(c.head)
			for i := range people {
				fmt.Fprintf(&body, c.line, i)
			}
			text := body.String()
			before := heapInUse()
			lines := people + strings.Count(c.head, "\n")
			tells(t, r.imported(media, text), map[int]string{}, lines, people, 0)
			if grown := heapInUse() - before; grown > 24<<20 { // its lines have 120 MB
				t.Errorf("of an import %d MiB are kept", grown>>20)
			}
			runtime.KeepAlive(text)
			runtime.KeepAlive(k.kept)
		})
	}
}
