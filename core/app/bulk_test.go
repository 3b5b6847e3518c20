package app_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// TestBulk streams requests and gets an answer a line.
func TestBulk(t *testing.T) {
	t.Parallel()
	a, c := startApp(t, nil)
	const n = 500
	r, w := io.Pipe()
	go func() {
		for i := range n {
			fmt.Fprintf(w, `{"to":[{"apns":%q}],"content":{"title":"bulk %d"}}`+"\n", hexToken(i), i)
		}
		fmt.Fprintln(w, `{"to":[],"content":{"title":"nobody"}}`)
		w.Close()
	}()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.base+"/v1/notifications/bulk", r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testKey)
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines, good := 0, 0
	for s := bufio.NewScanner(resp.Body); s.Scan(); lines++ {
		if strings.Contains(s.Text(), `"status":202`) {
			good++
		}
	}
	if lines != n+1 || good != n {
		t.Errorf("%d answers, %d of them good; want %d and %d", lines, good, n+1, n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := a.Sandbox().Wait(ctx, sandbox.APNs, n); err != nil {
		t.Error(err)
	}
}
