package api_test

import (
	"context"
	"fmt"
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
