// Package fcm delivers push messages through Firebase Cloud Messaging, HTTP v1, on Google's own library
// over a pool of HTTP/2 connections. The library's hidden retries are made ineffective: one Deliver is
// one request.
package fcm

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"sync"
	"time"

	"firebase.google.com/go/v4/messaging"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/h2"
	"github.com/carillon-notify/carillon/providers/pool"
)

const (
	defaultEndpoint = "https://fcm.googleapis.com"
	defaultTimeout  = 10 * time.Second
	minTimeout      = 100 * time.Millisecond
	maxTimeout      = 2 * time.Minute
	maxBatch        = 100
)

// poolDefaults: four connections of a hundred streams, the limit that Google's front ends announce.
func poolDefaults() pool.Config {
	return pool.Defaults(pool.Config{Max: 4, Idle: 1, IdleTimeout: 2 * time.Minute, Streams: 100})
}

// content is the schema of the push block's `fcm` member: an FCM v1 message without its target
// (https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages). What is inside of the
// members is looked at by Check, which knows what the library carries.
const content = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "properties": {
    "fcm": {
      "description": "Laid over the built FCM v1 message: objects are merged, null removes a member.",
      "type": "object",
      "properties": {
        "data": {"type": ["object", "null"], "additionalProperties": {"type": ["string", "null"]}},
        "notification": {"type": ["object", "null"]},
        "android": {"type": ["object", "null"]},
        "webpush": {"type": ["object", "null"]},
        "apns": {"type": ["object", "null"]},
        "fcm_options": {"type": ["object", "null"]}
      },
      "additionalProperties": false
    }
  }
}`

// Kind describes the provider.
func Kind() providers.Kind {
	settings := []providers.Setting{
		{Name: "credentials_file", Type: providers.File, Doc: "The JSON key of a service account that may send; one of credentials_file and credentials is required."},
		{Name: "credentials", Type: providers.String, Secret: true, Doc: "The same JSON key itself, instead of a file."},
		{Name: "project", Type: providers.String, Doc: "The Firebase project's id; empty takes it from the credentials."},
		{Name: "endpoint", Type: providers.String, Default: defaultEndpoint, Doc: "Where FCM is, an https URL."},
		{Name: "ca_file", Type: providers.File, Doc: "PEM certificates to trust instead of the system's, for endpoint and token endpoint."},
		{Name: "timeout", Type: providers.Duration, Default: defaultTimeout.String(), Doc: "How long one message may take, 100ms to 2m."},
	}
	return providers.Kind{
		Name:     "fcm",
		Channel:  "push",
		Doc:      "Pushes to Android, web and iOS apps through Firebase Cloud Messaging.",
		MaxBatch: maxBatch,
		Settings: append(settings, pool.Settings(poolDefaults())...),
		Content:  []byte(content),
		// Google documents no form; in use are letters, digits, '_', '-' and ':'. The length is up to Check.
		Address: `^[A-Za-z0-9_:\-]{8,}$`,
		Secret:  true,
		Check:   check,
		Open:    open,
	}
}

// settings is the JSON that Open gets.
type settings struct {
	CredentialsFile string      `json:"credentials_file"`
	Credentials     string      `json:"credentials"`
	Project         string      `json:"project"`
	Endpoint        string      `json:"endpoint"`
	CAFile          string      `json:"ca_file"`
	Timeout         string      `json:"timeout"`
	Pool            pool.Config `json:"pool"`
}

func open(_ context.Context, raw []byte) (providers.Provider, error) {
	s := settings{Pool: poolDefaults()}
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
	if s.Pool.Streams == 0 {
		s.Pool.Streams = poolDefaults().Streams
	}
	timeout, err := timeoutOf(s.Timeout)
	if err != nil {
		return nil, err
	}
	endpoint, err := endpointOf(s.Endpoint)
	if err != nil {
		return nil, err
	}
	roots, err := rootsOf(s.CAFile)
	if err != nil {
		return nil, err
	}
	credentials, err := credentialsOf(s)
	if err != nil {
		return nil, err
	}
	conf, err := account(credentials)
	if err != nil {
		return nil, err
	}
	if u, err := url.Parse(conf.TokenURL); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("credentials: token_uri must be an https URL")
	}
	project, err := projectOf(s.Project, credentials)
	if err != nil {
		return nil, err
	}
	p := &provider{timeout: timeout, crew: h2.NewCrew()}
	p.life, p.end = context.WithCancel(context.Background())
	p.pool = pool.NewShared(s.Pool, newDialer(endpoint, roots, timeout, s.Pool).connect, func(c *h2.Conn) { _ = c.Close() })
	if p.sdk, err = client(&wire{pool: p.pool}, endpoint.String(), project); err != nil {
		return nil, fmt.Errorf("make the FCM client: %w", err)
	}
	p.oauth = &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			Proxy:             http.ProxyFromEnvironment,
			TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2: true,
			DisableKeepAlives: true, // a token is fetched once an hour, and Close should find no connection
		},
	}
	p.tokens = newTokens(p.life, conf, p.oauth)
	return p, nil
}

func timeoutOf(s string) (time.Duration, error) {
	if s == "" {
		return defaultTimeout, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < minTimeout || d > maxTimeout {
		return 0, fmt.Errorf("timeout: %q must be a duration from %s to %s, such as \"10s\"", s, minTimeout, maxTimeout)
	}
	return d, nil
}

func endpointOf(s string) (*url.URL, error) {
	if s == "" {
		s = defaultEndpoint
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || (u.Path != "" && u.Path != "/") {
		return nil, fmt.Errorf("endpoint: must be an https URL without a path, such as %q", defaultEndpoint)
	}
	u.Path = ""
	return u, nil
}

func rootsOf(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil // the system's
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca_file: no PEM certificate in %s", file)
	}
	return roots, nil
}

func credentialsOf(s settings) ([]byte, error) {
	switch {
	case s.Credentials != "" && s.CredentialsFile != "":
		return nil, errors.New("credentials and credentials_file: set one of them, not both")
	case s.Credentials != "":
		return []byte(s.Credentials), nil
	case s.CredentialsFile == "":
		return nil, errors.New("credentials_file: set it to the JSON key of a service account")
	}
	b, err := os.ReadFile(s.CredentialsFile)
	if err != nil {
		return nil, fmt.Errorf("credentials_file: %w", err)
	}
	return b, nil
}

// projectID keeps a project's id from changing the path that it becomes part of.
var projectID = regexp.MustCompile(`^[a-z0-9][a-z0-9.:-]{0,127}$`)

func projectOf(set string, credentials []byte) (string, error) {
	if set == "" {
		var c struct {
			ProjectID string `json:"project_id"`
		}
		_ = json.Unmarshal(credentials, &c) // account has read it already
		set = c.ProjectID
	}
	if !projectID.MatchString(set) {
		return "", errors.New("project: set it to the Firebase project's id (lower-case letters, digits and '-')")
	}
	return set, nil
}

// dry is the library's client without a network: what it would send is kept.
var dry = sync.OnceValues(func() (*messaging.Client, error) {
	return client(paper{}, "https://paper.invalid", "paper")
})

type sheetKey struct{}

// paper is an http.RoundTripper that writes the request down and says yes.
type paper struct{}

func (paper) RoundTrip(req *http.Request) (*http.Response, error) {
	sheet, _ := req.Context().Value(sheetKey{}).(*[]byte)
	b, err := io.ReadAll(req.Body)
	if err != nil || sheet == nil {
		return nil, fmt.Errorf("write the request down: %w", err)
	}
	*sheet = b
	return response(req, http.StatusOK, []byte(`{"name":"paper"}`)), nil
}

// check is Kind.Check: FCM's limits, and whether the library can build the message.
func check(m *providers.Message) error {
	if len(m.Address) > maxToken {
		return fmt.Errorf("%w: a registration token has at most %d characters", providers.ErrAddress, maxToken)
	}
	if m.ID == "" {
		return nil // the address was all
	}
	msg, err := build(m, m.CreatedAt)
	if err != nil {
		return err
	}
	if msg.Token == "" {
		msg.Token = "-" // an address is not known yet, or does not matter
	}
	for key := range msg.Data {
		if reserved(key) {
			return fmt.Errorf("data: FCM keeps the key %q to itself; choose another name", key)
		}
	}
	if a := msg.Android; a != nil && a.TTL != nil && (*a.TTL < 0 || *a.TTL > maxTTL) {
		return fmt.Errorf("fcm.android.ttl: must be from 0s to %ds", maxTTL/time.Second)
	}
	if size := least(msg); size > maxPayload {
		return tooBig(size) // and it is not worth the library's time, which grows with it
	}
	sheet, err := write(msg, false)
	if err != nil {
		return err
	}
	size := len(sheet) - len(`{"message":{"token":"",}}`) - len(msg.Token)
	if size > maxPayload {
		return tooBig(size)
	}
	return nil
}

func tooBig(size int) error {
	return fmt.Errorf("the FCM message has %d bytes or more; FCM takes %d of title, body, data and options together: shorten them", size, maxPayload)
}

// least is a lower bound of the message's size on the wire: its longest texts, which JSON never shortens.
func least(m *messaging.Message) int {
	n := 0
	if m.Notification != nil {
		n += len(m.Notification.Title) + len(m.Notification.Body)
	}
	if m.Android != nil {
		n += len(m.Android.CollapseKey)
	}
	for k, v := range m.Data {
		n += len(k) + len(v)
	}
	return n
}
