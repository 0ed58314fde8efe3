package dnsmitm

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"mitm-appliance/flow"
	"mitm-appliance/option"
)

// Options are the settings of our own resolver (DNS-03).
type Options struct {
	NameServers option.Strings // dns_name_servers
	UseHosts    option.Bool    // dns_use_hosts_file
}

// DeclareOptions declares them.
func DeclareOptions(r *option.Registry) *Options {
	return &Options{
		NameServers: r.Strings("dns_name_servers", nil,
			"Name servers for clients that ask the appliance itself, as IP addresses with an optional port. Empty: the system's.",
			option.Check(func(list []string) error {
				for _, text := range list {
					if _, err := serverAddress(text); err != nil {
						return err
					}
				}
				return nil
			})),
		UseHosts: r.Bool("dns_use_hosts_file", true, "Answer names of the hosts file from it."),
	}
}

// Resolver answers questions that clients ask the appliance itself: from the hosts file, else by
// one of the name servers.
type Resolver struct {
	Options    *Options
	HostsFile  string // "" means /etc/hosts
	ResolvConf string // "" means /etc/resolv.conf

	mu     sync.Mutex
	hosts  map[string][]netip.Addr
	loaded time.Time
	stamp  time.Time
}

func serverAddress(text string) (flow.Address, error) {
	host, port := flow.SplitHostPort(text)
	if port == 0 {
		port = 53
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return flow.Address{}, fmt.Errorf("expected the IP address of a name server, not %q", text)
	}
	return flow.Address{Host: host, Port: port}, nil
}

// server is the name server to ask.
func (r *Resolver) server() (flow.Address, error) {
	if list := r.Options.NameServers.Get(); len(list) > 0 {
		return serverAddress(list[0])
	}
	path := r.ResolvConf
	if path == "" {
		path = "/etc/resolv.conf"
	}
	conf, err := dns.ClientConfigFromFile(path)
	if err != nil || len(conf.Servers) == 0 {
		return flow.Address{}, errors.New("no name server is known: set the option dns_name_servers")
	}
	return serverAddress(flow.JoinHostPort(conf.Servers[0], 53))
}

const hostsTTL = 60

// local answers A and AAAA questions from the hosts file; nil when the name is not in it.
func (r *Resolver) local(query *flow.DNSMessage) *flow.DNSMessage {
	if !r.Options.UseHosts.Get() || len(query.Questions) != 1 || query.Opcode != dns.OpcodeQuery {
		return nil
	}
	q := query.Questions[0]
	if q.Class != dns.ClassINET || q.Type != dns.TypeA && q.Type != dns.TypeAAAA {
		return nil
	}
	addrs := r.lookup(strings.ToLower(q.Name))
	if addrs == nil {
		return nil
	}
	answer := reply(query, dns.RcodeSuccess, time.Now())
	for _, a := range addrs {
		if a.Is4() == (q.Type == dns.TypeA) {
			answer.Answers = append(answer.Answers, flow.DNSRecord{
				Name: q.Name, Type: q.Type, Class: q.Class, TTL: hostsTTL, Data: a.AsSlice(),
			})
		}
	}
	return answer
}

// lookup reads the hosts file anew when it changed, at most every few seconds.
func (r *Resolver) lookup(name string) []netip.Addr {
	const fresh = 5 * time.Second
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.hosts == nil || now.Sub(r.loaded) > fresh {
		r.loaded = now
		r.load()
	}
	return r.hosts[name]
}

func (r *Resolver) load() {
	path := r.HostsFile
	if path == "" {
		path = "/etc/hosts"
	}
	f, err := os.Open(path)
	if err != nil {
		r.hosts = map[string][]netip.Addr{}
		return
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil {
		if r.hosts != nil && st.ModTime().Equal(r.stamp) {
			return
		}
		r.stamp = st.ModTime()
	}
	r.hosts = map[string][]netip.Addr{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		for _, name := range fields[1:] {
			name = strings.ToLower(bare(name))
			r.hosts[name] = append(r.hosts[name], addr.Unmap().WithZone(""))
		}
	}
}
