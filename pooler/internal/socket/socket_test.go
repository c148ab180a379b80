package socket

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"
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

// await looks until there is something to see: the kernel delivers in its own time.
func await(t *testing.T, p *Probe) (readable, ended bool) {
	t.Helper()
	for range 10_000 {
		if readable, ended = p.Look(); readable {
			return readable, ended
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("nothing came")
	return
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
	if readable, ended := await(t, p); !readable || ended {
		t.Errorf("data: readable %v, ended %v", readable, ended)
	}
	if _, err := io.ReadFull(ours, make([]byte, 1)); err != nil {
		t.Fatalf("the look took the data: %v", err)
	}
	theirs.Close()
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
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
