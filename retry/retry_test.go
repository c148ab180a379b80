package retry

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var seed = Policy{Max: 3, Base: time.Second, Jitter: 0.25, AskedCap: time.Minute}

func TestWaitsDoubleFromTheBase(t *testing.T) {
	var got []time.Duration
	for n := 1; n <= 5; n++ {
		got = append(got, Policy{Base: time.Second, Cap: 8 * time.Second}.Wait(n, 0))
	}
	want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 8 * time.Second}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestJitterSpreadsAWaitBothWaysAndAnAskedOneOnlyUp(t *testing.T) {
	for _, c := range []struct {
		asked time.Duration
		u     float64
		want  time.Duration
	}{
		{0, 0, 1500 * time.Millisecond},
		{0, 0.5, 2 * time.Second},
		{0, 1, 2500 * time.Millisecond},
		{4 * time.Second, 0, 4 * time.Second},
		{4 * time.Second, 1, 5 * time.Second},
		{time.Hour, 0, time.Minute},
		{time.Hour, 1, 75 * time.Second},
		{-time.Second, 0.5, 2 * time.Second},
	} {
		if got := seed.spread(2, c.asked, c.u); got != c.want {
			t.Errorf("asked %v, u %v: %v, want %v", c.asked, c.u, got, c.want)
		}
	}
}

func TestNoWaitOverflowsOrTurnsNegative(t *testing.T) {
	for _, p := range []Policy{{}, seed, {Base: math.MaxInt64, Jitter: 1}, {Base: -time.Second}, {Base: 1, Jitter: 7}} {
		for _, n := range []int{0, 1, 62, 1 << 30} {
			for _, asked := range []time.Duration{0, -1, math.MaxInt64, math.MinInt64} {
				if w := p.spread(n, asked, 0.999); w < 0 {
					t.Errorf("%+v: wait %d with asked %d is %d", p, n, asked, w)
				}
			}
		}
	}
}

func TestDoGivesUpAfterTheRetriesWithTheLastError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Policy{Max: 3, Base: time.Second}
		tries, start := 0, time.Now()
		broken := errors.New("broken")
		_, err := Do(t.Context(), p, always, func(context.Context) (int, error) { tries++; return 0, broken })
		if !errors.Is(err, broken) || tries != 4 || time.Since(start) != 7*time.Second {
			t.Errorf("%d tries in %v, %v; want 4 in 7s", tries, time.Since(start), err)
		}
	})
}

func TestDoStopsAtSuccessAndAtAFinalError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		v, err := Do(t.Context(), seed, always, func(context.Context) (string, error) {
			if tries++; tries < 3 {
				return "", errors.New("not yet")
			}
			return "done", nil
		})
		if v != "done" || err != nil || tries != 3 {
			t.Errorf("%q, %v after %d tries", v, err, tries)
		}
		tries = 0
		never := func(error) (bool, time.Duration) { return false, 0 }
		if _, err := Do(t.Context(), seed, never, func(context.Context) (int, error) { tries++; return 0, errors.New("no") }); err == nil || tries != 1 {
			t.Errorf("a final error was tried %d times, %v", tries, err)
		}
	})
}

func TestTheEndOfTheContextEndsAWaitAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		start, broken, tries := time.Now(), errors.New("broken"), 0
		_, err := Do(ctx, seed, always, func(context.Context) (int, error) { tries++; return 0, broken })
		if !errors.Is(err, broken) || tries != 1 || time.Since(start) != 500*time.Millisecond {
			t.Errorf("%d tries, %v after %v", tries, err, time.Since(start))
		}
		if err := Sleep(ctx, 0); err == nil {
			t.Error("a sleep under an ended context did not say so")
		}
	})
}

func always(error) (bool, time.Duration) { return true, 0 }

func TestATryThatIsSparedIsNotCounted(t *testing.T) {
	l := Policy{Max: 2, Base: time.Millisecond}.Begin()
	l.Spare() // there is none yet
	for range 10 {
		if _, ok := l.Next(0); !ok {
			t.Fatal("a spared try was counted")
		}
		l.Spare()
	}
	for i := range 3 {
		if _, ok := l.Next(0); ok != (i < 2) {
			t.Fatalf("try %d: %v", i, ok)
		}
	}
}
