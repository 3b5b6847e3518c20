package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"mime"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

const (
	// importChunk is how many recipients are kept in one transaction: few enough that nobody waits for it.
	importChunk = 250
	// importBytes is how large they are together at the most, about: a line may have 256 KiB, and few have a thousandth of it.
	importBytes = 4 << 20
	// importAhead is how many chunks are read while one is kept.
	importAhead = 2
	// importProgress is how often it is told how far the import is.
	importProgress = time.Second
)

// ImportedRecipient is a line of an import, as openapi.yaml says it.
type ImportedRecipient struct {
	ID          string           `json:"id" validate:"required,max=255"`
	Attributes  json.RawMessage  `json:"attributes,omitempty"`
	Locale      string           `json:"locale,omitempty" validate:"omitempty,max=64,bcp47_language_tag"`
	Timezone    string           `json:"timezone,omitempty" validate:"omitempty,timezone"`
	QuietHours  *QuietHoursInput `json:"quiet_hours,omitempty"`
	Endpoints   []EndpointInput  `json:"endpoints,omitempty" validate:"max=100,dive"`
	Preferences Preferences      `json:"preferences,omitempty"`
	Topics      []string         `json:"topics,omitempty" validate:"max=100"`
}

// ImportEvent is a line of the answer to an import.
type ImportEvent struct {
	Line     int             `json:"line"`
	Problem  *Problem        `json:"problem,omitempty"`
	Progress *ImportProgress `json:"progress,omitempty"`
	Done     bool            `json:"done,omitempty"`
}

// ImportProgress says how far an import is.
type ImportProgress struct {
	Created  int     `json:"created"`
	Replaced int     `json:"replaced"`
	Bad      int     `json:"bad"`
	RatePerS float64 `json:"rate_per_s"`
}

// ImportRecipients implements StrictServerInterface. The answer is streamed while the request still comes in.
func (a *API) ImportRecipients(ctx context.Context, q ImportRecipientsRequestObject) (ImportRecipientsResponseObject, error) {
	c := callOf(ctx)
	if err := checkCoding(c.r); err != nil {
		return nil, err
	}
	media, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	im := &importer{api: a, ctx: ctx, call: c, began: time.Now()}
	switch {
	case err == nil && media == "application/x-ndjson":
		im.source = &ndjsonSource{lines: bufio.NewReaderSize(q.Body, MaxBody+1)}
	case err == nil && media == "text/csv":
		im.source = newCSVSource(q.Body)
	default:
		return nil, refuse(http.StatusUnsupportedMediaType, "Send application/x-ndjson or text/csv.")
	}
	return im, nil
}

// importer is one import. One goroutine reads and checks lines, another keeps them, in their order.
type importer struct {
	api    *API
	ctx    context.Context
	call   *call
	source importSource
	began  time.Time

	lines, created, replaced, bad int
}

// importSource reads one line after the other. line is its number. The error of next is io.EOF at the
// end, another one ends the import; fault is what is wrong with this line alone.
type importSource interface {
	next() (body *ImportedRecipient, line int, fault, err error)
}

// importPart is what the reader hands to the keeper: a chunk, or a line that is bad.
type importPart struct {
	chunk []core.Import
	size  int64 // what it takes of the room for all imports
	line  int   // how far it is read
	bad   error
	err   error // the stream ends here
	done  bool
}

// VisitImportRecipientsResponse implements ImportRecipientsResponseObject.
func (im *importer) VisitImportRecipientsResponse(w http.ResponseWriter) error {
	control := beginLines(w)
	ctx, cancel := context.WithCancel(im.ctx)
	parts := make(chan importPart, importAhead)
	defer func() {
		cancel()
		for p := range parts { // the reader ends by itself
			im.api.imports.Release(p.size)
		}
	}()
	go im.read(ctx, control, parts)
	out := json.NewEncoder(w)
	told := im.began
	for p := range parts {
		e, err := im.keep(ctx, &p)
		if err != nil {
			problem := failureOf(err).problem(im.call.requestID)
			e = &ImportEvent{Line: p.line, Problem: &problem, Progress: im.progress()}
			cancel()
		}
		if e == nil && time.Since(told) >= importProgress {
			e = &ImportEvent{Line: im.lines, Progress: im.progress()}
		}
		if e == nil {
			continue
		}
		told = time.Now()
		_ = control.SetWriteDeadline(time.Now().Add(streamIdle))
		if err := out.Encode(e); err != nil {
			cancel() // the client is gone; what was kept is kept
			break
		}
		if len(parts) == 0 || e.Progress != nil {
			_ = control.Flush()
		}
	}
	return nil
}

func (im *importer) progress() *ImportProgress {
	took := max(time.Since(im.began).Seconds(), 1e-3)
	return &ImportProgress{Created: im.created, Replaced: im.replaced, Bad: im.bad, RatePerS: math.Round(float64(im.created+im.replaced) / took)}
}

// keep keeps a chunk, gives back its room, and returns what there is to tell. The error ends the import.
func (im *importer) keep(ctx context.Context, p *importPart) (e *ImportEvent, err error) {
	defer im.api.imports.Release(p.size)
	defer func() { // the answer has begun: that it ends is told by a line of it
		if v := recover(); v != nil {
			e, err = nil, im.api.panicked(im.call, v)
		}
	}()
	if len(p.chunk) > 0 {
		created, err := im.api.Recipients.ImportRecipients(ctx, im.call.principal.App, p.chunk, im.api.rules())
		if err != nil {
			return nil, err
		}
		im.created, im.replaced = im.created+created, im.replaced+len(p.chunk)-created
	}
	im.lines = max(im.lines, p.line)
	switch {
	case p.err != nil:
		return nil, p.err
	case p.bad != nil:
		im.bad++
		return im.tell(p.line, p.bad), nil //nolint:nilerr // what is wrong with a line is an answer
	case p.done:
		return &ImportEvent{Line: im.lines, Done: true, Progress: im.progress()}, nil
	}
	return nil, nil
}

// tell is the event of a bad line.
func (im *importer) tell(line int, bad error) *ImportEvent {
	problem := failureOf(bad).problem(im.call.requestID)
	return &ImportEvent{Line: line, Problem: &problem}
}

// importReader is the half of an import that reads. What it holds it has taken of the room for all imports.
type importReader struct {
	*importer
	ctx   context.Context
	parts chan<- importPart
	chunk []core.Import
	size  int64
}

// read reads and checks line after line.
func (im *importer) read(ctx context.Context, control *http.ResponseController, parts chan<- importPart) {
	defer close(parts)
	line := 0
	r := &importReader{importer: im, ctx: ctx, parts: parts}
	defer func() { im.api.imports.Release(r.size) }()
	defer func() { // here, for nobody else sees a goroutine of the handler's panic, and the process would end
		if p := recover(); p != nil {
			r.hand(importPart{line: line, err: im.api.panicked(im.call, p)})
		}
	}()
	var extended time.Time
	for {
		if time.Since(extended) > time.Second {
			extended = time.Now()
			_ = control.SetReadDeadline(extended.Add(streamIdle))
		}
		body, at, bad, err := im.source.next()
		line = at
		if bad == nil && err == nil {
			var x core.Import
			if x, bad = im.check(ctx, body); bad == nil && !r.add(x, line) {
				return
			}
		}
		if full := len(r.chunk) == importChunk || r.size >= importBytes; (full || bad != nil || err != nil) && !r.handChunk(line) {
			return
		}
		switch {
		case errors.Is(err, io.EOF):
			r.hand(importPart{line: line, done: true})
			return
		case err != nil:
			r.hand(importPart{line: line, err: err})
			return
		case bad != nil:
			if !r.hand(importPart{line: line, bad: bad}) {
				return
			}
		}
	}
}

// hand gives the keeper a part. It reports false where the import ended before.
func (r *importReader) hand(p importPart) bool {
	select {
	case r.parts <- p:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// handChunk gives the keeper what was read, if there is something.
func (r *importReader) handChunk(line int) bool {
	if len(r.chunk) == 0 {
		return true
	}
	if !r.hand(importPart{chunk: r.chunk, size: r.size, line: line}) {
		return false
	}
	r.chunk, r.size = make([]core.Import, 0, importChunk), 0
	return true
}

// errNoImport ends an import that others leave no room for.
var errNoImport = &failure{status: http.StatusServiceUnavailable, detail: "More is being imported than can be at once. Send what is behind this line in a moment.", retry: 1}

// add puts a recipient to the chunk, as soon as there is room for it. Whoever waits for room has handed on what it had:
// the keepers make room, and no import waits for another one that waits. One whose client is slow may keep its part of
// the room for long, so the wait ends after streamIdle, and the import with it.
func (r *importReader) add(x core.Import, line int) bool {
	n := min(int64(sizeOf(&x)), r.api.ImportRoom)
	if room := r.api.imports; !room.TryAcquire(n) {
		if !r.handChunk(line - 1) {
			return false
		}
		ctx, cancel := context.WithTimeout(r.ctx, streamIdle)
		defer cancel()
		if room.Acquire(ctx, n) != nil {
			r.hand(importPart{line: line - 1, err: errNoImport})
			return false
		}
	}
	r.chunk, r.size = append(r.chunk, x), r.size+n
	return true
}

// What a recipient's parts take beside their texts, in bytes, about.
const (
	endpointSize = 96
	categorySize = 256 // it is a map
)

// sizeOf is about how many bytes a recipient takes.
func sizeOf(x *core.Import) int {
	n := len(x.ID) + len(x.Attributes) + len(x.Locale) + len(x.Endpoints)*endpointSize + len(x.Preferences)*categorySize
	for i := range x.Endpoints {
		n += len(x.Endpoints[i].Address) + len(x.Endpoints[i].Route) + len(x.Endpoints[i].AppVersion)
	}
	for _, topic := range x.Topics {
		n += len(topic)
	}
	for category, channels := range x.Preferences {
		n += len(category)
		for channel := range channels {
			n += len(channel)
		}
	}
	return n
}

// check turns a line into a recipient, or says everything that is wrong with it.
func (im *importer) check(ctx context.Context, body *ImportedRecipient) (core.Import, error) {
	a := im.api
	faults := a.violations(ctx, struct {
		Body *ImportedRecipient `json:"Body"`
	}{body})
	add := func(err error) {
		var f *failure
		if errors.As(err, &f) {
			faults = merge(faults, f.faults)
		}
	}
	x := core.Import{Recipient: core.Recipient{ID: body.ID, Locale: body.Locale, Timezone: body.Timezone}, Topics: body.Topics}
	var err error
	add(checkRecipientID(body.ID))
	x.Attributes, err = attributesOf(body.Attributes)
	add(err)
	x.QuietHours, err = a.checkQuiet(body.QuietHours)
	add(err)
	x.Endpoints, err = a.checkEndpoints(body.Endpoints)
	add(err)
	if body.Preferences != nil {
		x.Preferences = chosen(body.Preferences)
		add(a.checkPreferences(x.Preferences, nil, "/preferences"))
	}
	for i, topic := range body.Topics {
		if !isName(topic) {
			faults = append(faults, intake.Fault{Pointer: fmt.Sprintf("/topics/%d", i), Code: intake.FaultInvalid, Detail: "a topic's name " + nameForm})
		}
	}
	if len(faults) > 0 {
		return x, invalid(faults)
	}
	return x, nil
}

// ndjsonSource reads a JSON object a line.
type ndjsonSource struct {
	lines *bufio.Reader
	n     int
}

func (s *ndjsonSource) next() (*ImportedRecipient, int, error, error) {
	for {
		text, err := s.lines.ReadSlice('\n')
		if len(text) > 0 {
			s.n++
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			return nil, s.n, nil, tooLarge(MaxBody) // where this line ends is not known
		}
		if text = bytes.TrimSpace(text); len(text) > 0 {
			body := &ImportedRecipient{}
			faults, bad := decode(bytes.Clone(text), body)
			if bad == nil && len(faults) > 0 {
				bad = invalid(faults)
			}
			return body, s.n, bad, nil
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil, s.n, nil, io.EOF
		case err != nil:
			return nil, s.n, nil, errBrokeOff
		}
	}
}

var errBrokeOff = refuse(http.StatusBadRequest, "The stream broke off here; the lines before were taken.")

// csvSource reads a CSV whose first line names the columns.
type csvSource struct {
	r       *csv.Reader
	body    *limited
	columns []string
	line    int // of the last record
}

// limited counts what was read since the last record, so that none is endless.
type limited struct {
	r    io.Reader
	left int
}

func (l *limited) Read(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, errLongRecord
	}
	n, err := l.r.Read(b[:min(len(b), l.left)])
	l.left -= n
	return n, err
}

var errLongRecord = errors.New("the line is too long")

func newCSVSource(body io.Reader) *csvSource {
	s := &csvSource{body: &limited{r: body}}
	s.r = csv.NewReader(s.body)
	s.r.ReuseRecord = true
	return s
}

// kindName is what a kind's name, and so a column of addresses, looks like.
var kindName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

func (s *csvSource) record() ([]string, int, error) {
	s.body.left = 2 * MaxBody // the reader reads ahead
	record, err := s.r.Read()
	if len(record) > 0 {
		s.line, _ = s.r.FieldPos(0)
	}
	line := s.line
	var bad *csv.ParseError
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return record, line, err
	case errors.Is(err, errLongRecord):
		return nil, line, tooLarge(MaxBody)
	case errors.As(err, &bad):
		return nil, bad.StartLine, err
	}
	return nil, line, errBrokeOff
}

// head reads the first line.
func (s *csvSource) head() error {
	names, _, err := s.record()
	if err != nil {
		return refuse(http.StatusBadRequest, "A CSV begins with a line that names its columns.")
	}
	seen := map[string]bool{}
	var f []intake.Fault
	for i, name := range names {
		name = strings.TrimSpace(strings.TrimPrefix(name, "\ufeff"))
		// What it says is not told: where the line that names the columns was left out, it is somebody's address.
		if (seen[name] || !strings.HasPrefix(name, "attributes.") && !kindName.MatchString(name)) && len(f) < maxFaults {
			f = append(f, intake.Fault{Pointer: fmt.Sprintf("/%d", i), Code: intake.FaultInvalid,
				Detail: fmt.Sprintf("column %d of the first line is given twice, or is none: columns are id, locale, timezone, topics, attributes.<name> and kinds of endpoints", i+1)})
		}
		seen[name] = true
		s.columns = append(s.columns, name)
	}
	if !seen["id"] {
		f = append(f, intake.Fault{Pointer: "", Code: intake.FaultMissing, Detail: "the first line names no column id"})
	}
	if len(f) > 0 {
		return invalid(f)
	}
	return nil
}

func (s *csvSource) next() (*ImportedRecipient, int, error, error) {
	if s.columns == nil {
		if err := s.head(); err != nil {
			return nil, 1, nil, err
		}
	}
	record, line, err := s.record()
	var bad *csv.ParseError
	switch {
	case errors.As(err, &bad):
		return nil, line, refuse(http.StatusBadRequest, "Not a line of this CSV: "+bad.Err.Error()+"."), nil
	case err != nil:
		return nil, line, nil, err
	}
	body := &ImportedRecipient{}
	attributes := map[string]string{}
	// A value is a part of its record's text: what is kept is copied, or a chunk would keep its lines whole.
	for i, value := range record {
		if value == "" {
			continue
		}
		switch name := s.columns[i]; name {
		case "id":
			body.ID = strings.Clone(value)
		case "locale":
			body.Locale = strings.Clone(value)
		case "timezone":
			body.Timezone = strings.Clone(value)
		case "topics":
			for topic := range strings.SplitSeq(value, ";") {
				if topic = strings.TrimSpace(topic); topic != "" {
					body.Topics = append(body.Topics, strings.Clone(topic))
				}
			}
		default:
			if attribute, ok := strings.CutPrefix(name, "attributes."); ok {
				attributes[attribute] = value
			} else {
				body.Endpoints = append(body.Endpoints, EndpointInput{Kind: name, Address: strings.Clone(value)})
			}
		}
	}
	text := strings.Join(record, "")
	if strings.ContainsRune(text, 0) || !utf8.ValidString(text) {
		return nil, line, refuse(http.StatusBadRequest, "The line is not UTF-8 without NUL."), nil
	}
	if len(attributes) > 0 {
		if body.Attributes, err = plainJSON(attributes); err != nil {
			return nil, line, fmt.Errorf("encode attributes: %w", err), nil
		}
	}
	return body, line, nil, nil
}

// ExportRecipient implements StrictServerInterface.
func (a *API) ExportRecipient(ctx context.Context, q ExportRecipientRequestObject) (ExportRecipientResponseObject, error) {
	app := callOf(ctx).principal.App
	r, err := a.Recipients.Recipient(ctx, app, q.Id)
	if err != nil {
		return nil, err
	}
	topics, err := a.Recipients.Topics(ctx, app, q.Id)
	if err != nil {
		return nil, err
	}
	return &export{api: a, ctx: ctx, app: app, head: RecipientExport{Recipient: recipientOf(r), Preferences: preferencesOf(r.Preferences), Topics: append([]string{}, topics...)}}, nil
}

// export writes a person's messages a page at a time, for they may be many.
type export struct {
	api  *API
	ctx  context.Context
	app  string
	head RecipientExport
}

// VisitExportRecipientResponse implements ExportRecipientResponseObject.
func (e *export) VisitExportRecipientResponse(w http.ResponseWriter) error {
	control := http.NewResponseController(w)
	members := map[string]any{"recipient": e.head.Recipient, "preferences": e.head.Preferences, "topics": e.head.Topics}
	sep := "{"
	for cursor, first := "", true; ; first = false {
		page, next, err := e.api.Recipients.MessagesTo(e.ctx, e.app, e.head.Recipient.Id, cursor)
		if err != nil && first {
			return err
		}
		if err != nil { // the answer has begun: cut off it cannot be taken for a whole one
			e.api.Logger.Error("an export broke off", "request_id", callOf(e.ctx).requestID, "error", err)
			panic(http.ErrAbortHandler)
		}
		if first {
			w.Header().Set("Content-Type", "application/json")
			for _, name := range slices.Sorted(maps.Keys(members)) {
				if err := writeJSON(w, fmt.Sprintf("%s%q:", sep, name), members[name]); err != nil {
					return nil //nolint:nilerr // the client is gone
				}
				sep = ","
			}
			fmt.Fprint(w, `,"messages":[`)
			sep = ""
		}
		_ = control.SetWriteDeadline(time.Now().Add(streamIdle))
		for i := range page {
			if err := writeJSON(w, sep, exported(&page[i])); err != nil {
				return nil //nolint:nilerr // the client is gone
			}
			sep = ","
		}
		if cursor = next; next == "" {
			fmt.Fprint(w, "]}\n")
			return nil
		}
	}
}

func writeJSON(w io.Writer, before string, v any) error {
	text, err := json.Marshal(v)
	if err == nil {
		_, err = io.WriteString(w, before+string(text))
	}
	return err
}

func exported(m *core.SentMessage) ExportedMessage {
	c := &m.Words
	return ExportedMessage{Id: m.ID.String(), Notification: m.Notification.String(), Channel: m.Channel, Kind: m.Kind, Address: m.Address, Name: m.Name, State: m.State.String(),
		CreatedAt: m.CreatedAt, UpdatedAt: m.UpdatedAt, SeenAt: stamp(m.SeenAt), ReadAt: stamp(m.ReadAt), ClickedAt: stamp(m.ClickedAt),
		Content: Rendered{Title: c.Title, Body: c.Body, Url: c.URL, Data: c.Data, Block: c.Block, Category: c.Category, CollapseKey: c.CollapseKey}}
}
