// Package edgetest provides an in-memory network, so that a test of the edge, or
// of anything that takes a listener and a dialer, runs in a synctest bubble: real
// servers, fake time, no ports and no sleeps. Tests of any package may import it.
package edgetest

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// Network is a set of listeners that reach one another by name. It is safe for
// concurrent use.
type Network struct {
	mu sync.Mutex
	ls map[string]*listener
}

// NewNetwork returns an empty network.
func NewNetwork() *Network { return &Network{ls: map[string]*listener{}} }

type listener struct {
	addr  string
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

// Listen opens addr, in place of whoever listened there before.
func (n *Network) Listen(addr string) net.Listener {
	l := &listener{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	n.ls[addr] = l
	n.mu.Unlock()
	return l
}

// Dial connects to a listener; without one it is refused, as on a real network.
// The ends look like TCP connections between loopback addresses.
func (n *Network) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	l := n.ls[addr]
	n.mu.Unlock()
	if l == nil {
		return nil, refused(addr)
	}
	a, b := net.Pipe()
	select {
	case l.conns <- conn{b}:
		return conn{a}, nil
	case <-l.done:
		return nil, refused(addr)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func refused(addr string) error { return fmt.Errorf("dial %s: connection refused", addr) }

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *listener) Addr() net.Addr { return name(l.addr) }

type name string

func (a name) Network() string { return "mem" }
func (a name) String() string  { return string(a) }

type conn struct{ net.Conn }

func (conn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4711} }
func (conn) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }
