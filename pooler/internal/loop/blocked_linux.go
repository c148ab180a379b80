package loop

import (
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A blocked is what goroutines that use a connection wait by. A connection that none
// uses has none.
type blocked struct {
	canRead, canWrite chan struct{} // something may have changed; they hold one word
	over              chan struct{} // closed with the connection
	once              sync.Once
	using             atomic.Int32 // calls that may wait
	reading, writing  deadline
}

// block returns what the connection's goroutines wait by.
func (c *Conn) block() *blocked {
	for {
		if b := c.blocked.Load(); b != nil {
			return b
		}
		b := &blocked{canRead: make(chan struct{}, 1), canWrite: make(chan struct{}, 1), over: make(chan struct{})}
		if !c.blocked.CompareAndSwap(nil, b) {
			continue
		}
		if c.state.Load() < 0 {
			b.close()
		}
		return b
	}
}

// Unblock frees what goroutines have waited by, with its deadlines: no goroutine uses
// the connection from now on until its next call.
func (c *Conn) Unblock() { c.blocked.Store(nil) }

// wake tells those who wait to look again. It reports whether there may be one.
func (b *blocked) wake() (any bool) {
	if b.using.Load() == 0 {
		return false
	}
	for _, ch := range [...]chan struct{}{b.canRead, b.canWrite} {
		select {
		case ch <- struct{}{}:
			any = true
		default:
		}
	}
	return any
}

func (b *blocked) close() { b.once.Do(func() { close(b.over) }) }

// wait returns when it may be worth another try.
func (b *blocked) wait(can chan struct{}, limit *deadline) error {
	select {
	case <-can:
		return nil
	case <-b.over:
		return net.ErrClosed
	case <-limit.done():
		return os.ErrDeadlineExceeded
	}
}

// A deadline may be moved while somebody waits for it.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	ended chan struct{} // closed when it has passed; nil: nobody has asked
	over  bool
	turn  uint64 // tells a timer that was too late to be stopped
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}

// done is closed when the deadline passes. After that it has to be asked for again.
func (d *deadline) done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended == nil {
		d.ended = make(chan struct{})
		if d.over {
			close(d.ended)
		}
	}
	return d.ended
}

// set moves the deadline; zero: there is none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turn++
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if d.over {
		d.over, d.ended = false, nil
	}
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.pass()
		return
	}
	turn := d.turn
	d.timer = time.AfterFunc(left, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.turn == turn {
			d.pass()
		}
	})
}

// pass notes that the deadline is over. The lock is held.
func (d *deadline) pass() {
	d.over = true
	if d.ended != nil {
		close(d.ended)
	}
}
