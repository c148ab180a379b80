package edge

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/internal/traffic"
)

// target is one running copy of the app: where it is, how to reach it, and how
// many requests hold a place on it.
type target struct {
	id, address, color, version string

	transport *http.Transport

	// held counts the places; draining adds drainMark, so that one atomic word
	// tells both and no place can be taken after the last one was given back.
	held    atomic.Int64
	drained chan struct{} // closed when draining and no place is held
}

const drainMark = math.MinInt64

func newTarget(t traffic.Target, d Deps, c Timeouts) *target {
	return &target{
		id: t.ID, address: t.Address, color: t.Color, version: t.Version,
		drained: make(chan struct{}),
		transport: &http.Transport{
			DialContext:           d.dialWithin(c),
			MaxIdleConns:          0,
			MaxIdleConnsPerHost:   1024,
			IdleConnTimeout:       c.Upstream,
			ResponseHeaderTimeout: c.Response,
			ExpectContinueTimeout: time.Second,
			// The client asks for the encodings that it wants; the edge asks for none.
			DisableCompression:     true,
			MaxResponseHeaderBytes: 1 << 20,
			WriteBufferSize:        16 << 10,
			ReadBufferSize:         16 << 10,
		},
	}
}

// is reports whether t is the copy that spec means, whatever its weight.
func (t *target) is(spec traffic.Target) bool {
	return t.address == spec.Address && t.color == spec.Color && t.version == spec.Version
}

// enter takes a place, or reports that the target has begun to drain.
func (t *target) enter() bool {
	for {
		n := t.held.Load()
		if n < 0 {
			return false
		}
		if t.held.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (t *target) leave() {
	if t.held.Add(-1) == drainMark {
		close(t.drained)
	}
}

// inflight is the number of places held.
func (t *target) inflight() int {
	n := t.held.Load()
	if n < 0 {
		n -= drainMark
	}
	return int(n)
}

// retire refuses new requests from now on.
func (t *target) retire() {
	if t.held.Add(drainMark) == drainMark {
		close(t.drained)
	}
}

// wait returns when the retired target has answered its last request.
func (t *target) wait(ctx context.Context) error {
	defer t.transport.CloseIdleConnections()
	select {
	case <-t.drained:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// patient is a connection to a target that gives up when the target takes nothing
// of what is sent for limit: the deadline for the answer begins only when the
// request is sent.
type patient struct {
	net.Conn
	limit time.Duration
	moved time.Time // when the deadline was last moved; of the one goroutine that writes
}

func (c *patient) Write(b []byte) (int, error) {
	if now := time.Now(); now.Sub(c.moved) >= c.limit/4 {
		c.moved = now
		if err := c.SetWriteDeadline(now.Add(c.limit)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(b)
}

// CloseWrite lets a tunnel pass on that one side has finished.
func (c *patient) CloseWrite() error { return closeWrite(c.Conn) }

// tunnel is the target's end of an upgraded connection. How long it may take its
// time is between the app and the client.
type tunnel struct{ io.ReadWriteCloser }

func (t tunnel) Write(b []byte) (sent int, _ error) {
	for {
		n, err := t.ReadWriteCloser.Write(b[sent:])
		if sent += n; !errors.Is(err, os.ErrDeadlineExceeded) {
			return sent, err
		}
	}
}

// CloseWrite ends what goes to the target.
func (t tunnel) CloseWrite() error { return closeWrite(t.ReadWriteCloser) }

func closeWrite(c any) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return http.ErrNotSupported // which ends both directions
}
