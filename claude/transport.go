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

	"mainstay.dev/mainstay/retry"
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
// The zero value is ready and follows the plane's default policy, deadline. Fields must not change after
// the first call; RoundTrip may be called from many goroutines.
type Transport struct {
	// Base carries the calls; nil: [http.DefaultTransport].
	Base http.RoundTripper
	// Policy says when calls are tried again, instead of the plane's policy deadline:
	// without its gate, budget and recovery of streams. Its Judge is not asked:
	// answers are judged as the plane does.
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
	t.rules = cfg.rules()
	if t.Policy != nil {
		t.rules = rules{prices: t.rules.prices, retry: t.Policy.Policy, firstByte: cfg.Timeouts.FirstByte, idle: cfg.Timeouts.Idle}
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
	c.ask()
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
	if c.rules.patient {
		c.out = r.Clone(r.Context())
		c.choose(c.out.Header)
		c.promise(c.out.Header)
	}
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
	if b.a.cancel != nil {
		b.a.cancel(errDone) // frees a Read that is waiting
	}
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

// A Policy says how a Go program's calls are tried again.
type Policy struct {
	retry.Policy
	// Judge says which errors are worth another try; nil: [JudgeError]. Only [Do]
	// asks it.
	Judge retry.Judge
}

// Compatible is the plane's policy compatible: up to 3 retries after 1, 2 and 4
// seconds, give or take a quarter; a wait that Claude asks for is kept to, up to a
// minute.
func Compatible() Policy {
	var c Config
	c.SetDefaults()
	c.Retry.Policy = "compatible"
	return Policy{Policy: c.Retry.policy()}
}

// Do calls try, and again while its error is worth that and retries are left, and
// returns what the last try gave. It returns at once when ctx ends.
//
// To judge by status, an error must hold an answer; for the official SDK's:
//
//	p := claude.Compatible()
//	p.Judge = func(err error) (bool, time.Duration) {
//		if e, ok := errors.AsType[*anthropic.Error](err); ok {
//			return claude.JudgeResponse(e.Response)
//		}
//		return claude.JudgeError(err)
//	}
func Do[T any](ctx context.Context, p Policy, try func(context.Context) (T, error)) (T, error) {
	judge := p.Judge
	if judge == nil {
		judge = JudgeError
	}
	return retry.Do(ctx, p.Policy, judge, try)
}

// JudgeError says that connection errors are worth another try, and nothing else.
func JudgeError(err error) (again bool, after time.Duration) { return connectionError(err), 0 }

// JudgeResponse says whether an answer's status is worth another try, and how long
// the answer asks to wait before it. It looks at the head only.
func JudgeResponse(res *http.Response) (again bool, after time.Duration) {
	if res == nil {
		return false, 0
	}
	v := judge(res)
	return v.again, v.after
}
