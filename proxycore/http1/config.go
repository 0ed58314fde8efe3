package http1

import (
	"sync"
	"time"

	"mitm-appliance/proxycore"
	"mitm-appliance/proxycore/exchange"
)

// Config bounds what a peer can make us hold and wait for. The zero Config has sane limits.
type Config struct {
	MaxHead      int           // bytes of a head or of a trailer section; 0 means 64 KiB
	MaxLine      int           // bytes of one line of it; 0 means MaxHead
	MaxFields    int           // fields in it; 0 means 1000
	MaxChunkLine int           // bytes of a chunk's size and extensions; 0 means 4 KiB
	HeadTimeout  time.Duration // from the first byte of a request head to its last; 0 means 60 s
	HalfClose    time.Duration // how long an answer is awaited for a client that has closed its side; 0 means 60 s
	Linger       time.Duration // how long a client that still sends may read our last words; 0 means 2 s
}

func (c *Config) defaults() {
	number := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	duration := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	number(&c.MaxHead, 64<<10)
	number(&c.MaxLine, c.MaxHead)
	number(&c.MaxFields, 1000)
	number(&c.MaxChunkLine, 4<<10)
	duration(&c.HeadTimeout, 60*time.Second)
	duration(&c.HalfClose, 60*time.Second)
	duration(&c.Linger, 2*time.Second)
}

// Framing is HTTP/1 towards both sides. It is safe for concurrent use.
type Framing struct {
	cfg     Config
	buffers sync.Pool // *[]byte of writeSize, for messages on their way out
}

// New returns the framing.
func New(cfg Config) *Framing {
	cfg.defaults()
	return &Framing{cfg: cfg}
}

// Handler serves clients; svc runs their exchanges.
func (f *Framing) Handler(svc *exchange.Service) proxycore.Handler { return &handler{f, svc} }

// NewServer returns what exchange.Config.NewServer asks for. opts are the exchanges' options.
func (f *Framing) NewServer(opts *exchange.Options) func(*proxycore.Session, *proxycore.ServerConn) exchange.Server {
	return func(s *proxycore.Session, c *proxycore.ServerConn) exchange.Server { return newServer(f, s, c, opts) }
}
