package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// sweepCampaigns is how many campaigns one transaction of SweepCampaigns removes at most. Each may list
// core.MaxListed recipients.
const sweepCampaigns = 50

// SweepCampaigns removes campaigns that have been over for as long as keep and of which nothing else is left:
// neither pages, which go as the notifications that they are, nor occurrences. With keep 0 it removes none. A
// call removes a bounded number in one short transaction, which is conditional on the lease, and begins after
// an id. more says that there may be others behind next. The error is core.ErrLeaseLost if the lease is another's.
func (s *Store) SweepCampaigns(ctx context.Context, l core.Lease, keep time.Duration, after core.ID) (removed int, next core.ID, more bool, err error) {
	if keep == 0 {
		return 0, after, false, nil
	}
	horizon := s.Now().Add(-keep)
	var gone [][]byte
	seen := 0
	next = after
	err = s.read(ctx, "look for old campaigns", `SELECT c.id, c.live FROM campaigns c WHERE c.id > $1 AND c.id < $2 AND c.state >= 5 AND c.target IS NULL
		AND NOT EXISTS (SELECT 1 FROM campaign_pages p WHERE p.campaign = c.id)
		AND NOT EXISTS (SELECT 1 FROM campaigns o WHERE o.parent = c.id AND o.parent IS NOT NULL) ORDER BY c.id LIMIT $3`, func(r row) error {
		var live core.CampaignLive
		var text []byte
		if err := r.Scan(key{&next}, &text); err != nil {
			return err
		}
		if err := json.Unmarshal(text, &live); err != nil {
			return fmt.Errorf("decode campaign %s: %w", next, err)
		}
		if seen++; live.EndedAt.Before(horizon) {
			id := next
			gone = append(gone, id[:])
		}
		return nil
	}, after[:], oldest(horizon), int64(sweepCampaigns))
	if err != nil || len(gone) == 0 {
		return 0, next, seen == sweepCampaigns, err
	}
	err = s.b.update(ctx, func(t tx) error {
		if err := holding(ctx, t, l); err != nil {
			return err
		}
		return t.execIDs(ctx, "DELETE FROM campaigns WHERE id {ids} AND state >= 5", gone) // what is over stays so
	})
	return len(gone), next, seen == sweepCampaigns, s.fail("sweep campaigns", err)
}
