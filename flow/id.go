package flow

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"time"
)

// ID identifies a flow or a connection: a UUID version 7 (RFC 9562, section 5.7), so that IDs sort
// by time of creation. The zero ID means "none".
type ID [16]byte

// NewID returns a fresh ID for something that began at now. Safe for concurrent use.
func NewID(now time.Time) ID {
	var id ID
	rand.Read(id[6:]) // never fails: crypto/rand aborts the program instead
	ms := uint64(now.UnixMilli())
	binary.BigEndian.PutUint16(id[0:], uint16(ms>>32))
	binary.BigEndian.PutUint32(id[2:], uint32(ms))
	// The 12 bits below the milliseconds carry its fraction (section 6.2, method 3): bursts stay ordered.
	frac := uint16(now.Nanosecond() % 1e6 * 4096 / 1e6)
	id[6], id[7] = 0x70|byte(frac>>8), byte(frac)
	id[8] = 0x80 | id[8]&0x3f
	return id
}

// String returns the canonical form, 36 characters.
func (id ID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	b[8] = '-'
	hex.Encode(b[9:13], id[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], id[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], id[8:10])
	b[23] = '-'
	hex.Encode(b[24:36], id[10:16])
	return string(b[:])
}

// IsZero reports whether the ID is "none".
func (id ID) IsZero() bool { return id == ID{} }

var errID = errors.New("flow: an ID is a UUID such as 0190163d-8694-739b-aea5-966c26f8ad91")

// ParseID reads the canonical form of any UUID version.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, errID
	}
	compact := s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:36]
	if _, err := hex.Decode(id[:], []byte(compact)); err != nil {
		return ID{}, errID
	}
	return id, nil
}

// MarshalText writes the canonical form, so that an ID is a string in JSON.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (id *ID) UnmarshalText(b []byte) error {
	parsed, err := ParseID(string(b))
	*id = parsed
	return err
}
