// Package deadline makes the deadlines of a server's connections cheap. net/http sets
// and clears half a dozen for each request, and nearly none of them ever passes; but
// each one is a timer of the runtime, and each timer wakes a thread that looks after it.
// Here a deadline that lies ahead is only noted. A timer for each direction of a
// connection, armed once in many requests, looks when it fires whether something is due,
// and only then tells the connection.
//
// It is mechanism: any plane may import it.
package deadline

import (
	"net"
	"sync"
	"time"
)

// Listen returns ln with connections whose deadlines are noted, as long as these are of
// TCP; others are passed as they come.
func Listen(ln net.Listener) net.Listener { return listener{ln} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		return newConn(tcp), nil
	}
	return c, err
}

// A Conn is a TCP connection whose deadlines keep their meaning, to the moment.
type Conn struct {
	*net.TCPConn
	read, write side
}

func newConn(tcp *net.TCPConn) *Conn {
	c := &Conn{TCPConn: tcp}
	c.read.set, c.write.set = tcp.SetReadDeadline, tcp.SetWriteDeadline
	return c
}

// SetDeadline is that of [net.Conn].
func (c *Conn) SetDeadline(t time.Time) error {
	err := c.read.note(t)
	if werr := c.write.note(t); err == nil {
		err = werr
	}
	return err
}

// SetReadDeadline is that of [net.Conn].
func (c *Conn) SetReadDeadline(t time.Time) error { return c.read.note(t) }

// SetWriteDeadline is that of [net.Conn].
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.write.note(t) }

// Close is that of [net.Conn].
func (c *Conn) Close() error {
	c.read.stop()
	c.write.stop()
	return c.TCPConn.Close()
}

// A side is one direction of a connection.
type side struct {
	set func(time.Time) error // of the connection itself

	mu     sync.Mutex
	due    time.Time   // noted; zero: nothing is
	fires  time.Time   // when the timer will look; zero: it will not
	timer  *time.Timer // nil: none was needed yet
	told   bool        // the connection itself has a deadline
	closed bool
}

// note takes a deadline. One that has passed is how whoever waits is woken: it must act
// at once.
func (s *side) note(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var in time.Duration
	if !t.IsZero() {
		if in = time.Until(t); in <= 0 || s.closed {
			s.due, s.told = time.Time{}, true
			return s.set(t)
		}
	}
	s.due = t
	if !t.IsZero() && (s.fires.IsZero() || t.Before(s.fires)) {
		s.arm(t, in)
	}
	if !s.told && !s.closed {
		return nil
	}
	s.told = false
	return s.set(time.Time{})
}

// arm has the timer look at t. It needs the lock.
func (s *side) arm(t time.Time, in time.Duration) {
	s.fires = t
	if s.timer == nil {
		s.timer = time.AfterFunc(in, s.look)
	} else {
		s.timer.Reset(in)
	}
}

// look is the timer's end. A timer that was armed anew just as it fired looks once more
// than is needed.
func (s *side) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fires = time.Time{}
	if s.due.IsZero() || s.closed {
		return
	}
	if in := time.Until(s.due); in > 0 {
		s.arm(s.due, in)
		return
	}
	_ = s.set(s.due) // of a connection that was closed: nobody waits there
	s.due, s.told = time.Time{}, true
}

func (s *side) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.due = true, time.Time{}
	if s.timer != nil {
		s.timer.Stop()
	}
}
