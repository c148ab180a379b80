package socket

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
)

func pair(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if ours, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if theirs, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// await makes sure that what was sent has arrived.
func await(t *testing.T, conn net.Conn) {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	_ = raw.Read(func(uintptr) bool { done := seen; seen = true; return done })
}

func TestALookTellsQuietDataAndEndApart(t *testing.T) {
	ours, theirs := pair(t)
	p := NewProbe(ours)
	if readable, ended := p.Look(); readable || ended {
		t.Errorf("quiet: readable %v, ended %v", readable, ended)
	}
	if _, err := theirs.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	await(t, ours)
	if readable, ended := p.Look(); !readable || ended {
		t.Errorf("data: readable %v, ended %v", readable, ended)
	}
	if _, err := io.ReadFull(ours, make([]byte, 1)); err != nil {
		t.Fatalf("the look took the data: %v", err)
	}
	theirs.Close()
	if _, err := ours.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	if readable, ended := p.Look(); !readable || !ended {
		t.Errorf("end: readable %v, ended %v", readable, ended)
	}
	ours.Close()
	if readable, ended := p.Look(); !readable || !ended {
		t.Errorf("closed: readable %v, ended %v", readable, ended)
	}
}

func TestALookAllocatesNothing(t *testing.T) {
	ours, _ := pair(t)
	p := NewProbe(ours)
	if n := testing.AllocsPerRun(100, func() { p.Look() }); n != 0 {
		t.Errorf("%v allocations per look", n)
	}
}

func TestAProbeSeesThroughTLSAndRefusesAPipe(t *testing.T) {
	ours, _ := pair(t)
	if NewProbe(tls.Client(ours, &tls.Config{})) == nil {
		t.Error("no probe through TLS")
	}
	pipe, _ := net.Pipe()
	defer pipe.Close()
	if NewProbe(pipe) != nil {
		t.Error("a probe of a pipe")
	}
}
