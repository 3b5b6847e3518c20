// Package api is the REST edge: it authenticates, decodes strictly, validates, calls the use cases and
// answers by the document in openapi.yaml, which the routes and types are generated from. Every error
// is an RFC 9457 problem.
package api

//go:generate go tool -modfile=../../.ci/tools/go.mod oapi-codegen -config oapi/config.yaml openapi.yaml

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-playground/validator/v10"
	"golang.org/x/sync/semaphore"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/campaign"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/templates"
)

// Intake takes notifications.
type Intake interface {
	Accept(ctx context.Context, app string, req *intake.Request, key intake.Key) (*intake.Accepted, error)
	Preview(ctx context.Context, app string, req *intake.Request) (*intake.Preview, error)
	PreviewTemplate(ctx context.Context, app string, q *intake.TemplatePreview) (*templates.Template, *templates.Content, error)
}

// Addresses checks the addresses of endpoints and knows the channels; *intake.Routing does.
type Addresses interface {
	// CheckTemplate says which blocks and members of a template no channel knows: a *templates.Error, or nil.
	CheckTemplate(src templates.Source) error
	CheckAddress(kind, address string) error
	Channels() []string
}

// Notifications is what is read of notifications, and their cancelling.
type Notifications interface {
	Notification(ctx context.Context, app string, id core.ID) (*core.NotificationView, error)
	Notifications(ctx context.Context, f core.NotificationFilter) ([]core.NotificationView, string, error)
	Deliveries(ctx context.Context, app string, id core.ID, p core.Page) ([]core.Delivery, string, error)
	Timeline(ctx context.Context, app string, id core.ID) ([]core.Step, error)
	Cancel(ctx context.Context, app string, id core.ID) (int, error)
	Now() time.Time
}

// Recipients keeps recipients.
type Recipients interface {
	PutRecipient(ctx context.Context, r *core.Recipient) (created bool, err error)
	UpdateRecipient(ctx context.Context, app, id string, change func(*core.Recipient) error) (created bool, err error)
	Recipient(ctx context.Context, app, id string) (*core.Recipient, error)
	ListRecipients(ctx context.Context, app string, p core.Page) ([]core.Recipient, string, error)
	DeleteRecipient(ctx context.Context, app, id string) error
	PutEndpoint(ctx context.Context, app, recipient string, e core.Endpoint) (created bool, err error)
	DeleteEndpoint(ctx context.Context, app, recipient, kind, address string) error
	PutPreferences(ctx context.Context, app, recipient string, p core.Preferences, rules *core.Rules) error
	Unsubscribe(ctx context.Context, u core.Unsubscription, rules *core.Rules) error
	ImportRecipients(ctx context.Context, app string, all []core.Import, rules *core.Rules) (created int, err error)
	Topics(ctx context.Context, app, recipient string) ([]string, error)
	SuppressedAddresses(ctx context.Context, all []core.AddressOf) (map[core.AddressOf]core.Suppression, error)
	Suppressions(ctx context.Context, app string, p core.Page) ([]core.Suppression, string, error)
	LiftSuppression(ctx context.Context, a core.AddressOf) error
	MessagesTo(ctx context.Context, app, recipient, cursor string) ([]core.SentMessage, string, error)
}

// Topics keeps who is in a topic.
type Topics interface {
	PutTopicRecipient(ctx context.Context, app, topic, recipient string) (added bool, err error)
	DeleteTopicRecipient(ctx context.Context, app, topic, recipient string) error
	TopicRecipients(ctx context.Context, app, topic string, p core.Page) ([]core.TopicRecipient, string, error)
}

// Inbox is what recipients find of their in-app messages.
type Inbox interface {
	Inbox(ctx context.Context, app, recipient string, p core.Page, archived bool) ([]core.InboxItem, string, error)
	Unread(ctx context.Context, app, recipient string) (int, error)
	MarkInbox(ctx context.Context, app, recipient string, id core.ID, what string) error
}

// StoredTemplates keeps the versions of templates.
type StoredTemplates interface {
	PutTemplate(ctx context.Context, app, name string, source []byte) (version int, err error)
	Template(ctx context.Context, app, name string, version int) (*core.TemplateVersion, error)
	Templates(ctx context.Context, app string, p core.Page) ([]core.TemplateVersion, string, error)
	TemplateVersions(ctx context.Context, app, name string) ([]core.TemplateVersion, error)
}

// Keys finds who an API key belongs to by the key's SHA-256.
type Keys interface {
	Principal(ctx context.Context, hash [32]byte) (core.Principal, error)
}

// Routes shows and steers the routes.
type Routes interface {
	RouteStates(ctx context.Context) ([]RouteState, error)
	PauseRoute(ctx context.Context, route string, paused bool) error
	// Reload reads the routes' settings anew. An error with a method Mistakes() []string is of settings
	// that cannot be taken.
	Reload(ctx context.Context) (Reloaded, error)
}

// Campaigns manages campaigns; *campaign.Manager does.
type Campaigns interface {
	Create(ctx context.Context, app string, s *campaign.Spec, key intake.Key) (c *core.Campaign, replayed bool, err error)
	// Check says what Create would find wrong, and keeps nothing.
	Check(ctx context.Context, app string, s *campaign.Spec) error
	Get(ctx context.Context, app string, id core.ID) (*core.Campaign, error)
	List(ctx context.Context, f core.CampaignFilter) ([]core.Campaign, string, error)
	Steer(ctx context.Context, app string, id core.ID, action string) (*core.Campaign, error)
	SetRate(ctx context.Context, app string, id core.ID, rate string) (*core.Campaign, error)
	Test(ctx context.Context, app string, id core.ID, to []intake.Target, key intake.Key) (*intake.Accepted, error)
	Results(ctx context.Context, app string, id core.ID, line func(*core.CampaignResult) error) error
	Now() time.Time
}

// Tokens makes and checks the tokens of recipients' clients. Both fail with ErrNoChannel while there is no in-app
// channel. Another error of Verify may hold anything: it is not shown.
type Tokens interface {
	Mint(app, recipient string, ttl time.Duration) (token string, expires time.Time, err error)
	Verify(token string) (app, recipient string, expires time.Time, err error)
}

// Options are what the API is made of. Everything without a default in its comment is required.
type Options struct {
	Intake        Intake
	Addresses     Addresses
	Notifications Notifications
	Recipients    Recipients
	Topics        Topics
	Inbox         Inbox
	Stored        StoredTemplates
	Catalog       *templates.Catalog
	Keys          Keys
	Auth          *Authenticator // nil: one of the API's own over Keys
	Routes        Routes
	Campaigns     Campaigns                   // nil: its operations answer 404
	Channels      func() []ChannelDoc         // described in /openapi.yaml; nil: none but the document's own
	Tokens        Tokens                      // nil: no in-app channel; its operations answer ErrNoChannel
	Categories    func() core.Categories      // of the notifications, as they are now; nil: there are none
	Unsubscriber  *core.Unsubscriber          // reads the links of mails; nil: there are none
	Refresh       func() bool                 // POST /v1/token/refresh is offered now; nil: it is not
	TokenTTL      time.Duration               // of the tokens minted; 0: 15 minutes
	Ready         func(context.Context) error // nil: always ready
	MaxAccepts    int                         // requests being accepted at once, beyond which 503; 0: 512
	BulkRoom      int64                       // bytes of lines of all bulk streams together that are held at once; 0: 64 MiB
	ImportRoom    int64                       // bytes of recipients of all imports together that are held at once; 0: 64 MiB
	BodyRoom      int64                       // bytes of all bodies together, without each one's first 16 KiB, beyond which 503; 0: 64 MiB
	Stopping      <-chan struct{}             // closed when streams without an end of their own are to end; nil: never
	Logger        *slog.Logger                // nil: slog.Default()
}

// API answers requests. It is safe for concurrent use.
type API struct {
	Options
	validate *validator.Validate
	inflight inflight
	accepts  chan struct{}
	room     *semaphore.Weighted // of bulk streams
	imports  *semaphore.Weighted // room of imports
	bodies   *semaphore.Weighted // room of bodies
	mux      *http.ServeMux
}

var _ StrictServerInterface = (*API)(nil)

// New returns the handler of everything in openapi.yaml, and of /openapi.yaml and /docs. The error
// names what is missing in the options.
func New(o Options) (http.Handler, error) {
	if o.Intake == nil || o.Addresses == nil || o.Notifications == nil || o.Recipients == nil || o.Topics == nil || o.Inbox == nil ||
		o.Stored == nil || o.Catalog == nil || o.Keys == nil || o.Routes == nil {
		return nil, errors.New("api: all of Options' interfaces but Tokens and Campaigns are required")
	}
	if o.TokenTTL <= 0 {
		o.TokenTTL = 15 * time.Minute
	}
	if o.MaxAccepts <= 0 {
		o.MaxAccepts = 512
	}
	if o.BulkRoom <= 0 {
		o.BulkRoom = 64 << 20
	}
	o.BulkRoom = max(o.BulkRoom, MaxBody) // a line has to fit
	if o.ImportRoom <= 0 {
		o.ImportRoom = 64 << 20
	}
	if o.BodyRoom <= 0 {
		o.BodyRoom = 64 << 20
	}
	o.BodyRoom = max(o.BodyRoom, MaxBodyAttachment)
	if o.Auth == nil {
		o.Auth = NewAuthenticator(o.Keys)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	a := &API{Options: o, validate: newValidator(), accepts: make(chan struct{}, o.MaxAccepts), room: semaphore.NewWeighted(o.BulkRoom),
		imports: semaphore.NewWeighted(o.ImportRoom), bodies: semaphore.NewWeighted(o.BodyRoom), mux: http.NewServeMux()}
	strict := NewStrictHandlerWithOptions(a, []StrictMiddlewareFunc{a.check}, StrictHTTPServerOptions{
		RequestErrorHandlerFunc: a.fail, ResponseErrorHandlerFunc: a.fail})
	HandlerWithOptions(strict, StdHTTPServerOptions{BaseRouter: a.mux, ErrorHandlerFunc: a.failParameter})
	if err := a.mountDocs(); err != nil {
		return nil, err
	}
	return a, nil
}

// Server returns an HTTP server for the handler with the limits that every edge needs: headers within
// 5 s and 16 KiB, idle connections closed after 2 minutes. It sets no limit on a whole request or
// answer, for streams and live connections last; the API's own requests get theirs in ServeHTTP.
func Server(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
}
