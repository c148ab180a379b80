//go:build !linux

package loop

import (
	"context"
	"net"
	"time"
)

// A Group adopts nothing here.
type Group struct{}

type events struct{}

// New returns a group that adopts nothing.
func New() (*Group, error) { return &Group{}, nil }

// Run waits until ctx ends.
func (g *Group) Run(ctx context.Context) { <-ctx.Done() }

// Adopt returns nil: there is no epoll.
func (g *Group) Adopt(net.Conn) *Conn { return nil }

// Post runs a task soon.
func (g *Group) Post(t *Task) {
	go t.Step(&Worker{Scratch: make([]byte, ScratchSize), Now: time.Now()})
}

// A Conn is never made here; its calls are there so that the callers are the same.
type Conn struct{ net.Conn }

func (c *Conn) Watch() bool                  { return false }
func (c *Conn) Own(*Task)                    {}
func (c *Conn) HungUp() bool                 { return false }
func (c *Conn) Quiet() bool                  { return false }
func (c *Conn) Stir()                        {}
func (c *Conn) Unblock()                     {}
func (c *Conn) TryRead([]byte) (int, error)  { return 0, ErrWait }
func (c *Conn) TryWrite([]byte) (int, error) { return 0, ErrWait }
func (c *Conn) Look() (readable, ended bool) { return false, false }
func (c *Conn) CloseWrite() error            { return nil }

// A Listener is never made here.
type Listener struct{}

// Listen returns nil: there is no epoll.
func (g *Group) Listen(net.Listener, func(*Worker, *Conn), func(error, time.Duration)) *Listener {
	return nil
}

// Close is never called here.
func (l *Listener) Close() {}
