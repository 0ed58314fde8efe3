package sniff

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// ErrUndecryptable means that an Initial packet fails its authentication: it is
// damaged, forged, or belongs to a connection whose beginning was not seen.
var ErrUndecryptable = errors.New("quic initial packet cannot be decrypted")

// initialKeys removes the protection of a client's Initial packets.
type initialKeys struct {
	aead   cipher.AEAD
	iv     []byte
	header cipher.Block
}

// newInitialKeys derives the keys from the client's first destination
// connection id (RFC 9001, section 5.2; RFC 9369, section 3.3).
func newInitialKeys(version uint32, dcid []byte) (*initialKeys, error) {
	salt, prefix := "\x38\x76\x2c\xf7\xf5\x59\x34\xb3\x4d\x17\x9a\xe6\xa4\xc8\x0c\xad\xcc\xbb\x7f\x0a", "quic"
	if version == QUICv2 {
		salt, prefix = "\x0d\xed\xe3\xde\xf7\x00\xa6\xdb\x81\x93\x81\xbe\x6e\x26\x9d\xcb\xf9\xbd\x2e\xd9", "quicv2"
	}
	initial, err := hkdf.Extract(sha256.New, dcid, []byte(salt))
	if err != nil {
		return nil, fmt.Errorf("derive quic initial secret: %w", err)
	}
	secret, err := expandLabel(initial, "client in", sha256.Size)
	if err != nil {
		return nil, err
	}
	key, errKey := expandLabel(secret, prefix+" key", 16)
	iv, errIV := expandLabel(secret, prefix+" iv", 12)
	hp, errHP := expandLabel(secret, prefix+" hp", 16)
	if err := errors.Join(errKey, errIV, errHP); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make quic initial cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("make quic initial cipher: %w", err)
	}
	header, err := aes.NewCipher(hp)
	if err != nil {
		return nil, fmt.Errorf("make quic header cipher: %w", err)
	}
	return &initialKeys{aead: aead, iv: iv, header: header}, nil
}

// expandLabel is HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
func expandLabel(secret []byte, label string, size int) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddUint16(uint16(size))
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte("tls13 " + label)) })
	b.AddUint8(0)
	info, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("expand quic key label: %w", err)
	}
	key, err := hkdf.Expand(sha256.New, secret, string(info), size)
	if err != nil {
		return nil, fmt.Errorf("expand quic key label: %w", err)
	}
	return key, nil
}

// open removes header protection (RFC 9001, section 5.4) and decrypts the
// payload (section 5.3). Largest is the largest packet number seen so far.
// The header's packet is not changed.
func (k *initialKeys) open(h *QUICHeader, largest uint64) (payload []byte, number uint64, err error) {
	const sampleAt, sampleSize = 4, 16
	if len(h.packet) < h.pnOffset+sampleAt+sampleSize {
		return nil, 0, fmt.Errorf("%w: too short", ErrUndecryptable)
	}
	var mask [sampleSize]byte
	k.header.Encrypt(mask[:], h.packet[h.pnOffset+sampleAt:][:sampleSize])
	first := h.packet[0] ^ mask[0]&0x0f
	pnLength := int(first&3) + 1
	head := append([]byte(nil), h.packet[:h.pnOffset+pnLength]...)
	head[0] = first
	truncated := uint64(0)
	for i := range pnLength {
		head[h.pnOffset+i] ^= mask[1+i]
		truncated = truncated<<8 | uint64(head[h.pnOffset+i])
	}
	number = decodePacketNumber(largest, truncated, 8*pnLength)
	nonce := append([]byte(nil), k.iv...)
	for i := range 8 {
		nonce[len(nonce)-1-i] ^= byte(number >> (8 * i))
	}
	payload, err = k.aead.Open(nil, nonce, h.packet[len(head):], head)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: authentication failed", ErrUndecryptable)
	}
	return payload, number, nil
}

// decodePacketNumber restores a truncated packet number (RFC 9000, appendix A.3).
func decodePacketNumber(largest, truncated uint64, bits int) uint64 {
	expected, window := largest+1, uint64(1)<<bits
	half := window / 2
	candidate := expected&^(window-1) | truncated
	switch {
	case candidate+half <= expected && candidate < 1<<62-window:
		return candidate + window
	case candidate > expected+half && candidate >= window:
		return candidate - window
	}
	return candidate
}
