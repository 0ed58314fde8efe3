package exchange

import "testing"

func TestParseAuthority(t *testing.T) {
	for text, want := range map[string]struct {
		host string
		port uint16
	}{
		"a": {"a", 0}, "a:1": {"a", 1}, "a:": {"a", 0}, "[::1]:": {"::1", 0}, "[::1]": {"::1", 0}, "[::1]:443": {"::1", 443}, "1.2.3.4:65535": {"1.2.3.4", 65535},
	} {
		if host, port, err := ParseAuthority(text); err != nil || host != want.host || port != want.port {
			t.Errorf("ParseAuthority(%q) = %q, %d, %v; want %v", text, host, port, err, want)
		}
	}
	for _, text := range []string{"", ":1", "a:b", "a:0", "a:65536", "a:-1", "a:1:2", "[::1", "[a]", "[::1]x", "::1", "u@a", "a/b", "a b", "a:+1"} {
		if host, port, err := ParseAuthority(text); err == nil {
			t.Errorf("ParseAuthority(%q) = %q, %d, want an error", text, host, port)
		}
	}
}

func FuzzParseAuthority(f *testing.F) {
	for _, seed := range []string{"a:1", "[::1]:2", "a", ":"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		host, port, err := ParseAuthority(text)
		if err == nil && host == "" {
			t.Errorf("ParseAuthority(%q) = no host, %d", text, port)
		}
	})
}
