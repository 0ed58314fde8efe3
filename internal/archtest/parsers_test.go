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
	Targets []string
}

// parsers are all inputs: whoever adds a parser adds a line.
func parsers() []input {
	return []input{
		{"flow/flowfile", "flow files", []string{"FuzzReader", "FuzzDecode", "FuzzTnetstring"}},
		{"proxycore/sniff", "first bytes of connections", []string{"FuzzParseTLS", "FuzzDTLSCollector", "FuzzInitialCollector", "FuzzQUICHeader", "FuzzTCP", "FuzzUDP"}},
		{"proxycore/certs", "CA files and names for certificates", []string{"FuzzParseBundle", "FuzzDecryptPKCS8", "FuzzCanonicalName"}},
		{"proxycore/tlsmitm", "cipher lists", []string{"FuzzCiphers"}},
		{"proxycore/exchange", "authorities of requests", []string{"FuzzParseAuthority"}},
		{"proxycore/mode", "mode specs", []string{"FuzzParse"}},
		{"proxycore/http1", "HTTP/1 messages", []string{"FuzzRequest", "FuzzResponse", "FuzzChunks", "FuzzConversation"}},
		{"proxycore/dnsmitm", "DNS messages", []string{"FuzzMessage"}},
		{"option", "option texts", []string{"FuzzSetText"}},
		{"netstack", "IP packets", []string{"FuzzPackets"}},
		{"tun", "virtio headers and packets", []string{"FuzzReceive"}},
		{"wg", "WireGuard configuration files and packets", []string{"FuzzParseFile", "FuzzCoalescer"}},
		{"capture", "local specs and sock_diag answers", []string{"FuzzParseSpec", "FuzzParseDiag"}},
		{"redirect", "state files and rules of others", []string{"FuzzRecord", "FuzzLegacyTable"}},
		{"ui/dump", "what goes to the terminal", []string{"FuzzNothingReachesTheTerminal"}},
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
		for _, name := range row.Targets {
			if !slices.Contains(fuzzed[row.Package], name) {
				t.Errorf("%s reads %s, which strangers write, and its fuzz target %s is gone, or renamed without parsers()", row.Package, row.What, name)
			}
		}
	}
}
