//go:build linux

package capture

import (
	"errors"
	"fmt"
	"strings"

	"mitm-appliance/redirect"
)

// errNoOutput means that Config has no Output.
var errNoOutput = errors.New("capture: the nftables fallback needs redirect's output chain (Config.Output)")

// beginNFT hands the Spec to the nftables output chain.
func (c *Capture) beginNFT() error {
	if c.cfg.Output == nil {
		return errNoOutput
	}
	if err := c.setOutput(c.cfg.Spec); err != nil {
		return err
	}
	c.spec = c.cfg.Spec
	return nil
}

// setOutput compiles a Spec and puts it in force.
func (c *Capture) setOutput(spec Spec) error {
	rules, err := compileRules(spec, c.never()[1:], c.system()) // our own packets carry a mark
	if err != nil {
		return err
	}
	out, err := rules.output(c.system())
	if err != nil {
		return err
	}
	if err := c.cfg.Output(out); err != nil {
		return err
	}
	c.rules, c.output = rules, out
	return nil
}

// refreshOutput follows cgroups that came or went.
func (c *Capture) refreshOutput() error {
	out, err := c.rules.output(c.system())
	if err != nil || fmt.Sprint(out) == fmt.Sprint(c.output) {
		return err
	}
	if err := c.cfg.Output(out); err != nil {
		return err
	}
	c.output = out
	return nil
}

// output says the rules in the words of nftables, which looks at exceptions
// first and not at the order of items: so exceptions must come last.
func (r *rules) output(sys system) (redirect.OutputRules, error) {
	out := redirect.OutputRules{All: r.start}
	excepted := false
	for _, item := range r.items {
		if !item.Negated && excepted {
			return out, fmt.Errorf("capture: item %q comes after an exclusion, which the nftables fallback cannot express: write exclusions last, or use a kernel with eBPF", item)
		}
		excepted = excepted || item.Negated
		if err := item.output(&out, sys); err != nil {
			return out, err
		}
	}
	return out, nil
}

func (i Item) output(out *redirect.OutputRules, sys system) error {
	uids, cgroups := &out.UIDs, &out.Cgroups
	if i.Negated {
		uids, cgroups = &out.ExceptUIDs, &out.ExceptCgroups
	}
	switch {
	case i.Kind == UID:
		*uids = append(*uids, i.Number)
	case i.Kind == Cgroup && i.Text == "/" && !i.Negated:
		out.All = true
	case i.Kind == Cgroup && i.Text == "/":
		*out = redirect.OutputRules{}
	case i.Kind == Cgroup:
		id, err := sys.cgroup(i.Text)
		if err == nil {
			*cgroups = append(*cgroups, redirect.Cgroup{ID: id, Level: uint32(strings.Count(i.Text, "/"))})
		}
		return unlessMissing(err)
	default:
		return fmt.Errorf("capture: item %q needs eBPF: the nftables fallback knows only uid: and cgroup: items (start the program in a cgroup or as a user of its own)", i)
	}
	return nil
}
