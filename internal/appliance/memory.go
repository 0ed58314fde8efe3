package appliance

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// minGrowth is how much garbage may pile up before the collector runs. Its own rule, as much as there
// is live data, makes a proxy with little to keep collect many times a second.
const minGrowth = 48 << 20

// TuneMemory adapts the garbage collector to how much is live, from now on and after each collection.
// A user who has set GOGC or GOMEMLIMIT knows better.
func TuneMemory() {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	t := &collector{}
	t.adapt()
	t.watch()
}

type collector struct{ percent int }

// watch runs adapt after the next collection: when the collector finds an object that nobody holds.
func (t *collector) watch() {
	runtime.AddCleanup(new([32]byte), func(t *collector) {
		t.adapt()
		t.watch()
	}, t)
}

func (t *collector) adapt() {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}}
	metrics.Read(samples)
	live := max(samples[0].Value.Uint64()+samples[1].Value.Uint64(), 1<<20) // the percentage is of both
	percent := max(100, int(minGrowth*100/live))                            // at most 4800
	if change := percent - t.percent; change > percent/8 || change < -percent/8 {
		t.percent = percent
		debug.SetGCPercent(percent)
	}
}
