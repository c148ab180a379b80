// Package calls remembers the latest calls to Claude: what became of each, by which
// attempts, what it cost and what saved it. It never sees a prompt or an answer.
//
// Only app, admin and cmd import it.
package calls

import (
	"slices"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// A Call is one call that has ended. Times are in nanoseconds in JSON.
type Call struct {
	N          uint64        `json:"n"` // counts up from 1
	ID         string        `json:"id"`
	Start      time.Time     `json:"start"`
	Took       time.Duration `json:"took"`
	Waited     time.Duration `json:"waited,omitempty"`
	FirstByte  time.Duration `json:"first_byte,omitempty"`
	Route      string        `json:"route"`
	Model      string        `json:"model,omitempty"`
	Stream     bool          `json:"stream,omitempty"`
	Code       string        `json:"code"`
	Blame      string        `json:"blame"`
	Status     int           `json:"status,omitempty"`
	Err        string        `json:"err,omitempty"`
	ErrorType  string        `json:"error_type,omitempty"`
	Tries      int           `json:"tries"`
	Attempts   []Attempt     `json:"attempts"` // oldest first, the first 16
	SavedBy    string        `json:"saved_by"` // empty: nothing had to
	Input      int64         `json:"input_tokens"`
	CacheRead  int64         `json:"cache_read_tokens"`
	CacheWrite int64         `json:"cache_write_tokens"`
	Output     int64         `json:"output_tokens"`
	Dollars    float64       `json:"cost_usd"`
	Unpriced   bool          `json:"unpriced,omitempty"`
	User       string        `json:"user,omitempty"`
	Workspace  string        `json:"workspace,omitempty"`
	Caller     string        `json:"caller"` // the fingerprint of the key
	Color      string        `json:"color"`
	StopReason string        `json:"stop_reason,omitempty"`
	Via        string        `json:"via,omitempty"`         // the route and the key that served it, or failed to; empty: no choice was configured
	Degraded   string        `json:"degraded,omitempty"`    // what it was made to be content with
	ServedBy   string        `json:"served_by,omitempty"`   // host and port
	UpstreamID string        `json:"upstream_id,omitempty"` // Claude's request-id of the last attempt
	ReplayOf   string        `json:"replay_of,omitempty"`   // the call that it was sent again of
}

// An Attempt is one try of a call.
type Attempt struct {
	Took       time.Duration `json:"took"`
	Waited     time.Duration `json:"waited"` // before it
	Status     int           `json:"status,omitempty"`
	Cause      string        `json:"cause,omitempty"` // why it failed
	UpstreamID string        `json:"upstream_id,omitempty"`
	Target     string        `json:"target,omitempty"`
}

// Failed reports whether the caller did not get a good answer, whoever is to blame.
func (c *Call) Failed() bool { return c.Code != "ok" }

// A Ring is a telemetry sink that keeps the latest calls. Its methods may be called
// from many goroutines at once. Its zero value keeps none.
type Ring struct {
	mu    sync.Mutex
	n     uint64 // calls so far; call n is at n%keep, if it is there
	keep  uint64
	calls []Call
}

// New makes a ring of this many calls.
func New(keep int) *Ring {
	r := &Ring{}
	r.Resize(keep)
	return r
}

// Resize keeps this many calls from now on; the oldest are forgotten.
func (r *Ring) Resize(keep int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keep == uint64(max(keep, 0)) {
		return
	}
	var kept []Call
	for c := range r.latest {
		kept = append(kept, *c)
	}
	r.keep, r.calls = uint64(max(keep, 0)), nil
	for _, c := range kept[:min(len(kept), max(keep, 0))] {
		r.put(c)
	}
}

// put places a call, instead of the oldest one if there is no room.
func (r *Ring) put(c Call) {
	at := c.N % r.keep
	if n := at + 1; n > uint64(len(r.calls)) {
		r.calls = append(r.calls, make([]Call, n-uint64(len(r.calls)))...)
	}
	r.calls[at] = c
}

// latest visits the calls that are kept, newest first.
func (r *Ring) latest(visit func(*Call) bool) {
	for n := r.n; n > 0 && r.n-n < r.keep; n-- {
		if at := n % r.keep; at >= uint64(len(r.calls)) || r.calls[at].N != n || !visit(&r.calls[at]) {
			return
		}
	}
}

// Record keeps what is worth knowing of a call.
func (r *Ring) Record(x *telemetry.Exchange) {
	if x.Plane != "claude" {
		return
	}
	c := of(x)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	if c.N = r.n; r.keep > 0 {
		r.put(c)
	}
}

// Emit does nothing: events are no calls.
func (r *Ring) Emit(telemetry.Event) {}

// A Query says which calls are asked for. What is zero does not matter.
type Query struct {
	Last   int       // at most so many, the newest
	Failed bool      // those alone that failed
	After  uint64    // those alone that came after this one
	Via    string    // that went by this route: claude is the first one
	Model  string    // of models whose names begin so
	Since  time.Time // that ended no earlier
	ID     string    // of this id
}

// Find returns the calls that fit, oldest first.
func (r *Ring) Find(q Query) []Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := []Call{}
	for c := range r.latest {
		if len(found) == q.Last || c.N <= q.After {
			break
		}
		if q.fits(c) {
			found = append(found, *c)
		}
	}
	slices.Reverse(found)
	return found
}

func (q *Query) fits(c *Call) bool {
	return (!q.Failed || c.Failed()) && (q.ID == "" || c.ID == q.ID) && (q.Via == "" || c.wentBy(q.Via)) && strings.HasPrefix(c.Model, q.Model) && !c.Start.Add(c.Took).Before(q.Since)
}

// wentBy tells whether a route served the call, whichever of its keys did. Where no
// routes are configured there is one, the first.
func (c *Call) wentBy(route string) bool {
	const first = "claude"
	via := c.Via
	if via == "" {
		via = first
	}
	name, _, _ := strings.Cut(via, " ") // another route, by a key of the first
	name, _, _ = strings.Cut(name, "/")
	return name == route || via == route
}

// of copies what is worth knowing: x is borrowed.
func of(x *telemetry.Exchange) Call {
	g := &x.GenAI
	c := Call{
		ID: clip(x.ID), Start: x.Start, Took: x.Took, Waited: x.Waited, FirstByte: x.FirstByte, Route: clip(x.Route),
		Model: clip(g.Model), Stream: g.Stream, Code: x.Code, Blame: x.Blame.String(), Status: x.HTTP.Status, ErrorType: clip(g.ErrorType),
		Tries: x.Tries, SavedBy: g.Saved, Input: g.InputTokens, CacheRead: g.CacheReadTokens, CacheWrite: g.CacheWriteTokens, Output: g.OutputTokens,
		Dollars: float64(g.CostNanoUSD) / 1e9, Unpriced: g.Unpriced, User: clip(x.User), Workspace: clip(x.Workspace), Caller: clip(x.Caller), Color: clip(x.Color),
		StopReason: clip(g.StopReason), Via: clip(g.Via), Degraded: clip(g.Degraded), ServedBy: clip(x.HTTP.Target), UpstreamID: clip(g.UpstreamID), ReplayOf: clip(g.ReplayOf), Attempts: []Attempt{},
	}
	if x.Err != nil {
		c.Err = clip(x.Err.Error())
	}
	for _, a := range x.Attempts {
		c.Attempts = append(c.Attempts, Attempt{Took: a.Took, Waited: a.Waited, Status: a.Status, Cause: a.Cause, UpstreamID: clip(a.UpstreamID), Target: clip(a.Target)})
	}
	return c
}

// clip copies a text, and bounds what callers and upstreams can make a call weigh.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.Clone(s)
}
