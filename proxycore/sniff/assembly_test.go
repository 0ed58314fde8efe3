package sniff

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func TestAssemblyInAnyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		whole := make([]byte, 1+random.IntN(300))
		for i := range whole {
			whole[i] = byte(random.Uint32())
		}
		var a assembly
		seen := make([]bool, len(whole))
		for range 40 {
			from := random.IntN(len(whole))
			to := from + random.IntN(len(whole)-from+1)
			if err := a.add(uint64(from), whole[from:to]); err != nil {
				t.Fatal(err)
			}
			for i := from; i < to; i++ {
				seen[i] = true
			}
		}
		prefix := 0
		for prefix < len(seen) && seen[prefix] {
			prefix++
		}
		if got := a.ready(); !bytes.Equal(got, whole[:prefix]) {
			t.Fatalf("round %d: ready has %d bytes, want %d", round, len(got), prefix)
		}
	}
}

func TestAssemblyKeepsTheFirstCopy(t *testing.T) {
	var a assembly
	for _, p := range []piece{{2, []byte("cd")}, {0, []byte("abXX")}, {3, []byte("Xe")}} {
		if err := a.add(uint64(p.off), p.data); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(a.ready()); got != "abcde" {
		t.Errorf("ready = %q, want abcde", got)
	}
}
