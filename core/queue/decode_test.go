package queue_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/queue"
)

// FuzzDecode tells that any task at all is either a wake with a batch and a fence, which reads the same
// when it is written again, or refused.
func FuzzDecode(f *testing.F) {
	id := core.NewID(time.UnixMilli(1_790_000_000_000)).String()
	for _, body := range []string{
		`{"b":"` + id + `","f":1}`, `{"b":"` + id + `","f":-1}`, `{"b":"` + id + `","f":9223372036854775807}`, `{"b":"` + id + `","f":1e3}`,
		`{"b":"` + id + `","f":1,"x":[[[]]]}`, `{"B":"` + id + `","F":2}`, `{"b":null,"f":1}`, `{"b":"","f":1}`, `{"b":7}`, `null`, `[]`, ``, "\x00", `{"b":"` + id,
	} {
		f.Add(queue.TaskType, []byte(body))
	}
	f.Add("other", []byte(`{"b":"`+id+`","f":1}`))
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		batch, fence, err := queue.Decode(kind, body)
		if err != nil {
			if !batch.IsZero() || fence != 0 {
				t.Error("refused, and yet something was read")
			}
			return
		}
		if kind != queue.TaskType || batch.IsZero() || fence <= 0 {
			t.Fatalf("taken: %q %s %d", kind, batch, fence)
		}
		again, err := json.Marshal(map[string]any{"b": batch, "f": fence})
		if err != nil {
			t.Fatal(err)
		}
		if b, n, err := queue.Decode(kind, again); b != batch || n != fence || err != nil {
			t.Errorf("%s %d became %s %d: %v", batch, fence, b, n, err)
		}
	})
}
