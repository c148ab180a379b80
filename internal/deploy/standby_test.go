package deploy

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// thrice deploys a second release with a standby behind it.
func thrice(t *testing.T, w *world, dir string, cfg Config) *house {
	t.Helper()
	h := open(t, w, dir, cfg)
	if _, err := h.Deploy(t.Context(), Request{Command: Command{"app", "2"}}, nil); err != nil {
		t.Fatal(err)
	}
	return h
}

func keeping() Config {
	cfg := configured()
	cfg.Settle.Old = settleKeep
	return cfg
}

func TestTheStandbyStandsByUntilTheNextReleaseIsSwitchedTo(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		cfg := keeping()
		cfg.Preview = Preview{Header: "X-Preview", Secret: "s"}
		cfg.Warm.Mirror = 10
		h := thrice(t, w, dir, cfg)
		done := h.launch(Request{Command: Command{"app", "3"}})
		time.Sleep(5 * time.Second) // it is shown real requests
		if got := lastPlan(w); got != "green-2 (blue-1) [blue-3.next]" {
			t.Errorf("while it is warmed: %s", got)
		}
		ps := w.applied()
		if p := ps[len(ps)-1]; p.Preview.Color != "next" || p.Mirror.Color != "next" || p.Targets[2].Color != "next" || p.Targets[1].Color != blue {
			t.Errorf("plan %+v", p)
		}
		w.copy("green-2").die(Exit{Code: 1}) // and takes over, as ever
		synctest.Wait()
		if got := lastPlan(w); got != "blue-1 [blue-3.next]" || len(w.named("diverted")) != 1 {
			t.Errorf("while the live one is down: %s", got)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := lastPlan(w); got != "blue-3 (green-4)" || !slices.Equal(w.running(), []string{"blue-3", "green-4"}) {
			t.Errorf("in the end: %s, running %v", got, w.running())
		}
		h.close()
	})
}

func TestADeployThatFailsLeavesTheStandbyToGoBackTo(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := thrice(t, w, dir, keeping())
		w.let(func() { w.birth = func(_ Spec, c *fakeCopy) error { c.sick = errSick; return nil } })
		done := h.launch(Request{Command: Command{"app", "3"}})
		synctest.Wait()
		// One rollback calls the deploy off, another goes back to the standby.
		if r, err := h.Rollback(t.Context(), Order{Who: "ann"}); err != nil || r.Phase != Failed {
			t.Errorf("got %+v, %v", r, err)
		}
		<-done
		if r, err := h.Rollback(t.Context(), Order{Who: "ann"}); err != nil || r.Kind != KindRollback || lastPlan(w) != "blue-1" || !slices.Equal(w.running(), []string{"blue-1"}) {
			t.Errorf("got %+v, %v, plan %s, running %v", r, err, lastPlan(w), w.running())
		}
		h.close()
	})
}

func TestAKillBesideAStandbyLosesNeither(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := thrice(t, w, dir, keeping())
		w.let(func() { w.birth = func(_ Spec, c *fakeCopy) error { c.sick = errSick; return nil } })
		done := h.launch(Request{Command: Command{"app", "3"}})
		synctest.Wait()
		h.kill()
		<-done
		h = open(t, w, dir, keeping())
		time.Sleep(time.Minute)
		if lastPlan(w) != "green-2 (blue-1)" || !slices.Equal(w.running(), []string{"blue-1", "green-2"}) || h.History()[0].Phase != Failed {
			t.Errorf("plan %s, running %v, history %+v", lastPlan(w), w.running(), h.History())
		}
		h.close()
	})
}

func TestAnEdgeThatRefusesTheSwitchLeavesTheStandby(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := thrice(t, w, dir, keeping())
		w.let(func() {
			w.birth = func(Spec, *fakeCopy) error { w.applyErr = errors.New("no"); return nil }
		})
		if _, err := h.Deploy(t.Context(), Request{}, nil); err == nil {
			t.Error("deployed")
		}
		w.let(func() { w.applyErr = nil })
		if st := h.Status(); st.Live.ID != "green-2" || st.Old == nil || st.Old.ID != "blue-1" || st.Old.State != Healthy || !slices.Equal(w.running(), []string{"blue-1", "green-2"}) {
			t.Errorf("live %+v, old %+v, running %v", st.Live, st.Old, w.running())
		}
		h.close()
	})
}

func TestAStandbyComesBackWithMainstayAndFromItsOwnFolder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		where := t.TempDir()
		for _, n := range []string{"1", "2"} {
			if err := os.Mkdir(filepath.Join(where, n), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		current := filepath.Join(where, "current")
		if err := os.Symlink("1", current); err != nil {
			t.Fatal(err)
		}
		cfg := keeping()
		cfg.Dir, cfg.Release.Dir = current, where
		h := open(t, w, dir, cfg)
		if err := errors.Join(os.Remove(current), os.Symlink("2", current)); err != nil {
			t.Fatal(err)
		}
		r, err := h.Deploy(t.Context(), Request{Env: []string{"KEY=secret"}}, nil) // the link has moved on
		if err != nil || filepath.Base(r.Dir) != "2" {
			t.Fatalf("record %+v, %v", r, err)
		}
		h.close()
		if len(w.running()) != 0 {
			t.Errorf("running %v", w.running())
		}
		w.forget()
		h = open(t, w, dir, cfg)
		time.Sleep(time.Minute)
		st := h.Status()
		if filepath.Base(st.Live.Dir) != "2" || st.Old == nil || st.Old.State != Healthy || filepath.Base(st.Old.Dir) != "1" || len(w.named("standby_started")) != 1 || len(w.startTimes()) != 2 {
			t.Fatalf("live %+v, old %+v", st.Live, st.Old)
		}
		if c := w.copy(st.Live.ID); !slices.Contains(c.spec.Env, "KEY=secret") || filepath.Base(c.spec.Dir) != "2" {
			t.Errorf("live runs as %+v", c.spec)
		}
		if c := w.copy(st.Old.ID); slices.Contains(c.spec.Env, "KEY=secret") || filepath.Base(c.spec.Dir) != "1" {
			t.Errorf("old runs as %+v", c.spec)
		}
		if _, err := h.Rollback(t.Context(), Order{}); err != nil || filepath.Base(h.Status().Live.Dir) != "1" {
			t.Errorf("rollback: %v, live %+v", err, h.Status().Live)
		}
		if r, err := h.Deploy(t.Context(), Request{Release: "2"}, nil); err != nil || filepath.Base(r.Dir) != "2" || r.Version != "2" {
			t.Errorf("by name: %+v, %v", r, err)
		}
		if _, err := h.Deploy(t.Context(), Request{Release: "3"}, nil); err == nil || !strings.Contains(err.Error(), "there is no folder") {
			t.Errorf("a release that is not there: %v", err)
		}
		h.close()
	})
}
