package core

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"time"
)

// ID identifies a notification, a delivery, a batch or a page: a UUID of version 7 (RFC 9562 section
// 5.7), so that ids made later sort later and new rows land at the end of an index.
type ID [16]byte

// ErrBadID is returned for a text that is not a UUID.
var ErrBadID = errors.New("an id is a UUID such as 0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000")

// NewID returns a new id of the given time.
func NewID(at time.Time) ID {
	var one [1]ID
	fillIDs(at, one[:])
	return one[0]
}

// NewIDs returns n new ids of the given time, each sorting after the one before it.
func NewIDs(at time.Time, n int) []ID {
	ids := make([]ID, n)
	fillIDs(at, ids)
	return ids
}

func fillIDs(at time.Time, ids []ID) {
	var seed [10]byte
	rand.Read(seed[:]) // never fails: crypto/rand aborts the process instead
	// 74 random bits; counting on from them keeps the ids of one call in order. The top bit of the
	// upper part stays clear, so that counting never overflows into the version.
	hi := binary.BigEndian.Uint16(seed[:2]) & 0x07ff
	lo := binary.BigEndian.Uint64(seed[2:]) >> 2
	ms := uint64(at.UnixMilli())
	for i := range ids {
		binary.BigEndian.PutUint64(ids[i][:8], ms<<16|0x7000|uint64(hi))
		binary.BigEndian.PutUint64(ids[i][8:], 1<<63|lo)
		if lo++; lo == 1<<62 {
			lo, hi = 0, hi+1
		}
	}
}

// Derived returns the n-th id that follows from id under a fence, of the given time. The same is made of
// the same: a batch that is split under its fence splits into the same ones, whoever works it out.
func (id ID) Derived(at time.Time, fence int64, n int) ID {
	var from [32]byte
	copy(from[:16], id[:])
	binary.BigEndian.PutUint64(from[16:24], uint64(fence))
	binary.BigEndian.PutUint64(from[24:], uint64(n))
	sum := sha256.Sum256(from[:])
	out := ID(sum[:16])
	binary.BigEndian.PutUint64(out[:8], uint64(at.UnixMilli())<<16|0x7000|uint64(binary.BigEndian.Uint16(sum[6:8])&0x0fff))
	out[8] = out[8]&0x3f | 0x80
	return out
}

// Jitter returns a number in [0,1) for the n-th attempt at what the id names: as good as random from id
// to id and from attempt to attempt, and the same whoever works it out.
func (id ID) Jitter(n int) float64 {
	// The finalizer of SplitMix64: ids of one request differ in few bits.
	x := binary.BigEndian.Uint64(id[8:]) + uint64(n+1)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return float64(x>>11) / (1 << 53)
}

// ParseID reads an id from its text form.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return ID{}, ErrBadID
	}
	b := make([]byte, 0, 32)
	b = append(append(append(append(append(b, s[:8]...), s[9:13]...), s[14:18]...), s[19:23]...), s[24:]...)
	if _, err := hex.Decode(id[:], b); err != nil {
		return ID{}, ErrBadID
	}
	return id, nil
}

// String returns the id in its text form.
func (id ID) String() string {
	var b [36]byte
	hex.Encode(b[:8], id[:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:], id[10:])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// IsZero reports whether the id is unset.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}
