package email

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/carillon-notify/carillon/providers"
)

// phase is what a reply answers.
type phase string

// The phases of a session and of a transaction.
const (
	phaseBanner   phase = "banner"
	phaseHello    phase = "EHLO"
	phaseStartTLS phase = "STARTTLS"
	phaseAuth     phase = "AUTH"
	phaseMail     phase = "MAIL"
	phaseRcpt     phase = "RCPT"
	phaseData     phase = "DATA"
	phaseDot      phase = "final dot"
)

// rule is a row of the table: the first that fits a reply decides.
type rule struct {
	name     string
	phases   []phase // nil: all
	code     string  // a prefix of the reply code: "5", "55", "550"
	enhanced string  // the enhanced code after its class: "1.1", or "1." for all of that subject; "" for any, "-" for none
	outcome  providers.Outcome
	reason   string
}

var (
	inTransaction = []phase{phaseMail, phaseRcpt, phaseData, phaseDot}
	aboutRcpt     = []phase{phaseRcpt, phaseData, phaseDot}
)

// rules is what each SMTP reply means. Sources: RFC 5321 (4.2.2, 4.2.3, 4.3.2 codes; 3.8 and 421;
// 4.5.3.1.10 a 552 at RCPT is temporary; 6.1 responsibility), RFC 3463 and the IANA registry of
// enhanced codes (X.1 address, X.2 mailbox, X.3 system, X.4 routing, X.5 protocol, X.6 content, X.7
// policy), RFC 4954 (4.7, 6: AUTH), RFC 3207 (4: STARTTLS), RFC 7504 (521, 556), RFC 7505 (null MX).
//
// No row asks for a pause: SMTP has no Retry-After. How long a greylisted message (4.7.1) or a full
// mailbox (4.2.2) waits is the back-off of the route.
var rules = []rule{
	{"going away", nil, "421", "", providers.Deferred, "the mail server closes the connection"},

	{"greeting refused", []phase{phaseBanner}, "", "", providers.Deferred, "the mail server takes no mail now"},
	{"EHLO later", []phase{phaseHello}, "4", "", providers.Deferred, "the mail server takes no mail now"},
	{"EHLO refused", []phase{phaseHello}, "", "", providers.Denied, "the mail server refuses our greeting; check helo and that it lets this machine in"},
	{"STARTTLS later", []phase{phaseStartTLS}, "4", "", providers.Deferred, "the mail server has no TLS at the moment"},
	{"STARTTLS refused", []phase{phaseStartTLS}, "", "", providers.Denied, "the mail server refuses STARTTLS"},
	{"password must change", []phase{phaseAuth}, "432", "", providers.Denied, "the mail server wants the password to be changed"},
	{"AUTH later", []phase{phaseAuth}, "4", "", providers.Deferred, "the mail server cannot check the password at the moment"},
	{"AUTH refused", []phase{phaseAuth}, "", "", providers.Denied, "the mail server refuses username and password"},

	{"wants STARTTLS or AUTH", inTransaction, "530", "", providers.Denied, "the mail server wants TLS or a login first"},
	{"password refused late", inTransaction, "535", "", providers.Denied, "the mail server refuses the login"},
	{"mechanism too weak", inTransaction, "534", "", providers.Denied, "the mail server wants another auth mechanism"},
	{"encryption wanted", inTransaction, "538", "", providers.Denied, "the mail server wants encryption for this login"},
	{"password must change late", inTransaction, "432", "", providers.Denied, "the mail server wants the password to be changed"},

	{"sender later", []phase{phaseMail}, "4", "", providers.Deferred, "the mail server does not take our sender now"},
	{"too big, announced", []phase{phaseMail}, "552", "", providers.Rejected, "the message is too big for the mail server"},
	{"too big, enhanced", []phase{phaseMail}, "5", "3.4", providers.Rejected, "the message is too big for the mail server"},
	{"too big for the mailbox", []phase{phaseMail}, "5", "2.3", providers.Rejected, "the message is too big for the mail server"},
	{"parameters unknown", []phase{phaseMail}, "555", "", providers.Rejected, "the mail server does not know an extension that the message needs"},
	{"needs SMTPUTF8", []phase{phaseMail}, "5", "6.", providers.Rejected, "the mail server does not take such an address"},
	{"command refused", []phase{phaseMail}, "50", "", providers.Rejected, "the mail server does not understand the command"},
	// The envelope's sender is the route's and the same for all messages: without a person none passes.
	{"sender refused", []phase{phaseMail}, "5", "", providers.Denied, "the mail server refuses our sender; check from and envelope_from"},

	{"mailbox full for good", []phase{phaseRcpt}, "552", "", providers.Deferred, "the recipient's mailbox is full, or there are too many recipients"},
	{"mailbox full", aboutRcpt, "5", "2.2", providers.Deferred, "the recipient's mailbox is full"},
	{"later", aboutRcpt, "4", "", providers.Deferred, "the mail server asks to try again later"},
	{"no such mailbox", aboutRcpt, "5", "1.1", providers.Gone, "there is no such mailbox"},
	{"no such domain", aboutRcpt, "5", "1.2", providers.Gone, "there is no such mail domain"},
	{"bad address", aboutRcpt, "5", "1.3", providers.Gone, "the address is not valid"},
	{"moved", aboutRcpt, "5", "1.6", providers.Gone, "the mailbox has moved"},
	{"null MX", aboutRcpt, "5", "1.10", providers.Gone, "the domain takes no mail"},
	{"mailbox disabled", aboutRcpt, "5", "2.1", providers.Gone, "the mailbox is disabled"},
	{"user not local", []phase{phaseRcpt}, "551", "-", providers.Gone, "there is no such mailbox"},
	{"mailbox name not allowed", []phase{phaseRcpt}, "553", "-", providers.Gone, "the address is not valid"},
	{"domain takes no mail", []phase{phaseRcpt}, "556", "", providers.Gone, "the domain takes no mail"},
	{"policy", aboutRcpt, "5", "7.", providers.Rejected, "refused by the mail server's policy"},
	{"routing", aboutRcpt, "5", "4.", providers.Rejected, "the mail server does not know a way to the recipient"},
	{"too big", aboutRcpt, "5", "3.4", providers.Rejected, "the message is too big for the mail server"},
	{"too big for the recipient", aboutRcpt, "5", "2.3", providers.Rejected, "the message is too big for the recipient"},
	{"too big, no enhanced code", []phase{phaseData, phaseDot}, "552", "-", providers.Rejected, "the message is too big for the mail server"},
	// 550 alone is "mailbox not found, no access, or command rejected for policy reasons" (RFC 5321,
	// 4.2.3): too little to give up an address for.
	{"refused without a reason", aboutRcpt, "550", "-", providers.Rejected, "the mail server refuses the message or the recipient and does not say why"},
	{"refused", aboutRcpt, "5", "", providers.Rejected, "the mail server refuses the message"},

	// Not an answer to what was asked. Nothing was taken before the dot.
	{"odd answer in a transaction", []phase{phaseMail, phaseRcpt, phaseData}, "", "", providers.Deferred, "the mail server gives an odd answer"},
	{"odd answer at the end", []phase{phaseDot}, "", "", providers.Unknown, "the mail server gives an odd answer; it may have taken the message"},
}

func (r *rule) fits(ph phase, code, enhanced string) bool {
	if r.phases != nil {
		found := false
		for _, p := range r.phases {
			found = found || p == ph
		}
		if !found {
			return false
		}
	}
	if !strings.HasPrefix(code, r.code) {
		return false
	}
	switch {
	case r.enhanced == "":
		return true
	case r.enhanced == "-":
		return enhanced == ""
	}
	_, detail, _ := strings.Cut(enhanced, ".")
	if strings.HasSuffix(r.enhanced, ".") {
		return strings.HasPrefix(detail, r.enhanced)
	}
	return detail == r.enhanced
}

// reply is what a server said.
type reply struct {
	code int
	text string
}

// enhancedCode is RFC 3463's class.subject.detail at the start of a reply's text.
var enhancedCode = regexp.MustCompile(`^([245])\.(\d{1,3})\.(\d{1,3})(?:\s|$)`)

// enhanced gives the enhanced code, where the reply has one of its own class.
func (r reply) enhanced() string {
	m := enhancedCode.FindStringSubmatch(r.text)
	if m == nil || m[1] != strconv.Itoa(r.code/100) {
		return ""
	}
	return m[1] + "." + m[2] + "." + m[3]
}

// String is the code as a person knows it, "550 5.1.1". The text is left out: it quotes addresses.
func (r reply) String() string {
	return strings.TrimSpace(fmt.Sprintf("%03d %s", r.code, r.enhanced()))
}

func (r reply) positive() bool { return r.code >= 200 && r.code < 300 }

// queued finds the id under which a server keeps a message, where its words are those of the common
// ones (Postfix, Exim, Sendmail, Exchange).
var queued = regexp.MustCompile(`(?i)(?:queued as|queued with id|id=|message-id:)\s*<?([A-Za-z0-9._@-]{1,100})`)

// classify says what the reply to a command means for the message.
func classify(ph phase, r reply) providers.Result {
	res := providers.Result{Code: r.String()}
	if ph == phaseDot && r.positive() {
		res.Outcome = providers.Accepted
		if m := queued.FindStringSubmatch(r.text); m != nil {
			res.ProviderID = m[1]
		}
		return res
	}
	code, enhanced := strconv.Itoa(r.code), r.enhanced()
	for i := range rules {
		if rules[i].fits(ph, code, enhanced) {
			res.Outcome, res.Reason = rules[i].outcome, fmt.Sprintf("%s (at %s)", rules[i].reason, ph)
			return res
		}
	}
	res.Reason = "the mail server gives an odd answer"
	return res
}
