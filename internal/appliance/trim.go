package appliance

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	trimEvery = time.Second
	trimCalm  = 4 << 20  // bytes allocated in trimEvery, below which nothing much goes on
	trimWorth = 64 << 20 // bytes allocated since the last trim, above which another one pays
)

// TrimMemory gives memory back to the system after every burst, until ctx ends. Left alone, the
// collector would wait up to two minutes before it even looks, and twice the memory that is in use
// would stay: on a small box with many idle devices that is the larger half. It is for the whole
// process.
func TrimMemory(ctx context.Context) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var t trimmer
	for {
		select {
		case <-tick.C:
			if t.due(allocated()) {
				debug.FreeOSMemory()
			}
		case <-ctx.Done():
			return
		}
	}
}

// trimmer remembers how much had been allocated at the last look, and at the last trim.
type trimmer struct{ seen, trimmed uint64 }

func (t *trimmer) due(allocated uint64) bool {
	calm := allocated-t.seen < trimCalm
	t.seen = allocated
	if !calm || allocated-t.trimmed < trimWorth {
		return false
	}
	t.trimmed = allocated
	return true
}

// allocated is how many bytes this process has allocated in its life.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
