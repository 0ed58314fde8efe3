//go:build linux

package main

import (
	"encoding/base64"
	"encoding/hex"
	"flag"
	"fmt"
	"os"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"mitm-appliance/wg"
)

const (
	wgPort    = 51820
	wgMTU     = 1420
	wgDevice  = "wg0"
	wgPeer    = "phone"
	wgForward = "wgs0"
)

// phoneWorker is the client of both WireGuard servers: wireguard-go with a TUN device of its own.
func phoneWorker(args []string) error {
	return wireGuard(args, wgDevice, func(f *wg.File, p wg.PeerConfig) string {
		return fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s:%d\nallowed_ip=0.0.0.0/0\n",
			hexSecret(p.PrivateKey), hexPublic(f.ServerKey.Public()), gatewayLAN, wgPort)
	})
}

// forwardWorker is wireguard-go as a server that lets the kernel forward and terminates nothing.
func forwardWorker(args []string) error {
	return wireGuard(args, wgForward, func(f *wg.File, p wg.PeerConfig) string {
		text := fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\n", hexSecret(f.ServerKey), wgPort, hexPublic(p.PublicKey))
		for _, a := range p.Addresses {
			text += fmt.Sprintf("allowed_ip=%s\n", a)
		}
		return text
	})
}

func wireGuard(args []string, name string, uapi func(*wg.File, wg.PeerConfig) string) error {
	fs := flag.NewFlagSet(name, flag.ExitOnError)
	path := fs.String("file", "", "")
	_ = fs.Parse(args) // exits
	data, err := os.ReadFile(*path)
	if err != nil {
		return err
	}
	f, err := wg.ParseFile(data)
	if err != nil {
		return err
	}
	p, err := f.Peer(wgPeer)
	if err != nil {
		return err
	}
	t, err := tun.CreateTUN(name, wgMTU)
	if err != nil {
		return err
	}
	d := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	if err := d.IpcSet(uapi(f, p)); err != nil {
		return err
	}
	if err := d.Up(); err != nil {
		return err
	}
	return serveUntilStopped()
}

func hexSecret(k wg.SecretKey) string { return toHex(k.Base64()) }
func hexPublic(k wg.PublicKey) string { return toHex(k.String()) }

func toHex(text string) string {
	raw, _ := base64.StdEncoding.DecodeString(text) // it was encoded by wg
	return hex.EncodeToString(raw)
}
