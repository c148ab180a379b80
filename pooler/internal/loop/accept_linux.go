package loop

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Listener accepts connections for a group, which the runtime's poller never knows.
type Listener struct {
	group *Group
	file  *os.File
	raw   syscall.RawConn
	at    *end
}

// keepAlive is after how many seconds of silence, and how often, the kernel asks a
// client's machine whether it still lives, as package net does.
const keepAlive = 15

// Listener returns one that accepts what ln would, which must not be used but for its
// Close; nil if that can't be done.
func (g *Group) Listener(ln net.Listener) *Listener {
	l := &Listener{group: g, at: endOf(ln.Addr())}
	var err error
	switch ln := ln.(type) {
	case *net.TCPListener:
		l.file, err = ln.File()
	case *net.UnixListener:
		l.file, err = ln.File()
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	fd := int(l.file.Fd()) // this makes it blocking
	if l.at.network == "tcp" {
		// What is accepted inherits these.
		for _, o := range [...]struct{ level, name, value int }{
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAlive},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAlive}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
		} {
			if err == nil {
				err = unix.SetsockoptInt(fd, o.level, o.name, o.value)
			}
		}
	}
	dup := -1
	if err == nil {
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	_ = l.file.Close() // the listener goes on, under its new number
	if err != nil {
		return nil
	}
	if unix.SetNonblock(dup, true) != nil {
		_ = unix.Close(dup) // ln goes on
		return nil
	}
	l.file = os.NewFile(uintptr(dup), "listener")
	if l.raw, err = l.file.SyscallConn(); err != nil {
		_ = l.file.Close() // ln goes on
		return nil
	}
	return l
}

// Accept waits for the next connection. It is not watched before [Conn.Watch]. After
// Close it returns net.ErrClosed.
func (l *Listener) Accept() (*Conn, error) {
	var fd uintptr
	var errno syscall.Errno
	var peer unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	err := l.raw.Read(func(ln uintptr) bool {
		// It does not wait, and the scheduler need not know of it: see shut.
		fd, _, errno = syscall.RawSyscall6(unix.SYS_ACCEPT4, ln, uintptr(unsafe.Pointer(&peer)), uintptr(unsafe.Pointer(&size)),
			unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		return errno != unix.EAGAIN && errno != unix.EINTR && errno != unix.ECONNABORTED
	})
	if err != nil {
		return nil, net.ErrClosed
	}
	if errno != 0 {
		return nil, os.NewSyscallError("accept4", errno)
	}
	return &Conn{group: l.group, fd: int(fd), at: l.at, remote: ofSockaddr(&peer)}, nil
}

// Watch lets the connection's task run when there is something new, from now on. It
// reports whether that can be done.
func (c *Conn) Watch() bool { return c.register() }

// Close ends Accept.
func (l *Listener) Close() { _ = l.file.Close() } // it fails if it is closed already

// ofSockaddr reads an address of an internet protocol; of others there is none.
func ofSockaddr(a *unix.RawSockaddrAny) netip.AddrPort {
	port := func(p *uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:]) }
	switch a.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port(&in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(a))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), port(&in.Port))
	}
	return netip.AddrPort{}
}
