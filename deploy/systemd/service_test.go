package systemd

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mitm-appliance/internal/netnstest"
)

// build returns the program.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "mitm-appliance")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "../../cmd/mitm-appliance")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// TestLifeOfTheService installs the service under a real systemd, starts it with all kinds of modes,
// kills it, lets it come back, stops it, and looks at what it has and what it leaves.
func TestLifeOfTheService(t *testing.T) {
	netnstest.New(t) // asks for root
	if _, err := exec.LookPath("systemd-nspawn"); err != nil {
		t.Fatal("systemd-nspawn is missing: apt-get install systemd-container")
	}
	got, output := scenario(t, build(t))
	for _, c := range []struct{ what, want, why string }{
		{"start", "0", "READY=1 came"},
		{"active", "yes", ""},
		{"user", "/var/lib/mitm-appliance:/usr/sbin/nologin", "of sysusers.conf"},
		{"uid", got["own_uid"], "its own user"},
		{"effective", "000000c000003400", "NET_BIND_SERVICE NET_ADMIN NET_RAW PERFMON BPF, as these modes need"},
		{"bounding", "000000c000003400", ""},
		{"new_privileges_forbidden", "1", ""},
		{"state", "700 mitm-appliance", "the CA's key is there"},
		{"files_of_others", "0", ""},
		{"writes_usr", "Read-only file system", "ProtectSystem=strict"},
		{"sees_homes", "0", "ProtectHome=yes"},
		{"rules", "mitm_appliance mitm_appliance_local", "transparent and local mode"},
		{"routes", "2", ""},
		{"devices", "3", "transparent, local, tun"},
		{"forwarding_before", "0", ""},
		{"forwarding", "1", "switched on although /proc/sys is read-only otherwise"},
		{"listens", "1", "on port 80, without being root"},
		{"wireguard", "2", "IPv4 and IPv6"},
		{"after_crash", "mitm_appliance", "fail-closed by default; local capture always fails open"},
		{"restarted", "yes", "Restart=on-failure"},
		{"restarts", "1", ""},
		{"rules_again", "mitm_appliance mitm_appliance_local", "taken over from the crashed process"},
		{"routes_again", "2", ""},
		{"devices_again", "3", ""},
		{"stop", "0", ""},
		{"result_of_stop", "success", ""},
		{"rules_gone", "", ""},
		{"routes_gone", "0", ""},
		{"devices_gone", "0", ""},
		{"forwarding_after", "0", "what was changed is put back"},
		{"usage_error", "1", "a wrong option ends the start"},
		{"usage_restarts", "0", "and is not tried again and again"},
		{"uninstalled", "yes", ""},
	} {
		if v, told := got[c.what]; v != c.want || !told {
			t.Errorf("%s is %q (told: %v), want %q %s", c.what, v, told, c.want, c.why)
		}
	}
	if t.Failed() {
		t.Log(output)
	}
}

// scenario runs testdata/scenario in a container and returns what it tells.
func scenario(t *testing.T, binary string) (told map[string]string, output string) {
	t.Helper()
	here, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", filepath.Join(here, "machine"), here, binary)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("booting a container: %v\n%s", err, out)
	}
	told = map[string]string{}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "---") {
			break
		}
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			told[name] = value
		}
	}
	return told, string(out)
}

// TestInstallIntoImage installs below a directory, as who builds images does.
func TestInstallIntoImage(t *testing.T) {
	netnstest.New(t) // asks for root: files get owners
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	install := func(args ...string) string {
		out, err := exec.Command("./install", append([]string{"--root", root}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("install %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	install("--binary", "/bin/true")
	settings := filepath.Join(root, "etc/default/mitm-appliance")
	if err := os.WriteFile(settings, []byte("MITM_APPLIANCE_ARGS=-v\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	install("--binary", "/bin/true")
	if data, err := os.ReadFile(settings); err != nil || !strings.Contains(string(data), "-v") {
		t.Errorf("installing again left the settings %q, %v", data, err)
	}
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil || !strings.Contains(string(passwd), "mitm-appliance:") {
		t.Errorf("no user in the image's passwd: %q, %v", passwd, err)
	}
	info, err := os.Stat(filepath.Join(root, "var/lib/mitm-appliance"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the state directory is %v, %v, want drwx------", info, err)
	}
	install("--uninstall")
	for _, gone := range []string{"usr/local/bin/mitm-appliance", "etc/systemd/system/" + unit, "etc/default/mitm-appliance"} {
		if _, err := os.Stat(filepath.Join(root, gone)); err == nil {
			t.Errorf("%s is still there after --uninstall", gone)
		}
	}
}
