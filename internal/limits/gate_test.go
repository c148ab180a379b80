package limits

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/telemetry"
)

// flaky is a shared store that can fail.
type flaky struct {
	*ratelimit.Memory
	mu   sync.Mutex
	gone bool
}

func (f *flaky) set(gone bool) {
	f.mu.Lock()
	f.gone = gone
	f.mu.Unlock()
}

func (f *flaky) Take(ctx context.Context, checks []ratelimit.Check, results []ratelimit.Result) (ratelimit.Decision, error) {
	f.mu.Lock()
	gone := f.gone
	f.mu.Unlock()
	if gone {
		return ratelimit.Decision{}, errors.New("connection refused")
	}
	return f.Memory.Take(ctx, checks, results)
}

// ledger keeps events.
type ledger struct {
	mu     sync.Mutex
	events []string
}

func (l *ledger) Record(*telemetry.Exchange) {}
func (l *ledger) Emit(e telemetry.Event) {
	l.mu.Lock()
	l.events = append(l.events, e.Name)
	l.mu.Unlock()
}

func level(g *Gate, name string) float64 {
	for _, l := range g.Levels() {
		if l.Name == name {
			return l.Value
		}
	}
	return -1
}

// While the store is down each class goes on as the file says; the switch is told
// once, and so is the way back.
func TestEachClassGoesOnInItsOwnWayWhileTheStoreIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, told := &flaky{Memory: ratelimit.NewMemory(0)}, &ledger{}
		g := gate(t, Deps{Store: store, Sink: told}, func(c *Config) {
			c.Tiers["free"] = Tier{Requests: 10, Window: time.Hour}
			c.Routes = []Route{
				{Name: "login", Path: "/login", Cost: 1, OnStoreFailure: "deny"},
				{Name: "reads", Path: "/reads", Cost: 1, OnStoreFailure: "allow"},
			}
		})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		if n := pass(t, g, Ask{User: "ann"}, 6); n != 6 {
			t.Errorf("%d of 6 passed", n)
		}
		store.set(true)
		if n := pass(t, g, Ask{User: "ann"}, 20); n != 4 {
			t.Errorf("local: %d more passed, want 4", n)
		}
		if n := pass(t, g, Ask{User: "ann", Path: "/reads"}, 20); n != 20 {
			t.Errorf("allow: %d of 20 passed", n)
		}
		v, err := g.Admit(ctx, Ask{User: "bob", Path: "/login"})
		if body, _ := v.Body("", ""); err != nil || v.Allowed || fields(&v, time.Now())["Retry-After"] != "1" || !strings.Contains(string(body), "cannot be counted") {
			t.Errorf("deny: %+v %v", v, err)
		}
		if level(g, "mainstay_limits_store_down") != 1 {
			t.Error("the metric does not say that the store is down")
		}
		if o := g.Overview(1); !o.Redis || !o.Down || o.Modes["local"] == 0 || o.Modes["open"] != 20 || o.Modes["shut"] != 1 {
			t.Errorf("got %+v", o)
		}
		store.set(false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if level(g, "mainstay_limits_store_down") != 0 || pass(t, g, Ask{User: "ann"}, 20) != 0 {
			t.Error("after the store came back the caller had a second helping")
		}
		if got := strings.Join(told.events, " "); got != "store_down store_back" {
			t.Errorf("told %s", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
