package email

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// feed hands out the messages of a Deliver to its workers and takes their results.
type feed interface {
	// next gives a message to send, or nil when there are none.
	next() *job
	// settle reports a message's result.
	settle(j *job, r providers.Result)
	// lost leaves a message that was handed over without a result, and says why.
	lost(j *job, err error)
	// back gives a message back that this session certainly did not take.
	back(j *job)
}

// finalDot ends a message.
const finalDot = ".\r\n"

var (
	errClosing = errors.New("the mail server closes the session")
	errMisled  = errors.New("the mail server announces PIPELINING and does not keep to it")
	errEager   = errors.New("the mail server answers before it is asked")
)

// run sends messages over the session until there are none, it has had its share of limit messages, or
// it breaks. kept says that it was not opened just now, so that it may be stale.
//
// With PIPELINING (RFC 2920, 3.1) a message's text, the commands of the next message and its DATA are
// one group: a message costs one round trip. Nothing is taken by the server before the final dot is
// written; from then on only its reply counts.
func (s *session) run(ctx context.Context, f feed, limit int, timeout time.Duration, kept bool) {
	stop := context.AfterFunc(ctx, s.conn.interrupt)
	defer func() {
		if !stop() {
			s.broken = true // cut off, maybe in the middle of something
		}
	}()
	x := &exchange{session: s, feed: f, ctx: ctx, limit: limit, timeout: timeout, proven: !kept}
	s.pipelining = s.pipelining && !s.server.distrusted()
	if kept && s.Text.R.Buffered() > 0 {
		s.broken = true // the next answer would be of something else
	}
	j := x.take()
	for j != nil && !s.broken {
		j = x.transact(j)
	}
	if j != nil {
		f.back(j)
	}
}

// exchange is one use of a session.
type exchange struct {
	*session
	feed    feed
	ctx     context.Context
	limit   int // transactions of a session
	timeout time.Duration
	proven  bool      // the session is known to be alive
	asked   []command // of the message at hand: on their way, or to be said
	flushed time.Time // when something was sent last
}

// take gets a message that this session can carry.
func (x *exchange) take() *job {
	for !x.broken && x.sent < x.limit {
		j := x.feed.next()
		if j == nil {
			return nil
		}
		res, ok := x.carries(j)
		if ok {
			x.sent++
			return j
		}
		x.feed.settle(j, res)
	}
	return nil
}

// carries looks at what the server announced before it is asked.
func (x *exchange) carries(j *job) (providers.Result, bool) {
	switch {
	case j.utf8 && !x.utf8:
		return providers.Result{Outcome: providers.Rejected, Code: "SMTPUTF8", Reason: "the mail server does not take addresses that are not ASCII (RFC 6531)"}, false
	case x.maxSize > 0 && int64(j.size) > x.maxSize:
		return providers.Result{Outcome: providers.Rejected, Code: "SIZE", Reason: fmt.Sprintf("the message has %d bytes, the mail server takes %d", j.size, x.maxSize)}, false
	}
	return providers.Result{}, true
}

// transact sends one message and returns the one that its group took along, or the next.
func (x *exchange) transact(j *job) *job {
	if x.asked == nil {
		x.begin(j)
		if err := x.flush(); err != nil {
			return x.failed(j, err)
		}
	}
	ready, err := x.envelope(j)
	switch {
	case err != nil:
		return x.failed(j, err)
	case !ready:
		return x.take()
	}
	if x.Text.R.Buffered() > 0 { // else what it said there would count as the answer to the message
		return x.failed(j, x.doubted(errEager))
	}
	text, dot := j.data[:len(j.data)-len(finalDot)], finalDot
	if _, err := x.Text.W.Write(text); err != nil {
		return x.failed(j, err)
	}
	before := x.conn.written.Load()
	_, _ = x.Text.W.WriteString(dot) // bufio keeps the error for flush
	x.dirty = false
	var ahead *job
	if x.pipelining {
		if ahead = x.take(); ahead != nil {
			x.begin(ahead)
		}
	}
	if err := x.flush(); err != nil && x.conn.written.Load() == before {
		if ahead != nil {
			x.feed.back(ahead)
		}
		return x.failed(j, err)
	}
	// The dot may be out: only its reply says what became of the message.
	if r, err := x.read(); err != nil {
		x.broken = true
		x.feed.lost(j, fmt.Errorf("send an e-mail: no answer to its end: %w", err))
	} else {
		x.answered(j, phaseDot, r)
	}
	if ahead != nil {
		return ahead
	}
	return x.take()
}

// begin writes a message's commands, or remembers them where each must wait for the answer to the one
// before.
func (x *exchange) begin(j *job) {
	x.asked = x.commands(j)
	if x.pipelining {
		for _, c := range x.asked {
			x.say(c.line)
		}
	}
}

// command is a line and what its answer is about; an empty phase is not about the message.
type command struct {
	ph   phase
	line string
}

func (x *exchange) commands(j *job) []command {
	mail := "MAIL FROM:" + j.from
	if x.size {
		mail += " SIZE=" + strconv.Itoa(j.size)
	}
	if j.utf8 {
		mail += " BODY=8BITMIME SMTPUTF8" // RFC 6531, 3.1: who has the second has the first
	}
	out := []command{{phaseMail, mail}, {phaseRcpt, "RCPT TO:" + j.to}, {phaseData, "DATA"}}
	if x.dirty {
		out = append([]command{{"", "RSET"}}, out...)
	}
	return out
}

func (x *exchange) say(line string) { _, _ = x.Text.W.WriteString(line + "\r\n") }

// envelope reads the answers to a message's commands and reports the first refusal. It is true when the
// server waits for the message.
func (x *exchange) envelope(j *job) (bool, error) {
	asked, refusedAt, orphan := x.asked, false, false
	x.asked, x.dirty = nil, true
	for i, c := range asked {
		if !x.pipelining {
			x.say(c.line)
			if err := x.flush(); err != nil {
				return false, err
			}
		}
		r, err := x.read()
		if err != nil {
			if i > 0 || x.sent > 1 { // it has answered the first of what it was sent together, and no more
				err = x.silent(err)
			}
			if refusedAt { // reported already; the session is gone
				x.broken = true
				return false, nil
			}
			return false, err
		}
		if r.code == codeClosing && !refusedAt && c.ph != phaseRcpt && c.ph != phaseData && (!x.proven || x.sent > 1) {
			// It was idle for too long, or had enough messages: nothing that speaks of this one.
			return false, errClosing
		}
		x.proven = true
		fine := r.positive() || (c.ph == phaseData && r.code == codeStart)
		switch {
		case c.ph == phaseData && r.code == codeStart && orphan:
			x.broken = true // a dot now might deliver an empty mail: hang up
			return false, nil
		case c.ph == phaseData && r.code == codeStart && refusedAt:
			x.nothing()
			return false, nil
		case c.ph == phaseData && r.positive():
			fine = false // 250 to DATA is no invitation: its answers are of other commands than we think
			x.broken = true
		case c.ph == "" && !fine:
			return false, x.doubted(fmt.Errorf("RSET: %s", r))
		}
		if !fine && !refusedAt && x.pipelining && !j.again && confused(c.ph, r) {
			return false, x.doubted(fmt.Errorf("%s: %s", c.ph, r))
		}
		if !fine && !refusedAt {
			refusedAt, orphan = true, c.ph == phaseMail
			x.answered(j, c.ph, r)
			if !x.pipelining {
				break
			}
		}
	}
	return !refusedAt, nil
}

// confused says whether a reply is that of a server that has lost its place in a group of commands: it knows
// no such command, or not at this point, or invites no text where text is what comes next.
func confused(ph phase, r reply) bool {
	return r.code == 500 || r.code == 502 || r.code == 503 || ph == phaseData && r.positive()
}

// doubted has further sessions wait for each answer, if this one did not.
func (x *exchange) doubted(err error) error {
	if !x.pipelining {
		return err
	}
	x.server.misled()
	return fmt.Errorf("%w: %w", errMisled, err)
}

// silent is doubted for the lack of an answer, if it was waited for and not for a moment alone.
func (x *exchange) silent(err error) error {
	var network net.Error
	if !errors.As(err, &network) || !network.Timeout() || errors.Is(x.ctx.Err(), context.Canceled) || time.Since(x.flushed) < x.timeout/4 {
		return err
	}
	return x.doubted(err)
}

// nothing ends the text that a server wants although it refused the recipient (RFC 2920, 3.1).
func (x *exchange) nothing() {
	x.say(".")
	err := x.flush()
	if err == nil {
		_, err = x.read()
	}
	x.broken = x.broken || err != nil
}

const (
	codeClosing = 421
	codeStart   = 354
)

// answered reports what a reply means for the message.
func (x *exchange) answered(j *job, ph phase, r reply) {
	if r.code == codeClosing {
		x.broken = true
	}
	x.feed.settle(j, classify(ph, r))
}

// failed is for a message whose text the server never had. Another session takes it when this one was
// let go of while it was idle, and once when it had carried others before; else it is for the next attempt.
func (x *exchange) failed(j *job, err error) *job {
	x.broken = true
	switch {
	case x.ctx.Err() != nil:
	case !x.proven: // there are only so many old sessions, and this was one less
		x.feed.back(j)
		return nil
	case (x.sent > 1 || errors.Is(err, errMisled)) && !j.again:
		j.again = true
		x.feed.back(j)
		return nil
	}
	x.feed.settle(j, unsent(x.ctx, err))
	return nil
}

// unsent is for a message that the server certainly did not take.
func unsent(ctx context.Context, err error) providers.Result {
	res := providers.Result{Outcome: providers.Deferred, Code: "connection", Reason: "the connection to the mail server broke before the message was sent"}
	switch {
	case ctx.Err() != nil:
		res.Code, res.Reason = "time", "there was no time left to send the message"
	case errors.Is(err, errFlood):
		res.Reason = errFlood.Error()
	}
	return res
}

// flush sends what was written, within the message's time.
func (x *exchange) flush() error {
	deadline := time.Now().Add(x.timeout)
	if d, ok := x.ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	x.conn.within(deadline)
	x.flushed = time.Now()
	return x.Text.W.Flush()
}

// read gets one reply.
func (x *exchange) read() (reply, error) {
	code, text, err := x.Text.ReadResponse(0)
	if err != nil {
		return reply{}, err
	}
	return reply{code: code, text: text}, nil
}

// isEOF says whether the peer hung up.
func isEOF(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET)
}
