//go:build linux

package redirect

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

var legacy4 = legacyEntry{family: unix.AF_INET, in: 16, out: 32, target: 88}

// entry4 is an ipt_entry with a standard target.
func entry4(in, out string, verdict int32) []byte {
	e := make([]byte, 112+40)
	copy(e[16:], in)
	copy(e[32:], out)
	binary.NativeEndian.PutUint16(e[88:], 112)
	binary.NativeEndian.PutUint16(e[90:], uint16(len(e)))
	binary.NativeEndian.PutUint16(e[112:], 40)
	binary.NativeEndian.PutUint32(e[112+32:], uint32(verdict))
	return e
}

func TestLegacyTableIsSearchedForAnAccept(t *testing.T) {
	for _, c := range []struct {
		name  string
		table []byte
		want  bool
	}{
		{"empty", nil, false},
		{"only others", entry4("eth0", "mitm0", verdictAccept), false},
		{"the second", append(entry4("eth0", "eth1", verdictAccept), entry4("lan0", "mitm0", verdictAccept)...), true},
		{"a drop", entry4("lan0", "mitm0", verdictDrop), false},
		{"cut short", entry4("lan0", "mitm0", verdictAccept)[:120], false},
	} {
		if got := legacy4.accepts(c.table, "lan0", "mitm0"); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func FuzzLegacyTable(f *testing.F) {
	f.Add(entry4("lan0", "mitm0", verdictAccept), 88)
	f.Add([]byte{}, 140)
	f.Fuzz(func(t *testing.T, table []byte, target int) {
		l := legacy4
		if target == 140 {
			l.in, l.out, l.target = 64, 80, 140
		}
		_ = l.accepts(table, "lan0", "mitm0") // ends, and stays inside of the table
		_, _ = legacyVerdict(table, target)
	})
}
