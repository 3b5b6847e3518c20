package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

// QuietHoursInput is QuietHours of openapi.yaml.
type QuietHoursInput struct {
	From     string   `json:"from"`
	To       string   `json:"to"`
	Channels []string `json:"channels,omitempty"`
}

// checkQuiet turns quiet hours into the domain's; nil for none.
func (a *API) checkQuiet(in *QuietHoursInput) (*core.QuietHours, error) {
	if in == nil {
		return nil, nil
	}
	q := &core.QuietHours{From: in.From, To: in.To, Channels: in.Channels}
	var f []intake.Fault
	if err := q.Check(); err != nil {
		f = append(f, intake.Fault{Pointer: "/quiet_hours", Code: intake.FaultInvalid, Detail: err.Error()})
	}
	known := a.Addresses.Channels()
	for i, name := range q.Channels {
		if !slices.Contains(known, name) {
			f = append(f, intake.Fault{Pointer: fmt.Sprintf("/quiet_hours/channels/%d", i), Code: intake.FaultUnknown, Detail: fmt.Sprintf("there is no channel %q; configured are %v", name, known)})
		}
	}
	if len(f) > 0 {
		return nil, invalid(f)
	}
	return q, nil
}

// patchQuiet reads a patch's quiet hours; change is false if it has none.
func (a *API) patchQuiet(raw json.RawMessage) (q *core.QuietHours, change bool, err error) {
	if len(raw) == 0 {
		return nil, false, nil
	}
	var in *QuietHoursInput
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return nil, false, fault("/quiet_hours", intake.FaultInvalid, `must be an object such as {"from":"22:00","to":"08:00"}, or null`)
	}
	q, err = a.checkQuiet(in)
	return q, true, err
}

func quietOf(q *core.QuietHours) *QuietHoursInput {
	if q == nil {
		return nil
	}
	return &QuietHoursInput{From: q.From, To: q.To, Channels: q.Channels}
}
