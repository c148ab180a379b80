// Package sockets knows the TCP ports of this machine: which may be given to a
// copy of the app, and which are listened on. Only the drivers of internal/deploy
// import it. It needs Linux.
package sockets

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
)

// Ports gives out ports to copies that live at the same time. The zero value is
// ready. Its methods may be called from several goroutines at once.
type Ports struct {
	mu    sync.Mutex
	taken map[int]bool
}

// Claim takes a port that nothing listens on and that no other copy was given. It
// avoids the range from which the kernel takes ports for outgoing connections:
// there, one of them could take the port before the app, seconds later, binds it.
func (p *Ports) Claim() (int, error) {
	for range 200 {
		port := candidate(ephemeral())
		if free(port) && p.take(port) {
			return port, nil
		}
	}
	return 0, errors.New("no free port found for the app: 200 ports were tried and all are taken")
}

// Take notes that a copy has port already.
func (p *Ports) Take(port int) { p.take(port) }

func (p *Ports) take(port int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken[port] {
		return false
	}
	if p.taken == nil {
		p.taken = map[int]bool{}
	}
	p.taken[port] = true
	return true
}

// Release gives a port back.
func (p *Ports) Release(port int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, port)
}

// Taken counts the ports that are given out.
func (p *Ports) Taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.taken)
}

// free reports whether a server could bind port, on whatever address.
func free(port int) bool {
	ln, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	return ln.Close() == nil
}

// ephemeral is the range from which the kernel takes ports for outgoing
// connections; its own default if it cannot be read.
func ephemeral() (low, high int) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		if _, err = fmt.Sscan(string(b), &low, &high); err == nil && low > 0 && high >= low {
			return low, high
		}
	}
	return 32768, 60999
}

// candidate draws a port outside low to high if there are enough of them.
func candidate(low, high int) int {
	const floor, enough, top = 20000, 1000, 65535
	switch {
	case low-floor >= enough:
		return floor + rand.IntN(low-floor)
	case top-high >= enough:
		return high + 1 + rand.IntN(top-high)
	}
	return floor + rand.IntN(top-floor+1)
}

// A Listener is a TCP socket in state LISTEN.
type Listener struct {
	At    netip.AddrPort
	Inode string
}

// Listeners lists what is listened on in the network namespace of a process.
func Listeners(pid int) (ls []Listener, err error) {
	var errs []error
	for _, table := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			errs = append(errs, err) // tcp6 is missing where IPv6 is off
			continue
		}
		ls = append(ls, parseListeners(b)...)
	}
	if len(errs) == 2 {
		return nil, errors.Join(errs...)
	}
	return ls, nil
}

// Inodes adds the inodes of the sockets that a process has open. Of a process that
// ended, or of another user's, it sees nothing.
func Inodes(pid int, inodes map[string]bool) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, _ := os.ReadDir(dir)
	for _, fd := range fds {
		link, err := os.Readlink(dir + "/" + fd.Name())
		if err != nil {
			continue
		}
		if inode, ok := strings.CutPrefix(link, "socket:["); ok {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
}

// parseListeners reads /proc/net/tcp or tcp6 and returns the sockets in state
// LISTEN; lines that it cannot read are passed over. See proc_pid_net(5).
func parseListeners(table []byte) (ls []Listener) {
	lines := bufio.NewScanner(bytes.NewReader(table))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 || f[3] != "0A" {
			continue
		}
		if at, ok := parseAddrPort(f[1]); ok {
			ls = append(ls, Listener{at, f[9]})
		}
	}
	return ls
}

// parseAddrPort reads "0100007F:1F90": the address as 32-bit words in the order of
// this machine, the port as a number.
func parseAddrPort(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	if !ok {
		return netip.AddrPort{}, false
	}
	words, err1 := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err1 != nil || err2 != nil || len(words) != 4 && len(words) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(words); i += 4 {
		binary.NativeEndian.PutUint32(words[i:], binary.BigEndian.Uint32(words[i:]))
	}
	addr, _ := netip.AddrFromSlice(words)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), true
}
