package queue

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// embedded is a Redis inside this process that listens nowhere: its clients reach it through pipes.
// It implements asynq.RedisConnOpt.
type embedded struct {
	mr      *miniredis.Miniredis
	scripts *shortcut
	stop    chan struct{}
	work    sync.WaitGroup
}

func newEmbedded() (*embedded, error) {
	e := &embedded{mr: miniredis.NewMiniRedis(), stop: make(chan struct{})}
	e.scripts = &shortcut{mr: e.mr}
	first, err := e.mr.Dial() // starts it without a listener
	if err != nil {
		return nil, err
	}
	if err := first.Close(); err != nil {
		return nil, err
	}
	e.work.Go(e.tick)
	return e, nil
}

// tick drives the clock: miniredis ages no key by itself.
func (e *embedded) tick() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	last := time.Now()
	for {
		select {
		case now := <-t.C:
			e.mr.FastForward(now.Sub(last))
			last = now
		case <-e.stop:
			return
		}
	}
}

func (e *embedded) close() {
	close(e.stop)
	e.work.Wait()
	e.mr.Close()
}

// MakeRedisClient implements asynq.RedisConnOpt.
func (e *embedded) MakeRedisClient() any {
	c := redis.NewClient(e.options())
	c.AddHook(e.scripts)
	return c
}

// clientWith makes a client with a hook that sees everything before the scripts' shortcut does.
func (e *embedded) clientWith(h redis.Hook) *redis.Client {
	c := redis.NewClient(e.options())
	c.AddHook(nested{h, e.scripts})
	return c
}

// nested is a hook inside another.
type nested struct{ outer, inner redis.Hook }

// DialHook implements redis.Hook.
func (n nested) DialHook(next redis.DialHook) redis.DialHook {
	return n.outer.DialHook(n.inner.DialHook(next))
}

// ProcessHook implements redis.Hook.
func (n nested) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return n.outer.ProcessHook(n.inner.ProcessHook(next))
}

// ProcessPipelineHook implements redis.Hook.
func (n nested) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return n.outer.ProcessPipelineHook(n.inner.ProcessPipelineHook(next))
}

func (e *embedded) options() *redis.Options {
	// Without maintenance notifications: for these go-redis asks DNS for the address as it makes a client.
	off := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return &redis.Options{Addr: Embedded, MaxRetries: -1, Protocol: 2, MaintNotificationsConfig: off, Dialer: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		e.mr.Server().ServeConn(newUnblocked(theirs))
		return ours, nil
	}}
}

// unblocked is a pipe's end whose writes never wait for the reader. Both ends of a net.Pipe would
// otherwise wait for each other as soon as a pipeline is longer than the server's read buffer.
type unblocked struct {
	net.Conn
	mu     sync.Mutex
	more   *sync.Cond
	buf    []byte
	closed bool
}

func newUnblocked(c net.Conn) *unblocked {
	u := &unblocked{Conn: c}
	u.more = sync.NewCond(&u.mu)
	go u.drain()
	return u
}

func (u *unblocked) drain() {
	for {
		u.mu.Lock()
		for len(u.buf) == 0 && !u.closed {
			u.more.Wait()
		}
		b := u.buf
		u.buf = nil
		u.mu.Unlock()
		if len(b) == 0 {
			return
		}
		if _, err := u.Conn.Write(b); err != nil {
			return
		}
	}
}

// Write implements net.Conn.
func (u *unblocked) Write(b []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return 0, net.ErrClosed
	}
	u.buf = append(u.buf, b...)
	u.more.Signal()
	return len(b), nil
}

// Close implements net.Conn.
func (u *unblocked) Close() error {
	u.mu.Lock()
	u.closed = true
	u.more.Signal()
	u.mu.Unlock()
	return u.Conn.Close()
}
