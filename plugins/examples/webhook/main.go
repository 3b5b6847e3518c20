// Command webhook is a provider plugin of Carillon: it POSTs messages as JSON to HTTPS URLs, signed as
// Standard Webhooks 1.0.0 says (https://www.standardwebhooks.com).
//
// Whoever may register an address decides where this program connects to, so the addresses that it may
// reach are bounded in one place: see guard.
package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/carillon-notify/carillon/plugins/sdk"
	"github.com/carillon-notify/carillon/providers"
)

func main() { sdk.Serve(kind()) }

const (
	maxURL  = 2048      // bytes of an address
	maxBody = 256 << 10 // bytes of a request
	minKey  = 24        // bytes of a signing key: Standard Webhooks, "Signature scheme"
	maxKey  = 64
)

// kind is all that Carillon has to know of this provider.
func kind() providers.Kind {
	return providers.Kind{
		Name:     "webhook",
		Channel:  "webhook",
		Doc:      "Signed POST requests to HTTPS URLs (Standard Webhooks).",
		MaxBatch: 10,
		// Check says the rest: a pattern cannot count to 2048.
		Address: `^https://[A-Za-z0-9._\[\]:-]+([/?][!-"$-~]*)?$`,
		Secret:  true, // many a webhook's URL is its password
		Content: []byte(`{
			"type": "object",
			"properties": {
				"event": {"type": "string", "pattern": "^[a-zA-Z0-9_.]{1,100}$", "description": "what happened, such as order.shipped"}
			},
			"additionalProperties": false
		}`),
		Settings: []providers.Setting{
			{Name: "secrets", Type: providers.List, Required: true, Secret: true, Doc: "The keys that requests are signed with, each whsec_ and the base64 of 24 to 64 random bytes; two while one replaces the other."},
			{Name: "allow", Type: providers.List, Doc: "Networks (CIDR) that may be reached, on any port, although they are private or reserved."},
			{Name: "ca_file", Type: providers.File, Doc: "PEM certificates to trust instead of the system's."},
			{Name: "pool.max", Type: providers.Int, Default: "8", Doc: "Connections to one host at once, 1 to 1000."},
			{Name: "pool.idle", Type: providers.Int, Default: "64", Doc: "Unused connections kept, to all hosts together, 1 to 1000."},
			{Name: "pool.idle_timeout", Type: providers.Duration, Default: "30s", Doc: "How long an unused connection is kept, 1s to 1h."},
		},
		Check: check,
		Open:  open,
	}
}

// check looks at a message before it is accepted.
func check(m *providers.Message) error {
	if err := checkURL(m.Address); err != nil {
		return fmt.Errorf("%w: %w", providers.ErrAddress, err) // the content may be good for others
	}
	_, err := encode(m)
	return err
}

// settings are the members of the JSON object that Open is given. Carillon has checked their names and
// types, and fills in no defaults.
type settings struct {
	Secrets []string `json:"secrets"`
	Allow   []string `json:"allow"`
	CAFile  string   `json:"ca_file"`
	Pool    struct {
		Max         int    `json:"max"`
		Idle        int    `json:"idle"`
		IdleTimeout string `json:"idle_timeout"`
	} `json:"pool"`
}

// open makes a provider. It asks nobody on the network: a receiver that is down is no wrong setting.
func open(_ context.Context, raw []byte) (providers.Provider, error) {
	var s settings
	s.Pool.Max, s.Pool.Idle, s.Pool.IdleTimeout = 8, 64, "30s"
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	keys, err := parseSecrets(s.Secrets)
	if err != nil {
		return nil, err
	}
	g, err := newGuard(s.Allow)
	if err != nil {
		return nil, err
	}
	trust, err := readCAs(s.CAFile)
	if err != nil {
		return nil, err
	}
	if s.Pool.Max < 1 || s.Pool.Max > 1000 || s.Pool.Idle < 1 || s.Pool.Idle > 1000 {
		return nil, errors.New("pool: max and idle must be 1 to 1000")
	}
	idle, err := time.ParseDuration(s.Pool.IdleTimeout)
	if err != nil || idle < time.Second || idle > time.Hour {
		return nil, errors.New("pool.idle_timeout: must be a duration from 1s to 1h")
	}
	return &provider{keys: keys, http: sdk.NewHTTP(sdk.HTTPOptions{
		MaxPerHost: s.Pool.Max, Idle: s.Pool.Idle, IdleTimeout: idle,
		TLS:     &tls.Config{RootCAs: trust, MinVersion: tls.VersionTLS12},
		Control: g.control,
	})}, nil
}

// parseSecrets reads the signing keys. Its errors do not repeat them.
func parseSecrets(secrets []string) ([][]byte, error) {
	if len(secrets) == 0 {
		return nil, errors.New("secrets: is needed; make one with: echo whsec_$(openssl rand -base64 32)")
	}
	keys := make([][]byte, len(secrets))
	for i, s := range secrets {
		text, ok := strings.CutPrefix(s, "whsec_")
		key, err := base64.StdEncoding.DecodeString(text)
		if !ok || err != nil || len(key) < minKey || len(key) > maxKey {
			return nil, fmt.Errorf("secrets[%d]: must be whsec_ and the base64 of %d to %d bytes; make one with: echo whsec_$(openssl rand -base64 32)", i, minKey, maxKey)
		}
		keys[i] = key
	}
	return keys, nil
}

func readCAs(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil // the system's
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("ca_file: has no certificate in PEM")
	}
	return pool, nil
}

// provider implements providers.Provider.
type provider struct {
	keys [][]byte
	http *sdk.HTTP
}

// Deliver implements providers.Provider. Each message is a request of its own, and all go at once, so that
// a slow receiver keeps nobody else waiting.
func (p *provider) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	return sdk.Each(ctx, batch, report, p.send)
}

// Health implements providers.Provider. There is no one service to be up or down, so it is about the
// connections alone.
func (p *provider) Health(context.Context) providers.Health {
	stats := p.http.Stats()
	stats.Max = 0 // they are bounded for each host, not together
	return providers.Health{Status: providers.HealthOK, Pool: stats}
}

// Close implements providers.Provider.
func (p *provider) Close(ctx context.Context) error { return p.http.Close(ctx) }

// errSilent says that nobody knows whether a request was taken.
var errSilent = errors.New("the request was sent and not answered")

// send makes one attempt. Its only error is errSilent: whatever else happens is an answer.
func (p *provider) send(ctx context.Context, m *providers.Message) (providers.Result, error) {
	if err := checkURL(m.Address); err != nil {
		return providers.Result{Outcome: providers.Rejected, Code: "url", Reason: err.Error()}, nil
	}
	body, err := encode(m)
	if err != nil {
		return providers.Result{Outcome: providers.Rejected, Code: "content", Reason: err.Error()}, nil
	}
	if m.Test {
		return providers.Result{Outcome: providers.Accepted, Code: "test", Reason: "checked, and not sent"}, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.Address, bytes.NewReader(body))
	if err != nil {
		return providers.Result{Outcome: providers.Rejected, Code: "url", Reason: "no request can be made for the URL"}, nil
	}
	p.sign(req.Header, m.ID, body, time.Now())
	resp, handed, err := p.http.Do(req)
	switch {
	case err != nil && handed:
		return providers.Result{}, errSilent
	case err != nil:
		return unsent(err), nil
	}
	defer resp.Body.Close() // the status is the answer
	return classify(resp.StatusCode, sdk.RetryAfter(resp.Header)), nil
}

// checkURL says what is wrong with an address, without repeating it. Where it leads is the guard's affair.
func checkURL(address string) error {
	to, err := url.Parse(address)
	switch {
	case len(address) > maxURL:
		return fmt.Errorf("the URL is %d bytes long, and must be of %d at most", len(address), maxURL)
	case err != nil || to.Scheme != "https" || to.Hostname() == "":
		return errors.New("the URL must be https:// and a host")
	case to.User != nil || to.Fragment != "":
		return errors.New("the URL must have no user, password or fragment")
	}
	return nil
}

// payload is the body of a request. All members but event are always there.
type payload struct {
	ID        string          `json:"id"`
	Event     string          `json:"event,omitempty"`
	Title     string          `json:"title"`
	Body      string          `json:"body"`
	URL       string          `json:"url"`
	Data      json.RawMessage `json:"data"`
	Category  string          `json:"category"`
	CreatedAt time.Time       `json:"created_at"`
}

// encode makes the body, the same one on every attempt.
func encode(m *providers.Message) ([]byte, error) {
	p := payload{ID: m.ID, Title: m.Title, Body: m.Body, URL: m.URL, Data: m.Data, Category: m.Category, CreatedAt: m.CreatedAt.UTC()}
	if len(p.Data) == 0 {
		p.Data = json.RawMessage("{}")
	}
	if len(m.Content) > 0 {
		var block struct {
			Event string `json:"event"`
		}
		if err := json.Unmarshal(m.Content, &block); err != nil {
			return nil, errors.New("the webhook block is no JSON object with an event")
		}
		p.Event = block.Event
	}
	body, err := json.Marshal(p)
	if err != nil {
		return nil, errors.New("data is not valid JSON")
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("the request would be %d bytes long, and must be of %d at most: send less, and a URL to fetch the rest from", len(body), maxBody)
	}
	return body, nil
}

// sign sets the headers of a request, with a signature for each key: while a key is replaced, a receiver
// knows the old one or the new one.
func (p *provider) sign(h http.Header, id string, body []byte, now time.Time) {
	stamp := strconv.FormatInt(now.Unix(), 10)
	signatures := make([]string, len(p.keys))
	for i, key := range p.keys {
		signatures[i] = signature(key, id, stamp, body)
	}
	h.Set("Content-Type", "application/json")
	h.Set("User-Agent", "Carillon-Webhook/1")
	h.Set("Webhook-Id", id) // the same on every attempt: receivers know by it what they have already
	h.Set("Webhook-Timestamp", stamp)
	h.Set("Webhook-Signature", strings.Join(signatures, " "))
}

func signature(key []byte, id, stamp string, body []byte) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + stamp + "."))
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// answers is what each status means; the first line that fits counts. Sources: Standard Webhooks 1.0.0,
// "Delivery success and failure" (SW), and RFC 9110 by section.
//
// One receiver's trouble is Deferred, and so is a 429 here: Throttled would hold the messages to all the
// others as well. A 5xx is no Unknown: to SW, whatever is not 2xx is a failure that is to be sent again.
var answers = []struct {
	from, to int
	outcome  providers.Outcome
	reason   string
}{
	{200, 299, providers.Accepted, ""}, // SW: success
	{300, 399, providers.Rejected, "the receiver redirects, and redirects are not followed: register the new URL"}, // SW: update the URL instead
	{408, 408, providers.Deferred, "the request took too long to arrive"},                                          // 15.5.9: may be repeated
	{410, 410, providers.Gone, "the receiver wants no more requests at this URL"},                                  // SW: disable the endpoint
	{421, 421, providers.Deferred, "the request reached another server than its own"},                              // 15.5.20: may be repeated
	{425, 425, providers.Deferred, "the receiver asks to try again"},                                               // RFC 8470, 5.2
	{429, 429, providers.Deferred, "the receiver asks to slow down"},                                               // SW: throttle; RFC 6585, 4
	{400, 499, providers.Rejected, "the receiver refuses the request"},                                             // 15.5: the request is at fault
	{503, 503, providers.Deferred, "the receiver is not available"},                                                // 15.6.4
	{502, 504, providers.Deferred, "the receiver's gateway has no answer"},                                         // SW: under load
	{500, 599, providers.Deferred, "the receiver failed"},                                                          // SW: failure
}

// classify says what an answer means for the message.
func classify(status int, retryAfter time.Duration) providers.Result {
	res := providers.Result{Outcome: providers.Rejected, Code: strconv.Itoa(status), Reason: "an answer that is none of HTTP's"}
	for _, a := range answers {
		if status >= a.from && status <= a.to {
			res.Outcome, res.Reason = a.outcome, a.reason
			break
		}
	}
	if res.Outcome == providers.Deferred {
		res.After = retryAfter
	}
	return res
}

// unsent says why a request did not go out. The error itself stays here: it may name an address.
func unsent(err error) providers.Result {
	var name *net.DNSError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.Is(err, errForbidden):
		return providers.Result{Outcome: providers.Rejected, Code: "address", Reason: "the URL leads to a private or reserved address, or to another port than 443; the setting allow can permit it"}
	case errors.As(err, &cert):
		return providers.Result{Outcome: providers.Deferred, Code: "tls", Reason: "the receiver's certificate is not trusted"}
	case errors.As(err, &name):
		return providers.Result{Outcome: providers.Deferred, Code: "dns", Reason: "the receiver's host name is not found"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return providers.Result{Outcome: providers.Deferred, Code: "timeout", Reason: "there was no connection to the receiver in time"}
	case errors.Is(err, sdk.ErrClosed):
		return providers.Result{Outcome: providers.Deferred, Code: "closed", Reason: "the provider is closed"}
	}
	return providers.Result{Outcome: providers.Deferred, Code: "connect", Reason: "the receiver cannot be reached"}
}

// guard is the one place that decides where connections may lead. It is asked about the resolved address
// of every connection, so no name, redirect or second answer of a DNS server gets round it.
type guard struct{ allow []netip.Prefix }

// forbidden4 is what IPv4 has that is no receiver on the internet (IANA's special-purpose registry).
var forbidden4 = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
	"192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
	"168.63.129.16/32") // Azure's own services, at an address that looks public

// Of IPv6, only global unicast is open, less what is reserved or carries IPv4 inside. All that is not in
// 2000::/3 is closed: loopback, mapped and NAT64 IPv4, discard, SRv6, unique local, link-local, multicast.
var (
	open6      = netip.MustParsePrefix("2000::/3")
	forbidden6 = prefixes("2001::/23" /* Teredo, ORCHID */, "2001:db8::/32", "2002::/16" /* 6to4 */, "3fff::/20")
)

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		out[i] = netip.MustParsePrefix(t)
	}
	return out
}

func newGuard(allow []string) (*guard, error) {
	g := &guard{}
	for i, text := range allow {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("allow[%d]: must be a network such as 10.1.0.0/16 or fd00::/8", i)
		}
		g.allow = append(g.allow, p)
	}
	return g, nil
}

var errForbidden = errors.New("the address is not allowed")

// control is a net.Dialer's ControlContext: it runs after a name is resolved and before the connection.
func (g *guard) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil || !g.permits(to) {
		return errForbidden
	}
	return nil
}

func (g *guard) permits(to netip.AddrPort) bool {
	ip := to.Addr().Unmap().WithZone("") // no prefix contains an address with a zone
	in := func(list []netip.Prefix) bool {
		for _, p := range list {
			if p.Contains(ip) {
				return true
			}
		}
		return false
	}
	switch {
	case in(g.allow):
		return true
	case to.Port() != 443 && to.Port() != 80:
		return false
	case ip.Is4():
		return !in(forbidden4)
	}
	return open6.Contains(ip) && !in(forbidden6)
}
