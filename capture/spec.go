//go:build linux

package capture

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// MaxItems is how many items a Spec may have. mitmproxy stops at 20 (LOC-04).
const MaxItems = 1000

// maxPattern is the longest pattern in bytes: a path can be no longer.
const maxPattern = 4096

// commLen is how much of a task name the kernel keeps (TASK_COMM_LEN - 1).
const commLen = 15

// Kind says what an Item's pattern is compared with.
type Kind uint8

// The kinds of items. PID and Name are mitmproxy's (LOC-01), the others are ours.
const (
	PID    Kind = iota + 1 // "1234": the thread-group id
	Name                   // "curl": the group leader's task name, cut to 15 bytes on both sides
	UID                    // "uid:1000" or "uid:alice": the real user id
	Cgroup                 // "cgroup:/system.slice/x.service": that cgroup-v2 directory and all below it
	Exe                    // "exe:/usr/bin/curl": the program file
)

// Item is one pattern of a Spec.
type Item struct {
	Negated bool
	Kind    Kind
	Number  uint32 // of PID, and of UID when Text is empty
	Text    string // name, user name or path
}

// Spec says whose traffic is captured. The zero Spec captures nothing.
type Spec struct {
	All   bool   // captures everything, as bare "local" does (LOC-03); Items is then empty
	Items []Item // evaluated in order
}

// ParseSpec reads the data of a "local" mode: "" is bare "local"; otherwise
// items separated by commas, each "[!]pattern" with optional white space
// around it (LOC-01). Patterns cannot contain a comma.
func ParseSpec(data string) (Spec, error) {
	if data == "" {
		return Spec{All: true}, nil
	}
	if n := strings.Count(data, ",") + 1; n > MaxItems {
		return Spec{}, fmt.Errorf("invalid intercept spec: %d items, at most %d are allowed: use uid:, cgroup: or exe: to name many processes at once", n, MaxItems)
	}
	var spec Spec
	for text := range strings.SplitSeq(data, ",") {
		item, err := parseItem(text)
		if err != nil {
			return Spec{}, fmt.Errorf("invalid intercept spec: %q: %w", cut(text, 100), err)
		}
		spec.Items = append(spec.Items, item)
	}
	return spec, nil
}

func parseItem(text string) (Item, error) {
	pattern, negated := strings.CutPrefix(strings.TrimSpace(text), "!")
	pattern = strings.TrimSpace(pattern)
	switch {
	case pattern == "":
		return Item{}, errors.New("empty item: write a process id or a process name")
	case len(pattern) > maxPattern:
		return Item{}, fmt.Errorf("longer than %d bytes", maxPattern)
	case strings.ContainsRune(pattern, 0):
		return Item{}, errors.New("contains a NUL byte")
	}
	item, err := parsePattern(pattern)
	item.Negated = negated
	return item, err
}

func parsePattern(pattern string) (Item, error) {
	if n, ok := number(pattern); ok {
		return Item{Kind: PID, Number: n}, nil
	}
	prefix, rest, found := strings.Cut(pattern, ":")
	rest = strings.TrimSpace(rest)
	switch {
	case !found:
		return Item{Kind: Name, Text: pattern}, nil
	case prefix == "uid" && rest == "":
		return Item{}, errors.New("no user: write uid:1000 or uid:alice")
	case prefix == "uid":
		if n, ok := number(rest); ok {
			return Item{Kind: UID, Number: n}, nil
		}
		return Item{Kind: UID, Text: rest}, nil
	case prefix == "cgroup" && !strings.HasPrefix(rest, "/"):
		return Item{}, errors.New("no cgroup: write its path as in /proc/PID/cgroup, such as cgroup:/system.slice/x.service")
	case prefix == "cgroup":
		return Item{Kind: Cgroup, Text: path.Clean(rest)}, nil
	case prefix == "exe" && !strings.HasPrefix(rest, "/"):
		return Item{}, errors.New("no program: write its absolute path, such as exe:/usr/bin/curl")
	case prefix == "exe":
		return Item{Kind: Exe, Text: path.Clean(rest)}, nil
	}
	return Item{Kind: Name, Text: pattern}, nil
}

func number(text string) (uint32, bool) {
	if strings.HasPrefix(text, "+") {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil
}

// String is the item as ParseSpec reads it.
func (i Item) String() string {
	text := i.Text
	if text == "" {
		text = strconv.FormatUint(uint64(i.Number), 10)
	}
	switch i.Kind {
	case UID:
		text = "uid:" + text
	case Cgroup:
		text = "cgroup:" + text
	case Exe:
		text = "exe:" + text
	}
	if i.Negated {
		return "!" + text
	}
	return text
}

// Describe is the item as a sentence (LOC-05).
func (i Item) Describe() string {
	verb := "Include"
	if i.Negated {
		verb = "Exclude"
	}
	what := strings.TrimPrefix(Item{Kind: i.Kind, Number: i.Number, Text: i.Text}.String(), "uid:")
	switch i.Kind {
	case PID:
		what = "PID " + what
	case UID:
		what = "processes of user " + what
	case Cgroup:
		what = "processes in cgroup " + i.Text
	case Exe:
		what = "processes running " + i.Text
	default:
		what = "processes matching " + what
	}
	return verb + " " + what + "."
}

// Describe is one sentence per item (LOC-05).
func (s Spec) Describe() string {
	if s.All {
		return "Include all processes."
	}
	if len(s.Items) == 0 {
		return "Intercept nothing."
	}
	sentences := make([]string, len(s.Items))
	for i, item := range s.Items {
		sentences[i] = item.Describe()
	}
	return strings.Join(sentences, " ")
}

// String is the Spec as ParseSpec reads it. The zero Spec has no such text.
func (s Spec) String() string {
	items := make([]string, len(s.Items))
	for i, item := range s.Items {
		items[i] = item.String()
	}
	return strings.Join(items, ",")
}

// start is the verdict before the first item: true when that is a negation (LOC-02).
func (s Spec) start() bool {
	return s.All || len(s.Items) > 0 && s.Items[0].Negated
}

// Match reports whether s captures p: items are applied in order, a plain one
// that matches captures, a negated one that matches releases (LOC-02).
func (s Spec) Match(p Process) bool {
	verdict := s.start()
	for _, item := range s.Items {
		if item.match(p) {
			verdict = !item.Negated
		}
	}
	return verdict
}

func (i Item) match(p Process) bool {
	switch i.Kind {
	case PID:
		return uint32(p.PID) == i.Number
	case Name:
		return cut(p.Name, commLen) == cut(i.Text, commLen)
	case UID:
		if i.Text != "" {
			return p.User == i.Text
		}
		return p.UID == i.Number
	case Cgroup:
		return p.Cgroup == i.Text || strings.HasPrefix(p.Cgroup, strings.TrimSuffix(i.Text, "/")+"/")
	case Exe:
		return p.Exe == i.Text
	}
	return false
}

func cut(text string, n int) string { return text[:min(n, len(text))] }
