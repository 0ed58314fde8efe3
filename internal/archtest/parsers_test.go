package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// input is what a stranger writes, and the fuzz targets that throw garbage at what reads it.
type input struct {
	Package string
	What    string
	Targets []string // empty: at least one, of any name
}

// parsers are all inputs: whoever adds a parser adds a line.
func parsers() []input {
	return []input{
		{"flow/flowfile", "flow files", []string{"FuzzReader", "FuzzDecode", "FuzzTnetstring"}},
		{"proxycore/sniff", "first bytes of connections", []string{"FuzzParseTLS", "FuzzDTLSCollector", "FuzzInitialCollector", "FuzzQUICHeader", "FuzzTCP", "FuzzUDP"}},
		{"proxycore/certs", "CA files and names for certificates", []string{"FuzzParseBundle", "FuzzDecryptPKCS8", "FuzzCanonicalName"}},
		{"proxycore/mode", "mode specs", []string{"FuzzParse"}},
		{"proxycore/http1", "HTTP/1 messages", nil},
		{"proxycore/dnsmitm", "DNS messages", nil},
		{"option", "option texts", nil},
		{"netstack", "IP packets", nil},
		{"tun", "virtio headers and packets", nil},
		{"wg", "WireGuard configuration files", []string{"FuzzParseFile"}},
		{"capture", "local specs and sock_diag answers", []string{"FuzzParseSpec", "FuzzParseDiag"}},
	}
}

func TestParsersAreFuzzed(t *testing.T) {
	target := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(f \*testing\.F\)`)
	fuzzed := map[string][]string{}
	for _, p := range packages(t) {
		for _, name := range p.Tests {
			data, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range target.FindAllSubmatch(data, -1) {
				fuzzed[p.Name] = append(fuzzed[p.Name], string(m[1]))
			}
		}
	}
	for _, row := range parsers() {
		if len(fuzzed[row.Package]) == 0 {
			t.Errorf("%s reads %s, which strangers write, and has no fuzz target", row.Package, row.What)
			continue
		}
		for _, name := range row.Targets {
			if !slices.Contains(fuzzed[row.Package], name) {
				t.Errorf("%s: the fuzz target %s is gone, or renamed without parsers()", row.Package, name)
			}
		}
	}
}
