package wire

import (
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/providers"
)

// Bounds of the texts in an answer, in bytes. What is longer is cut.
const (
	maxCode   = 100
	maxReason = 500
	maxID     = 1000 // of what a service calls a message
	// maxAddress is the longest address that the API takes. What is longer is no address.
	maxAddress = 4096
)

// outcomes are the contract's by the protocol's number. One that is not here is Unknown.
var outcomes = map[providerv1.Outcome]providers.Outcome{
	providerv1.Outcome_OUTCOME_UNKNOWN:   providers.Unknown,
	providerv1.Outcome_OUTCOME_ACCEPTED:  providers.Accepted,
	providerv1.Outcome_OUTCOME_DEFERRED:  providers.Deferred,
	providerv1.Outcome_OUTCOME_THROTTLED: providers.Throttled,
	providerv1.Outcome_OUTCOME_REJECTED:  providers.Rejected,
	providerv1.Outcome_OUTCOME_GONE:      providers.Gone,
	providerv1.Outcome_OUTCOME_ABSENT:    providers.Absent,
	providerv1.Outcome_OUTCOME_DENIED:    providers.Denied,
}

// numbers is outcomes the other way round.
var numbers = func() map[providers.Outcome]providerv1.Outcome {
	out := make(map[providers.Outcome]providerv1.Outcome, len(outcomes))
	for n, o := range outcomes {
		out[o] = n
	}
	return out
}()

// statuses are the health statuses that exist; another one is degraded.
var statuses = map[string]providers.HealthStatus{
	string(providers.HealthOK): providers.HealthOK, string(providers.HealthDegraded): providers.HealthDegraded,
	string(providers.HealthDown): providers.HealthDown,
}

// events are the receipts' events that exist; a receipt of another one is ignored.
var events = map[string]providers.Event{
	string(providers.EventDelivered): providers.EventDelivered, string(providers.EventFailed): providers.EventFailed,
	string(providers.EventBounced): providers.EventBounced, string(providers.EventSeen): providers.EventSeen,
	string(providers.EventRead): providers.EventRead, string(providers.EventClicked): providers.EventClicked,
	string(providers.EventArchived): providers.EventArchived,
}

func kindTo(k *providers.Kind) *providerv1.Kind {
	out := &providerv1.Kind{Name: valid(k.Name), Channel: valid(k.Channel), Doc: text(k.Doc, maxReason), MaxBatch: int32(k.MaxBatch),
		Content: k.Content, Address: valid(k.Address), Secret: k.Secret}
	for _, s := range k.Settings {
		out.Settings = append(out.Settings, &providerv1.Setting{Name: s.Name, Type: string(s.Type), DefaultValue: s.Default,
			Required: s.Required, Secret: s.Secret, Values: s.Values, Doc: text(s.Doc, maxReason)})
	}
	return out
}

// kindFrom leaves the functions out.
func kindFrom(k *providerv1.Kind) providers.Kind {
	out := providers.Kind{Name: k.GetName(), Channel: k.GetChannel(), Doc: k.GetDoc(), MaxBatch: int(k.GetMaxBatch()),
		Address: k.GetAddress(), Secret: k.GetSecret()}
	if len(k.GetContent()) > 0 {
		out.Content = k.GetContent()
	}
	for _, s := range k.GetSettings() {
		t := providers.SettingType(s.GetType())
		if t == "" {
			t = providers.String
		}
		out.Settings = append(out.Settings, providers.Setting{Name: s.GetName(), Type: t, Default: s.GetDefaultValue(),
			Required: s.GetRequired(), Secret: s.GetSecret(), Values: s.GetValues(), Doc: s.GetDoc()})
	}
	return out
}

// envelope is a message and its times in one piece of memory.
type envelope struct {
	message          providerv1.Message
	created, expires timestamppb.Timestamp
}

// messageTo fills e. It makes the texts valid UTF-8: protobuf refuses to write others, and with one message
// its whole batch.
func messageTo(e *envelope, m *providers.Message) *providerv1.Message {
	out := &e.message
	out.Id, out.App, out.Address, out.Name = valid(m.ID), valid(m.App), valid(m.Address), valid(m.Name)
	out.Title, out.Body, out.Url, out.Data, out.Content = valid(m.Title), valid(m.Body), valid(m.URL), m.Data, m.Content
	out.Category, out.Unsubscribe, out.Priority, out.CollapseKey = valid(m.Category), valid(m.Unsubscribe), valid(string(m.Priority)), valid(m.CollapseKey)
	out.CreatedAt, out.ExpiresAt = stampTo(&e.created, m.CreatedAt), stampTo(&e.expires, m.ExpiresAt)
	out.Attempt, out.Test = int32(m.Attempt), m.Test
	return out
}

func messageFrom(m *providerv1.Message) providers.Message {
	out := providers.Message{ID: m.GetId(), App: m.GetApp(), Address: m.GetAddress(), Name: m.GetName(), Title: m.GetTitle(),
		Body: m.GetBody(), URL: m.GetUrl(), Category: m.GetCategory(), Unsubscribe: m.GetUnsubscribe(),
		Priority: providers.Priority(m.GetPriority()), CollapseKey: m.GetCollapseKey(),
		CreatedAt: at(m.GetCreatedAt()), ExpiresAt: at(m.GetExpiresAt()), Attempt: int(m.GetAttempt()), Test: m.GetTest()}
	if b := m.GetData(); len(b) > 0 {
		out.Data = b
	}
	if b := m.GetContent(); len(b) > 0 {
		out.Content = b
	}
	return out
}

func resultTo(r *providers.Result) *providerv1.Result {
	out := &providerv1.Result{Id: valid(r.ID), Outcome: numbers[r.Outcome], Code: text(r.Code, maxCode), Reason: text(r.Reason, maxReason),
		ProviderId: text(r.ProviderID, maxID), Since: stamp(r.Since), NewAddress: newAddress(r.NewAddress), Parts: int32(r.Parts)}
	if r.After != 0 {
		out.After = durationpb.New(r.After)
	}
	return out
}

func resultFrom(r *providerv1.Result) providers.Result {
	return providers.Result{ID: r.GetId(), Outcome: outcomes[r.GetOutcome()], Code: text(r.GetCode(), maxCode),
		Reason: text(r.GetReason(), maxReason), ProviderID: text(r.GetProviderId(), maxID), After: r.GetAfter().AsDuration(),
		Since: at(r.GetSince()), NewAddress: newAddress(r.GetNewAddress()), Parts: int(r.GetParts())}
}

// newAddress leaves out one that is too long: cut, it would be another one.
func newAddress(s string) string {
	if len(s) > maxAddress {
		return ""
	}
	return text(s, maxAddress)
}

func receiptTo(r *providers.Receipt) *providerv1.Receipt {
	return &providerv1.Receipt{Id: text(r.ID, maxID), ProviderId: text(r.ProviderID, maxID), App: text(r.App, maxID), Address: text(r.Address, maxAddress),
		Event: string(r.Event), Code: text(r.Code, maxCode), At: stamp(r.At)}
}

// receiptFrom reports whether the event is one that exists.
func receiptFrom(r *providerv1.Receipt) (providers.Receipt, bool) {
	event, ok := events[r.GetEvent()]
	return providers.Receipt{ID: text(r.GetId(), maxID), ProviderID: text(r.GetProviderId(), maxID), App: text(r.GetApp(), maxID),
		Address: text(r.GetAddress(), maxAddress),
		Event:   event, Code: text(r.GetCode(), maxCode), At: at(r.GetAt())}, ok
}

func healthTo(h *providers.Health) *providerv1.HealthResponse {
	p := &h.Pool
	return &providerv1.HealthResponse{Status: valid(string(h.Status)), Reason: text(h.Reason, maxReason), Pool: &providerv1.PoolStats{
		Max: int32(p.Max), Open: int32(p.Open), Idle: int32(p.Idle), InUse: int32(p.InUse), Waiting: int32(p.Waiting),
		Opened: p.Opened, Closed: p.Closed, Failed: p.Failed, Reused: p.Reused,
	}}
}

func healthFrom(h *providerv1.HealthResponse) providers.Health {
	status, ok := statuses[h.GetStatus()]
	if !ok {
		status = providers.HealthDegraded
	}
	p := h.GetPool()
	return providers.Health{Status: status, Reason: text(h.GetReason(), maxReason), Pool: providers.PoolStats{
		Max: int(p.GetMax()), Open: int(p.GetOpen()), Idle: int(p.GetIdle()), InUse: int(p.GetInUse()), Waiting: int(p.GetWaiting()),
		Opened: p.GetOpened(), Closed: p.GetClosed(), Failed: p.GetFailed(), Reused: p.GetReused(),
	}}
}

// stamp leaves the zero time unset.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// stampTo is stamp without the allocation.
func stampTo(to *timestamppb.Timestamp, t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	to.Seconds, to.Nanos = t.Unix(), int32(t.Nanosecond())
	return to
}

// at takes an unset or impossible time for the zero time.
func at(t *timestamppb.Timestamp) time.Time {
	if !t.IsValid() {
		return time.Time{}
	}
	return t.AsTime()
}

// valid makes s what protobuf takes: UTF-8.
func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// text makes s valid and cuts it to at most n bytes between two characters.
func text(s string, n int) string {
	s = valid(s)
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
