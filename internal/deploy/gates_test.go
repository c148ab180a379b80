package deploy

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNothingIsSwitchedToWhileSomethingBurns(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		var burning []string
		h.deps.Burning = func(context.Context) []string {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Clone(burning)
		}
		burn := func(what ...string) { w.let(func() { burning = what }) }

		burn("the error budget burns")
		r, err := h.Deploy(t.Context(), Request{}, nil)
		if err == nil || r.Phase != Failed || !strings.Contains(err.Error(), "nothing was started: a gate is closed: the error budget burns; mend that first, or deploy with --force and --why") || len(w.startTimes()) != 1 {
			t.Errorf("burning at the start: %v, %+v", err, r)
		}

		burn()
		w.let(func() { // it begins to burn while the new color starts
			w.birth = func(_ Spec, c *fakeCopy) error { burning = []string{"an alert fires"}; return nil }
		})
		if r, err = h.Deploy(t.Context(), Request{}, nil); err == nil || r.Phase != Failed || !strings.Contains(err.Error(), "an alert fires") || !slices.Equal(w.running(), []string{"blue-1"}) {
			t.Errorf("burning before the switch: %v, running %v", err, w.running())
		}

		if _, err := h.Deploy(t.Context(), Request{Force: true}, nil); err == nil || !strings.Contains(err.Error(), "--why") {
			t.Errorf("forced without a reason: %v", err)
		}
		r, err = h.Deploy(t.Context(), Request{Force: true, Who: "ann", Why: "this is the mend"}, nil)
		if err != nil || r.Phase != Settled || !r.Force || !slices.Equal(r.Overrode, []string{"an alert fires"}) || len(w.named("gate_forced")) != 2 {
			t.Errorf("forced: %v, %+v, %d events", err, r, len(w.named("gate_forced")))
		}
		h.kill()
		h = open(t, w, dir, configured())
		if r := h.History()[0]; !r.Force || len(r.Overrode) != 1 || r.Why == "" {
			t.Errorf("the history does not keep it: %+v", r)
		}
		time.Sleep(time.Second)
		h.close()
	})
}
