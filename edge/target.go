package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/edge/internal/farewell"
	"mainstay.dev/mainstay/internal/traffic"
	"mainstay.dev/mainstay/telemetry"
)

// target is one running copy of the app: where it is, how to reach it, and how
// many requests hold a place on it.
type target struct {
	id, address, color, version string
	release                     string // color and version, as the sticky cookie has them

	transport *http.Transport

	// held counts the places; draining adds drainMark, so that one atomic word
	// tells both and no place can be taken after the last one was given back.
	held    atomic.Int64
	drained chan struct{} // closed when draining and no place is held

	health  fitness
	streams farewell.List
}

const drainMark = math.MinInt64

func newTarget(t traffic.Target, d Deps, cfg *Config) *target {
	c := cfg.Timeouts
	return &target{
		id: t.ID, address: t.Address, color: t.Color, version: t.Version,
		release: release(t.Color, t.Version),
		drained: make(chan struct{}),
		health:  fitness{told: d.Sink, slow: cfg.Slow},
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
	t.streams.End(math.MaxInt64 - 1)
}

// parting is how long streams that are about to be cut may take to be told.
const parting = time.Second

// wait returns when the retired target has answered its last request. When ctx
// ends before that, the streams that are left are told, as far as they can be.
func (t *target) wait(ctx context.Context) error {
	defer t.transport.CloseIdleConnections()
	select {
	case <-t.drained:
		return nil
	case <-ctx.Done():
	}
	if t.streams.Last() > 0 {
		told := time.NewTimer(parting)
		defer told.Stop()
		select {
		case <-t.drained:
			return nil
		case <-told.C:
		}
	}
	return context.Cause(ctx)
}

// patient is a connection to a target that gives up when the target takes nothing
// of what is sent for limit: the deadline for the answer begins only when the
// request is sent.
type patient struct {
	net.Conn
	limit time.Duration
	moved time.Time // when the deadline was last moved; of the one goroutine that writes
	sent  atomic.Int64
}

func (c *patient) Write(b []byte) (int, error) {
	if now := time.Now(); now.Sub(c.moved) >= c.limit/4 {
		c.moved = now
		if err := c.SetWriteDeadline(now.Add(c.limit)); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

// CloseWrite lets a tunnel pass on that one side has finished.
func (c *patient) CloseWrite() error { return closeWrite(c.Conn) }

// upstream is the target's end of an upgraded connection. How long it may take its
// time is between the app and the client.
type upstream struct{ io.ReadWriteCloser }

func (t upstream) Write(b []byte) (sent int, _ error) {
	for {
		n, err := t.ReadWriteCloser.Write(b[sent:])
		if sent += n; !errors.Is(err, os.ErrDeadlineExceeded) {
			return sent, err
		}
	}
}

// CloseWrite ends what goes to the target.
func (t upstream) CloseWrite() error { return closeWrite(t.ReadWriteCloser) }

func closeWrite(c any) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return http.ErrNotSupported // which ends both directions
}

// A target that fails several requests in a row is ejected: it gets none while
// another can take them, for a time that grows. Then one request at a time finds
// out whether it is back.
const (
	ejectAfter = 3
	ejectFor   = time.Second
	ejectMax   = 30 * time.Second
)

// fitness is what the requests themselves tell of a target. Deploy's probes tell
// it more, but later.
type fitness struct {
	told    telemetry.Sink
	answers atomic.Int64 // headers of answers; moves as long as the target is alive
	failed  atomic.Int32 // tries in a row that came to no answer
	out     atomic.Bool  // ejected
	probing atomic.Bool
	slow    time.Duration // that its slow start takes
	since   atomic.Int64  // when that began, in Unix nanoseconds; 0: it gets its whole share

	mu    sync.Mutex
	until time.Time     // when it may be probed
	spell time.Duration // how long it is ejected
	mute  bool          // it took requests and answered none
}

// answered notes that the header of an answer came.
func (t *target) answered() {
	h := &t.health
	h.answers.Add(1)
	if h.failed.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed.Store(0)
	h.spell, h.mute = 0, false
	if h.out.Swap(false) {
		h.ease()
		h.tell(t, slog.LevelInfo, "target_back", t.id+" answers again")
	}
}

// missed notes a try that came to no answer.
func (t *target) missed(code Code) {
	h := &t.health
	if h.failed.Add(1) < ejectAfter {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mute = code == TargetTimeout
	if now := time.Now(); h.spell == 0 || !now.Before(h.until) { // what failed meanwhile began before
		h.spell = min(max(2*h.spell, ejectFor), ejectMax)
		h.until = now.Add(h.spell)
	}
	if !h.out.Swap(true) {
		h.tell(t, slog.LevelWarn, "target_ejected", fmt.Sprintf("%s failed %d requests in a row; others take its requests while they can", t.id, ejectAfter))
	}
}

// ease begins a slow start.
func (h *fitness) ease() {
	if h.slow > 0 {
		h.since.Store(time.Now().UnixNano())
	}
}

// eased is how much of its share the target gets, in thousandths.
func (h *fitness) eased() int {
	since := h.since.Load()
	if since == 0 {
		return 1000
	}
	passed := time.Since(time.Unix(0, since))
	if passed >= h.slow {
		h.since.CompareAndSwap(since, 0)
		return 1000
	}
	return 100 + int(900*max(passed, 0)/h.slow)
}

func (h *fitness) tell(t *target, level slog.Level, name, text string) {
	h.told.Emit(telemetry.Event{Time: time.Now(), Part: "edge", Name: name, Color: t.color, Level: level, Text: text,
		Attrs: []slog.Attr{slog.String("target", t.id)}})
}

// due reports whether r shall find out if an ejected target is back. Nobody else
// does until r has: t.health.probing is to be unset then. A target that falls
// silent is not tried with a request that can't be repeated.
func (t *target) due(r *Request) bool {
	h := &t.health
	if !h.out.Load() || h.probing.Load() {
		return false
	}
	h.mu.Lock()
	late := !time.Now().Before(h.until) && (r.replay || !h.mute)
	h.mu.Unlock()
	return late && h.probing.CompareAndSwap(false, true)
}
