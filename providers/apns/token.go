package apns

import (
	"fmt"
	"sync"
	"time"

	"github.com/sideshow/apns2/token"
)

// bearer is the provider token that all connections share. apns2 renews a token by its own clock and
// sends an empty one when that fails; here a failure is an error, and a token that APNs finds too old
// (the clock was set back) is renewed once for all who hear of it.
type bearer struct {
	token *token.Token // nil with a certificate

	mu     sync.Mutex
	number int       // of tokens made
	made   time.Time // the last one; zero: none
}

// ready sees to it that there is a token and says which one.
func (b *bearer) ready() (int, error) {
	if b.token == nil {
		return 0, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.token.Lock()
	expired := b.token.Expired()
	b.token.Unlock()
	if !expired {
		return b.number, nil
	}
	return b.number, b.makeLocked()
}

// renew replaces the token that APNs found too old, unless somebody did so already. It says whether
// there is another one to try with: APNs answers TooManyProviderTokenUpdates to those who come more
// often than every 20 minutes ("Establishing a token-based connection to APNs").
func (b *bearer) renew(number int) (bool, error) {
	if b.token == nil {
		return false, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.number != number {
		return true, nil
	}
	if time.Since(b.made) < tokenPause {
		return false, nil
	}
	err := b.makeLocked()
	return err == nil, err
}

// keep puts the next renewal off by the pause.
func (b *bearer) keep() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.made = time.Now()
}

func (b *bearer) makeLocked() error {
	b.token.Lock()
	defer b.token.Unlock()
	if _, err := b.token.Generate(); err != nil {
		return fmt.Errorf("sign a provider token: %w", err)
	}
	b.made = time.Now()
	b.number++
	return nil
}
