package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/templates"
)

// failure is an error that knows its answer.
type failure struct {
	status int
	detail string
	faults []intake.Fault
	retry  int // seconds, 0: no Retry-After
}

func (f *failure) Error() string { return fmt.Sprintf("%d %s", f.status, f.detail) }

func refuse(status int, detail string) error { return &failure{status: status, detail: detail} }

func invalid(faults []intake.Fault) error {
	return &failure{status: http.StatusUnprocessableEntity, detail: "The request cannot be taken; errors lists everything that is wrong with it.", faults: faults}
}

func fault(pointer, code, detail string) error {
	return invalid([]intake.Fault{{Pointer: pointer, Code: code, Detail: detail}})
}

// failureOf says how an error is answered. What it does not know is a 500 that tells nothing.
func failureOf(err error) *failure {
	var f *failure
	var bad *intake.Invalid
	var template *templates.Error
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &bad):
		errors.As(invalid(bad.Faults), &f)
		return f
	case errors.As(err, &template):
		faults := make([]intake.Fault, len(template.Faults))
		for i, t := range template.Faults {
			faults[i] = intake.Fault{Pointer: t.Pointer, Code: t.Code, Detail: t.Detail}
		}
		errors.As(invalid(faults), &f)
		return f
	case errors.Is(err, core.ErrBadID):
		errors.As(fault("/cursor", intake.FaultInvalid, "is no next_cursor of this list"), &f)
		return f
	case errors.Is(err, core.ErrNotFound), errors.Is(err, templates.ErrNotFound):
		return &failure{status: http.StatusNotFound, detail: "There is no such thing in this app."}
	case errors.Is(err, core.ErrKeyReused):
		return &failure{status: http.StatusUnprocessableEntity, detail: core.ErrKeyReused.Error()}
	case errors.Is(err, core.ErrUnavailable):
		return &failure{status: http.StatusServiceUnavailable, detail: "The store does not take this now, or did not say that it did: try again, with the same Idempotency-Key where there is one.", retry: 1}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &failure{status: http.StatusServiceUnavailable, detail: "The request was given up before it was finished.", retry: 1}
	default:
		return &failure{status: http.StatusInternalServerError, detail: "Something went wrong here; the log has it under the request_id."}
	}
}

func (f *failure) problem(requestID string) Problem {
	p := Problem{Type: "about:blank", Title: http.StatusText(f.status), Status: f.status, Detail: f.detail, RequestId: requestID}
	for _, e := range f.faults {
		p.Errors = append(p.Errors, Fault{Pointer: e.Pointer, Code: e.Code, Detail: e.Detail})
	}
	return p
}

// fail answers a request with the problem that an error is.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	f := failureOf(err)
	c := callOf(r.Context())
	if f.status == http.StatusInternalServerError {
		a.Logger.Error("a request failed", "request_id", c.requestID, "operation", r.Pattern, "error", err)
	}
	body, err := json.Marshal(f.problem(c.requestID))
	if err != nil {
		a.Logger.Error("a problem could not be encoded", "request_id", c.requestID, "error", err)
		body = nil
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	if f.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(f.retry))
	}
	if f.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(f.status)
	w.Write(append(body, '\n'))
}

// failParameter answers a parameter that could not be read; the generated error is not shown, for it
// repeats the value.
func (a *API) failParameter(w http.ResponseWriter, r *http.Request, err error) {
	name := "a parameter"
	var format *InvalidParamFormatError
	var many *TooManyValuesForParamError
	switch {
	case errors.As(err, &format):
		name = format.ParamName
	case errors.As(err, &many):
		name = many.ParamName
	}
	a.fail(w, r, fault("/"+escapePointer(name), intake.FaultInvalid, "the parameter "+name+" is not of the form it must have"))
}
