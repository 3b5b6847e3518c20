package websocket

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/carillon-notify/carillon/providers"
)

// Bounds of the clients' RPCs.
const (
	// maxIDs is how many messages one RPC may name.
	maxIDs = 100
	// maxAcks is how many RPCs of all clients are reported at once.
	maxAcks = 256
	// acksPerClient is how many RPCs of one connection are under way before its next is read.
	acksPerClient = 16
	// reportsPerAck is how many ids of one RPC are reported at once, so that they share a commit.
	reportsPerAck = 25
)

// events are the RPC methods and what each reports.
var events = map[string]providers.Event{
	"ack":     providers.EventDelivered,
	"seen":    providers.EventSeen,
	"read":    providers.EventRead,
	"archive": providers.EventArchived,
}

// connecting lets in who has a token, and subscribes them to their own channel and nothing else.
func (g *Gateway) connecting(_ context.Context, e centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
	claims, err := g.tokens.Verify(e.Token)
	if err != nil {
		g.refused.Add(1)
		if errors.Is(err, ErrTokenExpired) {
			return centrifuge.ConnectReply{}, centrifuge.ErrorTokenExpired // the client asks for a new one
		}
		return centrifuge.ConnectReply{}, centrifuge.DisconnectInvalidToken
	}
	channel := channelOf(claims.App, claims.Recipient)
	return centrifuge.ConnectReply{
		Credentials:       &centrifuge.Credentials{UserID: channel, ExpireAt: claims.ExpiresAt.Unix()},
		ClientSideRefresh: g.settings.Refresh,
		WriteDelay:        time.Duration(g.settings.WriteDelay),
		Subscriptions: map[string]centrifuge.SubscribeOptions{
			// Without Redis the hub itself knows who is there.
			channel: {EnableRecovery: true, EmitPresence: g.redis != nil},
		},
	}, nil
}

// connected sets what a client may do: report on its messages and refresh its token. Everything that
// names a channel is refused, the client's own included.
func (g *Gateway) connected(c *centrifuge.Client) {
	app, recipient, ok := splitChannel(c.UserID())
	if !ok {
		c.Disconnect(centrifuge.DisconnectServerError)
		return
	}
	c.OnSubscribe(func(_ centrifuge.SubscribeEvent, cb centrifuge.SubscribeCallback) {
		cb(centrifuge.SubscribeReply{}, centrifuge.ErrorPermissionDenied)
	})
	c.OnPublish(func(_ centrifuge.PublishEvent, cb centrifuge.PublishCallback) {
		cb(centrifuge.PublishReply{}, centrifuge.ErrorPermissionDenied)
	})
	c.OnPresence(func(_ centrifuge.PresenceEvent, cb centrifuge.PresenceCallback) {
		cb(centrifuge.PresenceReply{}, centrifuge.ErrorPermissionDenied)
	})
	c.OnPresenceStats(func(_ centrifuge.PresenceStatsEvent, cb centrifuge.PresenceStatsCallback) {
		cb(centrifuge.PresenceStatsReply{}, centrifuge.ErrorPermissionDenied)
	})
	c.OnHistory(func(_ centrifuge.HistoryEvent, cb centrifuge.HistoryCallback) {
		cb(centrifuge.HistoryReply{}, centrifuge.ErrorPermissionDenied)
	})
	if g.settings.Refresh {
		c.OnRefresh(func(e centrifuge.RefreshEvent, cb centrifuge.RefreshCallback) {
			cb(g.refresh(app, recipient, e.Token))
		})
	}
	running := make(chan struct{}, acksPerClient)
	c.OnRPC(func(e centrifuge.RPCEvent, cb centrifuge.RPCCallback) {
		// Waiting here slows down this client alone; a goroutine of its own lets pings be answered
		// while the receipts are written.
		select {
		case running <- struct{}{}:
		case <-c.Context().Done():
			return
		}
		go func() {
			defer func() { <-running }()
			cb(g.rpc(app, recipient, e))
		}()
	})
}

// refresh prolongs a connection with another token of the same recipient.
func (g *Gateway) refresh(app, recipient, token string) (centrifuge.RefreshReply, error) {
	claims, err := g.tokens.Verify(token)
	switch {
	case errors.Is(err, ErrTokenExpired):
		return centrifuge.RefreshReply{Expired: true}, nil
	case err != nil || claims.App != app || claims.Recipient != recipient:
		return centrifuge.RefreshReply{}, centrifuge.DisconnectInvalidToken
	}
	return centrifuge.RefreshReply{ExpireAt: claims.ExpiresAt.Unix()}, nil
}

// rpc reports on messages. Its answer says that every receipt is kept; with anything less the client is
// asked to send them all again, for a receipt counts once.
func (g *Gateway) rpc(app, recipient string, e centrifuge.RPCEvent) (centrifuge.RPCReply, error) {
	event, ok := events[e.Method]
	if !ok {
		return centrifuge.RPCReply{}, centrifuge.ErrorMethodNotFound
	}
	ids, err := parseIDs(e.Data)
	if err != nil {
		return centrifuge.RPCReply{}, centrifuge.ErrorBadRequest
	}
	wait := time.NewTimer(time.Duration(g.settings.AckTimeout))
	defer wait.Stop()
	select {
	case g.ackSlots <- struct{}{}:
		defer func() { <-g.ackSlots }()
	case <-wait.C:
		return centrifuge.RPCReply{}, centrifuge.ErrorTooManyRequests
	}
	if err := g.reportAll(app, recipient, event, ids); err != nil {
		level := slog.LevelWarn
		if errors.Is(err, errNobodyReceives) { // as at start and shutdown, from any number of clients
			level = slog.LevelDebug
		}
		g.log.Log(context.Background(), level, "a client's receipts were not kept; it is asked to send them again", "event", event, "receipts", len(ids), "error", err)
		return centrifuge.RPCReply{}, centrifuge.ErrorInternal
	}
	return centrifuge.RPCReply{Data: []byte("{}")}, nil
}

var errNobodyReceives = errors.New("nobody receives receipts")

func (g *Gateway) reportAll(app, recipient string, event providers.Event, ids []string) error {
	g.receipts.mu.RLock()
	defer g.receipts.mu.RUnlock()
	report := g.receipts.report
	if report == nil {
		return errNobodyReceives
	}
	at := time.Now()
	var group errgroup.Group
	group.SetLimit(reportsPerAck)
	for _, id := range ids {
		group.Go(func() error {
			return report(providers.Receipt{ID: id, App: app, Address: recipient, Event: event, At: at})
		})
	}
	return group.Wait()
}

var errBadIDs = errors.New("not {ids:[1 to 100 UUIDs]}")

// parseIDs reads {ids:[...]} strictly and returns each id once, in lower case.
func parseIDs(data []byte) ([]string, error) {
	var in struct {
		IDs []string `json:"ids"`
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return nil, errBadIDs
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errBadIDs
	}
	if len(in.IDs) == 0 || len(in.IDs) > maxIDs {
		return nil, errBadIDs
	}
	ids := make([]string, 0, len(in.IDs))
	seen := make(map[uuid.UUID]bool, len(in.IDs))
	for _, s := range in.IDs {
		id, err := uuid.Parse(s)
		if err != nil || len(s) != len(uuid.Nil.String()) { // Parse takes other spellings too
			return nil, errBadIDs
		}
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id.String())
		}
	}
	return ids, nil
}
