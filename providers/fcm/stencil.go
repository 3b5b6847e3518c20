package fcm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"firebase.google.com/go/v4/messaging"

	"github.com/carillon-notify/carillon/providers"
)

// worthStencil is how many messages have to be alike for a stencil to cost less than it saves.
const worthStencil = 3

// The marks stand where a stencil has gaps. Content in which one stands as well makes no stencil.
const (
	tokenMark = "~token.3b9f4be2c1a84b0c9d5e~"
	idMark    = "~delivery.7e0d55a3f6124c61b8aa~"
)

// stencil is the request that the library makes of a message, with gaps for what each of many alike has of
// its own: its token and its delivery's id. The library encodes a message through five levels of
// json.Marshaler, each of which is read again by the one around it; that took a third of a delivery's CPU.
type stencil struct {
	parts      [3][]byte
	tokenFirst bool // of the two gaps
}

// stencils gives each message of a batch the stencil of those like it, nil where that is not worth it.
func stencils(batch []providers.Message, now time.Time) []*stencil {
	all := make([]*stencil, len(batch))
	for from := 0; from < len(batch); {
		to := from + 1
		for to < len(batch) && alike(&batch[from], &batch[to]) {
			to++
		}
		if to-from >= worthStencil {
			if s, err := cut(batch[from], now); err == nil { // else each says for itself what is wrong with it
				for i := from; i < to; i++ {
					all[i] = s
				}
			}
		}
		from = to
	}
	return all
}

// alike says whether two messages differ in nothing that build looks at but address and id.
func alike(a, b *providers.Message) bool {
	return a.Title == b.Title && a.Body == b.Body && a.URL == b.URL && a.CollapseKey == b.CollapseKey && a.Priority == b.Priority && a.Test == b.Test &&
		a.ExpiresAt.Equal(b.ExpiresAt) && bytes.Equal(a.Data, b.Data) && bytes.Equal(a.Content, b.Content)
}

// cut makes a stencil of a message.
func cut(m providers.Message, now time.Time) (*stencil, error) {
	m.Address, m.ID = tokenMark, idMark
	msg, err := build(&m, now)
	if err != nil {
		return nil, err
	}
	sheet, err := write(msg, m.Test)
	if err != nil {
		return nil, err
	}
	token, id := bytes.Index(sheet, []byte(tokenMark)), bytes.Index(sheet, []byte(idMark))
	if token < 0 || id < 0 || token != bytes.LastIndex(sheet, []byte(tokenMark)) || id != bytes.LastIndex(sheet, []byte(idMark)) {
		return nil, errors.New("token and id do not stand in the message once each")
	}
	if token < id {
		return &stencil{[3][]byte{sheet[:token], sheet[token+len(tokenMark) : id], sheet[id+len(idMark):]}, true}, nil
	}
	return &stencil{[3][]byte{sheet[:id], sheet[id+len(idMark) : token], sheet[token+len(tokenMark):]}, false}, nil
}

// fill gives what the library is to send for m, and with a stencil what goes out in place of what it makes
// of that.
func (s *stencil) fill(m *providers.Message, now time.Time) (msg *messaging.Message, payload []byte, err error) {
	if s == nil {
		msg, err = build(m, now)
		return msg, nil, err
	}
	gaps := [2]string{m.ID, m.Address}
	if s.tokenFirst {
		gaps[0], gaps[1] = gaps[1], gaps[0]
	}
	payload = make([]byte, 0, len(s.parts[0])+len(s.parts[1])+len(s.parts[2])+len(gaps[0])+len(gaps[1])+16)
	for i, gap := range gaps {
		text, err := json.Marshal(gap)
		if err != nil {
			return nil, nil, fmt.Errorf("encode a token: %w", err)
		}
		payload = append(append(payload, s.parts[i]...), text[1:len(text)-1]...)
	}
	return &messaging.Message{Token: m.Address}, append(payload, s.parts[2]...), nil
}

// write gives the request that the library would send.
func write(msg *messaging.Message, dryRun bool) ([]byte, error) {
	sdk, err := dry()
	if err != nil {
		return nil, fmt.Errorf("make the FCM client: %w", err)
	}
	var sheet []byte
	if err := call(context.WithValue(context.Background(), sheetKey{}, &sheet), sdk, msg, dryRun); err != nil {
		return nil, fmt.Errorf("the FCM library refuses the message: %w", err)
	}
	return sheet, nil
}
