// Package tunnel carries what a client and the app say to each other once they
// have left HTTP. It ends a WebSocket as its protocol has it (RFC 6455): with a
// close frame between two frames of the app, never in the middle of one; and it
// sees that no tunnel lingers of which one side is gone. The edge alone uses it.
package tunnel

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// grace is how long a client that was told may take to hang up.
	grace = 5 * time.Second
	// lone is how long a tunnel of which one side has finished may be silent. A
	// WebSocket has no use for one: its sides finish together.
	lone          = time.Minute
	loneWebSocket = grace
)

// goingAway is the close frame that says so: status 1001, no text.
var goingAway = []byte{0x88, 2, 0x03, 0xe9}

// Conn is the client's end of a tunnel. What the app sends is written to it. Its
// methods may be called from several goroutines.
type Conn struct {
	net.Conn
	webSocket bool
	hangUp    func() // ends the app's side; may be called more than once

	patience time.Duration // with a tunnel of which one side has finished
	lone     atomic.Bool   // one has
	silence  *time.Timer   // while lone

	mu   sync.Mutex
	head [10]byte // of the frame that is being sent, as far as it is known
	n    int
	left uint64 // of the frame's payload
	due  bool   // the close frame is to be sent at the next boundary
	done bool   // a close frame was sent, by the app or by us
	ours bool
}

// New wraps the client's connection right after the upgrade. hangUp must end the
// app's side; it may be called more than once.
func New(c net.Conn, webSocket bool, hangUp func()) *Conn {
	t := &Conn{Conn: c, webSocket: webSocket, hangUp: hangUp, patience: lone}
	if webSocket {
		t.patience = loneWebSocket
	}
	t.silence = time.AfterFunc(time.Hour, t.abandon)
	t.silence.Stop()
	return t
}

// Read passes on what the client says, and sees that it has finished.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.stir(errors.Is(err, io.EOF))
	return n, err
}

// stir starts the wait for the end of a tunnel of which one side has finished,
// and starts it anew when something is said.
func (c *Conn) stir(finished bool) {
	if finished {
		c.lone.Store(true)
	}
	if c.lone.Load() {
		c.silence.Reset(c.patience)
	}
}

// abandon ends both sides.
func (c *Conn) abandon() {
	c.hangUp()
	_ = c.Conn.Close()
}

// Close ends the client's side.
func (c *Conn) Close() error {
	c.silence.Stop()
	return c.Conn.Close()
}

// Write passes frames on. After our close frame it drops what the app still says.
func (c *Conn) Write(p []byte) (int, error) {
	c.stir(false)
	if !c.webSocket {
		return c.Conn.Write(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ours {
		return len(p), nil
	}
	upto := 0
	for upto < len(p) {
		upto += c.step(p[upto:])
		if c.mayLeave() {
			break
		}
	}
	if n, err := c.Conn.Write(p[:upto]); err != nil {
		return n, err
	}
	if c.mayLeave() {
		return len(p), c.leave()
	}
	return len(p), nil
}

// Farewell sends the close frame as soon as no frame of the app is under way, and
// hangs up if the client has not within a few seconds. The rest of what the app
// sends is dropped. What is no WebSocket has no way to say so.
func (c *Conn) Farewell() {
	if !c.webSocket {
		return
	}
	// A Write that waits for a client which takes nothing holds the lock.
	_ = c.SetWriteDeadline(time.Now().Add(grace))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.due = true
	if c.mayLeave() {
		_ = c.leave() // a client that can't be told is gone
	} else if !c.ours {
		_ = c.SetWriteDeadline(time.Time{})
	}
}

// Soon does nothing: to a tunnel all moments between two frames are alike.
func (c *Conn) Soon() {}

// Last is Farewell.
func (c *Conn) Last() { c.Farewell() }

func (c *Conn) leave() error {
	c.done, c.ours = true, true
	// Bounds this write and the wait for the client's own close frame.
	_ = c.SetDeadline(time.Now().Add(grace))
	_, err := c.Conn.Write(goingAway)
	return err
}

// CloseWrite passes on that the app has finished.
func (c *Conn) CloseWrite() error {
	c.stir(true)
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return http.ErrNotSupported
}

// mayLeave reports whether the close frame's time has come.
func (c *Conn) mayLeave() bool { return c.due && !c.done && c.between() }

// between reports whether the last frame is complete.
func (c *Conn) between() bool { return c.n == 0 && c.left == 0 }

var errNone = errors.New("header incomplete")

// step takes bytes of at most one frame and returns how many.
func (c *Conn) step(p []byte) int {
	used := 0
	for c.left == 0 {
		if used == len(p) {
			return used
		}
		c.head[c.n] = p[used]
		c.n++
		used++
		size, err := payload(c.head[:c.n])
		if err != nil {
			continue
		}
		if c.head[0]&0x0f == 8 {
			c.done = true
		}
		c.n, c.left = 0, size
		if size == 0 {
			return used
		}
	}
	k := uint64(len(p) - used)
	k = min(k, c.left)
	c.left -= k
	return used + int(k)
}

// payload is how much follows a whole header: its mask, though an app must not
// use one, and the payload.
func payload(h []byte) (uint64, error) {
	if len(h) < 2 {
		return 0, errNone
	}
	var mask uint64
	if h[1]&0x80 != 0 {
		mask = 4
	}
	switch size := h[1] & 0x7f; {
	case size < 126:
		return uint64(size) + mask, nil
	case size == 126 && len(h) == 4:
		return uint64(binary.BigEndian.Uint16(h[2:])) + mask, nil
	case size == 127 && len(h) == 10:
		return binary.BigEndian.Uint64(h[2:])&^(1<<63) + mask, nil
	}
	return 0, errNone
}
