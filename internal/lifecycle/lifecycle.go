// Package lifecycle runs the parts of a process: it starts them one after the
// other, each when the one before is ready, and stops them in reverse.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
)

// A Part is something that runs for the life of the process. Run works until its
// context is done, drains within its own limit, and returns only when everything
// it started has ended. It calls ready once, when the parts above may rely on it.
type Part struct {
	Name string
	Run  func(ctx context.Context, ready func()) error
}

// Simple adapts a run function that is ready as soon as it is called.
func Simple(run func(context.Context) error) func(context.Context, func()) error {
	return func(ctx context.Context, ready func()) error {
		ready()
		return run(ctx)
	}
}

// Run starts the parts in order and calls started when all are ready. When ctx is
// done, or any part returns by itself, it stops the parts that it started one at
// a time, last first, each having fully ended before the next is told, and
// returns every error they gave.
func Run(ctx context.Context, log *slog.Logger, started func(), parts ...Part) error {
	r := runner{log: log, ended: make(chan string, len(parts))}
	for _, p := range parts {
		if !r.start(ctx, p) {
			return r.stop()
		}
	}
	if started != nil {
		started()
	}
	select {
	case <-ctx.Done():
		log.Info("stopping", "cause", context.Cause(ctx))
	case name := <-r.ended:
		log.Error("stopping: a part ended by itself", "part", name)
	}
	return r.stop()
}

type runner struct {
	log     *slog.Logger
	running []running
	ended   chan string // names of parts whose run has returned
}

type running struct {
	name string
	stop context.CancelFunc
	done chan error
}

// start runs p and waits until it is ready; false means that it ended first, or
// that ctx did. A part's context is cut loose from ctx, so that the end of ctx
// stops the parts in order and not all at once.
func (r *runner) start(ctx context.Context, p Part) bool {
	pctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	part := running{p.Name, stop, make(chan error, 1)}
	ready := make(chan struct{})
	go func() {
		part.done <- p.Run(pctx, func() { close(ready) })
		r.ended <- p.Name
	}()
	r.running = append(r.running, part)
	select {
	case <-ready:
		return true
	case name := <-r.ended:
		r.log.Error("stopping: a part ended by itself", "part", name)
	case <-ctx.Done():
		r.log.Info("stopping before all has started", "cause", context.Cause(ctx), "waiting_for", p.Name)
	}
	return false
}

func (r *runner) stop() (errs error) {
	for _, p := range slices.Backward(r.running) {
		p.stop()
		if err := <-p.done; err != nil {
			errs = errors.Join(errs, fmt.Errorf("%s: %w", p.name, err))
		}
	}
	return errs
}
