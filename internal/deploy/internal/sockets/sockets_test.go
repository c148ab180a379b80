package sockets

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
)

func TestListenersAreReadFromTheKernelsTables(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1001 1 0
   1: 0100007F:1F91 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 1002 1 0
   2: 00000000000000000000000001000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1003 1 0
   3: 0000000000000000FFFF00000100007F:0BB9 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1004 1 0
   4: nonsense
`
	want := []Listener{
		{netip.MustParseAddrPort("127.0.0.1:8080"), "1001"},
		{netip.MustParseAddrPort("[::1]:3000"), "1003"},
		{netip.MustParseAddrPort("127.0.0.1:3001"), "1004"},
	}
	if got := parseListeners([]byte(table)); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestAListenerOfThisProcessIsFoundByItsInode(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	inodes := map[string]bool{}
	Inodes(os.Getpid(), inodes)
	ls, err := Listeners(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(ls, func(l Listener) bool { return l.At.String() == ln.Addr().String() && inodes[l.Inode] }) {
		t.Errorf("%v is not among %v, %v", ln.Addr(), ls, inodes)
	}
	if _, err := Listeners(1 << 30); err == nil {
		t.Error("a process that does not exist listens")
	}
}

func TestNoPortIsGivenTwice(t *testing.T) {
	var p Ports
	seen := map[int]bool{}
	for range 50 {
		port, err := p.Claim()
		if err != nil || seen[port] {
			t.Fatalf("%d, %v", port, err)
		}
		seen[port] = true
	}
	for port := range seen {
		if p.take(port) {
			t.Errorf("%d was given twice", port)
		}
		p.Release(port)
	}
	if p.Taken() != 0 {
		t.Errorf("%d are still taken", p.Taken())
	}
}

func TestPortsComeFromOutsideTheRangeOfOutgoingConnections(t *testing.T) {
	for range 1000 {
		for _, r := range [][2]int{{32768, 60999}, {1024, 60999}, {21000, 65000}} {
			if p := candidate(r[0], r[1]); p < 20000 && r[0] != 1024 || p > 65535 || p >= r[0] && p <= r[1] {
				t.Fatalf("%d for %v", p, r)
			}
		}
		if p := candidate(1024, 65535); p < 1024 || p > 65535 { // nothing is outside
			t.Fatal(p)
		}
	}
}

func FuzzListeners(f *testing.F) {
	f.Add([]byte("0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 0 0 1001"))
	f.Add([]byte("0: :1 x 0A 1 1 1 1 1 1\n0: 0100007F:1FFFF x 0A 1 1 1 1 1 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, l := range parseListeners(b) {
			if !l.At.Addr().IsValid() {
				t.Errorf("%+v", l)
			}
		}
	})
}
