package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/internal/traffic"
)

// careful is a file with everything on: two steps, a watch, a control, and an old
// color that stands by.
func careful() Config {
	c := configured()
	c.Switch = Switch{Steps: []setting.Percent{0.1, 0.5}, Every: 10 * time.Second}
	c.Watch = Watch{For: time.Minute, Control: 0.1, MinSamples: 50}
	c.Settle.Old = settleKeep
	return c
}

// launch deploys in the background.
func (h *house) launch(r Request) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := h.Deploy(context.Background(), r, nil)
		done <- err
	}()
	return done
}

func lastPlan(w *world) string {
	ps := w.applied()
	if len(ps) == 0 {
		return ""
	}
	return spoken(ps[len(ps)-1])
}

func TestTheTrafficMovesInStepsAndTheOldColorStandsBy(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, careful())
		began := time.Now()
		r, err := h.Deploy(t.Context(), Request{Version: "2"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"start blue-1", "apply blue-1", "start green-2",
			"apply green-2:10 blue-1:90", "apply green-2:50 blue-1:50", "apply green-2:90 blue-1:10", "apply green-2 (blue-1)"}
		if diff := cmp.Diff(want, w.journalled()); diff != "" {
			t.Error(diff)
		}
		if took := time.Since(began).Round(time.Second); took != 80*time.Second {
			t.Errorf("took %v", took)
		}
		if r.Phase != Settled || !slices.Equal(r.Shares, []int{10, 50, 90}) {
			t.Errorf("record %+v", r)
		}
		st := h.Status()
		if st.Live.ID != "green-2" || st.Live.Share != 100 || st.Old.ID != "blue-1" || st.Old.State != Healthy || st.Old.Share != 0 || !st.SettlesAt.IsZero() {
			t.Errorf("status %+v", st)
		}
		h.close()
		if len(w.running()) != 0 {
			t.Errorf("running %v", w.running())
		}
	})
}

func TestARollbackByHandIsOnePlanSinceTheOldColorStillRuns(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		cfg := configured()
		cfg.Settle.Old = settleKeep
		h := open(t, w, dir, cfg)
		if _, err := h.Deploy(t.Context(), Request{Command: Command{"app", "2"}}, nil); err != nil {
			t.Fatal(err)
		}
		n := len(w.startTimes())
		time.Sleep(time.Hour)
		r, err := h.Rollback(t.Context(), Order{Who: "ann", Why: "slow"})
		if err != nil || r.Kind != KindRollback || r.Phase != Settled || r.Number != 2 || r.Who != "ann" || r.Color != blue {
			t.Fatalf("got %+v, %v", r, err)
		}
		if lastPlan(w) != "blue-1" || len(w.startTimes()) != n || !slices.Equal(w.running(), []string{"blue-1"}) {
			t.Errorf("plan %s, running %v", lastPlan(w), w.running())
		}
		if _, err := h.Rollback(t.Context(), Order{}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "mainstay deploy") {
			t.Errorf("a second rollback: %v", err)
		}
		// The next life does not follow the file that the bad release was made from.
		h.kill()
		h = open(t, w, dir, cfg)
		time.Sleep(time.Minute)
		if st := h.Status(); st.Live.ID != "blue-1" || st.Next != nil || len(h.History()) != 2 {
			t.Errorf("status %+v", st.Live)
		}
		h.close()
	})
}

func TestAColorThatFailsGivesItsTrafficToTheOtherAndTakesItBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		cfg := configured()
		cfg.Settle.Old = settleKeep
		h := open(t, w, dir, cfg)
		if _, err := h.Deploy(t.Context(), Request{}, nil); err != nil {
			t.Fatal(err)
		}
		w.copy("green-2").die(Exit{Code: 137})
		synctest.Wait() // at once: no clock has moved
		if got := lastPlan(w); got != "blue-1" {
			t.Errorf("after the crash: %s", got)
		}
		time.Sleep(5 * time.Second)
		if got := lastPlan(w); got != "green-3 (blue-1)" {
			t.Errorf("after the restart: %s", got)
		}
		w.copy("green-3").fallIll(errSick) // hung
		time.Sleep(4 * time.Second)
		if got := lastPlan(w); got != "blue-1 [green-3]" {
			t.Errorf("while it hangs: %s", got)
		}
		w.copy("green-3").fallIll(nil)
		time.Sleep(4 * time.Second)
		if got := lastPlan(w); got != "green-3 (blue-1)" {
			t.Errorf("after it: %s", got)
		}
		w.copy("blue-1").die(Exit{Code: 1}) // the one that stands by is brought back, too
		time.Sleep(5 * time.Second)
		if got := lastPlan(w); got != "green-3 (blue-4)" {
			t.Errorf("after the crash of the old one: %s", got)
		}
		if len(w.named("diverted")) != 2 || len(w.named("diversion_ended")) != 2 {
			t.Errorf("%d diversions, %d ends", len(w.named("diverted")), len(w.named("diversion_ended")))
		}
		h.close()
	})
}

func TestWhatBefallsTheNewColorInTrafficIsRolledBackAtOnce(t *testing.T) {
	for name, harm := range map[string]func(*fakeCopy){
		"killed": func(c *fakeCopy) { c.die(Exit{Code: -1, Signal: "SIGKILL"}) },
		"hung":   func(c *fakeCopy) { c.fallIll(errSick) },
	} {
		for _, at := range []time.Duration{5 * time.Second, 15 * time.Second, 40 * time.Second} {
			t.Run(fmt.Sprint(name, " after ", at), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world, dir string) {
					h := open(t, w, dir, careful())
					done := h.launch(Request{})
					time.Sleep(at)
					harm(w.copy("green-2"))
					err := <-done
					if !errors.Is(err, ErrRolledBack) || !strings.Contains(err.Error(), "green-2 ") {
						t.Errorf("got %v", err)
					}
					if lastPlan(w) != "blue-1" || !slices.Equal(w.running(), []string{"blue-1"}) {
						t.Errorf("plan %s, running %v", lastPlan(w), w.running())
					}
					if r := h.History()[0]; r.Phase != RolledBack || r.Error == "" || h.Status().Live.ID != "blue-1" || h.Status().Old != nil {
						t.Errorf("record %+v", r)
					}
					h.close()
				})
			})
		}
	}
}

func TestAOneWayDeployIsFrozenWhereAnotherIsRolledBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, careful())
		done := h.launch(Request{OneWay: true})
		time.Sleep(15 * time.Second) // at 50%
		w.copy("green-2").fallIll(errSick)
		if err := <-done; !errors.Is(err, ErrFrozen) || !strings.Contains(err.Error(), "one-way") {
			t.Fatalf("got %v", err)
		}
		if got := lastPlan(w); got != "blue-1 [green-2]" {
			t.Errorf("while it is ill: %s", got)
		}
		w.copy("green-2").fallIll(nil)
		time.Sleep(3 * time.Second)
		if got := lastPlan(w); got != "green-2:50 blue-1:50" {
			t.Errorf("well again: %s", got)
		}
		if _, err := h.Deploy(t.Context(), Request{}, nil); !errors.Is(err, ErrRefused) {
			t.Errorf("a deploy meanwhile: %v", err)
		}
		h.kill() // and a freeze outlives Mainstay
		h = open(t, w, dir, careful())
		if st := h.Status(); st.Frozen == nil || lastPlan(w) != "green-2:50 blue-1:50" {
			t.Fatalf("after a kill: %+v, %s", st, lastPlan(w))
		}
		if r, err := h.Promote(t.Context(), Order{Who: "ann"}); err != nil || r.Phase != Settled || r.Number != 1 {
			t.Fatalf("promote: %+v, %v", r, err)
		}
		if lastPlan(w) != "green-2 (blue-1)" || h.Status().Frozen != nil || len(h.History()) != 1 {
			t.Errorf("plan %s, history %+v", lastPlan(w), h.History())
		}
		h.close()
	})
}

func TestOrdersWhileADeployIsWatched(t *testing.T) {
	for name, tc := range map[string]struct {
		order func(*house) error
		err   error
		plan  string
		phase Phase
	}{
		"promote":  {func(h *house) error { _, err := h.Promote(context.Background(), Order{Who: "ann"}); return err }, nil, "green-2 (blue-1)", Settled},
		"rollback": {func(h *house) error { _, err := h.Rollback(context.Background(), Order{Who: "ann"}); return err }, ErrRolledBack, "blue-1", RolledBack},
		"freeze":   {func(h *house) error { _, err := h.Freeze(context.Background(), Order{Who: "ann"}); return err }, ErrFrozen, "green-2:10 blue-1:90", Frozen},
		"settle":   {func(h *house) error { return h.Settle(context.Background(), Order{Who: "ann"}) }, nil, "green-2", Settled},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world, dir string) {
				h := open(t, w, dir, careful())
				done := h.launch(Request{})
				time.Sleep(5 * time.Second)
				if err := tc.order(h); err != nil {
					t.Fatal(err)
				}
				if err := <-done; !errors.Is(err, tc.err) {
					t.Errorf("the deploy: %v", err)
				}
				if r := h.History()[0]; lastPlan(w) != tc.plan || r.Phase != tc.phase {
					t.Errorf("plan %s, phase %s", lastPlan(w), r.Phase)
				}
				h.close()
			})
		})
	}
}

func TestARollbackBeforeTheSwitchCallsTheDeployOff(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() { w.birth = func(_ Spec, c *fakeCopy) error { c.sick = errSick; return nil } })
		done := h.launch(Request{})
		synctest.Wait()
		if _, err := h.Promote(t.Context(), Order{}); !errors.Is(err, ErrRefused) {
			t.Errorf("promote: %v", err)
		}
		if r, err := h.Rollback(t.Context(), Order{Who: "ann"}); err != nil || r.Phase != Failed {
			t.Errorf("got %+v, %v", r, err)
		}
		if err := <-done; err == nil || !strings.Contains(err.Error(), "called off by ann") || !slices.Equal(w.running(), []string{"blue-1"}) {
			t.Errorf("got %v, running %v", err, w.running())
		}
		h.close()
	})
}

func TestTheOldColorIsSettledWhenItsTimeHasCome(t *testing.T) {
	for policy, want := range map[string]string{settleStop: "green-2", settleUpdate: "green-2 (blue-3)"} {
		t.Run(policy, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world, dir string) {
				cfg := configured()
				cfg.Settle = Settle{Old: policy, After: 10 * time.Minute}
				h := open(t, w, dir, cfg)
				if _, err := h.Deploy(t.Context(), Request{Version: "2"}, nil); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Minute)
				if lastPlan(w) != "green-2 (blue-1)" || h.Status().SettlesAt.IsZero() {
					t.Errorf("before: %s", lastPlan(w))
				}
				h.kill() // the time goes on
				h = open(t, w, dir, cfg)
				time.Sleep(6 * time.Minute)
				if lastPlan(w) != want || !h.Status().SettlesAt.IsZero() {
					t.Errorf("after: %s", lastPlan(w))
				}
				if st := h.Status(); policy == settleUpdate && (st.Old.Version != "2" || st.Old.State != Healthy) {
					t.Errorf("updated: %+v", st.Old)
				}
				h.close()
			})
		})
	}
}

func TestADeployMayWaitForTheOneBefore(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, careful())
		first := h.launch(Request{Who: "ann"})
		synctest.Wait()
		var told []Step
		r, err := h.Deploy(t.Context(), Request{Who: "ben", Wait: true}, func(p Progress) { told = append(told, p.Step) })
		if err != nil || r.Number != 2 || told[0] != StepQueued || <-first != nil {
			t.Errorf("got %+v, %v, told %v", r, err, told)
		}
		h.close()
	})
}

func TestMaintenanceShowsThePageAndOutlivesARestart(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		cfg := configured()
		cfg.Maintenance.Page = filepath.Join(dir, "page.html")
		if err := os.WriteFile(cfg.Maintenance.Page, []byte("<h1>soon"), 0o600); err != nil {
			t.Fatal(err)
		}
		h := open(t, w, dir, cfg)
		if err := h.Maintenance(true, Order{Who: "ann"}); err != nil {
			t.Fatal(err)
		}
		h.kill()
		h = open(t, w, dir, cfg)
		if ps := w.applied(); len(ps) != 1 || ps[0].Mode != traffic.Maintenance || ps[0].Page != "<h1>soon" || !h.Status().Maintenance {
			t.Errorf("plans %+v", ps)
		}
		if _, err := h.Deploy(t.Context(), Request{}, nil); err != nil { // goes on behind it
			t.Error(err)
		}
		if err := h.Maintenance(false, Order{}); err != nil || lastPlan(w) != "green-2" {
			t.Errorf("off: %v, %s", err, lastPlan(w))
		}
		h.close()
	})
}
