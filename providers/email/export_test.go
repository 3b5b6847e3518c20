package email

import (
	"net"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// Phases of a session and a transaction.
var Phases = []string{string(phaseBanner), string(phaseHello), string(phaseStartTLS), string(phaseAuth), string(phaseMail), string(phaseRcpt), string(phaseData), string(phaseDot)}

// RuleNames are the rows of the table of answers.
func RuleNames() []string {
	var out []string
	for _, r := range rules {
		out = append(out, r.name)
	}
	return out
}

// RuleFor names the row that decides about a reply.
func RuleFor(ph string, code int, text string) string {
	r := reply{code, text}
	for i := range rules {
		if rules[i].fits(phase(ph), r.String()[:3], r.enhanced()) {
			return rules[i].name
		}
	}
	return ""
}

// Classify is classify.
func Classify(ph string, code int, text string) providers.Result {
	return classify(phase(ph), reply{code, text})
}

// Stuff is stuff.
func Stuff(raw []byte) []byte { return stuff(raw) }

// Write gives the wire form of a message, its envelope and whether it needs SMTPUTF8, as a provider with
// these settings sends it at now.
func Write(p providers.Provider, m *providers.Message, now time.Time) (from, to string, data []byte, utf8 bool, err error) {
	j, err := p.(*provider).sender.write(m, now)
	if err != nil {
		return "", "", nil, false, err
	}
	return j.from, j.to, j.data, j.utf8, nil
}

// InterruptThenRead cuts a connection short, gives it time until t, and reads.
func InterruptThenRead(c net.Conn, t time.Time) error {
	w := newConn(c)
	w.interrupt()
	w.within(t)
	_, err := w.Read(make([]byte, 1))
	return err
}
