package loop

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Conn is a connection that a group has adopted. It is a net.Conn, with deadlines,
// for goroutines: one may read it and one may write it at a time, while others set
// deadlines or close it. Its Try calls are for tasks.
type Conn struct {
	group   *Group
	fd      int
	turn    int32        // of those that had this descriptor; an event tells for which it is
	state   atomic.Int64 // what has been seen, and held for each call that uses fd; closing below zero
	room    atomic.Bool  // events tell of room for a write, too
	task    atomic.Pointer[Task]
	blocked atomic.Pointer[blocked] // of those who wait; nil: nobody has
	at      *end
	remote  netip.AddrPort // invalid: not of an internet protocol
}

// An end is ours of a connection; those that were accepted together share it.
type end struct {
	network string
	local   netip.AddrPort // invalid: not of an internet protocol
}

func endOf(a net.Addr) *end { return &end{a.Network(), addrPort(a)} }

// What has been seen of a connection, and not been found out to be over.
const (
	readable = 1 << iota
	hungUp
	held // and counted from here on
)

// closing is far below what calls can count up to.
const closing = -1 << 40

// interests are what events tell of. Room for a write is none, until a goroutine waits for
// it: a connection that is new has room, and that would be an event.
const interests = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET

// Adopt takes a TCP or Unix connection over from the runtime: conn must not be used
// any more. It returns nil, and leaves conn as it was, if that can't be done.
func (g *Group) Adopt(conn net.Conn) *Conn {
	var of syscall.Conn
	switch c := conn.(type) {
	case *net.TCPConn:
		of = c
	case *net.UnixConn:
		of = c
	default:
		return nil
	}
	fd, err := duplicate(of)
	if err != nil {
		return nil
	}
	c := &Conn{group: g, fd: fd, at: endOf(conn.LocalAddr()), remote: addrPort(conn.RemoteAddr())}
	c.Stir() // as far as anybody knows
	if !c.Watch() {
		_ = unix.Close(fd) // conn goes on
		return nil
	}
	_ = conn.Close() // the file goes on, under its new number
	return c
}

// duplicate returns another descriptor of a socket.
func duplicate(of syscall.Conn) (fd int, err error) {
	raw, err := of.SyscallConn()
	if err != nil {
		return -1, err
	}
	failed := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(failed, err)
}

// Watch lets the connection's task run when there is something new, from now on. It
// reports whether that can be done.
func (c *Conn) Watch() bool { return c.register(interests) }

// register begins to watch the connection.
func (c *Conn) register(events uint32) bool {
	if c.fd >= most {
		return false
	}
	c.turn = c.group.turns.Add(1)
	c.group.conns.set(c.fd, c)
	if c.control(unix.EPOLL_CTL_ADD, events) != nil {
		c.group.conns.set(c.fd, nil)
		return false
	}
	return true
}

// control tells the kernel which events of the connection it is to tell of.
func (c *Conn) control(op int, events uint32) error {
	return unix.EpollCtl(c.group.ep, op, c.fd, &unix.EpollEvent{Events: events, Fd: int32(c.fd), Pad: c.turn})
}

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort()
	}
	return netip.AddrPort{}
}

// Own makes a task the one that runs when the connection is ready; nil: none.
func (c *Conn) Own(t *Task) { c.task.Store(t) }

// note remembers what an event tells.
func (c *Conn) note(events uint32) {
	var seen int64
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		seen = readable
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		seen |= hungUp
	}
	if c.state.Load()&seen != seen {
		c.state.Or(seen)
	}
}

// ready tells those whom an event concerns.
func (c *Conn) ready(w *Worker, events uint32) {
	if b := c.blocked.Load(); b != nil {
		w.woke = b.wake() || w.woke
	}
	if events&^unix.EPOLLOUT == 0 {
		return // a task never waits for that
	}
	if t := c.task.Load(); t != nil {
		t.Step(w)
	}
}

// HungUp reports whether the peer has ended its side. It is told without a call of
// the kernel.
func (c *Conn) HungUp() bool { return c.state.Load()&hungUp != 0 }

// Quiet reports whether nothing has come that was not read. It is told without a call
// of the kernel; false may be wrong, after a goroutine has read.
func (c *Conn) Quiet() bool { return c.state.Load()&readable == 0 }

// Stir lets the next TryRead really look: a goroutine that has read does not know
// what is left.
func (c *Conn) Stir() { c.state.Or(readable) }

// hold keeps the descriptor from being closed, until release.
func (c *Conn) hold() bool { return c.holdBut(0) }

// holdBut is hold, and forgets something that has been seen.
func (c *Conn) holdBut(seen int64) bool {
	for {
		n := c.state.Load()
		if n < 0 {
			return false
		}
		if c.state.CompareAndSwap(n, n&^seen+held) {
			return true
		}
	}
}

func (c *Conn) release() {
	if c.state.Add(-held)&^(held-1) == closing {
		c.shut()
	}
}

// shut gives the descriptor back. That takes no longer than a write, and the scheduler is not told
// of it either: in a process that is idle otherwise, that wakes the runtime's monitor, which then
// looks fifty times in a millisecond.
func (c *Conn) shut() {
	c.group.conns.set(c.fd, nil)
	_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(c.fd), 0, 0) // there is nothing to be done about an error
}

// TryRead reads what there is. It returns ErrWait if there is nothing.
func (c *Conn) TryRead(p []byte) (int, error) {
	if c.state.Load()&readable == 0 {
		return 0, ErrWait
	}
	if len(p) == 0 {
		return 0, nil
	}
	if !c.holdBut(readable) { // before: what comes later is told of again
		return 0, net.ErrClosed
	}
	n, err := c.recv(p)
	c.release()
	if n == len(p) || n > 0 && c.HungUp() || err != nil && !Waits(err) {
		c.state.Or(readable)
	}
	return n, err
}

// read reads once.
func (c *Conn) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if !c.hold() {
		return 0, net.ErrClosed
	}
	n, err := c.recv(p)
	c.release()
	return n, err
}

// recv is read while the descriptor is held.
func (c *Conn) recv(p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(c.fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0, 0, 0)
		switch errno {
		case 0:
			if n == 0 {
				return 0, io.EOF
			}
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, ErrWait
		default:
			return 0, os.NewSyscallError("read", errno)
		}
	}
}

// TryWrite writes as much as there is room for. It returns ErrWait if that was not
// all; nobody is told when there is more room, but a goroutine's Write.
func (c *Conn) TryWrite(p []byte) (n int, err error) {
	if !c.hold() {
		return 0, net.ErrClosed
	}
	n, err = c.send(p)
	c.release()
	return n, err
}

// send is TryWrite while the descriptor is held.
func (c *Conn) send(p []byte) (n int, err error) {
	for n < len(p) {
		k, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(c.fd), uintptr(unsafe.Pointer(&p[n])), uintptr(len(p)-n), unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			n += int(k)
		case unix.EINTR:
		case unix.EAGAIN:
			return n, ErrWait
		default:
			return n, os.NewSyscallError("write", errno)
		}
	}
	return n, nil
}

// Read waits for data, as net.Conn says.
func (c *Conn) Read(p []byte) (int, error) {
	if c.blocked.Load() == nil { // nobody has set a deadline
		if n, err := c.read(p); err == nil || errors.Is(err, io.EOF) {
			return n, err
		}
	}
	b := c.block()
	b.using.Add(1) // before the first look: what comes later is told
	defer b.using.Add(-1)
	for {
		if b.reading.passed() {
			return 0, c.fail("read", os.ErrDeadlineExceeded)
		}
		n, err := c.read(p)
		switch {
		case err == nil, errors.Is(err, io.EOF):
			return n, err
		case !Waits(err):
			return n, c.fail("read", err)
		}
		if err := b.wait(b.canRead, &b.reading); err != nil {
			return 0, c.fail("read", err)
		}
	}
}

// Write waits until all is written, as net.Conn says.
func (c *Conn) Write(p []byte) (n int, err error) {
	if c.blocked.Load() == nil { // nobody has set a deadline
		if n, err = c.TryWrite(p); err == nil {
			return n, nil
		}
	}
	b := c.block()
	b.using.Add(1)
	defer b.using.Add(-1)
	for {
		if b.writing.passed() {
			return n, c.fail("write", os.ErrDeadlineExceeded)
		}
		k, err := c.TryWrite(p[n:])
		n += k
		switch {
		case err == nil:
			return n, nil
		case !Waits(err):
			return n, c.fail("write", err)
		case !c.room.Swap(true):
			c.awaitRoom()
		}
		if err := b.wait(b.canWrite, &b.writing); err != nil {
			return n, c.fail("write", err)
		}
	}
}

// awaitRoom lets events tell of room for a write, also of what there is by now.
func (c *Conn) awaitRoom() {
	if c.hold() {
		_ = c.control(unix.EPOLL_CTL_MOD, interests|unix.EPOLLOUT) // fails if it is not watched, and nothing tells of it then
		c.release()
	}
}

func (c *Conn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: c.at.network, Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// Close ends the connection. Calls that wait fail.
func (c *Conn) Close() error {
	for {
		n := c.state.Load()
		if n < 0 {
			return c.fail("close", net.ErrClosed)
		}
		if !c.state.CompareAndSwap(n, n+closing) {
			continue
		}
		if b := c.blocked.Load(); b != nil {
			b.close()
		}
		if n < held {
			c.shut()
		}
		return nil
	}
}

// CloseWrite ends what is written, so that the peer reads to its end.
func (c *Conn) CloseWrite() error {
	if !c.hold() {
		return c.fail("close", net.ErrClosed)
	}
	defer c.release()
	if err := unix.Shutdown(c.fd, unix.SHUT_WR); err != nil {
		return c.fail("close", os.NewSyscallError("shutdown", err))
	}
	return nil
}

// Look asks the kernel whether a read would return at once, with data or with the
// end, and whether the peer has ended its side. A closed connection is both.
func (c *Conn) Look() (readable, ended bool) {
	if !c.hold() {
		return true, true
	}
	defer c.release()
	fds := [1]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN | unix.POLLRDHUP}}
	if _, err := unix.Poll(fds[:], 0); err != nil {
		return false, false // interrupted: look again another time
	}
	seen := fds[0].Revents
	return seen != 0, seen&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}

// LocalAddr is our end's.
func (c *Conn) LocalAddr() net.Addr { return c.addr(c.at.local) }

// RemoteAddr is the peer's.
func (c *Conn) RemoteAddr() net.Addr { return c.addr(c.remote) }

func (c *Conn) addr(a netip.AddrPort) net.Addr {
	if a.IsValid() {
		return net.TCPAddrFromAddrPort(a)
	}
	return &net.UnixAddr{Net: c.at.network}
}

// SetDeadline is for goroutines, as net.Conn says.
func (c *Conn) SetDeadline(t time.Time) error {
	b := c.block()
	b.reading.set(t)
	b.writing.set(t)
	return c.open("set")
}

// SetReadDeadline is for goroutines, as net.Conn says.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.block().reading.set(t)
	return c.open("set")
}

// SetWriteDeadline is for goroutines, as net.Conn says.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.block().writing.set(t)
	return c.open("set")
}

func (c *Conn) open(op string) error {
	if c.state.Load() < 0 {
		return c.fail(op, net.ErrClosed)
	}
	return nil
}
