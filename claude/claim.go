package claude

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/claude/internal/pace"
	"mainstay.dev/mainstay/health"
	"mainstay.dev/mainstay/retry"
	"mainstay.dev/mainstay/telemetry"
)

// promise reads what the caller wants to be left alone, and by when it wants its answer
// to begin: the least of the
// policy's deadline, the SDK's x-stainless-timeout and our own mainstay-deadline,
// which goes no further. A little of it is kept back, so that an error of ours is
// there before the caller gives up.
func (c *call) promise() {
	said := &c.said
	c.request.recover = c.rules.recovers && !c.rules.except[c.x.Caller] && !strings.EqualFold(said.Recovery, "off")
	c.request.gather = c.rules.gathers && !strings.EqualFold(said.Aggregate, "off")
	c.weight, _ = c.rules.pacing.Weight(c.x.Caller, c.x.Color, said.Priority)
	if !c.rules.patient {
		return
	}
	limit := c.rules.deadline
	if asked := seconds(said.Deadline); asked > 0 {
		limit = min(limit, asked)
	}
	c.whole = c.x.Start.Add(limit - min(limit/20, time.Second))
	if asked := seconds(said.Timeout); asked > 0 {
		limit = min(limit, asked)
	}
	c.deadline = c.x.Start.Add(limit - min(limit/20, time.Second))
	const last = 2 // of the retries that the SDKs make unless told otherwise
	count := -1
	if text := said.RetryCount; text != "" {
		if n, err := strconv.Atoi(text); err == nil {
			count = n
		}
	}
	c.request.again = count
	if c.rules.attach == 0 || count < 0 || count >= last {
		c.whole = c.deadline // nobody will come for it
	}
}

func seconds(s string) time.Duration {
	if s == "" {
		return 0
	}
	if d, err := time.ParseDuration(s); err == nil {
		return d
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f > 0) {
		return 0
	}
	return time.Duration(min(f*float64(time.Second), math.MaxInt64/2))
}

// firstByteLimit is how long the attempt that begins now may wait for its first byte.
func (c *call) firstByteLimit() time.Duration {
	if !c.rules.patient || c.deadline.IsZero() {
		return c.rules.firstByte
	}
	limit := c.rules.firstByte
	if (c.mend != nil || c.midway) && c.way.via.Pings() {
		limit = min(limit, 2*c.rules.stall)
	}
	until := c.whole
	if c.midway { // the call has begun to be answered: only its hold counts
		until = c.limit()
	}
	return min(limit, max(time.Until(until), 0))
}

// limit is when the patience of a call ends: at its deadline, or with its hold, which
// begins when something first goes wrong.
func (c *call) limit() time.Time {
	if c.until.IsZero() {
		c.until = time.Now().Add(c.rules.hold)
		if (c.mend == nil || !c.mend.Given()) && !c.deadline.IsZero() && c.deadline.Before(c.until) {
			c.until = c.deadline
		}
	}
	return c.until
}

// next claims another try of the loop, if there is one and its wait is worth it.
func (c *call) next(asked time.Duration) (wait time.Duration, ok bool) {
	if c.gate != nil && c.gate.State() != health.Open {
		c.loop.Spare() // the upstream is not well: the hold bounds such tries, and the gate makes them few
	}
	if wait, ok = c.loop.Next(asked); !ok || !c.rules.patient {
		return wait, ok
	}
	return wait, time.Now().Add(wait).Before(c.limit())
}

// claim takes the upstream for one more attempt, after the wait that its backoff
// asks for, and, under the policy deadline, as soon as the budget and the health of
// the upstream allow. False means that the call ended, or its patience.
func (c *call) claim(wait time.Duration) bool {
	before := time.Now()
	may := c.pause(wait) && c.enter()
	now := time.Now()
	if waited := now.Sub(before); wait > 0 || waited > time.Millisecond {
		wait = waited
		c.x.Waited += waited
	}
	if _, ended := c.ended(); ended || !may {
		return false
	}
	c.try, c.trying = telemetry.Attempt{Start: now, Waited: wait, Target: c.out.URL.Host}, true
	c.engine.counts.attempts.Add(1)
	return true
}

// pause sits out a wait before a retry; false: in vain.
func (c *call) pause(wait time.Duration) bool {
	budget := c.rules.budget
	if wait <= 0 {
		if budget != nil && c.x.Tries == 0 {
			budget.Earn()
		}
		return true
	}
	c.engine.counts.waiting.Add(1)
	defer c.engine.counts.waiting.Add(-1)
	for {
		if retry.Sleep(c.ctx, wait) != nil { // ended tells what ended it
			return false
		}
		if budget == nil || c.gate != nil && c.gate.State() != health.Open || budget.Spend() {
			return true
		}
		more := c.rules.retry.Begin()
		if wait, _ = more.Next(0); time.Now().Add(wait).After(c.limit()) {
			return false
		}
	}
}

// enter waits until a way is fit and its rate limits leave room.
func (c *call) enter() bool {
	for looked := false; ; {
		if !c.findWay() {
			passed, again := c.passGate(looked)
			if looked = again; again {
				continue
			}
			if !passed {
				return false
			}
		}
		probe := c.gate != nil && c.gate.State() == health.Shut
		if !c.queue() {
			return false
		}
		if c.gate == nil || probe || c.gate.State() != health.Shut {
			return true
		}
		c.ticket.Return(false) // it shut in the meantime
	}
}

// look is for how long a call waits for one way before it looks for another again.
const look = time.Second

// errLook ends such a wait.
var errLook = errors.New("time to look for another way")

// passGate waits at the gate of an upstream that is not fit. again: it did not become
// fit for a while, and another way may be by now.
func (c *call) passGate(looked bool) (passed, again bool) {
	if c.gate == nil {
		return true, false
	}
	var ok bool
	turn := health.Turn{Since: c.x.Start, Again: c.x.Tries > 0 || looked}
	if c.pass, ok = c.gate.TryJoin(turn); ok {
		return true, false
	}
	c.engine.counts.waiting.Add(1)
	defer c.engine.counts.waiting.Add(-1)
	c.held = true
	c.engine.counts.holding.Add(1)
	defer c.engine.counts.holding.Add(-1)
	ctx, cancel := context.WithDeadlineCause(c.ctx, c.limit(), errHeld)
	defer cancel()
	if c.forks() {
		slice, end := context.WithCancelCause(ctx)
		defer end(nil)
		timer := time.AfterFunc(look, func() { end(errLook) })
		defer timer.Stop()
		ctx = slice
	}
	var err error
	if c.pass, err = c.gate.Join(ctx, turn); errors.Is(err, errLook) {
		return false, true
	}
	if err != nil {
		c.refused = verdict{code: Held, cause: CauseOverloaded, err: err}
	}
	return err == nil, false
}

// queue waits for what the rate limits of the key leave.
func (c *call) queue() bool {
	if c.lane == nil {
		return true
	}
	c.engine.counts.waiting.Add(1)
	defer c.engine.counts.waiting.Add(-1)
	ctx := &until{Context: c.ctx, at: c.deadline, cause: errQueued}
	defer ctx.end()
	if c.midway {
		ctx.at = c.limit()
	}
	ask := c.asks()
	var err error
	if full := (verdict{code: Limited, cause: CauseRateLimited, err: errQueued}); !ctx.at.IsZero() && c.forks() && c.lane.Due(ask) > time.Until(ctx.at) && c.canMove(full) {
		c.refused = full // the other way may have room
		return false
	}
	c.ticket, err = c.lane.Wait(ctx, ask)
	if err != nil {
		c.refused = verdict{code: Limited, cause: CauseRateLimited, after: c.lane.Due(ask), err: err}
	}
	return err == nil
}

// asks is what the call would take of the rate limits.
func (c *call) asks() pace.Ask {
	return pace.Ask{
		Bytes: max(c.body.Size, 0), MaxTokens: c.request.maxTokens,
		Flow: c.x.Caller + c.x.Color, Weight: c.weight, Deadline: c.deadline,
	}
}

// giveBack tells the lane what became of an attempt.
func (c *call) giveBack(cause Cause) {
	g := &c.x.GenAI
	switch cause {
	case CauseConnect:
		c.ticket.Return(false)
	case CauseRateLimited, CauseOverloaded, CauseConflict, CauseStatus, CauseRejected:
		c.ticket.Return(true)
	case CauseNone:
		if c.resumes == 0 && g.OutputTokens > 0 {
			c.ticket.Settle(&pace.Usage{Input: g.InputTokens + g.CacheWriteTokens, Output: g.OutputTokens})
			break
		}
		c.ticket.Settle(nil)
	default:
		c.ticket.Settle(nil)
	}
}

// report tells the gate what an attempt came to. What is the caller's own (a wrong
// request, its limit, its deadline) says nothing of Claude's health.
func (c *call) report(v verdict) {
	c.heed(v)
	if c.gate == nil {
		return
	}
	o := health.Unknown
	switch {
	case v.cause == CauseNone:
		o = health.Good
	case c.outage(v.cause):
		o = health.Bad
	}
	c.pass.Report(o)
}

// outage reports whether a cause speaks against the health of the upstream.
func (c *call) outage(cause Cause) bool {
	switch cause {
	case CauseOverloaded, CauseStatus, CauseConnect, CauseBroken, CauseCut, CauseStalled, CauseStream:
		return true
	case CauseTimeout:
		return c.deadline.IsZero() || time.Now().Before(c.whole)
	}
	return false
}

// gates are the gates of an engine's upstreams, by host and model.
type gates struct {
	mu sync.RWMutex
	of map[gateKey]*health.Gate
}

type gateKey struct{ host, model string }

// mostGates bounds how many models have a gate of their own: the caller names them.
const mostGates = 256

func (g *gates) at(host, model string) *health.Gate {
	key := gateKey{host, model}
	g.mu.RLock()
	gate := g.of[key]
	g.mu.RUnlock()
	if gate != nil {
		return gate
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.of == nil {
		g.of = map[gateKey]*health.Gate{}
	}
	if len(g.of) >= mostGates {
		key.model = ""
	}
	if g.of[key] == nil {
		g.of[key] = health.NewGate(health.Passive())
	}
	return g.of[key]
}

// shut counts the gates that are not open, of those that counts.
func (g *gates) shut(counts func(gateKey) bool) (n int64) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for key, gate := range g.of {
		if counts(key) && gate.State() != health.Open {
			n++
		}
	}
	return n
}

// tried notes the end of the attempt under way.
func (c *call) tried(cause Cause) {
	if !c.trying {
		return
	}
	c.trying = false
	c.giveBack(cause)
	c.try.Took, c.try.Cause = time.Since(c.try.Start), string(cause)
	c.x.Try(c.try)
}

// retrying tells of an attempt that failed and will be followed by another.
func (c *call) retrying(v verdict, wait time.Duration) {
	switch v.cause {
	case CauseCut, CauseStalled, CauseStream, CauseTimeout, CauseBroken: // it may be charged all the same
		c.stake.Grow(c.most)
	}
	c.engine.counts.retries.Add(1)
	attrs := append(make([]slog.Attr, 0, 10),
		slog.String("id", c.x.ID), slog.String("route", c.x.Route), slog.String("color", c.x.Color),
		slog.Int("attempt", c.x.Tries), slog.String("cause", string(v.cause)), slog.Int("status", c.try.Status),
		slog.Int64("wait_ms", wait.Milliseconds()), slog.String("target", c.try.Target))
	if c.x.GenAI.UpstreamID != "" {
		attrs = append(attrs, slog.String("upstream_id", c.x.GenAI.UpstreamID))
	}
	if v.err != nil {
		attrs = append(attrs, slog.Any("err", v.err))
	}
	c.engine.log.LogAttrs(c.ctx, slog.LevelWarn, "claude call failed, trying again", attrs...)
}
