package fcm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
	"golang.org/x/oauth2/jwt"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/pool"
)

const (
	// scope is what sending needs
	// (https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages/send).
	scope = "https://www.googleapis.com/auth/firebase.messaging"
	// early is how long before its end an access token (an hour, at Google) is replaced, behind the
	// back of those who still use it.
	early = 5 * time.Minute
	// last is how long before its end a token is not used any more.
	last = 30 * time.Second
	// unsaid is how long a token is taken to be good for whose end the token endpoint does not tell.
	unsaid = time.Hour
)

// account reads a service account's key file.
func account(credentials []byte) (*jwt.Config, error) {
	conf, err := google.JWTConfigFromJSON(credentials, scope)
	if err != nil {
		// The library's error may quote the file, which is a secret.
		return nil, errors.New("not the JSON key of a Google service account; download one in the Firebase console, Project settings, Service accounts")
	}
	return conf, nil
}

// tokens keeps the access token of a service account: one fetch at a time for all who wait, each of
// whom waits no longer than its own context.
type tokens struct {
	fetch func() (*oauth2.Token, error)
	life  context.Context // nothing is fetched after its end

	mu      sync.Mutex
	token   *oauth2.Token
	pending *fetching
}

// fetching is a fetch on its way; done is closed when the other fields are set.
type fetching struct {
	done  chan struct{}
	token *oauth2.Token
	err   error
}

func newTokens(life context.Context, conf *jwt.Config, hc *http.Client) *tokens {
	return &tokens{life: life, fetch: func() (*oauth2.Token, error) {
		// The library puts a transport's error into words alone, so it is kept on the way.
		line := &observed{rt: hc.Transport, life: life}
		defer line.done()
		own := &http.Client{Transport: line, Timeout: hc.Timeout}
		token, err := conf.TokenSource(context.WithValue(context.Background(), oauth2.HTTPClient, own)).Token()
		if err != nil && line.err != nil {
			return nil, fmt.Errorf("fetch an access token: %w", line.err)
		}
		return token, err
	}}
}

// observed is an http.RoundTripper for one exchange that ends with a life, of which the library knows
// nothing, and remembers why it failed.
type observed struct {
	rt   http.RoundTripper
	life context.Context
	err  error
	free []func()
}

func (o *observed) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	stop := context.AfterFunc(o.life, cancel)
	o.free = append(o.free, func() { stop(); cancel() })
	resp, err := o.rt.RoundTrip(req.WithContext(ctx))
	o.err = err
	return resp, err
}

// done lets go of what the exchange held. Its answer is read by then.
func (o *observed) done() {
	for _, f := range o.free {
		f()
	}
}

// get gives a token that is good for a while.
func (t *tokens) get(ctx context.Context) (string, error) {
	if t.life.Err() != nil {
		return "", pool.ErrClosed
	}
	t.mu.Lock()
	left := time.Duration(0)
	if t.token != nil {
		left = time.Until(t.token.Expiry)
	}
	if left > early {
		defer t.mu.Unlock()
		return t.token.AccessToken, nil
	}
	f := t.startLocked()
	if left > last {
		defer t.mu.Unlock()
		return t.token.AccessToken, nil
	}
	t.mu.Unlock()
	select {
	case <-f.done:
	case <-t.life.Done():
		return "", pool.ErrClosed
	case <-ctx.Done():
		return "", fmt.Errorf("wait for an access token: %w", ctx.Err())
	}
	if f.err != nil {
		return "", f.err
	}
	return f.token.AccessToken, nil
}

func (t *tokens) startLocked() *fetching {
	if t.pending != nil {
		return t.pending
	}
	f := &fetching{done: make(chan struct{})}
	t.pending = f
	go func() {
		f.token, f.err = t.fetch()
		t.mu.Lock()
		defer t.mu.Unlock()
		if f.err == nil {
			if f.token.Expiry.IsZero() {
				f.token.Expiry = time.Now().Add(unsaid)
			}
			t.token = f.token
		}
		t.pending = nil
		close(f.done)
	}()
	return f
}

// drop forgets a token that FCM refused, unless another took its place already.
func (t *tokens) drop(access string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token != nil && t.token.AccessToken == access {
		t.token = nil
	}
}

// tokenResult says what it means for a message that there is no access token. Nothing was sent. Only
// a refusal (RFC 6749, 5.2) needs a person.
func tokenResult(err error) providers.Result {
	if errors.Is(err, pool.ErrClosed) {
		return closed()
	}
	res := providers.Result{Outcome: providers.Deferred, Code: "token", Reason: "the token endpoint of the service account cannot be reached"}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		res.Reason = "there was no access token in time"
	}
	if untrusted(err) {
		res.Outcome, res.Reason = providers.Denied, "the certificate at the token endpoint is not trusted; check token_uri in the credentials and ca_file"
		return res
	}
	var refused *oauth2.RetrieveError
	if !errors.As(err, &refused) || refused.Response == nil {
		return res
	}
	switch status := refused.Response.StatusCode; {
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= 500:
		res.Reason = fmt.Sprintf("the token endpoint of the service account answers %d", status)
		res.After = retryAfter(refused.Response.Header.Get("Retry-After"), time.Now())
	default:
		res.Outcome = providers.Denied
		res.Reason = fmt.Sprintf("the token endpoint refuses the service account (%d); was its key deleted, is the clock right?", status)
		var said struct {
			Error string `json:"error"`
		}
		_ = json.Unmarshal(refused.Body, &said) // a page of text has no code
		if fieldName.MatchString(said.Error) {
			res.Code = said.Error
		}
	}
	return res
}
