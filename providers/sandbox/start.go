package sandbox

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// What the sandbox's services know their clients by.
const (
	KeyID    = "SANDBOX001"          // of AuthKey.p8
	TeamID   = "SANDBOXTM1"          // the issuer of provider tokens
	Topic    = "com.example.app"     // the app's bundle id
	Project  = "carillon-sandbox"    // the Firebase project
	Username = "carillon"            // for SMTP's AUTH
	Password = "sandbox"             // for SMTP's AUTH; no secret, for nothing real is behind it
	Domain   = "sandbox.example.com" // the sender's domain, and the mail server's name
	From     = "no-reply@" + Domain  // the sender in Settings
)

// Sandbox is a running set of services. Its methods are safe for concurrent use.
type Sandbox struct {
	options Options
	seed    uint64
	keys    *credentials
	ledger  *ledger
	plans   map[Service]*atomic.Pointer[plan]

	listeners map[Service]*listener
	http1     *http.Server  // FCM for clients without HTTP/2
	done      chan struct{} // closed by Close
	closeOnce sync.Once
	closeErr  error
}

// Start makes the files of o.Dir where they are missing and listens. The services run until Close.
func Start(o Options) (*Sandbox, error) {
	keys, err := loadCredentials(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{
		options: o, seed: o.Seed, keys: keys, ledger: newLedger(o.Capacity),
		plans: map[Service]*atomic.Pointer[plan]{APNs: {}, FCM: {}, SMTP: {}}, listeners: map[Service]*listener{},
		done: make(chan struct{}),
	}
	for s.seed == 0 {
		var b [8]byte
		rand.Read(b[:]) //nolint:errcheck // crypto/rand.Read never fails since Go 1.24
		s.seed = binary.LittleEndian.Uint64(b[:])
	}
	for service := range s.plans {
		if err := s.Script(service, Script{}); err != nil {
			return nil, err
		}
	}
	cert, err := keys.serverCert(o.Hosts)
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	if err := s.listen(); err != nil {
		s.Close() //nolint:errcheck // the first error tells more
		return nil, err
	}
	if err := keys.writeServiceAccount(o.Dir, s.FCMURL()); err != nil {
		s.Close() //nolint:errcheck // the first error tells more
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	s.serve(cert)
	return s, nil
}

// listen opens the listeners, on the ports of the last run where nothing else is asked for.
func (s *Sandbox) listen() error {
	last := map[Service]string{}
	path := filepath.Join(s.options.Dir, addressesFile)
	if data, err := os.ReadFile(path); err == nil {
		json.Unmarshal(data, &last) //nolint:errcheck // no last run then
	}
	for service, addr := range map[Service]string{APNs: s.options.APNs, FCM: s.options.FCM, SMTP: s.options.SMTP} {
		var ln net.Listener
		var err error
		if old := last[service]; addr == "" && old != "" {
			ln, _ = net.Listen("tcp", old) // taken by something else: a free one does as well
		}
		if addr == "" {
			addr = "127.0.0.1:0"
		}
		if ln == nil {
			if ln, err = net.Listen("tcp", addr); err != nil {
				return fmt.Errorf("sandbox: listen for %s: %w", service, err)
			}
		}
		last[service] = ln.Addr().String()
		s.listeners[service] = &listener{Listener: ln, opened: &s.ledger.books[service].conns, conns: map[net.Conn]struct{}{}}
	}
	data, err := json.Marshal(last)
	if err != nil {
		return fmt.Errorf("sandbox: encode addresses: %w", err)
	}
	return writeFile(path, data)
}

func (s *Sandbox) serve(cert tls.Certificate) {
	clients := x509.NewCertPool()
	clients.AddCert(s.keys.ca)
	base := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}

	apns := base.Clone()
	apns.NextProtos = []string{"h2"}
	apns.ClientAuth, apns.ClientCAs = tls.VerifyClientCertIfGiven, clients
	push := &h2Server{plan: s.plans[APNs].Load, handle: s.push}
	s.listeners[APNs].run(func(conn net.Conn) { serveTLS(conn, apns, push, nil) })

	fcm := base.Clone()
	fcm.NextProtos = []string{"h2", "http/1.1"}
	send := &h2Server{plan: s.plans[FCM].Load, handle: s.fcm}
	s.http1 = &http.Server{Handler: http1Handler(s.fcm), ReadHeaderTimeout: 10 * time.Second}
	s.listeners[FCM].run(func(conn net.Conn) { serveTLS(conn, fcm, send, s.http1) })

	mail := &smtpServer{sandbox: s, tls: base, open: s.options.OpenRelay}
	s.listeners[SMTP].run(mail.serve)
}

// serveTLS serves one connection in the protocol that the client chose.
func serveTLS(raw net.Conn, config *tls.Config, h2 *h2Server, h1 *http.Server) {
	conn := tls.Server(raw, config)
	defer raw.Close() //nolint:errcheck // closed in any case
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return
	}
	switch {
	case conn.ConnectionState().NegotiatedProtocol == "h2":
		h2.serve(conn)
	case h1 != nil:
		once := newOneConn(conn)
		h1.Serve(once) //nolint:errcheck // ends with the connection
	}
}

// Close stops the services and closes every connection. It may be called again.
func (s *Sandbox) Close() error {
	s.closeOnce.Do(func() {
		close(s.done)
		if s.http1 != nil {
			s.closeErr = s.http1.Close()
		}
		for _, l := range s.listeners {
			s.closeErr = errors.Join(s.closeErr, l.Close())
		}
	})
	return s.closeErr
}

// Seed is the seed of the faults, for a log or a failed test's output.
func (s *Sandbox) Seed() uint64 { return s.seed }

// APNsURL is where APNs listens: "https://127.0.0.1:port".
func (s *Sandbox) APNsURL() string { return "https://" + s.addr(APNs) }

// FCMURL is where FCM listens, without the "/v1" that the paths of its API begin with.
func (s *Sandbox) FCMURL() string { return "https://" + s.addr(FCM) }

// SMTPAddr is where the mail server listens: "127.0.0.1:port".
func (s *Sandbox) SMTPAddr() string { return s.addr(SMTP) }

// addr is a service's address as a client on this machine reaches it.
func (s *Sandbox) addr(service Service) string {
	a, ok := s.listeners[service].Addr().(*net.TCPAddr)
	if !ok || !a.IP.IsUnspecified() {
		return s.listeners[service].Addr().String()
	}
	return fmt.Sprintf("127.0.0.1:%d", a.Port)
}

// CAFile is the certificate authority that signed the servers' certificates, in PEM.
func (s *Sandbox) CAFile() string { return s.file(caFile) }

// KeyFile is the key that signs APNs provider tokens, a .p8 as Apple hands out.
func (s *Sandbox) KeyFile() string { return s.file(authKeyFile) }

// ClientCertFile is a certificate and its key in one PEM file, for APNs's certificate auth.
func (s *Sandbox) ClientCertFile() string { return s.file(clientCertFile) }

// ServiceAccountFile is the JSON of a Google service account whose token_uri leads here.
func (s *Sandbox) ServiceAccountFile() string { return s.file(serviceAccountFile) }

func (s *Sandbox) file(name string) string { return filepath.Join(s.options.Dir, name) }

// Settings is what an operator would write as a route's settings to have the kind "apns", "fcm" or
// "email" deliver here; ok is false for other kinds.
func (s *Sandbox) Settings(kind string) (settings []byte, ok bool) {
	var v map[string]string
	switch kind {
	case "apns":
		v = map[string]string{"endpoint": s.APNsURL(), "topic": Topic, "key_file": s.KeyFile(), "key_id": KeyID, "team_id": TeamID, "ca_file": s.CAFile()}
	case "fcm":
		v = map[string]string{"credentials_file": s.ServiceAccountFile(), "endpoint": s.FCMURL(), "ca_file": s.CAFile()}
	case "email":
		v = map[string]string{"addr": s.SMTPAddr(), "tls": "starttls", "username": Username, "password": Password,
			"from": "Carillon Sandbox <" + From + ">", "ca_file": s.CAFile()}
	default:
		return nil, false
	}
	settings, err := json.Marshal(v)
	return settings, err == nil
}

// Script sets a service's faults from now on, in one step, and begins their sequence anew. It fails
// where a rate is out of range or an error's code is not known to the service.
func (s *Sandbox) Script(service Service, script Script) error {
	at, ok := s.plans[service]
	if !ok {
		return fmt.Errorf("sandbox: no service %q", service)
	}
	p, err := newPlan(service, script, s.seed^uint64(service[0])<<32)
	if err != nil {
		return err
	}
	at.Store(p)
	return nil
}

// Filter chooses messages; its zero value is all that are remembered.
type Filter struct {
	Service     Service // "" for all
	ID, Address string  // "" for any
	After       uint64  // only messages whose Seq is greater
	Before      uint64  // only messages whose Seq is smaller; 0 is no bound
	Limit       int     // of those, the newest Limit; 0 is all
}

// Messages returns the messages that a filter chooses, the newest last. They are decoded for this call.
func (s *Sandbox) Messages(f Filter) []Message {
	var found []Message
	before := f.Before
	if before == 0 {
		before = math.MaxUint64
	}
	s.ledger.newest(before, func(e *entry) bool {
		if e.seq <= f.After || f.Limit > 0 && len(found) == f.Limit {
			return false
		}
		if (f.Service == "" || f.Service == e.service) && (f.ID == "" || f.ID == e.id) && (f.Address == "" || f.Address == e.address) {
			found = append(found, e.message())
		}
		return true
	})
	for i, j := 0, len(found)-1; i < j; i, j = i+1, j-1 {
		found[i], found[j] = found[j], found[i]
	}
	return found
}

// Counts returns a service's figures.
func (s *Sandbox) Counts(service Service) Counts {
	if b := s.ledger.books[service]; b != nil {
		return b.counts()
	}
	return Counts{Answers: map[string]uint64{}}
}

// Taken returns how often a service took the message with an id.
func (s *Sandbox) Taken(service Service, id string) int {
	if b := s.ledger.books[service]; b != nil {
		return b.copiesOf(id)
	}
	return 0
}

// Connections returns how many connections a service has open.
func (s *Sandbox) Connections(service Service) int {
	l := s.listeners[service]
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// Duplicates returns the ids that a service took more than once, with how often.
func (s *Sandbox) Duplicates(service Service) map[string]int { return s.idsOf(service, 2) }

// IDs returns all ids that a service took, with how often.
func (s *Sandbox) IDs(service Service) map[string]int { return s.idsOf(service, 1) }

func (s *Sandbox) idsOf(service Service, atLeast int) map[string]int {
	if b := s.ledger.books[service]; b != nil {
		return b.ids(atLeast)
	}
	return map[string]int{}
}

// Reset forgets what arrived and begins the figures and the sequences of faults anew. Scripts stay, and
// Seq goes on. It is meant for quiet moments: of a message that arrives meanwhile, a part may stay.
func (s *Sandbox) Reset() {
	s.ledger.reset()
	for _, p := range s.plans {
		p.Load().n.Store(0)
	}
}

// Wait returns when a service has taken n different ids since the start or the last Reset, or with the
// context's error.
func (s *Sandbox) Wait(ctx context.Context, service Service, n int) error {
	b := s.ledger.books[service]
	if b == nil {
		return fmt.Errorf("sandbox: no service %q", service)
	}
	if err := b.wait(ctx, uint64(max(n, 0))); err != nil {
		return fmt.Errorf("sandbox: waiting for %d messages over %s, %d came: %w", n, service, b.distinct.Load(), err)
	}
	return nil
}

// Subscribe sends the messages of a service ("": of all) that are taken from now on, until cancel is
// called. Of those that do not fit into the channel's buffer of size messages, a slow reader misses some.
func (s *Sandbox) Subscribe(service Service, size int) (messages <-chan Message, cancel func()) {
	return s.ledger.listen(service, size)
}
