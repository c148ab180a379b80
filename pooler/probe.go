package pooler

import (
	"net"

	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/socket"
)

// A probe looks at a connection without reading from it and without waiting: would a
// read return at once, and has the peer ended its side?
type probe interface {
	Look() (readable, ended bool)
}

// probeOf returns nil for what is no socket.
func probeOf(conn net.Conn) probe {
	if c, ok := conn.(*loop.Conn); ok {
		return c
	}
	if p := socket.NewProbe(conn); p != nil {
		return p
	}
	return nil
}
