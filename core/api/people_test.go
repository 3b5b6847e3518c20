package api_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core/api"
)

func TestTopics(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, id := range []string{"u2", "u1", "u%2B3"} {
		r.must(204, "PUT", "/v1/topics/vip/recipients/"+id, sendKey, "")
	}
	r.must(204, "PUT", "/v1/topics/vip/recipients/u1", sendKey, "")
	var first, second api.TopicRecipientList
	r.must(200, "GET", "/v1/topics/vip/recipients?limit=2", readKey, "").into(t, &first)
	r.must(200, "GET", "/v1/topics/vip/recipients?limit=2&cursor="+"u1", readKey, "").into(t, &second)
	got := []string{}
	for _, x := range append(first.Data, second.Data...) {
		got = append(got, x.Recipient)
	}
	if diff := cmp.Diff([]string{"u+3", "u1", "u2"}, got); diff != "" || first.NextCursor != "u1" || second.NextCursor != "" {
		t.Errorf("%s, next %q and %q", diff, first.NextCursor, second.NextCursor)
	}
	r.must(204, "DELETE", "/v1/topics/vip/recipients/u2", sendKey, "")
	r.must(404, "DELETE", "/v1/topics/vip/recipients/u2", sendKey, "")
	r.must(403, "PUT", "/v1/topics/vip/recipients/u2", readKey, "")
	r.must(200, "GET", "/v1/recipients/u1", readKey, "") // it was created
	var others api.TopicRecipientList
	r.must(200, "GET", "/v1/topics/vip/recipients", otherKey, "").into(t, &others)
	if len(others.Data) != 0 {
		t.Errorf("another app sees %+v", others.Data)
	}
	r.must(422, "PUT", "/v1/topics/a%0Ab/recipients/u1", sendKey, "")
	r.must(422, "PUT", "/v1/topics/vip/recipients/a%2Fb", sendKey, "")
}
