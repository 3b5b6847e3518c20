package app_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// pour posts n notifications over as many connections as there are clients, each with one request at a
// time. It does as little as may be beside that, for client and server share the machine's cores: net/http
// would cost more than the server's share of a request.
func pour(base string, clients, n int, body func(i int) string) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make(chan error, clients)
	for range clients {
		wg.Go(func() {
			h, err := dialHose(base)
			if err != nil {
				errs <- err
				return
			}
			defer h.conn.Close()
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				if err := h.post(body(i - 1)); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// hose is a connection that notifications are posted over.
type hose struct {
	conn net.Conn
	in   *bufio.Reader
	host string
	out  bytes.Buffer
}

func dialHose(base string) (*hose, error) {
	host := strings.TrimPrefix(base, "http://")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		return nil, err
	}
	return &hose{conn: conn, in: bufio.NewReader(conn), host: host}, nil
}

// post has one notification accepted.
func (h *hose) post(body string) error {
	h.out.Reset()
	fmt.Fprintf(&h.out, "POST /v1/notifications HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		h.host, testKey, len(body), body)
	if _, err := h.conn.Write(h.out.Bytes()); err != nil {
		return err
	}
	status, length := "", 0
	for {
		line, err := h.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			break
		}
		if status == "" {
			status = string(line)
		}
		if figure, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(figure)); err != nil {
				return err
			}
		}
	}
	if !strings.HasPrefix(status, "HTTP/1.1 202 ") {
		text, _ := io.ReadAll(io.LimitReader(h.in, int64(length)))
		return fmt.Errorf("refused: %s %s", status, text)
	}
	_, err := h.in.Discard(length)
	return err
}
