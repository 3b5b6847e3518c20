package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The rules are those of Firebase's reference "REST Resource: projects.messages" and "ErrorCode",
// firebase.google.com/docs/reference/fcm/rest/v1; the shape of errors is google.rpc.Status.

// fcmError is an error answer of FCM.
type fcmError struct {
	status  int
	rpc     string // google.rpc.Code
	code    string // FcmError.errorCode, "" where the answer has none
	message string
	field   string // of google.rpc.BadRequest, "" for none
}

var fcmErrors = map[string]fcmError{
	"UNREGISTERED":           {404, "NOT_FOUND", "UNREGISTERED", "Requested entity was not found.", ""},
	"INVALID_ARGUMENT":       {400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "The registration token is not a valid FCM registration token", "message.token"},
	"SENDER_ID_MISMATCH":     {403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH", "SenderId mismatch", ""},
	"QUOTA_EXCEEDED":         {429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "Quota exceeded for quota metric 'Requests' and limit 'Requests per minute'.", ""},
	"UNAVAILABLE":            {503, "UNAVAILABLE", "UNAVAILABLE", "The service is currently unavailable.", ""},
	"INTERNAL":               {500, "INTERNAL", "INTERNAL", "Internal error encountered.", ""},
	"THIRD_PARTY_AUTH_ERROR": {401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", "Auth error from APNS or Web Push Service", ""},
	"UNAUTHENTICATED":        {401, "UNAUTHENTICATED", "", "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.", ""},
	"PERMISSION_DENIED":      {403, "PERMISSION_DENIED", "", "Permission 'cloudmessaging.messages.create' denied on resource '//cloudresourcemanager.googleapis.com/projects/" + Project + "'.", ""},
	"NOT_FOUND":              {404, "NOT_FOUND", "", "Requested entity was not found.", ""},
	"RESOURCE_EXHAUSTED":     {429, "RESOURCE_EXHAUSTED", "", "Resource has been exhausted (e.g. check quota).", ""},
	"502":                    {status: 502},
	"504":                    {status: 504},
}

var fcmStatuses = map[string]string{
	"400": "INVALID_ARGUMENT", "401": "UNAUTHENTICATED", "403": "PERMISSION_DENIED", "404": "UNREGISTERED",
	"429": "QUOTA_EXCEEDED", "500": "INTERNAL", "503": "UNAVAILABLE",
}

// fcmErrorOf finds the answer that an error code of a Script stands for.
func fcmErrorOf(code string) (fcmError, bool) {
	if name, ok := fcmStatuses[code]; ok {
		code = name
	}
	e, ok := fcmErrors[code]
	return e, ok
}

func invalidArgument(field, message string) *fcmError {
	return &fcmError{400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", message, field}
}

const jsonUTF8 = "application/json; charset=UTF-8"

// body encodes the error as Google does.
func (e *fcmError) body() []byte {
	type detail struct {
		Type   string              `json:"@type"`
		Code   string              `json:"errorCode,omitempty"`
		Fields []map[string]string `json:"fieldViolations,omitempty"`
	}
	var v struct {
		Error struct {
			Code    int      `json:"code"`
			Message string   `json:"message"`
			Status  string   `json:"status"`
			Details []detail `json:"details,omitempty"`
		} `json:"error"`
	}
	v.Error.Code, v.Error.Message, v.Error.Status = e.status, e.message, e.rpc
	if e.code != "" {
		v.Error.Details = append(v.Error.Details, detail{Type: "type.googleapis.com/google.firebase.fcm.v1.FcmError", Code: e.code})
	}
	if e.field != "" {
		v.Error.Details = append(v.Error.Details, detail{Type: "type.googleapis.com/google.rpc.BadRequest",
			Fields: []map[string]string{{"field": e.field, "description": e.message}}})
	}
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers: cannot fail
	}
	return data
}

// name is the error's code in Counts: the most telling of its words.
func (e *fcmError) name() string {
	switch {
	case e.code != "":
		return e.code
	case e.rpc != "":
		return e.rpc
	}
	return strconv.Itoa(e.status)
}

// fcm serves one request to FCM's host: the token endpoint or messages:send.
func (s *Sandbox) fcm(p *peer, r *request) verdict {
	path, _, _ := strings.Cut(r.path, "?")
	if path == "/token" {
		return s.oauth(r)
	}
	project, ok := strings.CutPrefix(path, "/v1/projects/")
	project, ok2 := strings.CutSuffix(project, "/messages:send")
	if !ok || !ok2 || strings.Contains(project, "/") {
		return verdict{status: 404, contentType: "text/html; charset=UTF-8", body: []byte("<!DOCTYPE html><title>Error 404 (Not Found)</title>\n")}
	}
	if r.method != "POST" {
		return verdict{status: 405, contentType: "text/html; charset=UTF-8", body: []byte("<!DOCTYPE html><title>Error 405 (Method Not Allowed)</title>\n")}
	}
	return s.sendFCM(p, r, project)
}

func (s *Sandbox) sendFCM(p *peer, r *request, project string) verdict {
	plan, book := s.plans[FCM].Load(), s.ledger.books[FCM]
	book.requests.Add(1)
	f := plan.next()
	if f.dropBefore {
		return verdict{drop: true}
	}
	v := verdict{delay: f.delay}
	if !s.authorized(p, r) {
		s.fcmRefuse(&v, plan, fcmErrors["UNAUTHENTICATED"])
		return v
	}
	if project != Project {
		s.fcmRefuse(&v, plan, fcmErrors["PERMISSION_DENIED"])
		return v
	}
	m, bad := parseFCM(r.body)
	switch {
	case bad != nil:
		s.fcmRefuse(&v, plan, *bad)
		return v
	case m.Message.Token != "" && plan.DeadAddress(m.Message.Token):
		s.fcmRefuse(&v, plan, fcmErrors["UNREGISTERED"])
		return v
	}
	answer, failing := fcmErrorOf(f.err)
	if failing {
		s.fcmRefuse(&v, plan, answer)
		if !f.takenAnyway || m.ValidateOnly {
			return v
		}
	}
	if m.ValidateOnly {
		book.answer("200")
		v.status, v.contentType, v.body = 200, jsonUTF8, []byte(`{"name":"projects/`+Project+`/messages/fake_message_id"}`)
		return v
	}
	e := &entry{at: time.Now(), service: FCM, address: m.address(), content: r.body, id: m.id()}
	if e.id == "" {
		e.id = newUUID()
	}
	switch {
	case failing:
		e.answered, v.entry = f.err, e
	case f.stall:
		v.silent = true
	case f.dropAfter:
		v.drop = true
	default:
		e.answered, v.entry = "200", e
		book.answer("200")
		v.status, v.contentType = 200, jsonUTF8
	}
	s.ledger.take(e)
	if v.status == 200 {
		v.body = fmt.Appendf(nil, `{"name":"projects/%s/messages/0:%d%%%016x"}`, Project, e.at.UnixMicro(), e.seq)
	}
	return v
}

func (s *Sandbox) fcmRefuse(v *verdict, p *plan, e fcmError) {
	v.status, v.retryAfter = e.status, p.retryAfter(e.status)
	v.contentType, v.body = "text/html", []byte(gatewayError)
	if e.rpc != "" {
		v.contentType, v.body = jsonUTF8, e.body()
	}
	s.ledger.books[FCM].answer(e.name())
}

// fcmRequest is what is looked at of a messages:send body.
type fcmRequest struct {
	ValidateOnly bool `json:"validate_only"`
	// The REST names are camelCase, protobuf's are taken too; the Go SDK sends validate_only.
	ValidateOnlyCamel bool `json:"validateOnly"`
	Message           *struct {
		Name, Token, Topic, Condition string
		Notification                  *fcmNotification
		Data                          map[string]json.RawMessage
		Android, APNS, Webpush        json.RawMessage
		Options                       json.RawMessage `json:"fcm_options"`
		OptionsCamel                  json.RawMessage `json:"fcmOptions"`
	}
	data map[string]string
}

type fcmNotification struct{ Title, Body, Image string }

func (m *fcmRequest) id() string { return m.data["delivery_id"] }

func (m *fcmRequest) address() string {
	switch {
	case m.Message.Token != "":
		return m.Message.Token
	case m.Message.Topic != "":
		return "/topics/" + m.Message.Topic
	}
	return m.Message.Condition
}

const (
	maxFCM      = 4096 // of data and notification together
	maxFCMTopic = 2048 // the same for messages to topics
	maxTTL      = 2419200 * time.Second
)

// parseFCM reads a body and checks it as FCM does.
func parseFCM(body []byte) (*fcmRequest, *fcmError) {
	m := &fcmRequest{}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return nil, invalidArgument("message", "Invalid JSON payload received. "+err.Error())
	}
	m.ValidateOnly = m.ValidateOnly || m.ValidateOnlyCamel
	if m.Message == nil {
		return nil, invalidArgument("message", "The message is not set.")
	}
	targets := 0
	for _, t := range []string{m.Message.Token, m.Message.Topic, m.Message.Condition} {
		if t != "" {
			targets++
		}
	}
	if targets != 1 {
		return nil, invalidArgument("message", "Recipient of the message is not set.")
	}
	if m.Message.Token != "" && !isFCMToken(m.Message.Token) {
		bad := fcmErrors["INVALID_ARGUMENT"]
		return nil, &bad
	}
	size, limit := 0, maxFCM
	if m.Message.Token == "" {
		limit = maxFCMTopic
	}
	if n := m.Message.Notification; n != nil {
		size = len(n.Title) + len(n.Body) + len(n.Image)
	}
	var bad *fcmError
	if m.data, bad = checkData("message.data", m.Message.Data); bad != nil {
		return nil, bad
	}
	if bad = checkAndroid(m.Message.Android); bad != nil {
		return nil, bad
	}
	for k, v := range m.data {
		size += len(k) + len(v)
	}
	if size > limit {
		return nil, invalidArgument("message", "Android message is too big")
	}
	return m, nil
}

// checkAndroid looks at the data and the time to live of an AndroidConfig.
func checkAndroid(raw json.RawMessage) *fcmError {
	var a struct {
		TTL  string
		Data map[string]json.RawMessage
	}
	if len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		return invalidArgument("message.android", "Invalid JSON payload received. "+err.Error())
	}
	if d, err := time.ParseDuration(a.TTL); a.TTL != "" && (!strings.HasSuffix(a.TTL, "s") || err != nil || d < 0 || d > maxTTL) {
		return invalidArgument("message.android.ttl", "Invalid value (TTL must be from 0 to 2419200 seconds)")
	}
	_, bad := checkData("message.android.data", a.Data)
	return bad
}

// checkData sees that data's values are strings and that no key is FCM's own.
func checkData(where string, data map[string]json.RawMessage) (map[string]string, *fcmError) {
	if len(data) == 0 {
		return nil, nil
	}
	texts := make(map[string]string, len(data))
	for k, raw := range data {
		if k == "from" || k == "message_type" || strings.HasPrefix(k, "google") || strings.HasPrefix(k, "gcm") {
			return nil, invalidArgument(where, "Invalid data payload key: "+k)
		}
		var text string
		if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &text) != nil {
			return nil, invalidArgument(where+"["+strconv.Quote(k)+"]", "Invalid value at '"+where+"' (TYPE_STRING)")
		}
		texts[k] = text
	}
	return texts, nil
}

// isFCMToken accepts the characters of registration tokens and of their older forms.
func isFCMToken(s string) bool {
	if len(s) > 4096 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_:.%~", c) >= 0) {
			return false
		}
	}
	return s != ""
}
