package sandbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// mailer sends mails with the ids that it is called with, quickly.
func mailer(t testing.TB, s *sandbox.Sandbox) func(ids ...string) {
	t.Helper()
	m := dialPlain(t, s)
	check(t, m.exchange("EHLO me\r\n", "250"))
	return func(ids ...string) {
		for _, id := range ids {
			check(t, m.exchange(mailFrom+rcptTo+"DATA\r\n", "250", "250", "354"), m.exchange(string(mailText(id))+".\r\n", "250"))
		}
	}
}

func ids(messages []sandbox.Message) string {
	var all []string
	for _, m := range messages {
		all = append(all, m.ID)
	}
	return strings.Join(all, " ")
}

func TestLedger(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		capacity int
		all      string
	}{{0, "a b c a d"}, {-1, "a b c a d"}, {3, "c a d"}, {1, "d"}} {
		t.Run(fmt.Sprintf("capacity %d", tc.capacity), func(t *testing.T) {
			t.Parallel()
			s := start(t, sandbox.Options{OpenRelay: true, Capacity: tc.capacity})
			mailer(t, s)("a", "b", "c", "a", "d")
			if diff := cmp.Diff(tc.all, ids(s.Messages(sandbox.Filter{}))); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(map[string]int{"a": 2, "b": 1, "c": 1, "d": 1}, s.IDs(sandbox.SMTP)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(map[string]int{"a": 2}, s.Duplicates(sandbox.SMTP)); diff != "" {
				t.Error(diff)
			}
			if a, x := s.Taken(sandbox.SMTP, "a"), s.Taken(sandbox.SMTP, "x"); a != 2 || x != 0 {
				t.Errorf("taken: a %d times, x %d times", a, x)
			}
			if n, other := s.Connections(sandbox.SMTP), s.Connections(sandbox.APNs); n != 1 || other != 0 {
				t.Errorf("%d connections to SMTP, %d to APNs", n, other)
			}
			want := sandbox.Counts{Requests: 5, Taken: 5, Distinct: 4, Duplicates: 1, Conns: 1, Answers: map[string]uint64{"250": 5}}
			if diff := cmp.Diff(want, s.Counts(sandbox.SMTP)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{OpenRelay: true, Capacity: 400})
	var sent []string
	for i := range 600 {
		sent = append(sent, fmt.Sprint(i))
	}
	mailer(t, s)(sent...)
	all := s.Messages(sandbox.Filter{})
	if diff := cmp.Diff(strings.Join(sent[200:], " "), ids(all)); diff != "" {
		t.Fatal(diff)
	}
	for _, tc := range []struct {
		filter sandbox.Filter
		want   string
	}{
		{sandbox.Filter{Limit: 2}, "598 599"},
		{sandbox.Filter{ID: "300"}, "300"},
		{sandbox.Filter{ID: "100"}, ""},
		{sandbox.Filter{Service: sandbox.FCM}, ""},
		{sandbox.Filter{Address: "ann@example.com", Limit: 1}, "599"},
		{sandbox.Filter{Address: "bob@example.com"}, ""},
		{sandbox.Filter{After: all[397].Seq}, "598 599"},
		{sandbox.Filter{Before: all[2].Seq}, "200 201"},
		{sandbox.Filter{After: all[10].Seq, Before: all[14].Seq, Limit: 2}, "212 213"},
	} {
		if diff := cmp.Diff(tc.want, ids(s.Messages(tc.filter))); diff != "" {
			t.Errorf("%+v: %s", tc.filter, diff)
		}
	}
	s.Reset()
	if got := s.Messages(sandbox.Filter{}); len(got) != 0 || len(s.IDs(sandbox.SMTP)) != 0 || s.Counts(sandbox.SMTP).Requests != 0 {
		t.Errorf("after Reset: %+v, %+v", got, s.Counts(sandbox.SMTP))
	}
	mailer(t, s)("new")
	if got := s.Messages(sandbox.Filter{}); ids(got) != "new" || got[0].Seq <= all[399].Seq || got[0].Copy != 1 {
		t.Errorf("after Reset: %+v", got)
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{OpenRelay: true})
	var wg sync.WaitGroup
	for _, n := range []int{0, 1, 3, 3} {
		wg.Go(func() {
			if err := s.Wait(t.Context(), sandbox.SMTP, n); err != nil {
				t.Error(err)
			}
			if got := s.Messages(sandbox.Filter{}); len(got) < n {
				t.Errorf("woken for %d messages, %d are there", n, len(got))
			}
		})
	}
	mailer(t, s)("a", "a", "b", "c")
	wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Wait(ctx, sandbox.SMTP, 4); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "3 came") {
		t.Errorf("waiting for more: %v", err)
	}
	if err := s.Wait(ctx, "pigeon", 4); err == nil {
		t.Error("waiting for an unknown service succeeds")
	}
}

func TestSubscribe(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{OpenRelay: true})
	mails, cancel := s.Subscribe(sandbox.SMTP, 2)
	pushes, cancelPushes := s.Subscribe(sandbox.APNs, 2)
	defer cancelPushes()
	send := mailer(t, s)
	send("a", "b", "c") // c finds no room
	if a, b := <-mails, <-mails; a.ID != "a" || b.ID != "b" || a.Title != "Grüße" {
		t.Errorf("heard %+v and %+v", a, b)
	}
	send("d")
	if d := <-mails; d.ID != "d" {
		t.Errorf("heard %+v", d)
	}
	cancel()
	cancel()
	send("e")
	select {
	case m := <-mails:
		t.Errorf("heard %+v after cancel", m)
	case m := <-pushes:
		t.Errorf("heard %+v as a push", m)
	default:
	}
}

// TestRestart starts again in the same directory: clients go on with the files and addresses they have.
func TestRestart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	first, err := sandbox.Start(sandbox.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	urls := [3]string{first.APNsURL(), first.FCMURL(), first.SMTPAddr()}
	files := func(s *sandbox.Sandbox) (all []byte) {
		for _, name := range []string{s.CAFile(), s.KeyFile(), s.ClientCertFile(), s.ServiceAccountFile()} {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, data...)
		}
		return all
	}
	before, token := files(first), providerToken(t, first, nil)
	access, err := tokenSource(t, first).Token()
	if err != nil {
		t.Fatal(err)
	}
	try := func(s *sandbox.Sandbox, client *http.Client) { // a client that trusts what it did before
		if a, err := do(t, client, pushRequest(t.Context(), t, s, token)); err != nil || a.Status != 200 {
			t.Errorf("answered %+v, %v", a, err)
		}
		r := sendRequest(t, s, fcmBody(t, "abc", "d"))
		access.SetAuthHeader(r)
		if a, err := do(t, client, r); err != nil || a.Status != 200 {
			t.Errorf("answered %+v, %v", a, err)
		}
	}
	try(first, h2(t, first))
	later := h2(t, first)
	check(t, first.Close(), first.Close())
	if conn, err := net.Dial("tcp", first.SMTPAddr()); err == nil {
		t.Errorf("%v still listens", conn.RemoteAddr())
	}
	second := start(t, sandbox.Options{Dir: dir})
	if diff := cmp.Diff(urls, [3]string{second.APNsURL(), second.FCMURL(), second.SMTPAddr()}); diff != "" {
		t.Fatal(diff)
	}
	if !bytes.Equal(before, files(second)) {
		t.Error("the files are others")
	}
	try(second, later)
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close() //nolint:errcheck // at its end
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))
	broken := t.TempDir()
	check(t, os.WriteFile(filepath.Join(broken, "AuthKey.p8"), []byte("no key"), 0o600))
	for name, tc := range map[string]struct {
		o    sandbox.Options
		want string
	}{
		"no directory":  {sandbox.Options{}, "Dir"},
		"a file":        {sandbox.Options{Dir: file}, "make directory"},
		"a broken key":  {sandbox.Options{Dir: broken}, "AuthKey.p8"},
		"a taken port":  {sandbox.Options{Dir: t.TempDir(), FCM: taken.Addr().String()}, "listen for fcm"},
		"a bad address": {sandbox.Options{Dir: t.TempDir(), SMTP: "nowhere"}, "listen for smtp"},
	} {
		s, err := sandbox.Start(tc.o)
		if err == nil {
			s.Close() //nolint:errcheck // it should not be there
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	for kind, want := range map[string]map[string]string{
		"apns": {"endpoint": s.APNsURL(), "topic": sandbox.Topic, "key_file": s.KeyFile(), "key_id": sandbox.KeyID,
			"team_id": sandbox.TeamID, "ca_file": s.CAFile()},
		"fcm": {"credentials_file": s.ServiceAccountFile(), "endpoint": s.FCMURL(), "ca_file": s.CAFile()},
		"email": {"addr": s.SMTPAddr(), "tls": "starttls", "username": sandbox.Username, "password": sandbox.Password,
			"from": "Carillon Sandbox <" + sandbox.From + ">", "ca_file": s.CAFile()},
	} {
		raw, ok := s.Settings(kind)
		var got map[string]string
		check(t, json.Unmarshal(raw, &got))
		if diff := cmp.Diff(want, got); diff != "" || !ok {
			t.Errorf("%s: %s", kind, diff)
		}
	}
	if raw, ok := s.Settings("websocket"); ok || raw != nil {
		t.Errorf("websocket: %s", raw)
	}
}
