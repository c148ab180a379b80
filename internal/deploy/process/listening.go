package process

import (
	"net/netip"
	"slices"

	"mainstay.dev/mainstay/internal/deploy/internal/sockets"
)

// listening lists the TCP addresses at which the processes of a group listen.
func listening(group int) ([]netip.AddrPort, error) {
	pids := members(group)
	if len(pids) == 0 {
		return nil, nil
	}
	inodes := map[string]bool{}
	for _, pid := range pids {
		sockets.Inodes(pid, inodes)
	}
	all, err := sockets.Listeners(pids[0])
	if err != nil {
		return nil, err
	}
	var at []netip.AddrPort
	for _, l := range all {
		if inodes[l.Inode] {
			at = append(at, l.At)
		}
	}
	slices.SortFunc(at, netip.AddrPort.Compare)
	slices.SortStableFunc(at, func(a, b netip.AddrPort) int { return int(a.Port()) - int(b.Port()) })
	return slices.Compact(at), nil
}
