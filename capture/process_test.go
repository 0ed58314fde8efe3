//go:build linux

package capture

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProcessesListsThisOne(t *testing.T) {
	list, err := Processes()
	must(t, err)
	i := slices.IndexFunc(list, func(p Process) bool { return p.PID == os.Getpid() })
	if i < 0 {
		t.Fatalf("this process is not among %d", len(list))
	}
	exe := testBinary(t)
	if p := list[i]; p.Exe != exe || p.UID != uint32(os.Getuid()) || !strings.HasSuffix(exe, "/"+p.Name) {
		t.Errorf("this process is %+v, want %s", p, exe)
	}
}

func TestFullName(t *testing.T) {
	for _, test := range []struct{ comm, exe, want string }{
		{"curl", "/usr/bin/curl", "curl"},
		{"a-browser-with-", "/opt/a-browser-with-a-name", "a-browser-with-a-name"},
		{"a-browser-with-", "/usr/bin/python3", "a-browser-with-"}, // renamed itself
		{"a-browser-with-", "", "a-browser-with-"},
		{"short", "/bin/shorter", "short"},
	} {
		if got := fullName(test.comm, test.exe); got != test.want {
			t.Errorf("%q %q: got %q, want %q", test.comm, test.exe, got, test.want)
		}
	}
}

func TestUserNames(t *testing.T) {
	u := &userNames{}
	for range 2 {
		if got := u.name(0); got != "root" {
			t.Errorf("user 0 is %q, want root", got)
		}
	}
	for uid := range uint32(maxUserNames + 10) {
		u.name(1<<30 + uid)
	}
	if len(u.names) > maxUserNames {
		t.Errorf("%d names are remembered, want at most %d", len(u.names), maxUserNames)
	}
	if _, err := userID("no-such-user-here"); err == nil {
		t.Error("an unknown user has an id")
	}
}

func TestFindCgroupMount(t *testing.T) {
	const hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
	for mounts, want := range map[string]string{
		hybrid: "/sys/fs/cgroup/unified",
		"cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n":       "/sys/fs/cgroup",
		"none /run/my\\040groups cgroup2 rw 0 0\nx y\n": "/run/my groups",
	} {
		if got, err := findCgroupMount(strings.NewReader(mounts)); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", mounts, got, err, want)
		}
	}
	if got, err := findCgroupMount(strings.NewReader("tmpfs / tmpfs rw 0 0\n")); !errors.Is(err, errNoCgroup2) {
		t.Errorf("got %q, %v, want %v", got, err, errNoCgroup2)
	}
}

func TestKernelVersion(t *testing.T) {
	for release, want := range map[string][2]int{"6.18.44-fc": {6, 18}, "5.10": {5, 10}, "5.4.0-150-generic": {5, 4}} {
		major, minor, ok := kernelVersion(release)
		if !ok || [2]int{major, minor} != want {
			t.Errorf("%s: got %d.%d, %v, want %v", release, major, minor, ok, want)
		}
	}
	if _, _, ok := kernelVersion("unknown"); ok {
		t.Error("a release without numbers has a version")
	}
}

func TestProbeSaysHowToCure(t *testing.T) {
	for _, f := range Probe() {
		if f.Name == "" || f.Detail == "" || f.OK == (f.Cure != "") {
			t.Errorf("finding %+v: want a name, a detail, and a cure unless it is fine", f)
		}
	}
}

func FuzzParseDiag(f *testing.F) {
	message := make([]byte, diagMessageSize, diagMessageSize+8)
	message[0] = unix.AF_INET
	f.Add(message)
	f.Add(append(message, 8, 0, inetDiagMark, 0, 1, 0, 1, 0))
	f.Add(append(message, 200, 0, inetDiagMark, 0))
	f.Add(message[:10])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := parseDiag(unix.IPPROTO_TCP, b)
		if ok && (len(b) < diagMessageSize || !s.src.Addr().IsValid() || !s.dst.Addr().IsValid()) {
			t.Errorf("%x became %+v", b, s)
		}
	})
}
