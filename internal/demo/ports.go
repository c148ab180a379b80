package demo

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
)

// freePorts finds n ports of 127.0.0.1 that nobody listens on, below those that the
// kernel gives to outgoing connections: the load makes so many of them that a port
// which is free for a moment, as the bare app's during its deploy, would be at risk.
func freePorts(n int) ([]int, error) {
	top := 32768
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		// An unreadable range leaves the kernel's default.
		_, _ = fmt.Sscan(string(text), &top)
	}
	const bottom = 10240
	if top <= bottom+n {
		top = 65536
	}
	var ports []int
	for range 50 * n {
		port := bottom + rand.IntN(top-bottom)
		ln, err := net.Listen("tcp", address(port))
		if err != nil {
			continue
		}
		defer ln.Close() // only when all are found, so that they differ
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, errors.New("find free ports on 127.0.0.1: every one that was tried is taken")
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
