package client_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core/client"
)

func TestTopics(t *testing.T) {
	t.Parallel()
	c, ctx := serve(t, nil), t.Context()
	for _, id := range []string{"u 1", "u 2"} {
		if err := c.PutTopicRecipient(ctx, "very important", id); err != nil {
			t.Fatal(err)
		}
	}
	one, next, err := c.TopicRecipients(ctx, "very important", client.Page{Limit: 1})
	if err != nil || len(one) != 1 || one[0].Recipient != "u 1" || one[0].Since.IsZero() || next == "" {
		t.Fatalf("first page %+v, next %q, %v", one, next, err)
	}
	two, next, err := c.TopicRecipients(ctx, "very important", client.Page{Cursor: next, Limit: 1})
	if err != nil || len(two) != 1 || two[0].Recipient != "u 2" || next != "" {
		t.Fatalf("second page %+v, next %q, %v", two, next, err)
	}
	if err := c.DeleteTopicRecipient(ctx, "very important", "u 1"); err != nil {
		t.Error(err)
	}
	if err := c.DeleteTopicRecipient(ctx, "very important", "u 1"); !client.IsNotFound(err) {
		t.Errorf("taken out twice: %v", err)
	}
}

func TestPreferences(t *testing.T) {
	t.Parallel()
	c, ctx := serve(t, nil), t.Context()
	want := client.Preferences{"orders": {"email": false}, "*": {"*": true}}
	if err := c.PutPreferences(ctx, "u 1", want); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Preferences(ctx, "u 1"); err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("%v, %v", got, err)
	}
	if err := c.PutPreferences(ctx, "u 1", nil); err != nil {
		t.Error(err)
	}
	if got, err := c.Preferences(ctx, "u 1"); err != nil || len(got) != 0 {
		t.Errorf("cleared: %v, %v", got, err)
	}
}

func TestImportAndExport(t *testing.T) {
	t.Parallel()
	c, ctx := serve(t, nil), t.Context()
	var bad []int
	got, err := c.ImportRecipients(ctx, client.CSV, strings.NewReader("id,email\nu1,ann@example.com\nu2,nobody\nu3,\n"), func(e client.ImportEvent) error {
		if e.Problem != nil {
			bad = append(bad, e.Line)
		}
		return nil
	})
	if err != nil || got.Created != 2 || got.Bad != 1 || cmp.Diff([]int{3}, bad) != "" {
		t.Errorf("%+v, bad lines %v, %v", got, bad, err)
	}
	var p *client.Problem
	if _, err := c.ImportRecipients(ctx, client.CSV, strings.NewReader("name\nAnn\n"), nil); !errors.As(err, &p) {
		t.Errorf("without an id: %v", err)
	}
	var out bytes.Buffer
	if err := c.ExportRecipient(ctx, "u1", &out); err != nil || !strings.Contains(out.String(), `"ann@example.com"`) || !strings.Contains(out.String(), `"messages":[]`) {
		t.Errorf("export %s, %v", out.String(), err)
	}
	if err := c.ExportRecipient(ctx, "u2", &out); !client.IsNotFound(err) {
		t.Errorf("of nobody: %v", err)
	}
}
