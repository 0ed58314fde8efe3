//go:build linux

package lab

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"mitm-appliance/internal/netnstest"
)

// Join connects a host by WireGuard, as a phone does that has scanned the QR code: conf is the text
// behind it. All of the host's traffic goes into the tunnel from then on.
func (w *World) Join(h *netnstest.Host, conf string) error {
	c, err := parseClient(conf)
	if err != nil {
		return err
	}
	d, err := c.device(h)
	if err != nil {
		return fmt.Errorf("lab: WireGuard client: %w", err)
	}
	w.onClose(d.Close)
	h.Addr(clientTUN, c.addresses...)
	h.Up(clientTUN)
	h.Route("0.0.0.0/0", "", clientTUN)
	h.Route("::/0", "", clientTUN)
	if err := w.Net.Err(); err != nil {
		return err
	}
	return w.SetResolver(h, c.dns...)
}

const clientTUN = "wg0"

// client is a configuration as wg-quick(8) reads it.
type client struct {
	addresses, dns []string
	mtu            int
	uapi           strings.Builder
}

func parseClient(conf string) (*client, error) {
	c := &client{mtu: 1420}
	lines := bufio.NewScanner(strings.NewReader(conf))
	for lines.Scan() {
		key, value, found := strings.Cut(lines.Text(), "=")
		if !found {
			continue // a section or an empty line
		}
		if err := c.set(strings.TrimSpace(key), strings.TrimSpace(value)); err != nil {
			return nil, fmt.Errorf("lab: WireGuard configuration: %s: %w", key, err)
		}
	}
	if c.uapi.Len() == 0 || len(c.addresses) == 0 {
		return nil, errors.New("lab: this is no WireGuard configuration")
	}
	return c, nil
}

func (c *client) set(key, value string) error {
	list := strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
	var err error
	switch key {
	case "Address":
		c.addresses = list
	case "DNS":
		c.dns = list
	case "MTU":
		c.mtu, err = strconv.Atoi(value)
	case "PrivateKey":
		err = c.key("private_key", value)
	case "PublicKey":
		err = c.key("public_key", value)
	case "PresharedKey":
		err = c.key("preshared_key", value)
	case "AllowedIPs":
		for _, p := range list {
			fmt.Fprintf(&c.uapi, "allowed_ip=%s\n", p)
		}
	case "Endpoint":
		fmt.Fprintf(&c.uapi, "endpoint=%s\n", value)
	case "PersistentKeepalive":
		fmt.Fprintf(&c.uapi, "persistent_keepalive_interval=%s\n", value)
	}
	return err
}

func (c *client) key(name, text string) error {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return err
	}
	fmt.Fprintf(&c.uapi, "%s=%s\n", name, hex.EncodeToString(raw))
	return nil
}

// device runs wireguard-go in the host, whose sockets and interface are the host's.
func (c *client) device(h *netnstest.Host) (d *device.Device, err error) {
	err = h.Do(func() error {
		t, err := tun.CreateTUN(clientTUN, c.mtu)
		if err != nil {
			return err
		}
		d = device.NewDevice(clientLink{t, c.mtu}, clientSockets{conn.NewDefaultBind(), h}, device.NewLogger(device.LogLevelSilent, ""))
		if err = d.IpcSet(c.uapi.String()); err == nil {
			err = d.Up()
		}
		if err != nil {
			d.Close()
		}
		return err
	})
	return d, err
}

// clientLink knows its MTU: wireguard-go would ask for it from a thread that is not in the host.
type clientLink struct {
	tun.Device
	mtu int
}

func (l clientLink) MTU() (int, error) { return l.mtu, nil }

// clientSockets opens its sockets in the host, whoever asks for them.
type clientSockets struct {
	conn.Bind
	host *netnstest.Host
}

func (s clientSockets) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	err = s.host.Do(func() error {
		fns, actual, err = s.Bind.Open(port)
		return err
	})
	return fns, actual, err
}
