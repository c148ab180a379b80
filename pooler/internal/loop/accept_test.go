//go:build linux

package loop

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// accepting has a group accept from a new listener. What it accepted comes out of the channel.
func accepting(t *testing.T, g *Group, failed func(error, time.Duration)) (*Listener, net.Listener, chan *Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	got := make(chan *Conn, 1000)
	l := g.Listen(ln, func(_ *Worker, c *Conn) { got <- c }, failed)
	if l == nil {
		t.Fatal("no listener")
	}
	t.Cleanup(l.Close)
	return l, ln, got
}

// knock opens a connection and sends a byte.
func knock(t *testing.T, ln net.Listener) net.Conn {
	t.Helper()
	theirs, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	if _, err := theirs.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	return theirs
}

func TestTheListenerAcceptsUntilItIsClosed(t *testing.T) {
	g := start(t)
	l, ln, got := accepting(t, g, nil)
	for range 20 {
		theirs := knock(t, ln)
		c := inTime(t, "the connection", got)
		stepped := make(chan struct{}, 10)
		c.Own(taskOf(func(*Worker) { stepped <- struct{}{} }))
		if !c.Watch() {
			t.Fatal("not watched")
		}
		inTime(t, "what came before it was watched", stepped)
		if c.RemoteAddr().String() != theirs.LocalAddr().String() {
			t.Errorf("%v, want %v", c.RemoteAddr(), theirs.LocalAddr())
		}
		c.Close()
	}
	l.Close()
	l.Close() // does nothing
	theirs := knock(t, ln)
	own, err := ln.Accept() // it is still there
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if own.RemoteAddr().String() != theirs.LocalAddr().String() {
		t.Errorf("%v, want %v", own.RemoteAddr(), theirs.LocalAddr())
	}
	if len(got) > 0 {
		t.Error("accepted after it was closed")
	}
}

func TestAllThatWaitAreAcceptedButNotAllAtOnce(t *testing.T) {
	g := idle(t)
	_, ln, got := accepting(t, g, nil)
	const waiting = 3*mostAccepted + 1
	for range waiting {
		knock(t, ln)
	}
	w := &Worker{Scratch: make([]byte, ScratchSize)}
	for before, left := 0, waiting; left > 0; left -= mostAccepted {
		if n := g.poll(w); n != 1 {
			t.Fatalf("%d events for %d that wait", n, left)
		}
		g.serve(w, 1)
		if n := len(got) - before; n != min(left, mostAccepted) {
			t.Fatalf("%d accepted at once, of %d", n, left)
		}
		before = len(got)
	}
	for range waiting {
		(<-got).Close()
	}
}

func TestASilentClientIsAcceptedAMomentLater(t *testing.T) {
	g := start(t)
	l, ln, got := accepting(t, g, nil)
	if n, err := unix.GetsockoptInt(l.sock.fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT); n == 0 || err != nil {
		t.Errorf("the kernel keeps it for %d s, %v", n, err)
	}
	theirs, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	c := inTime(t, "the connection", got)
	defer c.Close()
	if _, err := c.TryRead(make([]byte, 1)); !Waits(err) {
		t.Error(err)
	}
}

func TestTheListenerPausesWhileThereAreNoDescriptors(t *testing.T) {
	g := start(t)
	type pause struct {
		err error
		of  time.Duration
	}
	failures := make(chan pause, 1000)
	_, ln, got := accepting(t, g, func(err error, of time.Duration) {
		select {
		case failures <- pause{err, of}:
		default:
		}
	})
	theirs, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	restore := func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was) }
	defer restore()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for want := shortestPause; want < 8*shortestPause; want *= 2 {
		f := inTime(t, "a failure", failures)
		if !errors.Is(f.err, unix.EMFILE) || f.of != want {
			t.Errorf("%v, pause %v; want %v", f.err, f.of, want)
		}
	}
	restore()
	inTime(t, "the connection", got).Close()
}

func TestAListenerOfAnotherKindIsNotTaken(t *testing.T) {
	g := idle(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if g.Listen(struct{ net.Listener }{ln}, nil, nil) != nil {
		t.Error("it was: its Accept may do more than the socket's")
	}
}
