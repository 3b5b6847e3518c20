package coretest

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// Proxy passes TCP connections on to a server, and spoils them when it is told to. It begins by passing
// everything.
type Proxy struct {
	// Addr is where it listens, host:port of the loopback.
	Addr    string
	network string
	target  string
	ln      net.Listener

	mu      sync.Mutex
	traffic traffic
	changed chan struct{} // closed when traffic is another
	conns   map[net.Conn]struct{}
	closed  bool
	asked   int // pieces that clients sent
	spoilt  int
	running sync.WaitGroup
}

// traffic is what the proxy does with what it is given.
type traffic struct {
	cut     bool
	held    bool          // what clients send stays here
	mute    bool          // what the server says stays here
	latency time.Duration // of each piece, one way
	rate    int           // bytes a second of each connection and way; 0: as they come
}

// StartProxy listens on a free port for a server: "host:port", or "unix:" and the path of a socket. It
// stops when the test ends.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: ln.Addr().String(), network: "tcp", target: target, ln: ln, changed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	if path, ok := strings.CutPrefix(target, "unix:"); ok {
		p.network, p.target = "unix", path
	}
	p.running.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Cut resets every connection and refuses new ones.
func (p *Proxy) Cut() {
	p.set(traffic{cut: true})
	p.Reset()
}

// Hang keeps every connection, takes new ones, and passes nothing either way, as a network does that
// drops all packets. What was sent meanwhile is passed on by the next call.
func (p *Proxy) Hang() { p.set(traffic{held: true, mute: true}) }

// Mute passes on what clients send and none of the answers.
func (p *Proxy) Mute() { p.set(traffic{mute: true}) }

// Slow passes on each piece of up to 4 KiB after a latency, and no more than rate bytes a second of each
// connection and way; 0 is no bound.
func (p *Proxy) Slow(latency time.Duration, rate int) { p.set(traffic{latency: latency, rate: rate}) }

// Heal passes everything again.
func (p *Proxy) Heal() { p.set(traffic{}) }

// Reset resets every connection there is. What was on its way is lost. New ones are dealt with as before.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Before any of them is closed: the first to go makes serve close the other, and that must be a reset too.
	for c := range p.conns {
		resets(c)
	}
	for c := range p.conns {
		_ = c.Close()
	}
	p.spoilt += len(p.conns) / 2
	clear(p.conns)
}

// Connections is how many connections of clients there are.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns) / 2
}

// Spoilt is how often it has done harm: connections that were reset or could not be had, and pieces that were held
// or passed on late.
func (p *Proxy) Spoilt() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spoilt
}

// Asked is how many pieces clients have sent, whatever became of them.
func (p *Proxy) Asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

func (p *Proxy) harm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spoilt++
}

func (p *Proxy) set(to traffic) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.traffic = to
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) now() (traffic, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.traffic, p.changed
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.ln.Close()
	p.Reset()
	p.running.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.serve(client) })
	}
}

// serve passes one connection on until either end closes it.
func (p *Proxy) serve(client net.Conn) {
	if now, _ := p.now(); now.cut {
		p.harm()
		abort(client)
		return
	}
	server, err := net.Dial(p.network, p.target)
	if err != nil {
		p.harm()
		abort(client)
		return
	}
	p.mu.Lock()
	if p.closed || p.traffic.cut {
		p.mu.Unlock()
		abort(client)
		abort(server)
		return
	}
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	p.mu.Unlock()
	gone := make(chan struct{})
	var end sync.Once
	var both sync.WaitGroup
	for _, way := range []struct {
		from, to net.Conn
		answers  bool
	}{{client, server, false}, {server, client, true}} {
		both.Go(func() {
			p.pass(way.from, way.to, way.answers, gone)
			end.Do(func() {
				close(gone)
				_ = client.Close()
				_ = server.Close()
			})
		})
	}
	both.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, client)
	delete(p.conns, server)
}

// pass copies one way until either end is closed.
func (p *Proxy) pass(from, to net.Conn, answers bool, gone <-chan struct{}) {
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !answers {
			p.mu.Lock()
			p.asked++
			p.mu.Unlock()
		}
		if n > 0 && !p.release(n, answers, gone) {
			return
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// release waits until n bytes may go on, and reports false if the connection ended meanwhile.
func (p *Proxy) release(n int, answers bool, gone <-chan struct{}) bool {
	began, harmed := time.Now(), false
	for {
		now, changed := p.now()
		var timer <-chan time.Time
		if stays := answers && now.mute || !answers && now.held; !stays {
			wait := now.latency
			if now.rate > 0 {
				wait += time.Duration(n) * time.Second / time.Duration(now.rate)
			}
			if wait -= time.Since(began); wait <= 0 {
				return true
			}
			timer = time.After(wait)
		}
		if !harmed {
			harmed = true
			p.harm()
		}
		select {
		case <-gone:
			return false
		case <-changed:
		case <-timer:
		}
	}
}

// abort closes a connection so that the other end sees a reset, not an end.
func abort(c net.Conn) {
	resets(c)
	_ = c.Close()
}

// resets has the closing of a connection seen as a reset by the other end.
func resets(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
}
