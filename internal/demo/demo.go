// Package demo puts Mainstay around a real application on a real PostgreSQL and
// shows, under load, what changes. It runs the app twice, bare and behind Mainstay,
// drives the same open-loop load at each in turn, deploys in the middle, and prints
// what a user of each would have felt.
//
// It judges over the network, as a stranger would: it starts the built binaries and
// imports no plane. Only cmd/mainstay may import it.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Options say what to run. The zero value of a field means its default.
type Options struct {
	Once bool   // end after the table, instead of serving until the end of the context
	JSON string // also write the figures to this file: before, after, detail and setup

	Mainstay string // path of the mainstay binary; default: this program
	App      string // path of the unitehub binary; default: unitehub beside Mainstay

	Seed      uint64        // of the requests and of Claude's faults; default 1
	Rate      float64       // requests per second; default: 70% of what the bare app is found to hold
	Slices    int           // how often each side gets the load; default 3, at least 1
	Slice     time.Duration // how long each time; default 10s
	FaultRate float64       // share of Claude calls that fail; default 0.05

	Out io.Writer // default: standard output; in color and live if it is a terminal
}

func (o *Options) setDefaults() error {
	if o.Mainstay == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program's own path: %w", err)
		}
		o.Mainstay = self
	}
	if o.App == "" {
		o.App = filepath.Join(filepath.Dir(o.Mainstay), "unitehub")
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	if o.Slices == 0 {
		o.Slices = 3
	}
	if o.Slice == 0 {
		o.Slice = 10 * time.Second
	}
	if o.FaultRate == 0 {
		o.FaultRate = 0.05
	}
	if o.Out == nil {
		o.Out = os.Stdout
	}
	return nil
}

// check reports every reason why the demo can't begin, each with its mend.
func (o *Options) check() error {
	var errs []error
	for _, binary := range []string{o.Mainstay, o.App} {
		info, err := os.Stat(binary)
		if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			errs = append(errs, fmt.Errorf("there is no program %s; build it: make build", binary))
		}
	}
	if o.Rate < 0 || o.Slices < 1 || o.Slice <= 0 {
		errs = append(errs, errors.New("rate, slices and their length must be positive"))
	}
	if o.FaultRate < 0 || o.FaultRate > 1 {
		errs = append(errs, fmt.Errorf("a fault rate of %v is not a share between 0 and 1", o.FaultRate))
	}
	if o.JSON != "" {
		if err := os.MkdirAll(filepath.Dir(o.JSON), 0o755); err != nil {
			errs = append(errs, fmt.Errorf("make the folder of %s: %w", o.JSON, err))
		}
	}
	return errors.Join(errs...)
}

// Run starts everything, measures, prints the table and, unless Once is set, keeps
// serving until ctx ends. Whatever it started has ended when it returns, and the
// temporary folder is gone. The end of ctx is an error only while there is no table
// yet.
func Run(ctx context.Context, o Options) (err error) {
	if err := o.setDefaults(); err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	s := newScreen(o.Out)
	s.heading(o)
	h := &house{opts: o, screen: s}
	defer func() {
		err = errors.Join(err, h.close())
	}()
	if err := h.open(ctx); err != nil {
		return interrupted(ctx, err)
	}
	m, err := h.measure(ctx)
	if err != nil {
		return interrupted(ctx, err)
	}
	s.table(m)
	if o.JSON != "" {
		if err := writeReport(o.JSON, m); err != nil {
			return err
		}
		s.say("  written to %s", o.JSON)
	}
	if o.Once {
		return nil
	}
	return h.serve(ctx, m)
}

// interrupted replaces the many errors that the end of ctx causes by that one.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("the demo was interrupted: %w", context.Cause(ctx))
	}
	return err
}
