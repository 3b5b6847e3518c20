package h2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"time"
)

// Frames, flags, settings and codes of RFC 9113.
const (
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

	frameData         = 0
	frameHeaders      = 1
	frameReset        = 3
	frameSettings     = 4
	framePush         = 5
	framePing         = 6
	frameGoAway       = 7
	frameWindow       = 8
	frameContinuation = 9

	flagEndStream  = 0x1 // of DATA and HEADERS
	flagAck        = 0x1 // of SETTINGS and PING
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20

	settingTable   = 1
	settingPush    = 2
	settingStreams = 3
	settingWindow  = 4
	settingFrame   = 5
	settingHeaders = 6

	codeProtocol = 1
	codeFlow     = 3
	codeRefused  = 7
	codeCancel   = 8
)

// blockBuffer collects what the header encoder writes.
type blockBuffer struct{ b []byte }

func (b *blockBuffer) Write(p []byte) (int, error) {
	b.b = append(b.b, p...)
	return len(p), nil
}

// Reset empties it.
func (b *blockBuffer) Reset() { b.b = b.b[:0] }

// frameLocked queues a frame.
func (c *Conn) frameLocked(kind, flags byte, stream uint32, payload []byte) {
	n := len(payload)
	c.out = append(c.out, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	c.out = binary.BigEndian.AppendUint32(c.out, stream)
	c.out = append(c.out, payload...)
	c.queued += int64(9 + n)
}

func (c *Conn) settingsLocked() {
	var p []byte
	for _, s := range [][2]uint32{{settingPush, 0}, {settingHeaders, maxHeaders}} {
		p = binary.BigEndian.AppendUint16(p, uint16(s[0])) //nolint:gosec // small constants
		p = binary.BigEndian.AppendUint32(p, s[1])
	}
	c.frameLocked(frameSettings, 0, 0, p)
}

func (c *Conn) windowUpdateLocked(stream, n uint32) {
	c.frameLocked(frameWindow, 0, stream, binary.BigEndian.AppendUint32(nil, n))
}

func (c *Conn) resetLocked(stream, code uint32) {
	c.frameLocked(frameReset, 0, stream, binary.BigEndian.AppendUint32(nil, code))
}

// pingLocked asks for a sign of life; answered is called under the lock when it comes.
func (c *Conn) pingLocked(answered func()) {
	var data [8]byte
	c.pinged++
	binary.BigEndian.PutUint64(data[:], c.pinged)
	c.pings[data] = answered
	c.frameLocked(framePing, 0, 0, data[:])
}

// headersLocked queues a request's headers, in as many frames as they need.
func (c *Conn) headersLocked(stream uint32, req *http.Request, length int) {
	c.fieldsLocked(req, length)
	kind, flags := byte(frameHeaders), byte(0)
	if length == 0 {
		flags = flagEndStream
	}
	for block := c.block.b; ; {
		n := min(len(block), c.peerFrame)
		if n == len(block) {
			flags |= flagEndHeaders
		}
		c.frameLocked(kind, flags, stream, block[:n])
		if block = block[n:]; len(block) == 0 {
			return
		}
		kind, flags = frameContinuation, 0
	}
}

// dataLocked queues as much of a body as the windows let through and returns the rest.
func (c *Conn) dataLocked(s *stream, body []byte) (rest []byte) {
	for len(body) > 0 {
		n := int(min(int64(len(body)), int64(c.peerFrame), s.window, c.window))
		if n <= 0 {
			return body
		}
		var flags byte
		if n == len(body) {
			flags = flagEndStream
		}
		c.frameLocked(frameData, flags, s.id, body[:n])
		s.window -= int64(n)
		c.window -= int64(n)
		body = body[n:]
	}
	s.sent = c.queued
	return nil
}

// poke tells the writer that there is something to write.
func (c *Conn) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// write writes what is queued, all of it at a time, until the connection ends.
func (c *Conn) write() {
	var spare []byte
	for {
		select {
		case <-c.wake:
		case <-c.ended:
			return
		}
		runtime.Gosched() // those who are about to ask ride in the same write
		for {
			c.mu.Lock()
			full := c.out
			c.out = spare[:0]
			c.handed = c.queued // before the write: the server may answer before it returns
			c.mu.Unlock()
			if len(full) == 0 {
				spare = full
				break
			}
			if c.o.WriteTimeout > 0 {
				_ = c.nc.SetWriteDeadline(time.Now().Add(c.o.WriteTimeout)) // a connection that has none is closed: the write tells
			}
			n, err := c.nc.Write(full)
			if err != nil {
				c.mu.Lock()
				c.handed -= int64(len(full) - n)
				c.mu.Unlock()
				c.fail(fmt.Errorf("write: %w", err))
				return
			}
			if spare = full; cap(spare) > 1<<20 {
				spare = nil // a burst's buffer is not kept
			}
		}
	}
}

// protocolError ends the connection: the server does not keep to the protocol.
type protocolError string

func (e protocolError) Error() string { return "the server broke the protocol: " + string(e) }

var errPush = errors.New("the server pushed, which was turned off")
