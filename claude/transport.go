package claude

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// A Transport is an [http.RoundTripper] with the plane's engine in it, for Go
// programs that call Claude without the plane:
//
//	client := anthropic.NewClient(
//		option.WithHTTPClient(&http.Client{Transport: &claude.Transport{}}),
//		option.WithMaxRetries(0), // the Transport retries
//	)
//
// The zero value is ready and follows [Compatible]. Fields must not change after
// the first call; RoundTrip may be called from many goroutines.
type Transport struct {
	// Base carries the calls; nil: [http.DefaultTransport].
	Base http.RoundTripper
	// Policy says when calls are tried again; nil: Compatible(). Its Judge is not
	// asked: answers are judged as the plane does.
	Policy *Policy
	// FirstByte and Idle bound the waits, as claude.timeouts in the file does; 0: the
	// same defaults (10m, 3m).
	FirstByte, Idle time.Duration
	// Log is told of retries; nil: nobody.
	Log *slog.Logger
	// Sink is given each call; nil: nobody.
	Sink telemetry.Sink

	once   sync.Once
	engine engine
	rules  rules
}

// mostReplay bounds a body that comes without GetBody and is kept for another try;
// the API takes no larger message.
const mostReplay = 34e6

func (t *Transport) prepare() {
	var cfg Config
	cfg.SetDefaults()
	t.engine.rt, t.engine.log, t.engine.sink = t.Base, orDiscard(t.Log), t.Sink
	if t.Base == nil {
		t.engine.rt = http.DefaultTransport
	}
	if t.Sink == nil {
		t.engine.sink = telemetry.Discard
	}
	t.rules = rules{retry: cfg.Retry.policy(), firstByte: cfg.Timeouts.FirstByte, idle: cfg.Timeouts.Idle}
	if t.Policy != nil {
		t.rules.retry = t.Policy.Policy
	}
	if t.FirstByte > 0 {
		t.rules.firstByte = t.FirstByte
	}
	if t.Idle > 0 {
		t.rules.idle = t.Idle
	}
}

// RoundTrip is the life of a call, up to the first byte of its answer; the body
// that it returns lives the rest. An answer that breaks off, or that ends without
// its end, gives an error to whoever reads it.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	t.once.Do(t.prepare)
	c := t.begin(r)
	if err := c.takeOver(r); err != nil {
		c.body, c.end = nil, verdict{code: uploadCode(err), cause: CauseClient, err: err}
		c.record()
		return nil, err
	}
	a, v := c.settle()
	if a == nil {
		c.end = v
		c.record()
		return nil, fmt.Errorf("call Claude at %s: %w", r.URL.Host, v.err)
	}
	a.piece = nil // whoever reads the body may close it at the same time: it can't be pooled
	res := a.res
	c.watch.begin(a, c.shape, &c.x.GenAI)
	if a.whole {
		c.watch.whole(a.ahead, res.Header)
	}
	res.Body, res.Request = &reading{c: c, a: a}, r
	return res, nil
}

func (t *Transport) begin(r *http.Request) *call {
	c := &call{engine: &t.engine, rules: t.rules, x: telemetry.Begin("claude"), ctx: r.Context()}
	c.engine.counts.inFlight.Add(1)
	c.engine.counts.calls.Add(1)
	c.describe(r)
	c.x.HTTP.Scheme, c.x.HTTP.Host, c.x.HTTP.Path, c.x.HTTP.Target = r.URL.Scheme, r.URL.Host, r.URL.Path, r.URL.Host
	c.x.Route = template(r.URL.Path)
	c.shape = shapeOf(r.Method, c.x.Route)
	c.out = r
	return c
}

// takeOver makes the request's body one that can be sent again: by its GetBody, or
// by keeping it.
func (c *call) takeOver(r *http.Request) (err error) {
	memory := &c.engine.counts.replay
	if r.Body == nil || r.Body == http.NoBody {
		c.body = newBody(0, memory)
		return nil
	}
	size := r.ContentLength
	if size == 0 {
		size = -1 // there is a body, but nobody said how long it is
	}
	if r.GetBody != nil {
		c.body = newBody(size, memory)
		c.body.open = r.GetBody
		c.x.BytesIn = max(size, 0)
		return r.Body.Close()
	}
	c.upload = &upload{src: r.Body}
	c.body, err = takeIn(c.upload, intake{memory: memory, most: 1 << 62, keep: mostReplay, size: size})
	if err == nil && !c.body.replayable() {
		c.body.owner = r.Body
		return nil
	}
	return errors.Join(err, r.Body.Close())
}

// reading is the rest of a call's life: the body as the program reads it.
type reading struct {
	c   *call
	a   *answer
	err error

	mu   sync.Mutex // guards what record needs against a Close from another goroutine
	done bool
}

// Read reads on, sees what passes, and turns an end that is none into an error.
func (b *reading) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.a.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done {
		return n, errors.Join(err, context.Cause(b.a.ctx))
	}
	b.c.x.BytesOut += int64(n)
	b.c.watch.feed(p[:n])
	if err != nil {
		b.err = b.finish(err)
	}
	return n, b.err
}

// finish ends the call with what reading its body came to.
func (b *reading) finish(err error) error {
	c := b.c
	c.watch.end()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	c.end, _ = c.outcome(b.a, &toClient{}, err)
	b.leave()
	switch {
	case c.end.code == UpstreamCut || c.end.code == UpstreamStalled:
		return errors.Join(c.end.err, io.ErrUnexpectedEOF)
	case err != nil:
		return err
	}
	return io.EOF
}

// Close ends the call, if its body was not read to the end.
func (b *reading) Close() error {
	b.a.cancel(errDone) // frees a Read that is waiting
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.done {
		b.c.watch.end()
		b.c.end = b.unread()
		b.leave()
	}
	return nil
}

// unread tells what the call came to, judging by what of its body was read.
func (b *reading) unread() verdict {
	switch w := &b.c.watch; {
	case w.failed || w.stopped || b.a.whole || b.a.verdict.code != OK: // nothing of interest is missing
		v, _ := b.c.outcome(b.a, &toClient{}, nil)
		return v
	}
	return verdict{code: ClientGone, cause: CauseClient, err: errors.New("the body was closed before its end")}
}

func (b *reading) leave() {
	b.done = true
	b.a.close()
	b.c.record()
}
