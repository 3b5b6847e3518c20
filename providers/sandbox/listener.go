package sandbox

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// listener counts and keeps the connections of one service, so that Close can end them.
type listener struct {
	net.Listener
	opened *atomic.Uint64
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

// run accepts connections and serves each on a goroutine of its own, until Close.
func (l *listener) run(serve func(net.Conn)) {
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // out of file descriptors: those that are open will close
				time.Sleep(10 * time.Millisecond)
				continue
			}
			l.mu.Lock()
			if l.closed {
				l.mu.Unlock()
				conn.Close() //nolint:errcheck // never served
				return
			}
			l.conns[conn] = struct{}{}
			l.wg.Add(1)
			l.mu.Unlock()
			l.opened.Add(1)
			go func() {
				defer l.wg.Done()
				serve(conn)
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.conns, conn)
			}()
		}
	}()
}

// Close ends the listener and all its connections and waits for their goroutines.
func (l *listener) Close() error {
	err := l.Listener.Close()
	l.mu.Lock()
	l.closed = true
	for conn := range l.conns {
		conn.Close() //nolint:errcheck // its goroutine sees it
	}
	l.mu.Unlock()
	l.wg.Wait()
	return err
}
