// Command sms is a provider plugin of Carillon for an SMS service with an HTTP API in the style of the
// big ones: a message is POSTed with a bearer key, and what became of it on its way to the phone comes
// back later by a signed callback. To use it with a service of yours, change request, reply, answers and
// callback to what its documentation says.
package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf16"

	"github.com/carillon-notify/carillon/plugins/sdk"
	"github.com/carillon-notify/carillon/providers"
)

func main() { sdk.Serve(kind()) }

const (
	defaultSegments = 6
	maxSegments     = 20
	maxAnswer       = 64 << 10        // bytes of an answer or a callback that are read
	callbackAge     = 5 * time.Minute // how far a callback's timestamp may be away
	minSecret       = 16              // characters
	keepFor         = 10 * time.Second
	keepers         = 16 // receipts that are reported at once
)

// kind is all that Carillon has to know of this provider.
func kind() providers.Kind {
	// Check knows no settings. A process opens one provider, so from then on it goes by that one's.
	var limit atomic.Int64
	limit.Store(defaultSegments)
	return providers.Kind{
		Name:     "sms",
		Channel:  "sms",
		Doc:      "Text messages through an HTTP SMS service, with delivery receipts.",
		MaxBatch: 20,
		Address:  `^\+[1-9][0-9]{6,14}$`, // E.164: at most 15 digits
		Content: []byte(`{
			"type": "object",
			"properties": {
				"text": {"type": "string", "minLength": 1, "description": "the whole text; without it, title and body on a line each"}
			},
			"additionalProperties": false
		}`),
		Settings: []providers.Setting{
			{Name: "endpoint", Type: providers.String, Required: true, Doc: "The service's URL, to which /messages is added; https, or http on this machine."},
			{Name: "key", Type: providers.String, Required: true, Secret: true, Doc: "The API key."},
			{Name: "from", Type: providers.String, Required: true, Doc: "The sender that phones show: a number, or up to 11 letters and digits."},
			{Name: "max_segments", Type: providers.Int, Default: strconv.Itoa(defaultSegments), Doc: "How many SMS a text may take, 1 to 20; longer ones are refused."},
			{Name: "callback_listen", Type: providers.String, Doc: "Where to listen for delivery receipts, such as 127.0.0.1:9011; empty takes none."},
			{Name: "callback_url", Type: providers.String, Doc: "The URL under which the service reaches callback_listen."},
			{Name: "callback_secret", Type: providers.String, Secret: true, Doc: "The key that the service signs its callbacks with, 16 characters at least."},
			{Name: "pool.max", Type: providers.Int, Default: "16", Doc: "Connections at once, 1 to 1000."},
			{Name: "pool.idle_timeout", Type: providers.Duration, Default: "30s", Doc: "How long an unused connection is kept, 1s to 1h."},
		},
		Check: func(m *providers.Message) error {
			_, err := compose(m, int(limit.Load()))
			return err
		},
		Open: func(_ context.Context, raw []byte) (providers.Provider, error) {
			p, err := open(raw)
			if err != nil {
				return nil, err
			}
			limit.Store(int64(p.settings.MaxSegments))
			return p, nil
		},
	}
}

// settings are the members of the JSON object that Open is given. Carillon has checked their names and
// types, and fills in no defaults.
type settings struct {
	Endpoint       string `json:"endpoint"`
	Key            string `json:"key"`
	From           string `json:"from"`
	MaxSegments    int    `json:"max_segments"`
	CallbackListen string `json:"callback_listen"`
	CallbackURL    string `json:"callback_url"`
	CallbackSecret string `json:"callback_secret"`
	Pool           struct {
		Max         int    `json:"max"`
		IdleTimeout string `json:"idle_timeout"`
	} `json:"pool"`
}

var (
	keyPattern  = regexp.MustCompile(`^[!-~]+$`)
	codePattern = regexp.MustCompile(`^[a-z0-9_]{1,40}$`) // of the service: what is longer may hold anything
	fromPattern = regexp.MustCompile(`^(\+?[0-9]{3,15}|[A-Za-z0-9 ]{1,11})$`)
)

// check says what is wrong with the settings, without repeating a secret one.
func (s *settings) check() error {
	to, err := url.Parse(s.Endpoint)
	if err != nil || to.Host == "" || to.User != nil || to.RawQuery != "" || to.Fragment != "" {
		return errors.New("endpoint: must be a URL such as https://api.sms.example/v1")
	}
	if to.Scheme != "https" && (to.Scheme != "http" || !thisMachine(to.Hostname())) {
		return errors.New("endpoint: must be https://, or everybody on the way reads the key; http:// is for this machine alone")
	}
	callbacks := s.CallbackListen != ""
	switch {
	case !keyPattern.MatchString(s.Key):
		return errors.New("key: is needed, and has no spaces")
	case !fromPattern.MatchString(s.From):
		return errors.New("from: must be a number, or 1 to 11 letters and digits")
	case s.MaxSegments < 1 || s.MaxSegments > maxSegments:
		return fmt.Errorf("max_segments: must be 1 to %d", maxSegments)
	case callbacks != (s.CallbackURL != ""), callbacks != (s.CallbackSecret != ""):
		return errors.New("callback_listen, callback_url and callback_secret need each other")
	case callbacks && len(s.CallbackSecret) < minSecret:
		return fmt.Errorf("callback_secret: must have %d characters at least", minSecret)
	case s.Pool.Max < 1 || s.Pool.Max > 1000:
		return errors.New("pool.max: must be 1 to 1000")
	}
	return nil
}

func thisMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// open makes a provider and listens for receipts. It does not ask the service: one that is down is no
// wrong setting.
func open(raw []byte) (*provider, error) {
	s := settings{MaxSegments: defaultSegments}
	s.Pool.Max, s.Pool.IdleTimeout = 16, "30s"
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	idle, err := time.ParseDuration(s.Pool.IdleTimeout)
	if err != nil || idle < time.Second || idle > time.Hour {
		return nil, errors.New("pool.idle_timeout: must be a duration from 1s to 1h")
	}
	p := &provider{
		settings: s,
		http:     sdk.NewHTTP(sdk.HTTPOptions{MaxPerHost: s.Pool.Max, IdleTimeout: idle}),
		receipts: make(chan heard), closing: make(chan struct{}),
	}
	if s.CallbackListen != "" {
		if err := p.listen(); err != nil {
			return nil, fmt.Errorf("callback_listen: %w", err)
		}
	}
	return p, nil
}

// provider implements providers.Provider and providers.Receiver.
type provider struct {
	settings settings
	http     *sdk.HTTP
	trouble  atomic.Pointer[providers.Health] // nil: none known

	callbacks *http.Server  // nil: there are none
	receipts  chan heard    // from the callbacks to Receive
	closing   chan struct{} // closed by Close
	once      sync.Once
}

// Deliver implements providers.Provider.
func (p *provider) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	return sdk.Each(ctx, batch, report, p.send)
}

// note remembers what an answer says of the service as a whole, for Health.
func (p *provider) note(res providers.Result) providers.Result {
	switch {
	case res.Outcome == providers.Denied, res.Code == "connect":
		p.trouble.Store(&providers.Health{Status: providers.HealthDown, Reason: res.Reason})
	case res.Outcome == providers.Throttled:
		p.trouble.Store(&providers.Health{Status: providers.HealthDegraded, Reason: res.Reason})
	case res.Outcome == providers.Accepted, res.Outcome == providers.Rejected, res.Outcome == providers.Gone:
		p.trouble.Store(nil) // it is well: it looked at the message
	}
	return res
}

// Health implements providers.Provider.
func (p *provider) Health(context.Context) providers.Health {
	h := providers.Health{Status: providers.HealthOK}
	if t := p.trouble.Load(); t != nil {
		h = *t
	}
	h.Pool = p.http.Stats()
	return h
}

// Close implements providers.Provider.
func (p *provider) Close(ctx context.Context) error {
	p.once.Do(func() { close(p.closing) })
	err := p.http.Close(ctx)
	if p.callbacks != nil {
		if cerr := p.callbacks.Shutdown(ctx); cerr != nil {
			return fmt.Errorf("stop listening for callbacks: %w", errors.Join(cerr, p.callbacks.Close(), err))
		}
	}
	return err
}

// request is what the service takes, and reply what it answers.
type request struct {
	To        string `json:"to"`
	From      string `json:"from"`
	Text      string `json:"text"`
	Reference string `json:"reference"` // comes back with the receipt; a message with the same one is not sent twice
	Callback  string `json:"callback,omitempty"`
}

type reply struct {
	ID       string `json:"id"`
	Segments int    `json:"segments"`
	Code     string `json:"code"` // of an error
}

// errSilent says that a request went out and no answer came.
var errSilent = errors.New("the message was sent and not answered")

// send makes one attempt. Its only error is errSilent: whatever else happens is an answer.
func (p *provider) send(ctx context.Context, m *providers.Message) (providers.Result, error) {
	text, err := compose(m, p.settings.MaxSegments)
	if err != nil {
		return providers.Result{Outcome: providers.Rejected, Code: "text", Reason: err.Error()}, nil
	}
	if m.Test {
		return providers.Result{Outcome: providers.Accepted, Code: "test", Reason: "checked, and not sent"}, nil
	}
	body, err := json.Marshal(request{To: m.Address, From: p.settings.From, Text: text, Reference: m.ID, Callback: p.settings.CallbackURL})
	if err != nil {
		return providers.Result{Outcome: providers.Rejected, Code: "text", Reason: "the message cannot be written as JSON"}, nil
	}
	to := strings.TrimSuffix(p.settings.Endpoint, "/") + "/messages"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return providers.Result{Outcome: providers.Denied, Code: "endpoint", Reason: "no request can be made for the endpoint"}, nil
	}
	req.Header.Set("Authorization", "Bearer "+p.settings.Key)
	req.Header.Set("Content-Type", "application/json")
	resp, handed, err := p.http.Do(req)
	switch {
	case err != nil && handed:
		return providers.Result{}, errSilent
	case err != nil:
		return p.note(unsent(err)), nil
	}
	defer resp.Body.Close()
	var r reply
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	_ = json.Unmarshal(answer, &r) // an answer that is not JSON leaves the status to speak
	return p.note(classify(resp.StatusCode, r, sdk.RetryAfter(resp.Header))), nil
}

// answers is what each answer of the service means; the first line that fits counts, and "" fits any
// code. What speaks of the number is Gone, of the text Rejected, of us Denied: then nothing passes until
// somebody acts. A paid message is not sent again lightly: who may have taken it is Unknown.
var answers = []struct {
	from, to int
	code     string
	outcome  providers.Outcome
	reason   string
}{
	{400, 400, "invalid_number", providers.Gone, "the number is none that can get a text message"},
	{400, 400, "opted_out", providers.Gone, "the recipient answered STOP"},
	{400, 400, "invalid_sender", providers.Denied, "the service does not take our sender: check from"},
	{400, 400, "", providers.Rejected, "the service refuses the message"},
	{401, 401, "", providers.Denied, "the service refuses our key: check key"},
	{402, 402, "", providers.Denied, "the account has no credit left: top it up"},
	{403, 403, "", providers.Denied, "the service does not let our account do that"},
	{404, 404, "unknown_number", providers.Gone, "nobody has the number"},
	{404, 405, "", providers.Denied, "what answers is not the SMS service: check endpoint"},
	{408, 408, "", providers.Deferred, "the request took too long to arrive"},
	{429, 429, "", providers.Throttled, "the service asks to slow down"},
	{400, 499, "", providers.Rejected, "the service refuses the message"},
	{503, 503, "", providers.Deferred, "the service is not available"},
	{500, 599, "", providers.Unknown, "the service failed, and may have taken the message"},
	{300, 399, "", providers.Denied, "the service is elsewhere: check endpoint"},
}

// classify says what an answer means for the message.
func classify(status int, r reply, retryAfter time.Duration) providers.Result {
	if status/100 == 2 && r.ID != "" {
		return providers.Result{Outcome: providers.Accepted, ProviderID: r.ID, Parts: max(r.Segments, 0)}
	}
	res := providers.Result{Outcome: providers.Unknown, Code: strconv.Itoa(status), Reason: "an answer that the service does not give"}
	for _, a := range answers {
		if status >= a.from && status <= a.to && (a.code == "" || a.code == r.Code) {
			res.Outcome, res.Reason = a.outcome, a.reason
			break
		}
	}
	if codePattern.MatchString(r.Code) {
		res.Code += " " + r.Code
	}
	if retryAfter > 0 && (status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable) {
		res.Outcome, res.After = providers.Throttled, retryAfter // it is meant for all of us
	}
	return res
}

// unsent says why a request did not go out. The error itself stays here: it may name an address.
func unsent(err error) providers.Result {
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &cert):
		return providers.Result{Outcome: providers.Denied, Code: "tls", Reason: "the service's certificate is not trusted: check endpoint"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return providers.Result{Outcome: providers.Deferred, Code: "timeout", Reason: "there was no connection to the service in time"}
	case errors.Is(err, sdk.ErrClosed):
		return providers.Result{Outcome: providers.Deferred, Code: "closed", Reason: "the provider is closed"}
	}
	return providers.Result{Outcome: providers.Deferred, Code: "connect", Reason: "the service cannot be reached"}
}

// gsm is the GSM 7 bit default alphabet without its escape, and gsmExtension the characters that take an
// escape before them (3GPP TS 23.038, 6.2.1 and 6.2.1.1).
const (
	gsm = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?" +
		"¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
	gsmExtension = "\f^{}\\[~]|€"
)

// segments counts the SMS that a text takes: of 160 septets or 70 UTF-16 units alone, of 153 or 67 in a
// row, whose header takes the rest of the 140 octets (3GPP TS 23.040, 9.2.3.24.1). outside is the position
// of the first character that is not in the GSM alphabet, from 1; 0 is none.
func segments(text string) (n, outside int) {
	width, alone, inRow := septets, 160, 153
	position := 0
	for _, r := range text {
		if position++; septets(r) == 0 {
			outside, width, alone, inRow = position, utf16.RuneLen, 70, 67
			break
		}
	}
	total, used := 0, inRow // as if the one before the first were full
	for _, r := range text {
		w := width(r)
		total += w
		if used += w; used > inRow { // what takes two units is not torn apart
			n, used = n+1, w
		}
	}
	if total <= alone {
		n = 1
	}
	return n, outside
}

// septets is how many units of the GSM alphabet a character takes, 0 if it is not in it.
func septets(r rune) int {
	switch {
	case strings.ContainsRune(gsm, r):
		return 1
	case strings.ContainsRune(gsmExtension, r):
		return 2
	}
	return 0
}

// compose makes the text, and says why it will not do.
func compose(m *providers.Message, limit int) (string, error) {
	var block struct {
		Text string `json:"text"`
	}
	if len(m.Content) > 0 {
		if err := json.Unmarshal(m.Content, &block); err != nil {
			return "", errors.New("the sms block is no JSON object with a text")
		}
	}
	text := block.Text
	if text == "" {
		text = strings.Trim(m.Title+"\n"+m.Body, "\n")
	}
	if text == "" {
		return "", errors.New("there is no text: give a title, a body, or sms.text")
	}
	switch n, outside := segments(text); {
	case n <= limit:
		return text, nil
	case outside > 0:
		return "", fmt.Errorf("the text takes %d SMS, and %d are allowed: shorten it, or do without what is not in the GSM alphabet, such as character %d: then an SMS holds 153 characters and not 67", n, limit, outside)
	default:
		return "", fmt.Errorf("the text takes %d SMS, and %d are allowed: shorten it", n, limit)
	}
}

// callback is what the service says of a message later.
type callback struct {
	ID        string    `json:"id"`
	Reference string    `json:"reference"`
	Status    string    `json:"status"`
	Code      string    `json:"code"`
	At        time.Time `json:"at"`
}

// events are the statuses that end a message's way. The others, such as queued and sent, are passed over.
var events = map[string]providers.Event{
	"delivered": providers.EventDelivered, "failed": providers.EventFailed, "expired": providers.EventFailed, "rejected": providers.EventFailed,
}

// heard is a receipt whose sender waits to hear that it is kept.
type heard struct {
	ctx     context.Context
	receipt providers.Receipt
	kept    chan error // has room for the answer
}

// listen serves the callbacks.
func (p *provider) listen() error {
	l, err := net.Listen("tcp", p.settings.CallbackListen)
	if err != nil {
		return err
	}
	p.callbacks = &http.Server{
		Handler: http.HandlerFunc(p.takeCallback), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 2 * keepFor, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	go func() {
		if err := p.callbacks.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("callbacks are not taken any more", "error", err)
		}
	}()
	return nil
}

// takeCallback answers a callback with 204 when its receipt is kept. Nothing is stored here: until then,
// and with any other answer, the service has it and sends it again.
func (p *provider) takeCallback(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAnswer))
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	if !p.signed(r.Header, body, time.Now()) {
		slog.Warn("a callback with no good signature was refused: check callback_secret and the clocks")
		http.Error(w, "the signature is not good", http.StatusUnauthorized)
		return
	}
	var c callback
	if err := json.Unmarshal(body, &c); err != nil {
		http.Error(w, "the body is no receipt", http.StatusBadRequest)
		return
	}
	event, ok := events[c.Status]
	if !ok {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), keepFor)
	defer cancel()
	if !codePattern.MatchString(c.Code) {
		c.Code = ""
	}
	h := heard{ctx, providers.Receipt{ID: c.Reference, ProviderID: c.ID, Event: event, Code: c.Code, At: c.At}, make(chan error, 1)}
	select {
	case p.receipts <- h:
		err = <-h.kept // soon after ctx's end at the latest
	case <-ctx.Done():
		err = ctx.Err()
	case <-p.closing:
		err = errors.New("the provider is closed")
	}
	if err != nil {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "the receipt cannot be kept now", http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// signed checks a callback's signature, "v1=" and the hex HMAC-SHA256 of "timestamp.body", and its age.
func (p *provider) signed(h http.Header, body []byte, now time.Time) bool {
	stamp := h.Get("X-Sms-Timestamp")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || now.Sub(time.Unix(seconds, 0)).Abs() > callbackAge {
		return false
	}
	mac := hmac.New(sha256.New, []byte(p.settings.CallbackSecret))
	mac.Write([]byte(stamp + "."))
	mac.Write(body)
	return hmac.Equal([]byte(h.Get("X-Sms-Signature")), []byte("v1="+hex.EncodeToString(mac.Sum(nil))))
}

// Receive implements providers.Receiver.
func (p *provider) Receive(ctx context.Context, report func(providers.Receipt) error) error {
	var all sync.WaitGroup
	for range keepers {
		all.Go(func() {
			for {
				select {
				case h := <-p.receipts:
					h.kept <- keep(ctx, h, report)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	all.Wait()
	return nil
}

// keep reports a receipt until it is kept, or its sender or we have waited long enough.
func keep(ctx context.Context, h heard, report func(providers.Receipt) error) error {
	for wait := 100 * time.Millisecond; ; wait *= 2 {
		err := report(h.receipt)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-h.ctx.Done():
			return err
		case <-ctx.Done():
			return err
		}
	}
}
