package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// plan is a Script made ready: checked, its errors in a fixed order, its place in the sequence of fates.
type plan struct {
	Script
	errors []share
	calm   bool // there is nothing but, perhaps, dead addresses
	seed   uint64
	n      atomic.Uint64
}

type share struct {
	code string
	upTo float64 // the sum of the shares so far
}

// fate is what the script has in store for one message.
type fate struct {
	dropBefore, dropAfter, stall, takenAnyway bool
	// early is even odds, for a service with two places where a fault may strike.
	early bool
	err   string
	delay time.Duration
}

func newPlan(service Service, s Script, seed uint64) (*plan, error) {
	for name, rate := range map[string]float64{
		"drop_before": s.DropBefore, "drop_after": s.DropAfter, "stall": s.Stall, "taken_anyway": s.TakenAnyway,
	} {
		if !(rate >= 0 && rate <= 1) { // NaN too
			return nil, fmt.Errorf("sandbox: %s: %s must be from 0 to 1", service, name)
		}
	}
	if s.Latency < 0 || s.Jitter < 0 || s.RetryAfter < 0 || s.GoAwayEvery < 0 {
		return nil, fmt.Errorf("sandbox: %s: durations and goaway_every must not be negative", service)
	}
	p := &plan{Script: s, seed: seed}
	sum := 0.0
	for code, rate := range s.Errors {
		if !(rate >= 0 && rate <= 1) {
			return nil, fmt.Errorf("sandbox: %s: the share of error %q must be from 0 to 1", service, code)
		}
		if err := checkCode(service, code); err != nil {
			return nil, err
		}
		p.errors = append(p.errors, share{code, rate})
	}
	slices.SortFunc(p.errors, func(a, b share) int { return strings.Compare(a.code, b.code) })
	for i := range p.errors {
		sum += p.errors[i].upTo
		p.errors[i].upTo = sum
	}
	if sum > 1+1e-9 {
		return nil, fmt.Errorf("sandbox: %s: the shares of the errors add up to more than 1", service)
	}
	p.calm = sum == 0 && s.Latency == 0 && s.Jitter == 0 && s.DropBefore == 0 && s.DropAfter == 0 && s.Stall == 0
	if p.DeadAddress == nil {
		p.DeadAddress = deadByName
	}
	if p.MaxStreams == 0 {
		p.MaxStreams = 1000
	}
	return p, nil
}

func deadByName(address string) bool {
	return len(address) >= 4 && strings.EqualFold(address[:4], "dead")
}

func checkCode(service Service, code string) error {
	known := false
	switch service {
	case APNs:
		_, known = apnsError(code)
	case FCM:
		_, known = fcmErrorOf(code)
	case SMTP:
		_, known = smtpFaultOf(code)
	}
	if !known {
		return fmt.Errorf("sandbox: %s: unknown error code %q", service, code)
	}
	return nil
}

// next draws the fate of the next message.
func (p *plan) next() fate {
	if p.calm {
		return fate{}
	}
	r := draws{p.seed + p.n.Add(1)*0xd1342543de82ef95}
	f := fate{delay: p.Latency}
	if u := r.unit(); p.Jitter > 0 {
		f.delay += time.Duration(u * float64(p.Jitter))
	}
	f.dropBefore, f.early = r.unit() < p.DropBefore, r.unit() < 0.5
	u := r.unit()
	for _, e := range p.errors {
		if u < e.upTo {
			f.err = e.code
			break
		}
	}
	f.takenAnyway = r.unit() < p.TakenAnyway
	f.stall, f.dropAfter = r.unit() < p.Stall, r.unit() < p.DropAfter
	return f
}

// retryAfter is the Retry-After to go with a status, "" for none.
func (p *plan) retryAfter(status int) string {
	if p.RetryAfter <= 0 || status != 429 && status != 503 {
		return ""
	}
	return strconv.FormatInt(int64(math.Ceil(p.RetryAfter.Seconds())), 10)
}

// draws is SplitMix64 (Steele, Lea, Flood 2014): good numbers from any starting point, so that each
// message can have its own.
type draws struct{ state uint64 }

func (d *draws) unit() float64 {
	d.state += 0x9e3779b97f4a7c15
	z := d.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return float64((z^z>>31)>>11) / (1 << 53)
}

// scriptJSON is a Script as the REST API shows it: rates as numbers, durations as Go writes them.
type scriptJSON struct {
	Latency     string             `json:"latency"`
	Jitter      string             `json:"jitter"`
	Errors      map[string]float64 `json:"errors"`
	RetryAfter  string             `json:"retry_after"`
	DropBefore  float64            `json:"drop_before"`
	DropAfter   float64            `json:"drop_after"`
	Stall       float64            `json:"stall"`
	TakenAnyway float64            `json:"taken_anyway"`
	GoAwayEvery int                `json:"goaway_every"`
	MaxStreams  uint32             `json:"max_streams"`
	GoneSince   *time.Time         `json:"gone_since,omitempty"`
}

// MarshalJSON writes a script as the REST API shows it; DeadAddress, a function, is left out.
func (s Script) MarshalJSON() ([]byte, error) {
	v := scriptJSON{
		Latency: s.Latency.String(), Jitter: s.Jitter.String(), Errors: s.Errors, RetryAfter: s.RetryAfter.String(),
		DropBefore: s.DropBefore, DropAfter: s.DropAfter, Stall: s.Stall, TakenAnyway: s.TakenAnyway,
		GoAwayEvery: s.GoAwayEvery, MaxStreams: s.MaxStreams,
	}
	if v.Errors == nil {
		v.Errors = map[string]float64{}
	}
	if !s.GoneSince.IsZero() {
		v.GoneSince = &s.GoneSince
	}
	return json.Marshal(v)
}

// UnmarshalJSON reads a script; members that it does not know are refused.
func (s *Script) UnmarshalJSON(data []byte) error {
	var v scriptJSON
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("more than one JSON value")
	}
	*s = Script{
		Errors: v.Errors, DropBefore: v.DropBefore, DropAfter: v.DropAfter, Stall: v.Stall, TakenAnyway: v.TakenAnyway,
		GoAwayEvery: v.GoAwayEvery, MaxStreams: v.MaxStreams,
	}
	if v.GoneSince != nil {
		s.GoneSince = *v.GoneSince
	}
	for _, p := range []struct {
		name, text string
		to         *time.Duration
	}{{"latency", v.Latency, &s.Latency}, {"jitter", v.Jitter, &s.Jitter}, {"retry_after", v.RetryAfter, &s.RetryAfter}} {
		if p.text == "" {
			continue
		}
		var err error
		if *p.to, err = time.ParseDuration(p.text); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}
