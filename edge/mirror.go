package edge

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/internal/traffic"
)

// A mirror never slows the requests that it copies: it sends no more than
// mirrorAtOnce copies at a time, each for mirrorFor at most, and skips a request
// when it can't keep up.
const (
	mirrorAtOnce = 8
	mirrorFor    = 10 * time.Second
	mirrorBody   = 16 << 20 // of an answer, before it is given up
)

// mirror warms a color up with copies of real requests. A copy has all headers of
// its original, credentials too, since without them it would warm up little; the
// app tells it by Mainstay-Mirror: 1.
type mirror struct {
	spec    traffic.Mirror
	targets []*target
	left    atomic.Int64
	flying  atomic.Int64
	turn    atomic.Uint64
}

// mirrorTo makes the mirror of a plan. A plan that changes something else goes on
// with the mirror it had, so that no request is counted anew.
func mirrorTo(spec traffic.Mirror, shares []share, before *mirror) *mirror {
	if spec.Color == "" || spec.Requests <= 0 {
		return nil
	}
	m := &mirror{spec: spec}
	for _, sh := range shares {
		if sh.color == spec.Color {
			m.targets = append(m.targets, sh.target)
		}
	}
	if len(m.targets) == 0 {
		return nil
	}
	if before != nil && before.spec == spec && before.targets[0] == m.targets[0] && len(before.targets) == len(m.targets) {
		return before
	}
	m.left.Store(int64(spec.Requests))
	return m
}

// wants reports whether r is to be copied.
func (m *mirror) wants(r *Request, t *target) bool {
	return m.left.Load() > 0 && t.color != m.spec.Color && (r.Method == "GET" || r.Method == "HEAD") && r.Length == 0 &&
		r.Header("Upgrade") == "" && !strings.Contains(r.Header("Accept"), "text/event-stream")
}

// send copies out, the request as the target gets it, and returns at once.
func (m *mirror) send(s *Server, out *http.Request) {
	if m.flying.Add(1) > mirrorAtOnce {
		m.flying.Add(-1)
		return
	}
	t := m.targets[m.turn.Add(1)%uint64(len(m.targets))]
	if m.left.Add(-1) < 0 || !t.enter() {
		m.flying.Add(-1)
		return
	}
	ctx, cancel := context.WithTimeout(s.life, mirrorFor)
	copied := out.Clone(ctx)
	copied.URL.Host = t.address
	set(copied.Header, "Mainstay-Mirror", "1")
	copied.Body, copied.GetBody = nil, nil
	s.mirrors.Go(func() {
		defer cancel()
		defer m.flying.Add(-1)
		defer t.leave()
		resp, err := t.transport.RoundTrip(copied)
		if err != nil {
			return // the original is not touched by it, and deploy's probes judge the color
		}
		_, _ = io.CopyN(io.Discard, resp.Body, mirrorBody)
		resp.Body.Close()
	})
}
