package dump

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"io"
	"strings"

	"mitm-appliance/flow"
)

// maxDecoded bounds what a compressed body may grow to.
const maxDecoded = 16 << 20

// decoded undoes the content coding of a body where the standard library can. Otherwise, and when
// the body is not what it says, it stays as it is.
func decoded(m *flow.Message) []byte {
	data := m.Body.Data
	if m.Body.State == flow.BodyMissing || len(data) == 0 {
		return nil
	}
	var r io.Reader
	var err error
	switch strings.ToLower(strings.TrimSpace(m.Header.Get("content-encoding"))) {
	case "gzip", "x-gzip":
		r, err = gzip.NewReader(bytes.NewReader(data))
	case "deflate":
		r, err = zlib.NewReader(bytes.NewReader(data))
	default:
		return data
	}
	if err != nil {
		return data
	}
	out, err := io.ReadAll(io.LimitReader(r, maxDecoded))
	if err != nil && (len(out) == 0 || m.Body.State == flow.BodyComplete) {
		return data
	}
	return out // of a truncated body, what could be decoded
}

// indent is what bodies and headers stand behind.
const indent = "    "

// charsPerLine times the number of lines is how much is shown of a body that is to be cut.
const charsPerLine = 128

// content prints a body or a message between empty lines: text as text, everything else as a hex
// dump. From detail 4 on nothing is cut.
func (p *printer) content(data []byte) {
	if len(data) == 0 {
		return
	}
	p.newline()
	whole := len(data)
	binary := looksBinary(data)
	if p.detail < 4 {
		data = cutLines(data, p.lines, binary)
	}
	if binary {
		p.b = appendHex(p.b, data, indent)
	} else {
		p.lined(string(data))
	}
	if len(data) < whole {
		p.own(plain, indent)
		p.own(dim, "(cut off)")
		p.newline()
	}
	p.newline()
}

// lined prints text line by line.
func (p *printer) lined(text string) {
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		p.own(plain, indent)
		p.b = appendEscaped(p.b, strings.TrimSuffix(line, "\r"), "\t")
		p.newline()
	}
}

func cutLines(data []byte, lines int, binary bool) []byte {
	most := lines * charsPerLine
	if binary {
		most = lines * 16
	}
	data = data[:min(len(data), most)]
	if binary {
		return data
	}
	end := 0
	for ; lines > 0; lines-- {
		i := bytes.IndexByte(data[end:], '\n')
		if i < 0 {
			return data
		}
		end += i + 1
	}
	return data[:end]
}
