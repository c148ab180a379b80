// Package socket looks at a connection without reading from it and without
// waiting, so that a dead server is noticed before it is used, and a client that
// has hung up while it waits.
//
// Only the pooler imports it.
package socket

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Probe looks at one socket. It may be used by one goroutine at a time, also
// while others read and write the connection.
type Probe struct {
	raw  syscall.RawConn
	look func(fd uintptr) // built once, so that a look allocates nothing
	fds  [1]unix.PollFd
	err  error
}

// NewProbe returns nil if conn is not a socket of the operating system, nor a layer
// (such as TLS) over one.
func NewProbe(conn net.Conn) *Probe {
	for {
		if c, ok := conn.(syscall.Conn); ok {
			raw, err := c.SyscallConn()
			if err != nil {
				return nil
			}
			p := &Probe{raw: raw}
			p.look = func(fd uintptr) {
				p.fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN | hangup}
				_, p.err = unix.Poll(p.fds[:], 0)
			}
			return p
		}
		layer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		conn = layer.NetConn()
	}
}

// Look reports whether a read would return at once, with data or with the end, and
// whether the peer has ended its side. A closed connection is both.
func (p *Probe) Look() (readable, ended bool) {
	p.fds[0].Revents = 0
	if err := p.raw.Control(p.look); err != nil {
		return true, true
	}
	if p.err != nil {
		return false, false // interrupted: look again another time
	}
	seen := p.fds[0].Revents
	return seen != 0, seen&(hangup|unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}
