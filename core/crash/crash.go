// Package crash names the moments at which the fault tests kill a process: each numbered step of accept,
// claim, send and settle, of a campaign's page and of the relay. At is called where the step is. In a normal
// build it is empty and nothing of it is left; built with the tag crashpoints it kills the process, as kill -9
// does, at the moment that the environment variable CARILLON_CRASH names:
//
//	CARILLON_CRASH=settle.2@3   at the third time that step 2 of a settlement is reached
package crash

// Point is a step's name and number.
type Point string

// The steps of accepting a request (intake.Accept).
const (
	AcceptPlanned   Point = "accept.1" // checked, resolved and rendered; nothing is recorded
	AcceptWritten   Point = "accept.2" // its rows are written, the transaction is not committed
	AcceptCommitted Point = "accept.3" // committed and synced; nobody was woken, nobody has the answer
	AcceptWoken     Point = "accept.4" // the workers are woken; nobody has the answer
)

// The steps of claiming a batch (dispatch.Deliver, store.Claim).
const (
	ClaimTaken     Point = "claim.1" // the wake is out of the queue, the batch is not claimed
	ClaimWritten   Point = "claim.2" // the round is written, the transaction is not committed
	ClaimCommitted Point = "claim.3" // the round is on record; its contents were not read
)

// The steps of sending (dispatch.Deliver).
const (
	SendAdmitted Point = "send.1" // the gate gave leave, the provider was not called
	SendAnswered Point = "send.2" // the service answered the first message; of others that may be under way nothing is known
	SendReturned Point = "send.3" // all that answers has answered, nothing is settled
)

// The steps of settling (dispatch.Deliver, store.Settle).
const (
	SettleJudged    Point = "settle.1" // what becomes of each delivery is decided, and known to this process alone
	SettleWritten   Point = "settle.2" // it is written, the transaction is not committed
	SettleCommitted Point = "settle.3" // committed; what is held was not woken
	SettleWoken     Point = "settle.4" // all is done, but the queue does not know that its task is
)

// The steps of a campaign's page (campaign.Planner, store.Expand).
const (
	ExpandPlanned   Point = "expand.1" // whom the page reaches and what it says is planned, and nothing is recorded
	ExpandWritten   Point = "expand.2" // its rows and how far the campaign is are written, the transaction is not committed
	ExpandCommitted Point = "expand.3" // committed; nobody was woken
)

// The steps of the relay (dispatch.Relay).
const (
	RelayTaken  Point = "relay.1" // due batches are queued under a new fence, their wakes are in no queue
	RelayLapsed Point = "relay.2" // lapsed rounds have a new fence and lease, and are not settled
)

// Points lists all of them, in the order of a notification's way.
var Points = []Point{
	AcceptPlanned, AcceptWritten, AcceptCommitted, AcceptWoken,
	ClaimTaken, ClaimWritten, ClaimCommitted,
	SendAdmitted, SendAnswered, SendReturned,
	SettleJudged, SettleWritten, SettleCommitted, SettleWoken,
	ExpandPlanned, ExpandWritten, ExpandCommitted,
	RelayTaken, RelayLapsed,
}
