package app

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/console"
)

// console makes the web console. It shares the API's authenticator, and so its count of wrong keys.
func (a *App) console(ctx context.Context, auth *api.Authenticator) (*console.Console, error) {
	secret, err := a.consoleSecret(ctx)
	if err != nil {
		return nil, err
	}
	o := console.Options{Principal: auth.Principal, Notifications: a.store, Routes: consoleRoutes{a}, Campaigns: a.manager(), Suppressions: a.store, Secret: secret, Redis: a.queue.ConnOpt(),
		Sandbox: a.sandbox != nil, Logger: a.log}
	if a.sandbox != nil {
		o.Example = a.exampleBody()
	}
	o.Live = func() bool { return a.gateway.Load() != nil }
	o.Token = func(app, recipient string) (string, error) {
		token, _, err := tokens{a}.Mint(app, recipient, time.Hour)
		return token, err
	}
	c, err := console.New(o)
	if err != nil {
		return nil, fmt.Errorf("make the console: %w", err)
	}
	return c, nil
}

// consoleSecret seals the sessions: one for all orchestrators of a PostgreSQL, for a load balancer may send each
// request to another one. A SQLite store has one process, and the secret stays in a file, apart from the keys' hashes.
func (a *App) consoleSecret(ctx context.Context) ([]byte, error) {
	if a.cfg.IsSQLite() {
		return a.secret("console-secret")
	}
	secret, err := a.shared(ctx, "console")
	if err != nil {
		return nil, fmt.Errorf("keep the secret of the console's sessions: %w", err)
	}
	return secret, nil
}

// exampleTo are addresses that the sandbox takes, by their kinds.
var exampleTo = []struct{ kind, entry string }{
	{"email", `{"email":"ann@example.com"}`},
	{"apns", `{"apns":"` + strings.Repeat("0123456789abcdef", 4) + `"}`},
	{"fcm", `{"fcm":"fcm-token-of-a-phone"}`},
	{"websocket", `{"websocket":"u_42"}`},
}

// exampleBody is a notification to an address of each kind that the sandbox plays and a route serves, ""
// if there is none.
func (a *App) exampleBody() string {
	served := map[string]bool{}
	for _, r := range a.routes.all() {
		served[r.Kind] = true
	}
	var to []string
	for _, e := range exampleTo {
		if served[e.kind] {
			to = append(to, e.entry)
		}
	}
	if len(to) == 0 {
		return ""
	}
	return `{"to":[` + strings.Join(to, ",") + `],"content":{"title":"Hello","body":"Your first notification"}}`
}

// consoleRoutes shows the routes as the REST API does, and steers them.
type consoleRoutes struct{ *App }

// Routes implements console.Routes.
func (c consoleRoutes) Routes(ctx context.Context) ([]console.Route, error) {
	states, err := c.RouteStates(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]console.Route, len(states))
	for i, s := range states {
		r := console.Route{Name: s.Name, Kind: s.Kind, Channels: s.Channels, State: s.State, Reason: s.Reason, Circuit: s.Circuit, Rate: s.Rate,
			InUse: s.Pool.InUse, Idle: s.Pool.Idle, Max: s.Pool.Max, Waiting: s.Pool.Waiting}
		for _, q := range s.Queue {
			r.Lanes = append(r.Lanes, console.Lane{Name: q.Lane, Pending: q.Pending, Queued: q.Queued, Sending: q.Sending})
		}
		out[i] = r
	}
	return out, nil
}
