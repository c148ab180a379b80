package ratelimit_test

import (
	"context"
	"errors"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// fickle is a store that can be slow, broken, or lose everything.
type fickle struct {
	*ratelimit.Memory
	state atomic.Int32
	calls atomic.Int64
}

const (
	well = iota
	hanging
	broken
)

var errBroken = errors.New("connection refused")

func (f *fickle) reach(ctx context.Context) error {
	switch f.state.Load() {
	case hanging:
		<-ctx.Done()
		return ctx.Err()
	case broken:
		return errBroken
	}
	return nil
}

func (f *fickle) Take(ctx context.Context, checks []ratelimit.Check, results []ratelimit.Result) (ratelimit.Decision, error) {
	f.calls.Add(1)
	if err := f.reach(ctx); err != nil {
		return ratelimit.Decision{}, err
	}
	return f.Memory.Take(ctx, checks, results)
}

func (f *fickle) Restore(ctx context.Context, checks []ratelimit.Check, debts []ratelimit.Debt) error {
	if err := f.reach(ctx); err != nil {
		return err
	}
	return f.Memory.Restore(ctx, checks, debts)
}

// shielded runs body with a Shield before a fickle store, in virtual time.
func shielded(t *testing.T, o ratelimit.ShieldOptions, body func(t *testing.T, s *ratelimit.Shield, f *fickle)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fickle{Memory: ratelimit.NewMemory(0)}
		s := ratelimit.NewShield(f, o)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		body(t, s, f)
	})
}

func hourly(key string, n int64) []ratelimit.Check {
	return []ratelimit.Check{{Key: key, Limit: ratelimit.Limit{Max: n, Window: time.Hour}, Cost: 1}}
}

// admitted asks n times and returns how many passed.
func admitted(t *testing.T, s ratelimit.Store, n int, checks []ratelimit.Check) (passed int) {
	t.Helper()
	for range n {
		d, err := s.Take(context.Background(), checks, nil)
		if err != nil {
			t.Fatal(err)
		}
		if d.Allowed {
			passed++
		}
	}
	return passed
}

func TestAStoreThatHangsDelaysAFewDecisionsAndThenNone(t *testing.T) {
	var causes []error
	o := ratelimit.ShieldOptions{Changed: func(cause error) { causes = append(causes, cause) }}
	shielded(t, o, func(t *testing.T, s *ratelimit.Shield, f *fickle) {
		f.state.Store(hanging)
		for i := range 100 {
			before := time.Now()
			if _, err := s.Take(context.Background(), hourly("k", 1000), nil); err != nil {
				t.Fatal(err)
			}
			want := 5 * time.Millisecond
			if i >= 3 {
				want = 0
			}
			if took := time.Since(before); took != want {
				t.Fatalf("decision %d took %s, want %s", i, took, want)
			}
		}
		if !s.Down() || s.Decisions(ratelimit.ModeLocal) != 100 {
			t.Errorf("down: %v, local decisions: %d", s.Down(), s.Decisions(ratelimit.ModeLocal))
		}
		f.state.Store(well)
		time.Sleep(time.Second)
		synctest.Wait()
		if s.Down() || len(causes) != 2 || !errors.Is(causes[0], context.DeadlineExceeded) || causes[1] != nil {
			t.Errorf("down: %v, changes: %v", s.Down(), causes)
		}
	})
}

func TestALimitGoesOnThroughAnOutageThatForgetsEverything(t *testing.T) {
	for name, limit := range map[string]ratelimit.Limit{
		"exact":  {Max: 100, Window: time.Hour},
		"sliced": {Algorithm: ratelimit.Sliced, Max: 100, Window: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			shielded(t, ratelimit.ShieldOptions{}, func(t *testing.T, s *ratelimit.Shield, f *fickle) {
				checks := []ratelimit.Check{{Key: "k", Limit: limit, Cost: 1}}
				before := admitted(t, s, 60, checks)
				time.Sleep(time.Minute)
				f.state.Store(broken)
				during := admitted(t, s, 30, checks)
				f.Memory = ratelimit.NewMemory(0) // kill -9
				f.state.Store(well)
				time.Sleep(time.Second)
				after := admitted(t, s, 300, checks)
				if before != 60 || during != 30 || after != 10 {
					t.Errorf("%d before, %d during, %d after the outage: want 60, 30, 10", before, during, after)
				}
				time.Sleep(time.Hour + time.Minute)
				if n := admitted(t, s, 300, checks); n != 100 {
					t.Errorf("%d in the next hour, want 100", n)
				}
			})
		})
	}
}

func TestAnOutageThatForgetsNothingChargesWhatPassedMeanwhile(t *testing.T) {
	shielded(t, ratelimit.ShieldOptions{}, func(t *testing.T, s *ratelimit.Shield, f *fickle) {
		checks := []ratelimit.Check{{Key: "k", Cost: 1, Limit: ratelimit.Limit{Algorithm: ratelimit.GCRA, Max: 60, Window: time.Hour, Burst: 20}}}
		before := admitted(t, s, 5, checks)
		f.state.Store(broken)
		during := admitted(t, s, 9, checks)
		f.state.Store(well)
		time.Sleep(time.Second)
		after := admitted(t, s, 50, checks)
		if before != 5 || during != 9 || after != 6 {
			t.Errorf("%d before, %d during, %d after: want 5, 9, 6", before, during, after)
		}
	})
}

func TestNodesShareALimitWhileTheStoreIsDown(t *testing.T) {
	o := ratelimit.ShieldOptions{Nodes: func() int { return 4 }}
	shielded(t, o, func(t *testing.T, s *ratelimit.Shield, f *fickle) {
		n := admitted(t, s, 60, hourly("k", 100)) // 40 are left, for all four
		f.state.Store(broken)
		if own := admitted(t, s, 100, hourly("k", 100)); n != 60 || own != 10 {
			t.Errorf("%d, then %d alone: want 60 and 10", n, own)
		}
		if own := admitted(t, s, 100, hourly("new", 100)); own != 25 {
			t.Errorf("%d of a new key, want 25", own)
		}
	})
}

func TestARouteMayRefuseOrAdmitAllWhileTheStoreIsDown(t *testing.T) {
	shielded(t, ratelimit.ShieldOptions{}, func(t *testing.T, s *ratelimit.Shield, f *fickle) {
		f.state.Store(broken)
		if n := admitted(t, s.On(ratelimit.FailDeny), 10, hourly("login", 5)); n != 0 {
			t.Errorf("%d passed a shut route", n)
		}
		if n := admitted(t, s.On(ratelimit.FailAllow), 10, hourly("health", 5)); n != 10 {
			t.Errorf("%d passed an open route", n)
		}
		if n := admitted(t, s, 10, hourly("rest", 5)); n != 5 {
			t.Errorf("%d passed the rest", n)
		}
		if s.Decisions(ratelimit.ModeShut) != 10 || s.Decisions(ratelimit.ModeOpen) != 10 || s.Decisions(ratelimit.ModeLocal) != 10 {
			t.Error("the modes are not counted")
		}
	})
}

func TestAKeyOverItsLimitIsRefusedWithoutAsking(t *testing.T) {
	shielded(t, ratelimit.ShieldOptions{DenyFor: 2 * time.Hour}, func(t *testing.T, s *ratelimit.Shield, f *fickle) {
		ctx, checks := context.Background(), append(hourly("k", 10), hourly("space", 100)...)
		last, _ := s.Take(ctx, checks, nil)
		admitted(t, s, 20, checks)
		calls := f.calls.Load()
		time.Sleep(59 * time.Minute)
		var r [2]ratelimit.Result
		d, err := s.Take(ctx, checks, r[:])
		if err != nil || d.Allowed || d.Mode != ratelimit.ModeDeny || d.Retry != time.Minute || calls != 11 || f.calls.Load() != 11 {
			t.Errorf("got %+v %v after %d calls", d, err, f.calls.Load())
		}
		if r[0].Allowed || r[0].Remaining != 0 || !r[1].Allowed || r[1].Remaining != 90 {
			t.Errorf("got %+v", r)
		}
		if d, _ := s.Take(ctx, append(hourly("k", 50), checks[1]), nil); !d.Allowed {
			t.Error("a better tier was refused from memory")
		}
		_ = s.Refund(ctx, last, checks) // too late to count, but the store is asked again
		time.Sleep(time.Minute)
		if n := admitted(t, s, 20, checks[:1]); n != 9 {
			t.Errorf("%d passed after the window, want 9", n)
		}
	})
}

func TestACallersOwnEndIsNoFailureOfTheStore(t *testing.T) {
	shielded(t, ratelimit.ShieldOptions{}, func(t *testing.T, s *ratelimit.Shield, f *fickle) {
		f.state.Store(hanging)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		for range 5 {
			if _, err := s.Take(ctx, hourly("k", 1), nil); !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v", err)
			}
		}
		if s.Down() {
			t.Error("the store was blamed")
		}
	})
}

func BenchmarkDenied(b *testing.B) {
	s := ratelimit.NewShield(ratelimit.NewMemory(0), ratelimit.ShieldOptions{DenyFor: time.Hour})
	ctx, checks := context.Background(), append(hourly("k", 1), hourly("space", 100)...)
	results := make([]ratelimit.Result, 2)
	for range 2 {
		_, _ = s.Take(ctx, checks, results)
	}
	b.ReportAllocs()
	before := processor()
	for b.Loop() {
		if d, _ := s.Take(ctx, checks, results); d.Mode != ratelimit.ModeDeny {
			b.Fatal("the store was asked")
		}
	}
	b.ReportMetric(float64(processor()-before)/float64(b.N), "cpu-ns/op")
}

// always admits, so that the shield has something to remember of everybody.
type always struct{ ratelimit.Store }

func (always) Take(_ context.Context, checks []ratelimit.Check, results []ratelimit.Result) (ratelimit.Decision, error) {
	for i := range results[:len(checks)] {
		results[i] = ratelimit.Result{Allowed: true, Remaining: 5, Next: time.Hour, Reset: time.Hour}
	}
	return ratelimit.Decision{Allowed: true, At: 1}, nil
}

func TestAFloodOfIdentitiesStaysInTheShieldsMemoryBound(t *testing.T) {
	const bound = 4 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := ratelimit.NewShield(always{}, ratelimit.ShieldOptions{Memory: bound})
	check := make([]ratelimit.Check, 1)
	for i := range 300_000 {
		check[0] = ratelimit.Check{Key: "flood:" + strconv.Itoa(i), Limit: ratelimit.Limit{Max: 6, Window: time.Hour}, Cost: 1}
		if d, err := s.Take(context.Background(), check, nil); err != nil || !d.Allowed {
			t.Fatal(d, err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > bound*12/10 {
		t.Errorf("the heap grew by %d bytes, the bound is %d", grown, bound)
	}
	runtime.KeepAlive(s)
}
