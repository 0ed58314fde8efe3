package appliance

import "testing"

func TestMemoryIsTrimmedOnceAfterABurst(t *testing.T) {
	var trim trimmer
	for i, step := range []struct {
		allocated uint64 // MiB
		want      bool
	}{
		{1, false},   // a quiet start
		{50, false},  // work
		{200, false}, // more of it
		{201, true},  // calm
		{202, false}, // once is enough
		{230, false}, // little work
		{231, false}, // not worth it
		{290, false},
		{291, true},
	} {
		if got := trim.due(step.allocated << 20); got != step.want {
			t.Errorf("step %d, after %d MiB: %v, want %v", i, step.allocated, got, step.want)
		}
	}
	if allocated() == 0 {
		t.Error("this Go version does not tell how much was allocated")
	}
}
