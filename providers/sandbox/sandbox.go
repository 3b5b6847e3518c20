// Package sandbox plays the services that Carillon delivers to, over their real wire protocols: APNs
// (HTTP/2 over TLS), FCM v1 with its OAuth token endpoint (HTTP/2 over TLS), and an SMTP server
// (ESMTP with PIPELINING, STARTTLS, AUTH). Faults are scripted, and a ledger holds what arrived. The
// first run delivers to it, tests and benchmarks measure against it.
package sandbox

import "time"

// Service names one of the services played.
type Service string

// The services.
const (
	APNs Service = "apns"
	FCM  Service = "fcm"
	SMTP Service = "smtp"
)

// Options says where and how a Sandbox runs. The zero value listens on free loopback ports.
type Options struct {
	// Dir receives the files a client needs: ca.pem, AuthKey.p8, client.pem (certificate and key for
	// APNs certificate auth) and service-account.json. Required; made if it does not exist (0700).
	// Files found there are used again, so that addresses and keys survive a restart where possible.
	Dir string
	// APNs, FCM and SMTP are the addresses to listen on; "" is 127.0.0.1:0.
	APNs, FCM, SMTP string
	// Capacity bounds how many messages the ledger remembers with their content, the oldest forgotten
	// first; ids and duplicate counts are kept for all. 0 is 10,000, negative remembers all.
	Capacity int
	// Seed makes the faults of a Script repeatable; 0 takes a random one (see Sandbox.Seed).
	Seed uint64
	// Hosts are further DNS names and IP addresses that the servers' certificates are valid for;
	// localhost, 127.0.0.1 and ::1 always are.
	Hosts []string
	// OpenRelay lets SMTP clients send without STARTTLS and AUTH. Otherwise both are demanded, as a
	// submission server does (RFC 6409, section 4.3).
	OpenRelay bool
	// Home is the page that the sandbox's pages link back to, "" for none.
	Home string
}

// Script is the faults of one service, looked at for each message. Rates are 0 to 1. In this order: a
// message may be dropped before it is read (DropBefore), it is checked as the real service would check
// it, its address may be dead, it may meet one of Errors; else it is taken and answered, or met by Stall
// or DropAfter. The fate of the n-th message since the script was set follows from the sandbox's seed
// and n alone.
type Script struct {
	Latency, Jitter time.Duration // before each answer: Latency + rand(Jitter)
	// Errors is the mix of error answers by code: "BadDeviceToken", "503", "UNREGISTERED",
	// "451 4.7.1 greylisted". Their sum must not pass 1.
	//
	// APNs takes Apple's reasons and bare HTTP statuses, FCM the names of FcmError, google.rpc.Code and
	// bare statuses; 502 and 504 have an HTML body, as a gateway's do. SMTP takes reply lines of 4xx and
	// 5xx: 421 is given at MAIL and closes the connection, others at RCPT; the prefixes "mail:", "rcpt:"
	// and "data:" (after the final dot) say otherwise.
	Errors map[string]float64
	// RetryAfter goes with 429 and 503 answers as Retry-After, in whole seconds; 0 sends none.
	RetryAfter time.Duration
	// DropBefore and DropAfter close the connection before the message is taken, or after it was taken
	// and recorded but before the answer.
	DropBefore, DropAfter float64
	// Stall leaves a message that was taken without any answer until its client gives up.
	Stall float64
	// TakenAnyway is the share of Errors where the message is taken all the same (Firebase's 503). Over
	// SMTP it concerns errors after the final dot alone: before it there is no message to take.
	TakenAnyway float64
	// GoAwayEvery makes APNs and FCM send GOAWAY on a connection after that many requests, and SMTP
	// answer 421 to the MAIL after that many messages; 0 never.
	GoAwayEvery int
	// MaxStreams is the MAX_CONCURRENT_STREAMS announced to new connections; 0 is 1000.
	MaxStreams uint32
	// DeadAddress reports whether an address is dead for ever (410 Unregistered, UNREGISTERED, 550
	// 5.1.1). Nil: addresses that begin with "dead" (for a hexadecimal token too) are dead.
	DeadAddress func(address string) bool
	// GoneSince is the timestamp of APNs's 410 answers; the zero time is the time of the answer.
	GoneSince time.Time
}

// Message is one message that arrived and was taken, as the ledger keeps it.
type Message struct {
	Seq     uint64            `json:"seq"`
	Service Service           `json:"service"`
	ID      string            `json:"id"` // the delivery's id: apns-id, data.delivery_id, left part of Message-ID
	Address string            `json:"address"`
	At      time.Time         `json:"at"`
	Headers map[string]string `json:"headers,omitempty"` // apns-*; the mail's own header
	Title   string            `json:"title,omitempty"`
	Content string            `json:"content"` // the payload, or the mail as it came over the wire
	// Answered says what the client was told: "200", an error's code (TakenAnyway), or "" when the
	// connection was dropped or stalled after the message was taken.
	Answered string `json:"answered"`
	// Copy is 1 the first time an id arrives, 2 the second...
	Copy int `json:"copy"`
}

// Counts are a service's figures since its start or the last Reset.
type Counts struct {
	Requests   uint64            `json:"requests"`   // messages offered, with every attempt
	Taken      uint64            `json:"taken"`      // of them taken (duplicates too)
	Distinct   uint64            `json:"distinct"`   // different ids taken
	Duplicates uint64            `json:"duplicates"` // Taken - Distinct
	Conns      uint64            `json:"conns"`      // connections opened
	Answers    map[string]uint64 `json:"answers"`    // by code
}
