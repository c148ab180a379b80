package loop

import (
	"crypto/tls"
	"net"
)

// A Carrier is the connection below crypto/tls, which has one Read and one Write for
// goroutines and tasks. Between [Carrier.Hurry] and [Carrier.Rest] neither waits: Read
// returns ErrWait, which crypto/tls hands on and forgets, and Write keeps what there is
// no room for, since crypto/tls cannot take a record back. Before and after that it is
// the connection itself.
//
// Hurry and Rest are for whoever has the connection, while nobody else uses it.
type Carrier struct {
	net.Conn
	sock    *Conn  // the same, if the group has it; or nil
	read    []byte // has been read already
	left    []byte // has not been written yet
	hurries bool
}

// NewCarrier returns one for a connection of which something has been read already; sock
// is the same as conn, or nil if no task will use it.
func NewCarrier(conn net.Conn, sock *Conn, read []byte) *Carrier {
	return &Carrier{Conn: conn, sock: sock, read: read}
}

// CarrierOf returns what is below a connection with TLS; nil for one without.
func CarrierOf(conn net.Conn) *Carrier {
	if t, ok := conn.(*tls.Conn); ok {
		c, _ := t.NetConn().(*Carrier)
		return c
	}
	return nil
}

// TryWrite is Conn.TryWrite, for a connection that may have TLS, whose carrier hurries:
// what it has kept counts as written, and ErrWait tells of it.
func TryWrite(conn net.Conn, sock *Conn, p []byte) (n int, err error) {
	c := CarrierOf(conn)
	if c == nil {
		return sock.TryWrite(p)
	}
	if n, err = conn.Write(p); err == nil && c.Behind() {
		err = ErrWait
	}
	return n, err
}

// Hurry makes calls return at once, from now on. A carrier that is nil does nothing, here
// and below.
func (c *Carrier) Hurry() {
	if c != nil {
		c.hurries = true
	}
}

// Rest lets calls wait again.
func (c *Carrier) Rest() {
	if c != nil {
		c.hurries = false
	}
}

// Behind reports whether something that was written is still to go out.
func (c *Carrier) Behind() bool { return c != nil && len(c.left) > 0 }

// Flush writes that. It waits, and must not be called while Write may be.
func (c *Carrier) Flush() error {
	if !c.Behind() {
		return nil
	}
	n, err := c.Conn.Write(c.left)
	if c.left = c.left[n:]; len(c.left) == 0 {
		c.left = nil
	}
	return err
}

// Read is net.Conn's.
func (c *Carrier) Read(p []byte) (int, error) {
	switch {
	case len(c.read) > 0:
		n := copy(p, c.read)
		if c.read = c.read[n:]; len(c.read) == 0 {
			c.read = nil
		}
		return n, nil
	case c.hurries:
		return c.sock.TryRead(p)
	}
	return c.Conn.Read(p)
}

// Write is net.Conn's, but that it may keep what it says that it has written.
func (c *Carrier) Write(p []byte) (int, error) {
	if !c.hurries {
		if err := c.Flush(); err != nil {
			return 0, err
		}
		return c.Conn.Write(p)
	}
	n := 0
	if !c.Behind() {
		var err error
		if n, err = c.sock.TryWrite(p); !Waits(err) {
			return n, err
		}
	}
	c.left = append(c.left, p[n:]...)
	return len(p), nil
}
