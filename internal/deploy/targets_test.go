package deploy

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// lent is a file for copies that somebody else runs.
func lent() Config {
	c := careful()
	c.Run, c.Targets = nil, []string{"10.0.0.1:80"}
	return c
}

// several gives each copy as many servers as its release names.
func several(s Spec, c *fakeCopy) error {
	c.also = slices.Clone(s.Targets[1:])
	c.sickAt = map[string]error{}
	return nil
}

func TestAShareIsTheColorsHoweverManyServersItHas(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		w.birth = several
		h := open(t, w, dir, lent())
		done := h.launch(Request{Targets: []string{"10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"}})
		time.Sleep(5 * time.Second) // 10% to three servers, 90% to one: 10, 10 and 10 of 300
		if got := lastPlan(w); got != "green-2:10 green-2.2:10 green-2.3:10 blue-1:270" {
			t.Errorf("plan %s", got)
		}
		c := w.copy("green-2")
		c.mu.Lock()
		c.sickAt["10.0.0.3:80"] = errSick
		c.mu.Unlock()
		time.Sleep(4 * time.Second)
		if got := lastPlan(w); got != "green-2:10 green-2.3:10 blue-1:180 [green-2.2]" {
			t.Errorf("without one server: %s", got)
		}
		if n := len(w.named("address_unhealthy")); n != 1 || h.Status().Live.State != Healthy {
			t.Errorf("%d events, live %+v", n, h.Status().Live)
		}
		c.mu.Lock()
		clear(c.sickAt)
		c.mu.Unlock()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := lastPlan(w); got != "green-2 green-2.2 green-2.3 (blue-1)" {
			t.Errorf("in the end: %s", got)
		}
		c.fallIll(errSick)
		time.Sleep(4 * time.Second)
		if got := lastPlan(w); got != "blue-1 [green-2] [green-2.2] [green-2.3]" || len(w.named("diverted")) != 1 {
			t.Errorf("all ill: %s", got)
		}
		h.close()
	})
}

func TestANewLifeServesWithTheServersThatAreFit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		cfg := lent()
		cfg.Targets = []string{"10.0.0.1:80", "10.0.0.2:80"}
		w.birth = func(s Spec, c *fakeCopy) error {
			_ = several(s, c)
			c.sickAt["10.0.0.2:80"] = errSick
			return nil
		}
		h := open(t, w, dir, cfg)
		if got := lastPlan(w); got != "blue-1 [blue-1.2]" {
			t.Errorf("plan %s", got)
		}
		_, err := h.Deploy(t.Context(), Request{Targets: []string{"10.0.0.3:80", "10.0.0.2:80"}}, nil)
		if err == nil || !strings.Contains(err.Error(), "10.0.0.2:80: ") {
			t.Errorf("a deploy with a server that is not fit: %v", err)
		}
		h.close()
	})
}

func TestARequestThatDoesNotFitTheDriverIsRefused(t *testing.T) {
	for want, tc := range map[string]struct {
		cfg Config
		r   Request
	}{
		"app.targets and restart":    {configured(), Request{Targets: []string{"10.0.0.1:80"}}},
		"app.image and restart":      {configured(), Request{Image: "a:1"}},
		"--targets HOST:PORT":        {lent(), Request{Command: Command{"app"}}},
		`"10.0.0.1" is not an addre`: {lent(), Request{Targets: []string{"10.0.0.1"}}},
		"is there twice":             {lent(), Request{Targets: []string{"a:1", "a:1"}}},
	} {
		bubble(t, func(t *testing.T, w *world, dir string) {
			h := open(t, w, dir, tc.cfg)
			n := len(w.startTimes())
			if _, err := h.Deploy(t.Context(), tc.r, nil); err == nil || !strings.Contains(err.Error(), want) || len(w.startTimes()) != n {
				t.Errorf("got %v, want %q", err, want)
			}
			h.close()
		})
	}
	cfg := lent()
	cfg.Settle.Old = settleUpdate
	if _, err := compile(cfg); !errors.As(err, new(setting.Problems)) || !strings.Contains(err.Error(), "settle.old") {
		t.Errorf("got %v", err)
	}
}
