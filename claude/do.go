package claude

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/claude/internal/price"
	"mainstay.dev/mainstay/health"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/retry"
	"mainstay.dev/mainstay/telemetry"
)

// A Policy says how calls are tried again.
type Policy = retry.Policy

// Compatible is the plane's policy compatible: up to 3 retries after 1, 2 and 4
// seconds, give or take a quarter; a wait that Claude asks for is kept to, up to a
// minute.
func Compatible() Policy {
	var c Config
	c.SetDefaults()
	c.Retry.Policy = "compatible"
	return c.Retry.policy()
}

// Do does a piece of work that calls Claude, under the engine of t, and again while its
// error is worth that (t.Judge), and returns what the last try gave.
//
// What try calls through via is the engine's: each HTTP call is paced, held, tried
// again, gathered and made whole as by t itself, and final when it fails. Do adds what
// can't be seen from there: an answer that broke after try had read a part of it, or
// that try itself finds wanting (with a Judge of its own), is had anew, since nobody but
// try has seen it. With the official SDK:
//
//	m, err := claude.Do(ctx, t, func(ctx context.Context, via *http.Client) (*anthropic.Message, error) {
//		return client.Messages.New(ctx, params, option.WithHTTPClient(via))
//	})
//
// Work that calls in some other way and leaves via alone is tried again, held while all
// such work fails, and kept within the budget of retries; its waits and its errors are
// judged by t.Judge alone:
//
//	t.Judge = func(err error) (bool, time.Duration) {
//		if e, ok := errors.AsType[*anthropic.Error](err); ok {
//			return claude.JudgeResponse(e.Response)
//		}
//		return claude.JudgeError(err)
//	}
//
// Under the policy deadline no try begins after Config.Retry.Deadline or, once something
// went wrong, Config.Retry.Hold. Do returns when ctx ends. It may be called from many
// goroutines.
func Do[T any](ctx context.Context, t *Transport, try func(ctx context.Context, via *http.Client) (T, error)) (T, error) {
	var v T
	w, err := t.work(ctx)
	if err != nil {
		return v, err
	}
	defer w.end()
	for w.claim() {
		v, err = try(ctx, w.via)
		if !w.again(err) {
			return v, err
		}
	}
	if err == nil { // it was never tried
		err = w.why()
	}
	return v, err
}

// work is the state of one Do.
type work struct {
	*call
	judge retry.Judge
	via   *http.Client
	used  atomic.Bool   // via was, by any try
	wait  time.Duration // before the next try
}

func (t *Transport) work(ctx context.Context) (*work, error) {
	if err := t.ready(); err != nil {
		return nil, err
	}
	w := &work{judge: t.Judge, call: &call{engine: &t.engine, policy: t.policy, rules: &t.plain, x: telemetry.Begin("claude"), ctx: ctx}}
	if w.judge == nil {
		w.judge = JudgeError
	}
	w.via = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		w.used.Store(true)
		return t.RoundTrip(r)
	})}
	w.x.Route = routeOther
	w.loop = w.rules.retry.Begin()
	if w.rules.patient {
		w.deadline = w.x.Start.Add(w.rules.deadline)
		w.gate = t.engine.gates.at("", "")
	}
	return w, nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// claim waits until the work may be tried.
func (w *work) claim() bool {
	if w.x.Tries > 0 && !w.pause(w.wait) {
		return false
	}
	if ok, _ := w.passGate(false); !ok {
		return false
	}
	w.try, w.trying = telemetry.Attempt{Start: time.Now(), Waited: w.wait}, true
	return true
}

// again judges a try, and claims another one.
func (w *work) again(err error) bool {
	v := verdict{code: OK}
	if err != nil {
		v = verdict{code: Rejected, cause: CauseRejected, err: err}
		if v.again, v.after = w.judge(err); v.again {
			v.code, v.cause = UpstreamError, CauseStatus
		}
		if ended, ok := w.ended(); ok {
			v = ended
		}
	}
	w.call.end = v
	o := health.Unknown
	switch {
	case v.code == OK:
		o = health.Good
	case v.again && !w.used.Load(): // or those calls have told their own gates
		o = health.Bad
	}
	w.pass.Report(o)
	if w.x.Tries == 0 && !w.used.Load() && w.rules.budget != nil {
		w.rules.budget.Earn()
	}
	w.tried(v.cause)
	more := false
	if v.again {
		w.wait, more = w.next(v.after)
	}
	return more
}

// why tells why the work was never tried.
func (w *work) why() error {
	if v, ended := w.ended(); ended {
		w.call.end = v
	} else {
		w.call.end = w.refused
	}
	return w.call.end.err
}

// end writes down work whose calls have not been by themselves.
func (w *work) end() {
	if w.used.Load() {
		return
	}
	w.engine.counts.inFlight.Add(1)
	w.engine.counts.calls.Add(1)
	w.record()
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

// What a Config in a Go program is made of, beside numbers and words.
type (
	// Secret is a key: a string that never shows itself.
	Secret = setting.Secret
	// Bytes is a size, and Percent a share: 0.2 for 20%.
	Bytes   = setting.Bytes
	Percent = setting.Percent
	// Price is what a model costs.
	Price = price.Price
)
