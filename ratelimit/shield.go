package ratelimit

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// A Failure says what to do while the store cannot be asked.
type Failure uint8

const (
	// FailLocal decides in this process: each limit divided by the number of live
	// nodes, from what the store last said of it. When the store is back it is told
	// what was admitted meanwhile, so that nobody gets a second helping.
	FailLocal Failure = iota
	FailAllow         // admits everything
	FailDeny          // refuses everything; Retry is a second
)

func (f Failure) String() string { return [...]string{"local", "allow", "deny"}[min(f, FailDeny)] }

// ShieldOptions shape a [Shield]. NewShield fills in what is 0.
type ShieldOptions struct {
	Timeout   time.Duration // longest wait for the store; default 5ms
	DenyFor   time.Duration // longest time a refusal is repeated without asking; default 5s. Units that other nodes give back are seen that late.
	Probe     time.Duration // how often a failed store is tried; default 200ms
	Tolerance int           // failures in a row after which the store counts as down; default 3
	Memory    int64         // bytes for what is known of the counters, and as many for local decisions; default DefaultMemory
	OnFailure Failure       // of the Shield's own methods; see On
	Nodes     func() int    // live nodes that share the limits; nil: this one alone
	// Changed is called when the store goes down, with the cause, and with nil when
	// it is back: for the log, the metric and the alert. It must not block.
	Changed func(cause error)
}

func (o *ShieldOptions) setDefaults() {
	o.Timeout = or(o.Timeout, 5*time.Millisecond)
	o.DenyFor = or(o.DenyFor, 5*time.Second)
	o.Probe = or(o.Probe, 200*time.Millisecond)
	o.Tolerance = or(o.Tolerance, 3)
	o.Memory = or(o.Memory, DefaultMemory)
	if o.Nodes == nil {
		o.Nodes = func() int { return 1 }
	}
	if o.Changed == nil {
		o.Changed = func(error) {}
	}
}

func or[T int | int64 | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// A Shield stands before a shared store. A key that is over its limit is refused
// here until it may pass; a store that is slow or gone delays no decision by more
// than Timeout, and after Tolerance failures in a row by nothing, until [Shield.Run]
// finds it well again.
//
// Leases that are taken while the store is down are counted by this node alone.
type Shield struct {
	store Store
	local *Memory
	known *memoirs
	opts  ShieldOptions

	down   atomic.Bool
	fails  atomic.Int64
	outage atomic.Uint64 // counts outages
	last   atomic.Pointer[Check]
	asked  sync.Pool // *[MaxChecks]Result

	decisions [ModeShut + 1]atomic.Uint64
}

var (
	_ Store = (*Memory)(nil)
	_ Store = (*Shield)(nil)
)

// NewShield returns a Shield before store. Until Run is called a store that went
// down stays so.
func NewShield(store Store, o ShieldOptions) *Shield {
	o.setDefaults()
	s := &Shield{store: store, local: NewMemory(o.Memory), known: newMemoirs(o.Memory), opts: o}
	s.asked.New = func() any { return new([MaxChecks]Result) }
	return s
}

// steady is how many probes in a row must succeed before a store counts as well.
// All nodes notice its return within one of them, so that each has told what it
// admitted before any of them trusts the store's counters again.
const steady = 3

// Run tries a store that is down until it answers, tells it what was admitted
// without it, and then goes back to it. It returns when ctx ends.
func (s *Shield) Run(ctx context.Context) error {
	tick := time.NewTicker(s.opts.Probe)
	defer tick.Stop()
	for well := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		c := s.last.Load()
		if c == nil || !s.down.Load() || s.probe(ctx, *c) != nil || s.tellAll(ctx) != nil {
			well = 0
			continue
		}
		if well++; well >= steady {
			well = 0
			s.fails.Store(0)
			s.down.Store(false)
			s.opts.Changed(nil)
		}
	}
}

// probe asks for the key that failed, since in a cluster others may well answer. It
// may take longer than a decision: a new connection has to come about.
func (s *Shield) probe(ctx context.Context, c Check) error {
	c.Cost = 0
	ctx, cancel := s.patiently(ctx)
	defer cancel()
	_, err := s.store.Take(ctx, []Check{c}, nil)
	return err
}

// patiently bounds calls that no decision waits for.
func (s *Shield) patiently(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, max(s.opts.Timeout, 500*time.Millisecond))
}

// Down reports whether the store counts as down.
func (s *Shield) Down() bool { return s.down.Load() }

// Decisions returns how many decisions were made in a mode since the start.
func (s *Shield) Decisions(m Mode) uint64 { return s.decisions[min(m, ModeShut)].Load() }

// On returns the same Shield with another answer to a failing store.
func (s *Shield) On(f Failure) Store {
	if f == s.opts.OnFailure {
		return s
	}
	return &onFailure{s, f}
}

type onFailure struct {
	*Shield
	failure Failure
}

func (o *onFailure) Take(ctx context.Context, checks []Check, results []Result) (Decision, error) {
	return o.take(ctx, checks, results, o.failure)
}

// Take implements [Store]. Its error is [ErrInvalid] or that of a ctx that ended.
func (s *Shield) Take(ctx context.Context, checks []Check, results []Result) (Decision, error) {
	return s.take(ctx, checks, results, s.opts.OnFailure)
}

func (s *Shield) take(ctx context.Context, checks []Check, results []Result, f Failure) (Decision, error) {
	if err := Validate(checks, results); err != nil || len(checks) == 0 {
		return Decision{Allowed: err == nil}, err
	}
	if results == nil {
		asked := s.asked.Get().(*[MaxChecks]Result)
		defer s.asked.Put(asked)
		results = asked[:]
	}
	d, err := s.decide(ctx, checks, results[:len(checks)], f)
	if err == nil {
		s.decisions[d.Mode].Add(1)
	}
	return d, err
}

func (s *Shield) decide(ctx context.Context, checks []Check, results []Result, f Failure) (Decision, error) {
	if s.down.Load() {
		return s.without(checks, results, f)
	}
	now := s.local.now()
	if d, denied := s.denied(checks, results, now); denied {
		return d, nil
	}
	within, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	outage := s.outage.Load()
	err := s.settleDebts(within, checks, outage)
	if err == nil {
		var d Decision
		if d, err = s.store.Take(within, checks, results); err == nil {
			s.fails.Store(0)
			s.learn(checks, results, d.At, outage)
			return d, nil
		}
	}
	if ctx.Err() != nil || errors.Is(err, ErrInvalid) {
		return Decision{}, err
	}
	s.failed(err, &checks[0])
	return s.without(checks, results, f)
}

// failed counts a failure of the store.
func (s *Shield) failed(cause error, c *Check) {
	if s.fails.Add(1) < int64(s.opts.Tolerance) || s.down.Load() {
		return
	}
	probe := *c
	probe.Key = string(append([]byte(nil), c.Key...))
	s.last.Store(&probe)
	if s.down.CompareAndSwap(false, true) {
		s.outage.Add(1)
		s.opts.Changed(cause)
	}
}

// denied answers from memory if one of the checks is over its limit for sure.
func (s *Shield) denied(checks []Check, results []Result, now int64) (Decision, bool) {
	d := Decision{Allowed: true, Mode: ModeDeny}
	for i := range checks {
		c := &checks[i]
		s.known.with(c, now, false, func(k *known) {
			if !c.Shadow && k.denies(c, now) {
				d.Allowed, d.Retry = false, max(d.Retry, micros(k.freeAt-now))
			}
		})
	}
	if d.Allowed {
		return d, false
	}
	for i := range checks {
		c := &checks[i]
		results[i] = Result{Allowed: true, Remaining: capacity(&c.Limit)}
		s.known.with(c, now, false, func(k *known) { results[i] = k.result(c, now) })
	}
	return d, true
}
