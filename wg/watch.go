package wg

import (
	"context"
	"io/fs"
	"os"
	"time"
)

// stamp changes whenever a file is edited, replaced or gets another mode.
type stamp struct {
	info fs.FileInfo // nil: the file is missing
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{info}
}

func (a stamp) same(b stamp) bool {
	if a.info == nil || b.info == nil {
		return a.info == nil && b.info == nil
	}
	return os.SameFile(a.info, b.info) && a.info.ModTime().Equal(b.info.ModTime()) &&
		a.info.Size() == b.info.Size() && a.info.Mode() == b.info.Mode()
}

// follow applies the file whenever it changes. The first look always applies:
// the file may have changed since the server got its copy.
func (s *Server) follow(ctx context.Context, path string, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var last stamp
	for {
		if now := stampOf(path); !now.same(last) {
			last = now
			s.reload(path)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (s *Server) reload(path string) {
	f, err := Load(path)
	if err == nil {
		err = s.Apply(f)
	}
	if err != nil {
		s.log.Warn("wireguard configuration not applied, the running one stays", "err", err)
	}
}
