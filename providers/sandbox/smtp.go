package sandbox

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// The protocol is that of RFC 5321, with PIPELINING (RFC 2920), 8BITMIME (RFC 6152), SMTPUTF8 (RFC
// 6531), SIZE (RFC 1870), ENHANCEDSTATUSCODES (RFC 2034), STARTTLS (RFC 3207) and AUTH (RFC 4954).

const (
	maxMail       = 25 << 20
	maxLine       = 2048 // a command with long addresses; RFC 5321 asks for 512
	maxRecipients = 100  // RFC 5321, section 4.5.3.1.8
	maxBadLines   = 20
	smtpIdle      = 5 * time.Minute // RFC 5321, section 4.5.3.2.7
)

type smtpServer struct {
	sandbox *Sandbox
	tls     *tls.Config
	open    bool // neither TLS nor AUTH is asked for
}

// smtpSession is one connection.
type smtpSession struct {
	*smtpServer
	conn net.Conn
	in   *bufio.Reader
	out  *bufio.Writer

	secure, authed, hello bool
	bad, mails            int
	delay                 time.Duration // before the next answers leave

	// The mail being sent.
	plan  *plan
	fate  fate
	fault smtpFault
	from  bool
	utf8  bool
	to    []string
	dead  bool
}

var errHangUp = errors.New("sandbox: hang up")

func (srv *smtpServer) serve(conn net.Conn) {
	c := &smtpSession{smtpServer: srv, conn: conn, in: bufio.NewReaderSize(conn, 16<<10), out: bufio.NewWriter(conn)}
	defer func() { hangUp(c.conn) }()
	c.reply("220 " + Domain + " ESMTP Carillon sandbox")
	for {
		line, err := c.line()
		if err == nil {
			err = c.command(line)
		}
		if err != nil {
			if errors.Is(err, errHangUp) {
				c.flush() //nolint:errcheck // the connection ends here
			}
			return
		}
	}
}

// line reads a command. What was answered so far leaves when nothing more was sent with it, so that
// a client which pipelines gets its answers together.
func (c *smtpSession) line() (string, error) {
	if c.in.Buffered() == 0 {
		if err := c.flush(); err != nil {
			return "", err
		}
	}
	c.conn.SetReadDeadline(time.Now().Add(smtpIdle)) //nolint:errcheck // the read fails then
	var long bool
	var text []byte
	for {
		part, err := c.in.ReadSlice('\n')
		long = long || len(text)+len(part) > maxLine
		if !long {
			text = append(text, part...)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return "", err
		}
	}
	if long {
		text = nil // answered as what it is: no command
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

func (c *smtpSession) reply(lines ...string) {
	for i, line := range lines {
		if i < len(lines)-1 {
			line = line[:3] + "-" + line[4:]
		}
		c.out.WriteString(line)   //nolint:errcheck // Flush tells
		c.out.WriteString("\r\n") //nolint:errcheck // as above
	}
}

func (c *smtpSession) flush() error {
	if c.out.Buffered() == 0 {
		return nil
	}
	if c.delay > 0 {
		t := time.NewTimer(c.delay)
		defer t.Stop()
		c.delay = 0
		select {
		case <-t.C:
		case <-c.sandbox.done:
			return net.ErrClosed
		}
	}
	c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) //nolint:errcheck // the write fails then
	return c.out.Flush()
}

// answer counts and gives the answer to a mail.
func (c *smtpSession) answer(line string) {
	c.reply(line)
	c.sandbox.ledger.books[SMTP].answer(smtpCode(line))
}

// smtpCode is a reply's code with its enhanced code: "451 4.7.1".
func smtpCode(line string) string {
	if strings.HasPrefix(line, "250 ") {
		return "250"
	}
	words := strings.SplitN(line, " ", 3)
	if len(words) > 1 && strings.Count(words[1], ".") == 2 {
		return words[0] + " " + words[1]
	}
	return words[0]
}

func (c *smtpSession) command(line string) error {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb = strings.ToUpper(verb); verb {
	case "EHLO", "HELO":
		c.ehlo(verb, rest)
	case "STARTTLS":
		return c.startTLS()
	case "AUTH":
		return c.auth(rest)
	case "MAIL":
		return c.mail(rest)
	case "RCPT":
		c.rcpt(rest)
	case "DATA":
		return c.data()
	case "RSET":
		c.forget()
		c.reply("250 2.0.0 Ok")
	case "NOOP":
		c.reply("250 2.0.0 Ok")
	case "VRFY":
		c.reply("252 2.5.0 Cannot verify, but will try")
	case "QUIT":
		c.reply("221 2.0.0 Bye")
		return errHangUp
	default:
		if c.bad++; c.bad > maxBadLines {
			c.reply("421 4.7.0 Too many errors")
			return errHangUp
		}
		c.reply("500 5.5.2 Command not recognized")
	}
	return nil
}

func (c *smtpSession) forget() {
	c.from, c.utf8, c.dead, c.to, c.fate, c.fault = false, false, false, nil, fate{}, smtpFault{}
}

func (c *smtpSession) ehlo(verb, name string) {
	if strings.TrimSpace(name) == "" {
		c.reply("501 5.5.4 A domain is required")
		return
	}
	c.forget()
	c.hello = true
	if verb == "HELO" {
		c.reply("250 " + Domain)
		return
	}
	lines := []string{"250 " + Domain, "250 PIPELINING", "250 8BITMIME", "250 SMTPUTF8", "250 ENHANCEDSTATUSCODES",
		"250 SIZE " + strconv.Itoa(maxMail)}
	if c.secure {
		lines = append(lines, "250 AUTH PLAIN LOGIN")
	} else {
		lines = append(lines, "250 STARTTLS")
	}
	c.reply(lines...)
}

func (c *smtpSession) startTLS() error {
	if c.secure {
		c.reply("503 5.5.1 TLS is active already")
		return nil
	}
	if c.in.Buffered() > 0 { // commands smuggled in before the handshake (CVE-2011-0411)
		c.reply("501 5.5.2 Nothing may be sent after STARTTLS")
		return errHangUp
	}
	c.reply("220 2.0.0 Ready to start TLS")
	if err := c.flush(); err != nil {
		return err
	}
	conn := tls.Server(c.conn, c.tls)
	c.conn.SetDeadline(time.Now().Add(writeTimeout)) //nolint:errcheck // the handshake fails then
	if err := conn.Handshake(); err != nil {
		return err
	}
	c.conn.SetDeadline(time.Time{}) //nolint:errcheck // as above
	c.conn, c.secure, c.hello = conn, true, false
	c.in.Reset(conn)
	c.out.Reset(conn)
	c.forget()
	return nil
}

func (c *smtpSession) auth(args string) error {
	switch {
	case !c.secure:
		c.reply("538 5.7.11 Encryption required for the requested authentication mechanism")
		return nil
	case !c.hello || c.authed || c.from:
		c.reply("503 5.5.1 Bad sequence of commands")
		return nil
	}
	mechanism, initial, given := strings.Cut(args, " ")
	var user, password string
	var err error
	switch strings.ToUpper(mechanism) {
	case "PLAIN":
		var text string
		if text, err = c.challenge("", initial, given); err == nil {
			if parts := strings.Split(text, "\x00"); len(parts) == 3 {
				user, password = parts[1], parts[2]
			}
		}
	case "LOGIN":
		if user, err = c.challenge("Username:", initial, given); err == nil {
			password, err = c.challenge("Password:", "", false)
		}
	default:
		c.reply("504 5.5.4 Mechanism not supported")
		return nil
	}
	var broken base64.CorruptInputError
	switch {
	case errors.As(err, &broken):
		c.reply("501 5.5.2 Not base64")
	case err != nil:
		return err
	case user != Username || password != Password:
		c.reply("535 5.7.8 Authentication credentials invalid")
	default:
		c.authed = true
		c.reply("235 2.7.0 Authentication succeeded")
	}
	return nil
}

// challenge asks for a part of the credentials, unless it was given along with the command.
func (c *smtpSession) challenge(prompt, given string, isGiven bool) (string, error) {
	if !isGiven {
		c.reply("334 " + base64.StdEncoding.EncodeToString([]byte(prompt)))
		var err error
		if given, err = c.line(); err != nil {
			return "", err
		}
	}
	if given == "=" { // an empty initial response, RFC 4954, section 4
		return "", nil
	}
	text, err := base64.StdEncoding.DecodeString(given)
	return string(text), err
}

func (c *smtpSession) mail(args string) error {
	path, params, ok := cutPath(args, "FROM:")
	switch {
	case !c.hello || c.from:
		c.reply("503 5.5.1 Bad sequence of commands")
		return nil
	case !c.open && !c.secure:
		c.reply("530 5.7.0 Must issue a STARTTLS command first")
		return nil
	case !c.open && !c.authed:
		c.reply("530 5.7.0 Authentication required")
		return nil
	case !ok || path != "" && !isMailbox(path):
		c.reply("501 5.1.7 Bad sender address syntax")
		return nil
	}
	c.forget()
	for param := range strings.FieldsSeq(params) {
		name, value, _ := strings.Cut(strings.ToUpper(param), "=")
		size, err := strconv.Atoi(value)
		switch {
		case name == "SMTPUTF8":
			c.utf8 = true
		case name == "SIZE" && err == nil && size > maxMail:
			c.reply("552 5.3.4 Message size exceeds fixed limit")
			return nil
		case name == "SIZE" && err == nil, name == "BODY" && (value == "7BIT" || value == "8BITMIME"), name == "AUTH":
		default:
			c.reply("555 5.5.4 Parameter not recognized")
			return nil
		}
	}
	if !c.utf8 && !isASCII(path) {
		c.reply("553 5.6.7 Non-ASCII sender without SMTPUTF8")
		return nil
	}
	return c.begin()
}

// begin draws the fate of a mail.
func (c *smtpSession) begin() error {
	c.plan = c.sandbox.plans[SMTP].Load()
	c.sandbox.ledger.books[SMTP].requests.Add(1)
	c.fate = c.plan.next()
	c.delay = c.fate.delay
	if c.fate.err != "" {
		c.fault, _ = smtpFaultOf(c.fate.err)
	}
	switch n := c.plan.GoAwayEvery; {
	case c.fate.dropBefore && c.fate.early:
		return io.EOF
	case n > 0 && c.mails >= n:
		c.answer("421 4.7.0 Too many messages on this connection")
		return errHangUp
	case c.fault.at == atMail:
		c.answer(c.fault.line)
		if c.fault.code == 421 {
			return errHangUp
		}
		return nil
	}
	c.mails++
	c.from = true
	c.reply("250 2.1.0 Ok")
	return nil
}

func (c *smtpSession) rcpt(args string) {
	path, params, ok := cutPath(args, "TO:")
	c.lag()
	switch {
	case !c.from:
		c.reply("503 5.5.1 Bad sequence of commands")
	case !ok || !isMailbox(path):
		c.answer("501 5.1.3 Bad recipient address syntax")
	case !c.utf8 && !isASCII(path):
		c.answer("553 5.6.7 Non-ASCII recipient without SMTPUTF8")
	case params != "":
		c.answer("555 5.5.4 Parameter not recognized")
	case len(c.to) >= maxRecipients:
		c.answer("452 4.5.3 Too many recipients")
	case c.plan.DeadAddress(path):
		c.answer("550 5.1.1 User unknown")
	case c.fault.at == atRcpt:
		c.answer(c.fault.line)
	default:
		c.to = append(c.to, path)
		c.reply("250 2.1.5 Ok")
	}
}

// lag has the answers that leave next wait as the script says, once for all that leave together.
func (c *smtpSession) lag() { c.delay = c.fate.delay }

func (c *smtpSession) data() error {
	c.lag()
	switch {
	case !c.from:
		c.reply("503 5.5.1 Bad sequence of commands")
		return nil
	case len(c.to) == 0:
		c.reply("554 5.5.1 No valid recipients")
		return nil
	}
	c.reply("354 Go ahead")
	if err := c.flush(); err != nil {
		return err
	}
	content, fits, err := c.readMail()
	if err != nil {
		return err
	}
	defer c.forget()
	c.lag()
	switch {
	case c.fate.dropBefore:
		return io.EOF
	case !fits:
		c.answer("552 5.3.4 Message size exceeds fixed limit")
		return nil
	}
	return c.take(content)
}

// take ends a mail that came whole.
func (c *smtpSession) take(content []byte) error {
	e := &entry{at: time.Now(), service: SMTP, id: messageID(content), address: strings.Join(c.to, ", "), content: content}
	if e.id == "" {
		e.id = newUUID()
	}
	ledger := c.sandbox.ledger
	switch {
	case c.fault.at == atData:
		if c.fate.takenAnyway {
			e.answered = smtpCode(c.fault.line)
			ledger.take(e)
		}
		c.answer(c.fault.line)
		if c.fault.code == 421 {
			return errHangUp
		}
	case c.fate.stall:
		ledger.take(e)
		io.Copy(io.Discard, c.conn) //nolint:errcheck // until the client gives up
		return io.EOF
	case c.fate.dropAfter:
		ledger.take(e)
		return io.EOF
	default:
		e.answered = "250"
		line := "250 2.0.0 Ok: queued as " + e.id
		ledger.take(e)
		c.answer(line)
		if c.in.Buffered() == 0 {
			if err := c.flush(); err != nil {
				e.lost.Store(true)
				return err
			}
		}
	}
	return nil
}

// readMail reads up to the final dot and takes the dots away that were stuffed (RFC 5321, section 4.5.2).
func (c *smtpSession) readMail() (content []byte, fits bool, err error) {
	c.conn.SetReadDeadline(time.Now().Add(smtpIdle)) //nolint:errcheck // the read fails then
	var mail bytes.Buffer
	mail.Grow(4096)
	for fits, start := true, true; ; {
		line, err := c.in.ReadSlice('\n')
		whole := err == nil
		if !whole && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, false, err
		}
		if start && len(line) > 0 && line[0] == '.' {
			if whole && string(line) == ".\r\n" { // nothing else ends a mail: SMTP smuggling, CVE-2023-51764
				return mail.Bytes(), fits, nil
			}
			line = line[1:]
		}
		if start = whole && bytes.HasSuffix(line, []byte("\r\n")); mail.Len()+len(line) > maxMail {
			fits = false
		} else if fits {
			mail.Write(line) //nolint:errcheck // never fails
		}
	}
}
