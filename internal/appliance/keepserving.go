package appliance

import (
	"context"
	"time"

	"mitm-appliance/option"
)

// keepserving ends the program when the file that it was started for has been read and no client is
// connected (ADD-keepserving).
type keepserving struct {
	on   option.Bool
	a    *Appliance
	read <-chan struct{}
	stop context.CancelFunc
}

// Running implements proxycore.RunningHook.
func (k *keepserving) Running(ctx context.Context) error {
	ctx, k.stop = context.WithCancel(context.WithoutCancel(ctx))
	if !k.on.Get() {
		k.a.parts.background.Go(func() { k.wait(ctx) })
	}
	return nil
}

// Done implements proxycore.DoneHook.
func (k *keepserving) Done(context.Context) error {
	if k.stop != nil {
		k.stop()
	}
	return nil
}

func (k *keepserving) wait(ctx context.Context) {
	select {
	case <-k.read:
	case <-ctx.Done():
		return
	}
	for k.a.core.Live() > 0 {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
	close(k.a.idle)
}
