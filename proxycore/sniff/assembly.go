package sniff

import (
	"cmp"
	"fmt"
	"slices"
)

const maxPieces = 512 // of one hello; real clients send fewer than 50

// piece is a run of bytes at an offset of the stream that is put together.
type piece struct {
	off  int
	data []byte
}

func (p piece) end() int { return p.off + len(p.data) }

// from returns p without the bytes in front of off.
func (p piece) from(off int) piece {
	skip := min(max(off-p.off, 0), len(p.data))
	return piece{off: p.off + skip, data: p.data[skip:]}
}

// assembly puts a byte stream together from pieces in any order, with repeats and
// overlaps; the first copy of a byte wins. Its memory is proportional to the
// bytes received and ends at MaxClientHello. The zero value is empty.
type assembly struct {
	pieces []piece // sorted, without overlap
}

// add copies those bytes of data, which belongs at offset off, that are new.
func (a *assembly) add(off uint64, data []byte) error {
	if off > MaxClientHello || off+uint64(len(data)) > MaxClientHello {
		return fmt.Errorf("%w: bytes beyond offset %d", ErrTooLarge, MaxClientHello)
	}
	rest := piece{off: int(off), data: data}
	var fresh []piece
	for _, old := range a.pieces {
		if old.off >= rest.end() {
			break
		}
		if rest.off < old.off {
			fresh = append(fresh, piece{off: rest.off, data: slices.Clone(rest.data[:old.off-rest.off])})
		}
		rest = rest.from(old.end())
	}
	if len(rest.data) > 0 {
		fresh = append(fresh, piece{off: rest.off, data: slices.Clone(rest.data)})
	}
	if len(a.pieces)+len(fresh) > maxPieces {
		return fmt.Errorf("%w: more than %d fragments", ErrTooLarge, maxPieces)
	}
	a.pieces = append(a.pieces, fresh...)
	slices.SortFunc(a.pieces, func(x, y piece) int { return cmp.Compare(x.off, y.off) })
	return nil
}

// ready returns a copy of the bytes from offset 0 up to the first gap.
func (a *assembly) ready() []byte {
	var b []byte
	for _, p := range a.pieces {
		if p.off != len(b) {
			break
		}
		b = append(b, p.data...)
	}
	return b
}

// hello returns the ClientHello at the start of the stream once it is
// complete, and nil while it is not.
func (a *assembly) hello(p Protocol) (*ClientHello, error) {
	b := a.ready()
	if len(b) > 0 && b[0] != typeClientHello {
		return nil, fmt.Errorf("%w: handshake message of type %d", ErrMalformed, b[0])
	}
	if len(b) < handshakeHeader {
		return nil, nil
	}
	total := handshakeHeader + int(b[1])<<16 + int(b[2])<<8 + int(b[3])
	switch {
	case total > MaxClientHello:
		return nil, fmt.Errorf("%w: %d bytes announced", ErrTooLarge, total)
	case len(b) < total:
		return nil, nil
	}
	return parseHello(b[:total:total], handshakeHeader, p)
}
