package mode

import (
	"strings"
	"testing"

	"mitm-appliance/flow"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Spec{
		"regular":                        {Name: Regular, Port: -1},
		"Regular@9090":                   {Name: Regular, Port: 9090},
		"regular@127.0.0.1:0":            {Name: Regular, Host: "127.0.0.1"},
		"regular@[::1]:8081":             {Name: Regular, Host: "::1", Port: 8081},
		"transparent:lan0,lan1":          {Name: Transparent, Data: "lan0,lan1", Port: -1},
		"local:!curl,1234":               {Name: Local, Data: "!curl,1234", Port: -1},
		"wireguard:/etc/wg.json@51821":   {Name: WireGuard, Data: "/etc/wg.json", Port: 51821},
		"tun:tun7":                       {Name: TUN, Data: "tun7", Port: -1},
		"reverse:example.com":            {Name: Reverse, Data: "example.com", Port: -1, Scheme: "https", Target: flow.Address{Host: "example.com", Port: 443}},
		"reverse:http://[2001:db8::1]/":  {Name: Reverse, Data: "http://[2001:db8::1]/", Port: -1, Scheme: "http", Target: flow.Address{Host: "2001:db8::1", Port: 80}},
		"reverse:tcp://a_b.example:99@1": {Name: Reverse, Data: "tcp://a_b.example:99", Port: 1, Scheme: "tcp", Target: flow.Address{Host: "a_b.example", Port: 99}},
		"upstream:proxy:3128":            {Name: Upstream, Data: "proxy:3128", Port: -1, Scheme: "http", Target: flow.Address{Host: "proxy", Port: 3128}},
	} {
		want.Full = text
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"":                        "unknown mode",
		"nonsense":                "unknown mode",
		"osproxy":                 "renamed to local",
		"regular:x":               "takes no arguments",
		"regular@99999":           "invalid port: 99999",
		"regular@":                "invalid port: ",
		"reverse":                 "needs a target",
		"reverse:tcp://x":         "port specification missing",
		"reverse:gopher://x":      "invalid scheme",
		"reverse:http://a b":      "invalid host",
		"reverse:http://x:port":   "invalid port",
		"upstream:socks9://x:1":   "invalid scheme",
		"upstream:tcp://x:1":      "invalid upstream proxy scheme",
		"tun@8080":                "does not listen",
		"@8080":                   "unknown mode",
		"reverse:http://-:x@8080": "invalid port",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q) = %v; want an error with %q", text, err, want)
		}
	}
}

func TestParseAllRefusesTheSameAddressTwice(t *testing.T) {
	for _, c := range []struct {
		modes []string
		want  string // "" is fine
	}{
		{[]string{"regular", "socks5", "transparent:lan0", "tun", "wireguard"}, ""},
		{[]string{"regular", "regular@8081"}, ""},
		{[]string{"regular@0", "socks5@0"}, ""},
		{[]string{"wireguard@8080", "regular@8080"}, ""},
		{[]string{"regular", "upstream:http://x"}, "same address"},
		{[]string{"dns@53", "wireguard@53"}, "same address"},
		{[]string{"local:curl", "local:wget"}, "more than one local"},
	} {
		_, err := ParseAll(c.modes, "", -1)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("ParseAll(%q) = %v; want %q", c.modes, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"regular@[::1]:80", "reverse:https://x:1/@a:2", "local:!1,a", "upstream:http://[::1", "@@:@"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		if again, err := Parse(s.Full); err != nil || again != s {
			t.Errorf("Parse(%q) is %+v, and again %+v, %v", text, s, again, err)
		}
	})
}
