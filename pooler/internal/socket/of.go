package socket

import (
	"net"

	"mainstay.dev/mainstay/pooler/internal/loop"
)

// A Prober looks at a connection without reading from it and without waiting: would a
// read return at once, with data or with the end, and has the peer ended its side?
type Prober interface {
	Look() (readable, ended bool)
}

// Of returns the connection's; nil if it is no socket.
func Of(conn net.Conn) Prober {
	if c, ok := conn.(*loop.Conn); ok {
		return c
	}
	if p := NewProbe(conn); p != nil {
		return p
	}
	return nil
}
