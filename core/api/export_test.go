package api

import "github.com/carillon-notify/carillon/core/intake"

// Operations are the routes and their scopes, for the test that holds them against the document.
var Operations = func() map[string]string {
	out := map[string]string{}
	for pattern, who := range operations {
		out[pattern] = who.scope
	}
	return out
}()

// Decode is decode into a notification, for the fuzzer.
func Decode(body []byte) (NotificationRequest, int, error) {
	var n NotificationRequest
	faults, err := decode(body, &n)
	return n, len(faults), err
}

// AppendAccepted is the answer to a notification, as it is written.
var AppendAccepted = appendAccepted

// ReadContent reads the content of a notification in one go, and member by member.
func ReadContent(raw []byte) (plain *intake.Content, ok bool, careful *intake.Content, faults []intake.Fault) {
	plain, ok = plainContent(raw)
	careful = carefulContent(raw, func(pointer, code, detail string) {
		faults = append(faults, intake.Fault{Pointer: pointer, Code: code, Detail: detail})
	})
	return plain, ok, careful, faults
}
