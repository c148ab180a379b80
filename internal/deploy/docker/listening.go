package docker

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"mainstay.dev/mainstay/internal/deploy/internal/sockets"
)

// embeddedDNS is where the Engine itself listens in a container's network.
var embeddedDNS = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// Listening lists where the copy listens: its published port as it is seen from
// outside, all else as it is inside the container.
func (i *instance) Listening() ([]netip.AddrPort, error) {
	inside, err := i.inside()
	if err != nil {
		return nil, err
	}
	at := make([]netip.AddrPort, 0, len(inside))
	for _, a := range inside {
		if !i.where.Shared && i.published(a) {
			a = i.where.address()
		}
		at = append(at, a)
	}
	slices.SortFunc(at, netip.AddrPort.Compare)
	slices.SortStableFunc(at, func(a, b netip.AddrPort) int { return int(a.Port()) - int(b.Port()) })
	return slices.Compact(at), nil
}

// published reports whether a listener in the container is reached through the
// published port: it is on that port and not on the container's own loopback.
func (i *instance) published(a netip.AddrPort) bool {
	return int(a.Port()) == i.where.Inner && !a.Addr().IsLoopback()
}

// inside lists where the processes of the container listen, as they see it.
func (i *instance) inside() ([]netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	got, err := i.d.engine.ContainerInspect(ctx, i.where.Container, client.ContainerInspectOptions{})
	switch {
	case errdefs.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, i.d.unreachable(err)
	case !got.Container.State.Running:
		return nil, nil
	}
	pid := got.Container.State.Pid
	if !isHere(pid, i.where.Container) {
		return nil, fmt.Errorf("the Engine's processes are not this machine's (is it in a virtual machine?)")
	}
	ls, err := sockets.Listeners(pid)
	if err != nil {
		return nil, err
	}
	var inodes map[string]bool
	if i.where.Shared { // the tables are the machine's: pick out the container's
		inodes = map[string]bool{}
		for _, p := range processes(i.where.Container) {
			sockets.Inodes(p, inodes)
		}
	}
	var at []netip.AddrPort
	for _, l := range ls {
		if l.At.Addr() != embeddedDNS && (inodes == nil || inodes[l.Inode]) {
			at = append(at, l.At)
		}
	}
	return at, nil
}

// isHere reports whether pid, a number that the Engine told, is a process of this
// machine in the container with that id. An Engine in a virtual machine counts
// processes of its own.
func isHere(pid int, container string) bool {
	if pid <= 1 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(b), container)
}

// processes lists those of a container, by their numbers on this machine.
func processes(container string) (pids []int) {
	dirs, _ := os.ReadDir("/proc")
	for _, e := range dirs {
		if pid, err := strconv.Atoi(e.Name()); err == nil && isHere(pid, container) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Explain says why nobody answers on the copy's port, where that can be seen from
// inside its container, and what would mend it; otherwise both are empty. It is
// needed because the Engine's proxy accepts every connection, and only then finds
// nobody to hand it to: no connection to a copy is ever refused.
func (i *instance) Explain() (why, mend string) {
	inside, err := i.inside()
	if err != nil {
		return "", ""
	}
	if len(inside) == 0 {
		return fmt.Sprintf("the app does not listen on PORT=%d yet", i.where.Inner), ""
	}
	var ports []string
	for _, a := range inside {
		if i.where.Shared && int(a.Port()) == i.where.Inner || i.published(a) {
			return "", ""
		}
		if int(a.Port()) == i.where.Inner {
			return fmt.Sprintf("the app listens on %v inside its container, where nobody else can reach it", a),
				"make it listen on 0.0.0.0 (for example HOSTNAME=0.0.0.0 for Next.js)"
		}
		if port := strconv.Itoa(int(a.Port())); !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	mend = "make it read PORT"
	if !i.where.Shared {
		mend += ", or set app.docker.port: " + ports[0]
	}
	return fmt.Sprintf("the app listens on %s, not on PORT=%d", strings.Join(ports, ", "), i.where.Inner), mend
}
