package websocket_test

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/porttest"
	"github.com/carillon-notify/carillon/providers/websocket"
)

// TestUnansweredPublicationIsUnknown cuts the connection when Redis has taken a publication and before its answer: it was
// published, and nobody can say so. Another attempt shows nothing twice.
func TestUnansweredPublicationIsUnknown(t *testing.T) {
	t.Parallel()
	program(t, "redis-server")
	port := porttest.Free(t)
	startRedis(t, port)
	const word = "cut here"
	proxy := cuttingProxy(t, fmt.Sprintf("127.0.0.1:%d", port), word)
	s := open(t, func(s *websocket.Settings) {
		s.Redis = strings.Replace(redisURL(port), strconv.Itoa(port), strconv.Itoa(proxy), 1)
	})
	other := open(t, onRedis(port))
	for _, from := range []*site{s, other} {
		if got := outcome(t, from, message("shop", "u", "")); got != providers.Absent {
			t.Fatalf("before: %v", got)
		}
	}
	c := connect(t, other, token(t, "shop", "u"))
	m := message("shop", "u", word)
	if r := deliver(t, s, m)[0]; r.Outcome != providers.Unknown || r.Code != "broker_unavailable" {
		t.Errorf("without an answer: %+v, want unknown", r)
	}
	m.Attempt = 2
	eventually(t, "it is accepted", func() bool { return outcome(t, s, m) == providers.Accepted })
	if got := outcome(t, s, message("shop", "u", "next")); got != providers.Accepted {
		t.Errorf("the next: %v", got)
	}
	if diff := cmp.Diff([]string{word, "next"}, []string{c.pub().Title, c.pub().Title}); diff != "" {
		t.Errorf("the client got (-want +got):\n%s", diff)
	}
}

// cuttingProxy forwards to addr. The first connection that says word has it forwarded and is cut when an answer comes.
func cuttingProxy(t *testing.T, addr, word string) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var once sync.Once
	serve := func(client, server net.Conn) {
		cut := make(chan struct{})
		end := func() { _ = client.Close(); _ = server.Close() }
		go func() {
			defer end()
			var said []byte
			buf := make([]byte, 32<<10)
			for {
				n, err := client.Read(buf)
				if err != nil {
					return
				}
				if said = append(said, buf[:n]...); bytes.Contains(said, []byte(word)) {
					once.Do(func() { close(cut) })
				}
				said = said[max(0, len(said)-len(word)):]
				if _, err := server.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
		defer end()
		buf := make([]byte, 32<<10)
		for {
			n, err := server.Read(buf)
			if err != nil {
				return
			}
			select {
			case <-cut:
				return
			default:
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", addr)
			if err != nil {
				_ = client.Close()
				continue
			}
			go serve(client, server)
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}
