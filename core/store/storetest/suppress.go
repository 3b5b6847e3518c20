package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// mailTo records one mail to an address and returns its wake.
func mailTo(t *testing.T, s *store.Store, recipient, address string) core.Wake {
	t.Helper()
	return wakeOf(record(t, s, ask{n: 1, recipient: recipient, address: address}))
}

// suppressed reports why the one delivery of a wake's round is suppressed.
func suppressed(t *testing.T, s *store.Store, w core.Wake) string {
	t.Helper()
	r := claim(t, s, w)
	if len(r.Deliveries) != 1 {
		t.Fatalf("%d deliveries", len(r.Deliveries))
	}
	return r.Deliveries[0].Suppressed
}

// suppressions: an address that its service calls gone, or that bounces for good, is told at the next claim until
// it is lifted; its endpoint stays; of a device's token nothing is kept.
func suppressions(t *testing.T, s *store.Store) {
	x := put(t, s, "u1", "Ann@example.com", "b@example.com")
	waiting := mailTo(t, s, "u1", "ann@EXAMPLE.com") // accepted before
	answer := func(address string, r providers.Result, since time.Time) (id string) {
		t.Helper()
		round := claim(t, s, mailTo(t, s, "u1", address))
		r.Since = since
		settle(t, s, judge(round, func(int) providers.Result { return r }))
		return round.Deliveries[0].ID.String()
	}
	answer("Ann@example.com", providers.Result{Outcome: providers.Gone, Code: "550 5.1.1"}, x.Endpoints[0].RegisteredAt.Add(-time.Hour))
	if why := suppressed(t, s, mailTo(t, s, "", "Ann@example.com")); why != "" {
		t.Errorf("registered since, and yet suppressed: %s", why)
	}
	answer("Ann@example.com", providers.Result{Outcome: providers.Gone, Code: "550 5.1.1"}, time.Time{})
	today := s.Now().UTC().Format(time.DateOnly)
	for _, w := range []core.Wake{waiting, mailTo(t, s, "", "Ann@example.com")} {
		if why := suppressed(t, s, w); why != "550 5.1.1 since "+today {
			t.Errorf("suppressed: %q", why)
		}
	}
	if diff := cmp.Diff([]string{"Ann@example.com", "b@example.com"}, addresses(t, s, "u1")); diff != "" {
		t.Errorf("its endpoints: %s", diff)
	}
	for _, code := range []string{"4.2.2", "5.2.2", "5.7.1", "451"} {
		id := answer("b@example.com", providers.Result{Outcome: providers.Accepted}, time.Time{})
		if found, err := s.Receipt(t.Context(), "mail", providers.Receipt{ID: id, Event: providers.EventBounced, Code: code}); !found || err != nil {
			t.Fatal(found, err)
		}
		if why := suppressed(t, s, mailTo(t, s, "u1", "b@example.com")); why != "" {
			t.Errorf("%s speaks against the address: %s", code, why)
		}
	}
	id := answer("b@example.com", providers.Result{Outcome: providers.Accepted}, time.Time{})
	if _, err := s.Receipt(t.Context(), "mail", providers.Receipt{ID: id, Event: providers.EventBounced, Code: "complaint"}); err != nil {
		t.Fatal(err)
	}
	if why := suppressed(t, s, mailTo(t, s, "u1", "b@example.com")); why != "complaint since "+today {
		t.Errorf("after a complaint: %q", why)
	}
	listAndLift(t, s)
}

func listAndLift(t *testing.T, s *store.Store) {
	t.Helper()
	codes := map[string]string{}
	for page := (core.Page{Limit: 1}); ; {
		some, next, err := s.Suppressions(t.Context(), "shop", page)
		if err != nil || len(some) != 1 {
			t.Fatal(some, err)
		}
		if codes[some[0].Code] = some[0].Recipient; next == "" {
			break
		}
		page.Cursor = next
	}
	if diff := cmp.Diff(map[string]string{"550 5.1.1": "u1", "complaint": "u1"}, codes); diff != "" {
		t.Errorf("the list: %s", diff)
	}
	ann := core.AddressOf{App: "shop", Kind: "email", Address: "ann@example.com"}
	if got, err := s.SuppressedAddresses(t.Context(), []core.AddressOf{ann, {App: "other", Kind: "email", Address: "ann@example.com"}}); err != nil || len(got) != 1 || got[ann].Code != "550 5.1.1" {
		t.Errorf("asked for: %v %v", got, err)
	}
	if err := s.DeleteRecipient(t.Context(), "shop", "u1"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.SuppressedAddresses(t.Context(), []core.AddressOf{ann}); err != nil || len(got) != 1 || got[ann].Recipient != "" {
		t.Errorf("after the person was erased: %v %v", got, err)
	}
	if err := s.LiftSuppression(t.Context(), ann); err != nil {
		t.Fatal(err)
	}
	if err := s.LiftSuppression(t.Context(), ann); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("lifted twice: %v", err)
	}
	if why := suppressed(t, s, mailTo(t, s, "", "Ann@example.com")); why != "" {
		t.Errorf("lifted, and yet suppressed: %s", why)
	}
}
