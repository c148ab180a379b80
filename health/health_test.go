package health_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/health"
)

// fail lets n units of work fail at g.
func fail(t *testing.T, g *health.Gate, n int) {
	t.Helper()
	for range n {
		p, err := g.Enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.Report(health.Bad)
	}
}

func TestFailuresInARowShutTheGateAndOthersDoNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := health.NewGate(health.Passive())
		for range 100 {
			p, _ := g.Enter(t.Context())
			p.Report(health.Unknown)
		}
		for range 100 {
			fail(t, g, 1)
			for range 9 {
				p, _ := g.Enter(t.Context())
				p.Report(health.Good)
			}
		}
		fail(t, g, 4)
		if g.State() != health.Open {
			t.Fatal("shut too early")
		}
		fail(t, g, 1)
		if g.State() != health.Shut {
			t.Fatal("still open")
		}
	})
}

func TestHalfOfTheWorkFailingShutsTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := health.NewGate(health.Passive())
		for range 5 {
			p, _ := g.Enter(t.Context())
			p.Report(health.Good)
			fail(t, g, 1)
		}
		if g.State() != health.Shut {
			t.Error("still open")
		}
	})
}

func TestWhileShutOneProbeASecondPassesAndThenTheRestBitByBit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := health.NewGate(health.Passive())
		fail(t, g, 5)
		begun := time.Now()
		var mended atomic.Bool
		var probes atomic.Int64
		var mu sync.Mutex
		var passed []time.Duration
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				for {
					p, err := g.Enter(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					if mended.Load() {
						p.Report(health.Good)
						break
					}
					probes.Add(1)
					p.Report(health.Bad)
				}
				mu.Lock()
				passed = append(passed, time.Since(begun))
				mu.Unlock()
			})
		}
		time.Sleep(30500 * time.Millisecond)
		mended.Store(true)
		wg.Wait()
		if n := probes.Load(); n != 30 {
			t.Errorf("%d probes in 30 s", n)
		}
		first := passed[0]
		at := func(s time.Duration) (n int) {
			for _, p := range passed {
				if p-first <= s {
					n++
				}
			}
			return n
		}
		if at(time.Second) > 8 || at(5*time.Second) < 20 || at(time.Minute) != 200 {
			t.Errorf("%d after 1 s, %d after 5 s, %d after a minute", at(time.Second), at(5*time.Second), at(time.Minute))
		}
		time.Sleep(2 * time.Second)
		if _, err := g.Enter(t.Context()); err != nil || g.State() != health.Open || g.Waiting() != 0 {
			t.Errorf("%s, %d waiting, %v", g.State(), g.Waiting(), err)
		}
	})
}

func TestOneWhoLeavesTheLineMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := health.NewGate(health.Passive())
		fail(t, g, 5)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		left := make(chan error)
		go func() { _, err := g.Enter(ctx); left <- err }()
		synctest.Wait()
		begun := time.Now()
		if _, err := g.Enter(t.Context()); err != nil || time.Since(begun) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		if err := <-left; !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestResultsFromBeforeAChangeDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := health.NewGate(health.Passive())
		old, _ := g.Enter(t.Context())
		fail(t, g, 5)
		old.Report(health.Good)
		health.Pass{}.Report(health.Bad)
		if g.State() != health.Shut {
			t.Error("an answer from before the outage ended it")
		}
	})
}

func TestWhatBeganFirstGoesFirstWhenTheUpstreamIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := health.NewGate(health.Passive())
		fail(t, g, 5)
		began := time.Now()
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for _, age := range []int{1, 3, 2, 4, 0} { // the first to come is the probe
			wg.Go(func() {
				p, err := g.Join(t.Context(), health.Turn{Since: began.Add(time.Duration(-age) * time.Second)})
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, age)
				mu.Unlock()
				p.Report(health.Good)
			})
			synctest.Wait()
		}
		wg.Wait()
		if d := cmp.Diff([]int{1, 4, 3, 2, 0}, order); d != "" {
			t.Error(d)
		}
	})
}

func TestWhatFailedTwiceWaitsForASuccessOrItsTurnToProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := health.NewGate(health.Passive())
		fail(t, g, 2)
		if _, ok := g.TryJoin(health.Turn{Again: true}); ok {
			t.Error("a third try, at once")
		}
		if p, ok := g.TryJoin(health.Turn{}); !ok || g.State() != health.Open {
			t.Error("other work has to wait")
		} else {
			p.Report(health.Good)
		}
		if _, ok := g.TryJoin(health.Turn{Again: true}); !ok {
			t.Error("has to wait after a success")
		}
	})
}

func TestOneRequestThatAlwaysFailsMakesNoOtherWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := health.NewGate(health.Passive())
		for n := range 20 {
			p, err := g.Join(t.Context(), health.Turn{Again: n > 0})
			if err != nil {
				t.Fatal(err)
			}
			p.Report(health.Bad)
			if _, ok := g.TryJoin(health.Turn{}); !ok {
				t.Fatal("another one has to wait")
			}
		}
	})
}

func TestWithoutNewWorkProbesGrowRareAndAShortPatienceGetsItsTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := health.NewGate(health.Passive())
		fail(t, g, 5)
		began := time.Now()
		var at []time.Duration
		for range 7 {
			p, err := g.Join(t.Context(), health.Turn{Again: true})
			if err != nil {
				t.Fatal(err)
			}
			at = append(at, time.Since(began))
			p.Report(health.Bad)
		}
		if d := cmp.Diff([]time.Duration{1e9, 3e9, 7e9, 15e9, 31e9, 63e9, 108e9}, at); d != "" {
			t.Error(d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		if _, err := g.Join(ctx, health.Turn{Again: true}); err != nil || time.Since(began) != 110*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}
