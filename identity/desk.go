package identity

import (
	"context"
	"log/slog"
	"sync/atomic"

	"mainstay.dev/mainstay/internal/setting"
)

// Deps is what a [Desk] needs from outside.
type Deps struct {
	// Notice is told what happened, such as a key set that cannot be had: a level, a
	// name, a sentence and what belongs to it. It must not block; nil: nobody is told.
	Notice func(level slog.Level, name, text string, attrs ...slog.Attr)
}

// A Desk is where everyone who enters says who it is: the [Resolver] of a whole
// Config. Its methods may be called from many goroutines.
type Desk struct {
	deps   Deps
	policy atomic.Pointer[Proxies]
}

// New checks cfg and wires the desk; it starts nothing.
func New(cfg Config, d Deps) (*Desk, error) {
	p, err := Compile(cfg)
	if err != nil {
		return nil, err
	}
	if d.Notice == nil {
		d.Notice = func(slog.Level, string, string, ...slog.Attr) {}
	}
	desk := &Desk{deps: d}
	desk.policy.Store(p)
	return desk, nil
}

// Prepare checks cfg for a reload. Nothing changes until commit is called, and
// commit cannot fail.
func (d *Desk) Prepare(cfg Config) (commit func(), err error) {
	p, err := Compile(cfg)
	if err != nil {
		return nil, setting.Of(err)
	}
	return func() { d.policy.Store(p) }, nil
}

// Resolve says who sent r.
func (d *Desk) Resolve(ctx context.Context, r *Request) Who {
	return d.policy.Load().Resolve(ctx, r)
}
