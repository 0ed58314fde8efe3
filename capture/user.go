//go:build linux

package capture

import (
	"fmt"
	"os/user"
	"strconv"
	"sync"
)

// maxUserNames bounds userNames; when full it starts again.
const maxUserNames = 1024

// userNames remembers the names of user ids. The zero value is ready.
type userNames struct {
	mu    sync.Mutex
	names map[uint32]string
}

func (u *userNames) name(uid uint32) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if name, ok := u.names[uid]; ok {
		return name
	}
	if u.names == nil || len(u.names) >= maxUserNames {
		u.names = map[uint32]string{}
	}
	name := ""
	if found, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		name = found.Username
	}
	u.names[uid] = name
	return name
}

func userID(name string) (uint32, error) {
	found, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("look up user: %w", err)
	}
	uid, err := strconv.ParseUint(found.Uid, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("look up user: %w", err)
	}
	return uint32(uid), nil
}
