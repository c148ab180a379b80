package process

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// listening lists the TCP addresses at which the processes of a group listen.
func listening(group int) ([]netip.AddrPort, error) {
	pids := members(group)
	if len(pids) == 0 {
		return nil, nil
	}
	inodes := map[string]bool{}
	for _, pid := range pids {
		sockets(pid, inodes)
	}
	var at []netip.AddrPort
	var errs []error
	for _, table := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pids[0], table))
		if err != nil {
			errs = append(errs, err) // tcp6 is missing where IPv6 is off
			continue
		}
		for _, l := range parseListeners(b) {
			if inodes[l.inode] {
				at = append(at, l.at)
			}
		}
	}
	if len(errs) == 2 {
		return nil, errors.Join(errs...)
	}
	slices.SortFunc(at, netip.AddrPort.Compare)
	slices.SortStableFunc(at, func(a, b netip.AddrPort) int { return int(a.Port()) - int(b.Port()) })
	return slices.Compact(at), nil
}

// sockets adds the inodes of the sockets that a process has open.
func sockets(pid int, inodes map[string]bool) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, _ := os.ReadDir(dir) // a process that ended, or one of another user: nothing to see
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

type listener struct {
	at    netip.AddrPort
	inode string
}

// parseListeners reads /proc/net/tcp or tcp6 and returns the sockets in state
// LISTEN; lines that it cannot read are passed over. See proc_pid_net(5).
func parseListeners(table []byte) (ls []listener) {
	lines := bufio.NewScanner(bytes.NewReader(table))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 || f[3] != "0A" {
			continue
		}
		if at, ok := parseAddrPort(f[1]); ok {
			ls = append(ls, listener{at, f[9]})
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
