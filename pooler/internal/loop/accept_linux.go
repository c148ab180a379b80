package loop

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Listener accepts connections for a group: its workers do it.
type Listener struct {
	sock     *Conn // which listens
	task     Task
	accepted func(*Worker, *Conn)
	failed   func(err error, pause time.Duration)
	pause    atomic.Int64 // the last one, in nanoseconds; 0: something has been accepted since
	pausing  atomic.Bool
}

// Pauses when the system refuses to accept. Out of file descriptors, most likely: it passes.
const shortestPause, longestPause = 5 * time.Millisecond, time.Second

// mostAccepted is how many connections are accepted at once, before others have their turn.
const mostAccepted = 8

// keepAlive is after how many seconds of silence, and how often, the kernel asks a
// client's machine whether it still lives, as package net does.
const keepAlive = 15

// silent is for how many seconds the kernel keeps a connection to itself whose client has sent
// nothing. Clients of PostgreSQL speak first.
const silent = 1

// Listen accepts what ln would, which must not be used but for its Close, until the listener that
// it returns is closed. It has a worker call accepted for each connection, which is not watched
// before its [Conn.Watch], and failed when there is an error and a pause. It returns nil if that can't be
// done.
func (g *Group) Listen(ln net.Listener, accepted func(*Worker, *Conn), failed func(err error, pause time.Duration)) *Listener {
	var of syscall.Conn
	switch ln := ln.(type) { // no other: its Accept may do more than the socket's
	case *net.TCPListener:
		of = ln
	case *net.UnixListener:
		of = ln
	default:
		return nil
	}
	fd, err := duplicate(of)
	if err != nil {
		return nil
	}
	l := &Listener{sock: &Conn{group: g, fd: fd, at: endOf(ln.Addr())}, accepted: accepted, failed: failed}
	l.task.Stepper = l
	l.sock.Own(&l.task)
	if l.sock.at.network == "tcp" {
		// What is accepted inherits these.
		for _, o := range [...]struct{ level, name, value int }{
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAlive},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAlive}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9}, {unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, silent},
		} {
			if err == nil {
				err = unix.SetsockoptInt(fd, o.level, o.name, o.value)
			}
		}
	}
	if err != nil || !l.sock.register(unix.EPOLLIN|unix.EPOLLET) {
		_ = unix.Close(fd) // ln goes on
		return nil
	}
	return l
}

// Step accepts what there is.
func (l *Listener) Step(w *Worker) {
	if l.pausing.Load() || !l.sock.hold() {
		return
	}
	defer l.sock.release()
	for range mostAccepted {
		c, errno := l.accept()
		switch errno {
		case 0:
			l.accepted(w, c)
		case unix.EINTR, unix.ECONNABORTED:
		case unix.EAGAIN:
			return
		default:
			l.rest(os.NewSyscallError("accept4", errno))
			return
		}
	}
	_ = l.sock.control(unix.EPOLL_CTL_MOD, unix.EPOLLIN|unix.EPOLLET) // tells of what is left, behind others
}

// accept takes one connection. That does not wait, and the scheduler need not know of it: see shut.
func (l *Listener) accept() (*Conn, syscall.Errno) {
	var peer unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	fd, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(l.sock.fd), uintptr(unsafe.Pointer(&peer)), uintptr(unsafe.Pointer(&size)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return nil, errno
	}
	c := &Conn{group: l.sock.group, fd: int(fd), at: l.sock.at, remote: ofSockaddr(&peer)}
	c.Stir() // as far as anybody knows
	if l.pause.Load() != 0 {
		l.pause.Store(0)
	}
	return c, 0
}

// rest tries again after a pause.
func (l *Listener) rest(err error) {
	if l.pausing.Swap(true) {
		return
	}
	pause := min(max(2*time.Duration(l.pause.Load()), shortestPause), longestPause)
	l.pause.Store(int64(pause))
	l.failed(err, pause)
	time.AfterFunc(pause, func() {
		l.pausing.Store(false)
		l.sock.group.Post(&l.task)
	})
}

// Close ends it. A worker may be accepting a last connection.
func (l *Listener) Close() {
	if l.sock.hold() {
		_ = l.sock.control(unix.EPOLL_CTL_DEL, 0) // the socket goes on: ln has it
		l.sock.release()
	}
	_ = l.sock.Close() // it fails if it is closed already
}

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
