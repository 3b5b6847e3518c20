package storetest

import (
	"errors"
	"fmt"
	"strings"
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

// suppressedErased: who is erased while a service calls the address gone is not named by what is remembered of that.
func suppressedErased(t *testing.T, s *store.Store) {
	put(t, s, "u1", "ann@example.com")
	round := claim(t, s, mailTo(t, s, "u1", "ann@example.com"))
	if err := s.DeleteRecipient(t.Context(), "shop", "u1"); err != nil {
		t.Fatal(err)
	}
	settle(t, s, judge(round, func(int) providers.Result { return providers.Result{Outcome: providers.Gone, Code: "550 5.1.1"} }))
	ann := core.AddressOf{App: "shop", Kind: "email", Address: "ann@example.com"}
	if got, err := s.SuppressedAddresses(t.Context(), []core.AddressOf{ann}); err != nil || len(got) != 1 || got[ann].Recipient != "" {
		t.Errorf("%+v, %v", got, err)
	}
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

// suppressedAmongMany: of more addresses than one statement may take exactly those are told that are suppressed, each
// wherever it occurs and however it is spelled, and only in its own app and kind.
func suppressedAmongMany(t *testing.T, s *store.Store) {
	address := func(n int) string { return fmt.Sprintf("u%d@example.com", n) }
	const n = 41
	for _, c := range []struct {
		app, address, code string
	}{{"shop", address(0), "5.1.1"}, {"shop", address(17), "5.1.2"}, {"shop", address(n - 1), "complaint"}, {"other", address(5), "5.1.3"}} {
		round := claim(t, s, wakeOf(record(t, s, ask{n: 1, app: c.app, address: c.address})))
		settle(t, s, judge(round, func(int) providers.Result { return providers.Result{Outcome: providers.Gone, Code: c.code} }))
	}
	acc := build(s, ask{n: n + 4})
	asked := make([]core.AddressOf, 0, 2*len(acc.Deliveries))
	for i := range acc.Deliveries {
		d := &acc.Deliveries[i]
		switch d.Address = address(i); i {
		case n:
			d.Address = "U17@Example.com"
		case n + 1:
			d.Address = address(0)
		case n + 2:
			d.Address, d.Kind = address(0), "sms"
		case n + 3:
			d.Address, d.Channel = address(0), "push"
		}
		for _, app := range []string{"shop", "other"} {
			asked = append(asked, core.AddressOf{App: app, Kind: d.Kind, Address: d.Address})
		}
	}
	if _, err := s.Record(t.Context(), acc); err != nil {
		t.Fatal(err)
	}
	var got []string // in the order of their ids, which is that of the request
	for _, d := range claim(t, s, wakeOf(acc)).Deliveries {
		if d.Suppressed != "" {
			code, _, _ := strings.Cut(d.Suppressed, " since ")
			got = append(got, strings.Join([]string{code, d.Channel, d.Kind, d.Address}, " "))
		}
	}
	want := []string{"5.1.1 email email u0@example.com", "5.1.2 email email u17@example.com", "complaint email email u40@example.com",
		"5.1.2 email email U17@Example.com", "5.1.1 email email u0@example.com"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("told at the claim: %s", diff)
	}
	found, err := s.SuppressedAddresses(t.Context(), asked)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[core.AddressOf]string{}
	for of, x := range found {
		codes[of] = x.Code
	}
	if diff := cmp.Diff(map[core.AddressOf]string{
		{App: "shop", Kind: "email", Address: "u0@example.com"}: "5.1.1", {App: "shop", Kind: "email", Address: "u17@example.com"}: "5.1.2",
		{App: "shop", Kind: "email", Address: "U17@Example.com"}: "5.1.2", {App: "shop", Kind: "email", Address: "u40@example.com"}: "complaint",
		{App: "other", Kind: "email", Address: "u5@example.com"}: "5.1.3",
	}, codes); diff != "" {
		t.Errorf("asked for: %s", diff)
	}
}
