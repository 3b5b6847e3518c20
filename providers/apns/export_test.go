package apns

import (
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// AgeToken makes a provider's token as if it had been made d earlier, by the pool's clock and, if wall
// is set, by its own too.
func AgeToken(p providers.Provider, d time.Duration, wall bool) {
	b := &p.(*provider).bearer
	b.mu.Lock()
	defer b.mu.Unlock()
	b.made = b.made.Add(-d)
	b.token.Lock()
	defer b.token.Unlock()
	if wall {
		b.token.IssuedAt -= int64(d.Seconds())
	}
	b.token.Bearer += ".old" // what comes next must differ
}

// BreakToken takes the signing key away.
func BreakToken(p providers.Provider) {
	b := &p.(*provider).bearer
	b.token.Lock()
	defer b.token.Unlock()
	b.token.AuthKey, b.token.IssuedAt = nil, 0
}

// Listed is a status and reason that the table of answers has a line for.
type Listed struct {
	Status int
	Reason string
}

// ListedAnswers are all of them.
func ListedAnswers() []Listed {
	var out []Listed
	for _, a := range answers {
		out = append(out, Listed{a.status, a.reason})
	}
	return out
}

// Payload is what is built of a message.
func Payload(m *providers.Message) ([]byte, error) {
	n, err := build(m, "")
	if err != nil {
		return nil, err
	}
	return n.payload, nil
}
