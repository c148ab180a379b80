package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var quiet = slog.New(slog.DiscardHandler)

func TestRunStopsLastPartFirstAndWaitsForEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		part := func(name string, drain time.Duration) Part {
			return Part{name, Simple(func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(drain)
				order = append(order, name)
				return nil
			})}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start := time.Now()
		if err := Run(ctx, quiet, nil, part("telemetry", time.Second), part("pooler", 5*time.Second), part("edge", 30*time.Second)); err != nil {
			t.Fatal(err)
		}
		if want := []string{"edge", "pooler", "telemetry"}; !slices.Equal(order, want) {
			t.Fatalf("stopped %v, want %v", order, want)
		}
		if d := time.Since(start); d != time.Hour+36*time.Second {
			t.Fatalf("took %v", d)
		}
	})
}

func TestAPartStartsWhenTheOneBeforeIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		var second, all time.Duration
		err := Run(ctx, quiet, func() { all = time.Since(begin); cancel() },
			Part{"slow", func(ctx context.Context, ready func()) error {
				time.Sleep(3 * time.Second)
				ready()
				<-ctx.Done()
				return nil
			}},
			Part{"next", Simple(func(ctx context.Context) error {
				second = time.Since(begin)
				<-ctx.Done()
				return nil
			})})
		if err != nil || second != 3*time.Second || all != 3*time.Second {
			t.Fatalf("err %v, second part after %v, all after %v; want 3s", err, second, all)
		}
	})
}

func TestAPartThatFailsToStartStopsThoseBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		stopped, third := false, false
		err := Run(t.Context(), quiet, func() { t.Error("started was called") },
			Part{"first", Simple(func(ctx context.Context) error { <-ctx.Done(); stopped = true; return nil })},
			Part{"second", func(context.Context, func()) error { return boom }},
			Part{"third", Simple(func(context.Context) error { third = true; return nil })})
		if !errors.Is(err, boom) || !strings.HasPrefix(err.Error(), "second: ") {
			t.Fatalf("got %v", err)
		}
		if !stopped || third {
			t.Fatalf("first stopped: %v, third ran: %v", stopped, third)
		}
	})
}

func TestRunStopsAllWhenOneEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		err := Run(t.Context(), quiet, nil,
			Part{"a", Simple(func(ctx context.Context) error { <-ctx.Done(); return nil })},
			Part{"b", Simple(func(ctx context.Context) error { time.Sleep(time.Minute); return boom })})
		if !errors.Is(err, boom) {
			t.Fatalf("got %v", err)
		}
	})
}
