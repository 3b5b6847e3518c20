package api

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
