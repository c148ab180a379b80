package claude

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"mainstay.dev/mainstay/claude/internal/batch"
	"mainstay.dev/mainstay/claude/internal/body"
	"mainstay.dev/mainstay/claude/internal/head"
	"mainstay.dev/mainstay/claude/internal/price"
	"mainstay.dev/mainstay/retry"
	"mainstay.dev/mainstay/telemetry"
)

// A Transport is an [http.RoundTripper] with the plane's engine in it, for Go
// programs that call Claude without the plane:
//
//	client := anthropic.NewClient(option.WithHTTPClient(&http.Client{Transport: &claude.Transport{}}))
//
// The zero value is ready and follows the plane's default policy, deadline: retries
// with a budget, the gate that holds calls while Claude is down, the line for the
// rate limits, streams that are made whole, and calls that do not stream gathered from
// one. Routes, keys, prices and a spend ceiling come with Config. A failure that is
// final is an answer, a Claude error as the plane gives it, with x-should-retry: false:
// the SDK does not try again by itself.
//
// All calls of one Transport share its gates, its budget and its lines: make one for a
// program, and [Transport.Close] it at the end. Fields must not change after the first
// call; all methods may be called from many goroutines.
type Transport struct {
	// Base carries the calls; nil: [http.DefaultTransport].
	Base http.RoundTripper
	// Config is the section claude of the file; nil: its defaults. Its keys and routes
	// are for calls to the host of Config.Upstream; a call to another host goes there
	// as it is, with the key that it carries. What is the listener's own (listen,
	// timeouts.client, limits.body and its like, drain, retry.attach and retry.join) is
	// not used, and nobody here has a tier.
	Config *Config
	// Policy says when calls are tried again instead of Config's: without gate, budget,
	// lines, routes and recovery of streams.
	Policy *Policy
	// FirstByte and Idle bound the waits, as claude.timeouts in the file does; 0: what
	// Config says (10m and 3m, if it says nothing).
	FirstByte, Idle time.Duration
	// Dir is the folder in which the cost of the day is kept, for Config.Spend, and which
	// batches have been booked; empty: a restart forgets both.
	Dir string
	// Judge says which errors of its work [Do] tries again; nil: [JudgeError].
	Judge retry.Judge
	// Log is told of retries; nil: nobody.
	Log *slog.Logger
	// Sink is given each call; nil: nobody.
	Sink telemetry.Sink

	once   sync.Once
	engine engine
	policy *policy
	plain  rules // of calls to other hosts: without routes and keys
	bad    error // of Config or Dir
}

// NewTransport returns a Transport that obeys cfg, or every mistake that is in it.
// Further fields may be set before the first call.
func NewTransport(cfg Config) (*Transport, error) {
	if _, err := Compile(cfg); err != nil {
		return nil, err
	}
	return &Transport{Config: &cfg}, nil
}

func (t *Transport) prepare() {
	var cfg Config
	if cfg.SetDefaults(); t.Config != nil {
		cfg = *t.Config
	}
	t.engine.rt, t.engine.log, t.engine.sink = t.Base, orDiscard(t.Log), t.Sink
	if t.Base == nil {
		t.engine.rt = http.DefaultTransport
	}
	if t.Sink == nil {
		t.engine.sink = telemetry.Discard
	}
	if t.policy, t.bad = Compile(cfg); t.bad != nil {
		t.bad = fmt.Errorf("claude.Transport.Config: %w", t.bad)
		return
	}
	r := &t.policy.rules
	if t.Policy != nil {
		*r = rules{prices: r.prices, retry: *t.Policy, firstByte: r.firstByte, idle: r.idle, retryAfter: r.retryAfter}
	}
	if t.FirstByte > 0 {
		r.firstByte = t.FirstByte
	}
	if t.Idle > 0 {
		r.idle = t.Idle
	}
	t.plain = *r
	t.plain.routes, t.plain.degrade = nil, nil
	t.engine.pacer.Obey(t.policy.pacing)
	if t.engine.batches, t.bad = batch.Open(t.Dir, t.engine.batchTrouble); t.bad != nil {
		t.bad = fmt.Errorf("claude.Transport.Dir: %w", t.bad)
		return
	}
	if cfg.Spend.Daily > 0 {
		if t.engine.ceiling, t.bad = price.Open(t.Dir); t.bad != nil {
			t.bad = fmt.Errorf("claude.Transport.Dir: %w", t.bad)
			return
		}
		t.engine.ceiling.Obey(cfg.Spend)
	}
}

// ready prepares the Transport once and returns what is wrong with it.
func (t *Transport) ready() error {
	t.once.Do(t.prepare)
	return t.bad
}

// Stats may be called at any time.
func (t *Transport) Stats() Stats {
	if t.ready() != nil {
		return Stats{}
	}
	return t.engine.stats(t.policy)
}

// Close writes down what the day has cost, where that is kept, and returns what was
// wrong with it. Calls under way go on, and so may others.
func (t *Transport) Close() error {
	if err := t.ready(); err != nil {
		return err
	}
	err := t.engine.batches.Close()
	if t.engine.ceiling != nil {
		err = errors.Join(err, t.engine.ceiling.Close())
	}
	return err
}

// RoundTrip is the life of a call, up to the first byte of its answer; the body
// that it returns lives the rest. An answer that breaks off, or that ends without
// its end, gives an error to whoever reads it. Under the policy deadline it fails by
// itself only where the request's context has ended or its body can't be read.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := t.ready(); err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // what matters is why
		}
		return nil, err
	}
	c := t.begin(r)
	if err := c.takeOver(r); err != nil {
		c.body, c.end = nil, verdict{code: uploadCode(err), cause: CauseClient, err: err}
		c.record()
		c.giveUp(errDone)
		return nil, err
	}
	c.ask()
	if v, ok := c.afford(); !ok {
		return c.fail(r, v)
	}
	a, v := c.settle()
	if a == nil {
		return c.fail(r, v)
	}
	if a.res.StatusCode == http.StatusSwitchingProtocols { // what follows is between the two ends
		c.end, c.x.HTTP.Status, c.x.HTTP.Upgraded = a.verdict, a.res.StatusCode, head.Upgrades(a.res.Header)
		c.record()
		return a.res, nil
	}
	a.piece = nil // whoever reads the body may close it at the same time: it can't be pooled
	res := a.res
	c.watch.Begin(a.res.Header, a.events, c.shape.message, &c.x.GenAI)
	c.follow(a)
	if a.whole {
		c.watch.Whole(a.ahead, res.Header)
	}
	c.closeRetries(res.Header, a.verdict)
	c.sign(res.Header, a.verdict.code)
	c.x.HTTP.Status = res.StatusCode
	res.Body, res.Request = &reading{c: c, a: a}, r
	return res, nil
}

// fail ends a call that has no answer: with an error of ours in the API's words, or,
// where nobody is left to read it or the policy is not the plane's own, with an error.
func (c *call) fail(r *http.Request, v verdict) (*http.Response, error) {
	defer c.giveUp(errDone)
	defer c.record()
	c.end = v
	if c.end.err == nil {
		c.end.err = errors.New(string(v.code))
	}
	if _, ended := c.ended(); ended || !c.rules.patient && v.code != OverBudget || v.cause == CauseClient {
		return nil, fmt.Errorf("call Claude at %s: %w", r.URL.Host, c.end.err)
	}
	h := http.Header{}
	status, body := c.say(h, v)
	c.x.HTTP.Status = status
	return &http.Response{
		Status: strconv.Itoa(status) + " " + http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}, nil
}

func (t *Transport) begin(r *http.Request) *call {
	to := &t.policy.upstream
	own := t.Config != nil && r.URL.Host == to.host && r.URL.Scheme == to.scheme
	c := &call{engine: &t.engine, policy: t.policy, rules: &t.plain, x: telemetry.Begin("claude")}
	c.ctx, c.giveUp = context.WithCancelCause(r.Context())
	path := r.URL.Path
	if below, ok := strings.CutPrefix(path, to.path); own && ok {
		c.rules, path = &t.policy.rules, below
	}
	c.engine.counts.inFlight.Add(1)
	c.engine.counts.calls.Add(1)
	c.said = head.Read(r.Header)
	c.describe(r)
	c.x.HTTP.Scheme, c.x.HTTP.Host, c.x.HTTP.Path, c.x.HTTP.Target = r.URL.Scheme, r.URL.Host, r.URL.Path, r.URL.Host
	c.x.Route = template(path)
	c.shape = shapeOf(r.Method, c.x.Route)
	c.out = r
	if (c.shape.message || c.x.Route == routeResults) && len(r.Header["Accept-Encoding"]) > 0 {
		c.out = r.Clone(r.Context())
		head.Readable(c.out.Header)
	}
	if c.rules.patient {
		c.out = c.out.Clone(r.Context())
		c.promise()
		c.said.Strip(c.out.Header)
	}
	return c
}

// takeOver makes the request's body one that can be sent again: by its GetBody, or
// by keeping it.
func (c *call) takeOver(r *http.Request) (err error) {
	memory := &c.engine.counts.replay
	if r.Body == nil || r.Body == http.NoBody {
		c.body = body.New(0, memory)
		return nil
	}
	size := r.ContentLength
	if size == 0 {
		size = -1 // there is a body, but nobody said how long it is
	}
	if r.GetBody != nil {
		c.body = body.New(size, memory)
		c.body.Open = r.GetBody
		c.x.BytesIn = max(size, 0)
		if err = r.Body.Close(); err == nil && size <= body.Most && c.rules.patient && (c.shape.message || c.x.Route == routeCount) {
			err = c.body.Keep() // it will be read more than once
		}
		return err
	}
	c.upload = &upload{src: r.Body}
	c.body, err = body.TakeIn(c.upload, body.Intake{Memory: memory, Most: 1 << 62, Keep: body.Most, Size: size})
	if err == nil && !c.body.Replayable() {
		c.body.Owner = r.Body
		return nil
	}
	return errors.Join(err, r.Body.Close())
}

// reading is the rest of a call's life: the body as the program reads it. It may be
// closed while it is being read: the Read then ends the call.
type reading struct {
	c *call
	a *answer

	mu     sync.Mutex
	busy   bool // it is being read
	closed bool
	err    error // how it ended
}

// errClosed is what a Read of a closed body gives.
var errClosed = errors.New("the body was closed before its end")

// Read reads on, sees what passes, and turns an end that is none into an error.
func (b *reading) Read(p []byte) (int, error) {
	b.mu.Lock()
	if err := b.err; err != nil || b.closed {
		b.mu.Unlock()
		return 0, cmp.Or(err, errClosed)
	}
	b.busy = true
	b.mu.Unlock()
	n, err := b.a.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.busy = false
	b.c.x.BytesOut += int64(n)
	b.c.watch.Feed(p[:n])
	switch {
	case b.closed:
		b.c.watch.End()
		b.leave(b.unread())
		b.err = errClosed
	case err != nil:
		b.err = b.finish(err)
	}
	return n, b.err
}

// finish ends the call with what reading its body came to.
func (b *reading) finish(err error) error {
	c := b.c
	c.watch.End()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	end, _ := c.outcome(b.a, &toClient{}, err)
	b.leave(end)
	switch {
	case end.code == UpstreamCut || end.code == UpstreamStalled:
		return errors.Join(end.err, io.ErrUnexpectedEOF)
	case err != nil:
		return err
	}
	return io.EOF
}

// Close ends the call, if its body was not read to the end.
func (b *reading) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed || b.err != nil:
	case b.busy:
		b.c.giveUp(errDone)
		if m, ok := b.a.body.(*mending); ok {
			m.breakOff()
		} else {
			_ = b.a.body.Close() // what it says the Read says too
		}
	default:
		b.c.watch.End()
		b.leave(b.unread())
	}
	b.closed = true
	return nil
}

// unread tells what the call came to, judging by what of its body was read.
func (b *reading) unread() verdict {
	switch w := &b.c.watch; {
	case w.Failed || w.Stopped || b.a.whole || b.a.verdict.code != OK: // nothing of interest is missing
		v, _ := b.c.outcome(b.a, &toClient{}, nil)
		return v
	}
	return verdict{code: ClientGone, cause: CauseClient, err: errClosed}
}

func (b *reading) leave(end verdict) {
	b.c.end = end
	b.a.close()
	b.c.record()
	b.c.giveUp(errDone)
}
