package core

import "time"

// Audience says whom of an app a notification to a topic or a campaign is for, as of a moment. Of its
// selectors one is set; with none of them it is every recipient of the app.
type Audience struct {
	App string
	// Topic selects the recipients of a topic.
	Topic string
	// Topics selects those of several, each once.
	Topics []string
	// Except leaves out some ids besides.
	Except []string
	// Recipients selects by id. An id given twice counts once; one that is nobody's is told as Unknown.
	Recipients []string
	// Until is the moment at which the audience is bounded: recipients created later, or put into the
	// topic later, do not belong to it. Those erased or taken out before their page is read do not either.
	Until time.Time
	// Zones selects those in some time zones besides, "" for those who have none; nil selects all.
	Zones []string
	// Since selects those whose time zone changed after it besides; zero selects all.
	Since time.Time
	// Bare reads them without endpoints.
	Bare bool
}

// AudiencePage is a part of an audience in the order of the recipients' ids.
type AudiencePage struct {
	Recipients []Recipient // whole, with endpoints and preferences
	Unknown    []string    // ids of Audience.Recipients that are nobody's
	Next       string      // the cursor of the next page; "" at the end
}
