// Package email delivers e-mail through an SMTP server. wneessen/go-mail makes and signs the messages
// and opens the sessions; a pool keeps sessions for more messages, which are sent with PIPELINING where
// the server has it.
package email

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	gomail "github.com/wneessen/go-mail"
	"golang.org/x/net/idna"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/pool"
)

const (
	defaultTimeout  = time.Minute
	minTimeout      = 100 * time.Millisecond
	maxTimeout      = 10 * time.Minute // RFC 5321, 4.5.3.2.6: how long the end of DATA may take
	defaultMessages = 100
	maxMessages     = 100_000
	maxBatch        = 20
	minKeyBits      = 1024 // RFC 8301, 3.2: signers must not use less
	allModes        = modeStartTLS + ", " + modeTLS + ", " + modeNone
)

var auths = []string{"auto", "plain", "login", "cram-md5", "scram-sha-1", "scram-sha-256", "xoauth2"}

// poolDefaults: servers hang up after some minutes of silence (RFC 5321, 4.5.3.2.7 wants five), so an
// idle session is let go before.
func poolDefaults() pool.Config {
	return pool.Defaults(pool.Config{Max: 8, Idle: 0, IdleTimeout: 30 * time.Second, MaxLifetime: 10 * time.Minute, HealthEvery: 15 * time.Second, OpenTimeout: 30 * time.Second})
}

// poolSettings are the pool's without max_uses, which counts batches; max_messages is the setting.
func poolSettings() []providers.Setting {
	return slices.DeleteFunc(pool.Settings(poolDefaults()), func(s providers.Setting) bool { return s.Name == "pool.max_uses" })
}

// Kind describes the provider.
func Kind() providers.Kind {
	settings := []providers.Setting{
		{Name: "addr", Type: providers.String, Required: true, Doc: "The mail server, host:port; 587 for tls: starttls, 465 for tls: tls."},
		{Name: "tls", Type: providers.Choice, Values: []string{modeStartTLS, modeTLS, modeNone}, Default: modeStartTLS, Doc: "How the line is encrypted; there is no going on without, but for none."},
		{Name: "username", Type: providers.String, Doc: "Whom to log in as; empty does not log in."},
		{Name: "password", Type: providers.String, Secret: true, Doc: "The password, or the access token of auth: xoauth2."},
		{Name: "auth", Type: providers.Choice, Values: auths, Default: "auto", Doc: "The auth mechanism; auto takes the best that the server offers."},
		{Name: "from", Type: providers.String, Required: true, Doc: `The From of every message, such as "Example <no-reply@example.com>".`},
		{Name: "envelope_from", Type: providers.String, Doc: "Where bounces go; empty takes the address of from."},
		{Name: "reply_to", Type: providers.String, Doc: "The Reply-To of every message."},
		{Name: "ca_file", Type: providers.File, Doc: "PEM certificates to trust instead of the system's."},
		{Name: "helo", Type: providers.String, Doc: "How we greet the server; empty takes the machine's name."},
		{Name: "message_id_domain", Type: providers.String, Doc: "The right part of every Message-ID; empty takes the domain of from."},
		{Name: "list_unsubscribe", Type: providers.String, Doc: "A mailto: or https: URI for List-Unsubscribe, beside the recipient's own one-click URL."},
		{Name: "dkim.domain", Type: providers.String, Doc: "The domain that signs (d=); empty does not sign."},
		{Name: "dkim.selector", Type: providers.String, Doc: "The selector of the key's DNS record (s=)."},
		{Name: "dkim.key_file", Type: providers.File, Doc: "The private key, PEM, RSA of 1024 bits at least or Ed25519."},
		{Name: "dkim.key", Type: providers.String, Secret: true, Doc: "The same key itself, instead of a file."},
		{Name: "max_messages", Type: providers.Int, Default: fmt.Sprint(defaultMessages), Doc: "How many messages one connection carries, 1 to 100000."},
		{Name: "timeout", Type: providers.Duration, Default: "1m", Doc: "How long the server may take for an answer, 100ms to 10m."},
	}
	return providers.Kind{
		Name:     "email",
		Channel:  "email",
		Doc:      "E-mail through an SMTP server.",
		MaxBatch: maxBatch,
		Settings: append(settings, poolSettings()...),
		Content:  []byte(schema),
		// RFC 5321 without quoted local parts and address literals, which nobody has. Check parses.
		Address: `^[^\s\x00-\x1f\x7f@<>()\[\],;:\\"]{1,64}@[^\s\x00-\x1f\x7f@<>()\[\],;:\\"]{1,189}$`,
		Check: func(m *providers.Message) error {
			_, err := compose(m)
			return err
		},
		Open: open,
	}
}

type settings struct {
	Addr            string       `json:"addr"`
	TLS             string       `json:"tls"`
	Username        string       `json:"username"`
	Password        string       `json:"password"`
	Auth            string       `json:"auth"`
	From            string       `json:"from"`
	EnvelopeFrom    string       `json:"envelope_from"`
	ReplyTo         string       `json:"reply_to"`
	CAFile          string       `json:"ca_file"`
	Helo            string       `json:"helo"`
	MessageIDDomain string       `json:"message_id_domain"`
	ListUnsubscribe string       `json:"list_unsubscribe"`
	DKIM            dkimSettings `json:"dkim"`
	MaxMessages     int          `json:"max_messages"`
	Timeout         string       `json:"timeout"`
	Pool            pool.Config  `json:"pool"`
}

type dkimSettings struct {
	Domain   string `json:"domain"`
	Selector string `json:"selector"`
	KeyFile  string `json:"key_file"`
	Key      string `json:"key"`
}

func open(_ context.Context, raw []byte) (providers.Provider, error) {
	s := settings{Pool: poolDefaults(), MaxMessages: defaultMessages, TLS: modeStartTLS, Auth: "auto"}
	if len(raw) > 0 {
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields()
		if err := d.Decode(&s); err != nil {
			return nil, fmt.Errorf("read the settings: %w", err)
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return nil, errors.New("read the settings: more than one JSON value")
		}
	}
	if s.MaxMessages < 1 || s.MaxMessages > maxMessages {
		return nil, fmt.Errorf("max_messages: is %d and must be from 1 to %d", s.MaxMessages, maxMessages)
	}
	from, err := senderOf(s)
	if err != nil {
		return nil, err
	}
	to, err := serverOf(s)
	if err != nil {
		return nil, err
	}
	p := &provider{sender: from, server: to, max: s.MaxMessages}
	p.pool = pool.NewExclusive(s.Pool, to.open,
		func(s *session) { s.shut() },
		func(ctx context.Context, s *session) error { return s.alive(ctx) })
	return p, nil
}

func senderOf(s settings) (*sender, error) {
	out := &sender{unsubscribe: s.ListUnsubscribe}
	var err error
	if out.from, err = ours("from", s.From); err != nil {
		return nil, err
	}
	out.envelope = out.from
	if s.EnvelopeFrom != "" {
		if out.envelope, err = ours("envelope_from", s.EnvelopeFrom); err != nil {
			return nil, err
		}
	}
	if s.ReplyTo != "" {
		a, err := ours("reply_to", s.ReplyTo)
		if err != nil {
			return nil, err
		}
		out.replyTo = &a
	}
	out.messageDomain = out.from.domain
	if s.MessageIDDomain != "" {
		if out.messageDomain, err = domainOf("message_id_domain", s.MessageIDDomain); err != nil {
			return nil, err
		}
	}
	if u := s.ListUnsubscribe; u != "" {
		p, err := url.Parse(u)
		if err != nil || (p.Scheme != "mailto" && p.Scheme != "https") || clean(u) != nil || !isASCII(u) || strings.ContainsAny(u, "<>, \"") || len(u) > maxUnsubscribe {
			return nil, errors.New(`list_unsubscribe: must be a mailto: or https: URI, such as "mailto:unsubscribe@example.com"`)
		}
	}
	out.dkim, err = dkimOf(s.DKIM)
	return out, err
}

// ours parses an address of the settings.
func ours(name, s string) (mailbox, error) {
	a, err := parse(s)
	if err == nil && !a.ascii() {
		err = errors.New("the part before the @ must be ASCII")
	}
	if err != nil {
		return mailbox{}, fmt.Errorf("%s: %w; write it as \"Example <no-reply@example.com>\"", name, err)
	}
	return a, nil
}

func domainOf(name, s string) (string, error) {
	d, err := idna.Lookup.ToASCII(s)
	if err != nil || d == "" || strings.ContainsAny(d, " :[]<>@") || clean(d) != nil {
		return "", fmt.Errorf("%s: %q is no domain name", name, s)
	}
	return d, nil
}

func dkimOf(s dkimSettings) (*dkim.SignOptions, error) {
	if s == (dkimSettings{}) {
		return nil, nil
	}
	domain, err := domainOf("dkim.domain", s.Domain)
	if err != nil {
		return nil, err
	}
	selector, err := domainOf("dkim.selector", s.Selector)
	if err != nil {
		return nil, err
	}
	pem := []byte(s.Key)
	switch {
	case s.Key != "" && s.KeyFile != "":
		return nil, errors.New("dkim.key and dkim.key_file: set one of them, not both")
	case s.KeyFile != "":
		if pem, err = os.ReadFile(s.KeyFile); err != nil {
			return nil, fmt.Errorf("dkim.key_file: %w", err)
		}
	}
	key, err := gomail.PrivKeyFromPEM(pem)
	if err != nil {
		return nil, errors.New("dkim.key_file: not a PEM private key of RSA or Ed25519")
	}
	if r, ok := key.(*rsa.PrivateKey); ok && r.N.BitLen() < minKeyBits {
		return nil, fmt.Errorf("dkim.key_file: the RSA key has %d bits, RFC 8301 wants %d at least", r.N.BitLen(), minKeyBits)
	}
	return &dkim.SignOptions{
		Domain: domain, Selector: selector, Signer: key, HeaderKeys: signedHeaders,
		HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationRelaxed,
	}, nil
}

// greeting is what EHLO takes: a domain name or an address literal (RFC 5321, 4.1.1.1).
var greeting = regexp.MustCompile(`^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]+\]|\[IPv6:[0-9A-Fa-f:.]+\])$`)

func serverOf(s settings) (*server, error) {
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil || host == "" || port == "" || clean(s.Addr) != nil {
		return nil, errors.New(`addr: must be host:port, such as "smtp.example.com:587"`)
	}
	out := &server{addr: s.Addr, host: host, mode: s.TLS, auth: s.Auth, username: s.Username, password: s.Password, timeout: defaultTimeout, helo: s.Helo}
	switch s.TLS {
	case modeStartTLS, modeTLS, modeNone:
	default:
		return nil, fmt.Errorf("tls: %q must be one of %s", s.TLS, allModes)
	}
	if !slices.Contains(auths, s.Auth) {
		return nil, fmt.Errorf("auth: %q must be one of %s", s.Auth, strings.Join(auths, ", "))
	}
	if s.Password != "" && s.Username == "" {
		return nil, errors.New("username: set it, a password alone logs nobody in")
	}
	if s.Timeout != "" {
		out.timeout, err = time.ParseDuration(s.Timeout)
		if err != nil || out.timeout < minTimeout || out.timeout > maxTimeout {
			return nil, fmt.Errorf("timeout: %q must be a duration from %s to %s, such as \"1m\"", s.Timeout, minTimeout, maxTimeout)
		}
	}
	if out.helo == "" {
		if name, err := os.Hostname(); err == nil && greeting.MatchString(name) {
			out.helo = name
		} else {
			out.helo = "localhost"
		}
	}
	if !greeting.MatchString(out.helo) {
		return nil, fmt.Errorf("helo: %q is no domain name", s.Helo)
	}
	out.tls = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(0)}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		out.tls.RootCAs = x509.NewCertPool()
		if !out.tls.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: no PEM certificate in %s", s.CAFile)
		}
	}
	return out, nil
}
