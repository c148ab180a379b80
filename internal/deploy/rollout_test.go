package deploy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func steps(r Record) (s []Step) {
	for _, p := range r.Steps {
		s = append(s, p.Step)
	}
	return s
}

func TestADeployStartsSwitchesDrainsAndStopsInThisOrder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() { w.drain = func(context.Context) error { time.Sleep(7 * time.Second); return nil } })
		var told []Step
		r, err := h.Deploy(t.Context(), Request{Command: Command{"app", "2"}, Version: "1.2", Who: "ann", Why: "a fix"},
			func(p Progress) { told = append(told, p.Step) })
		if err != nil {
			t.Fatal(err)
		}
		h.close()
		want := []string{"start blue-1", "apply blue-1", "start green-2", "apply green-2 (blue-1)", "apply green-2", "drain", "stop blue-1", "stop green-2"}
		if diff := cmp.Diff(want, w.journalled()); diff != "" {
			t.Error(diff)
		}
		life := []Step{StepStarting, StepHealthy, StepSwitched, StepDraining, StepStopping, StepSettled}
		if diff := cmp.Diff(life, told); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(life, steps(r)); diff != "" {
			t.Error(diff)
		}
		if r.Phase != Settled || r.Target != "green-2" || r.From != blue || r.Number != 1 || r.Who != "ann" || r.TookMS < 7000 {
			t.Errorf("record %+v", r)
		}
		if p := w.applied()[1].Targets[0]; p.Color != green || p.Version != "1.2" || p.Address != w.copy("green-2").address {
			t.Errorf("target %+v", p)
		}
		if diff := cmp.Diff([]string{"COLOR=green"}, w.copy("green-2").spec.Env); diff != "" {
			t.Error(diff)
		}
		if got := h.History(); len(got) != 1 || got[0].Number != 1 {
			t.Errorf("history %+v", got)
		}
	})
}

func TestAColorThatDoesNotBecomeHealthyIsStoppedAndTheOldServesOn(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() {
			w.birth = func(_ Spec, c *fakeCopy) error {
				c.sick, c.lines = errSick, []string{"cannot reach the database"}
				return nil
			}
		})
		began := time.Now()
		var told []string
		r, err := h.Deploy(t.Context(), Request{}, func(p Progress) { told = append(told, string(p.Step)+": "+p.Text) })
		var se *StartError
		if !errors.As(err, &se) || !strings.Contains(err.Error(), "green-2 was not healthy within 1m0s (health.start_within): GET /up answered 500") ||
			!strings.Contains(err.Error(), "cannot reach the database") {
			t.Fatalf("got %v", err)
		}
		if took := time.Since(began); took != time.Minute {
			t.Errorf("gave up after %v", took)
		}
		if r.Phase != Failed || r.Error != err.Error() || len(told) != 3 || told[1] != "waiting: "+errSick.Error() {
			t.Errorf("record %+v, told %q", r, told)
		}
		if got := w.running(); !slices.Equal(got, []string{"blue-1"}) || len(w.applied()) != 1 {
			t.Errorf("running %v, plans %v", got, w.applied())
		}
		st := h.Status()
		if st.Live.ID != "blue-1" || st.Live.State != Healthy || st.Next != nil || st.Deploying != nil {
			t.Errorf("status %+v", st)
		}
		h.close()
	})
}

func TestAColorThatEndsAtOnceFailsTheDeployAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() {
			w.birth = func(_ Spec, c *fakeCopy) error {
				c.sick, c.lines = errSick, []string{"Error: Cannot find module"}
				go func() { time.Sleep(300 * time.Millisecond); c.die(Exit{Code: 1}) }()
				return nil
			}
		})
		began := time.Now()
		_, err := h.Deploy(t.Context(), Request{}, nil)
		if err == nil || !strings.Contains(err.Error(), "ended before it was healthy: exit code 1; its last lines:\n    Error: Cannot find module") {
			t.Fatalf("got %v", err)
		}
		if took := time.Since(began); took != 300*time.Millisecond {
			t.Errorf("noticed after %v", took)
		}
		h.close()
	})
}

func TestASecondDeployIsToldWhoIsAtIt(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() { w.drain = func(context.Context) error { time.Sleep(time.Second); return nil } })
		done := make(chan error, 1)
		go func() {
			_, err := h.Deploy(t.Context(), Request{Who: "ann"}, nil)
			done <- err
		}()
		synctest.Wait()
		_, err := h.Deploy(t.Context(), Request{Who: "ben"}, nil)
		if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "ann began it at 2000-01-01 00:00:0") {
			t.Errorf("got %v", err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if _, err := h.Deploy(t.Context(), Request{Who: "ben"}, nil); err != nil {
			t.Errorf("after the first was done: %v", err)
		}
		h.close()
	})
}

func TestWhoHearsThatADeployIsDoneMayDeployAgainAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		again := errors.New("not tried")
		_, err := h.Deploy(t.Context(), Request{}, func(p Progress) {
			if p.Step == StepSettled {
				_, again = h.Deploy(t.Context(), Request{}, nil)
			}
		})
		if err := errors.Join(err, again); err != nil {
			t.Error(err)
		}
		h.close()
	})
}

func TestADeployThatIsCalledOffStopsTheNewColor(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() { w.birth = func(_ Spec, c *fakeCopy) error { c.sick = errSick; return nil } })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		r, err := h.Deploy(ctx, Request{}, nil)
		if !errors.Is(err, context.DeadlineExceeded) || r.Phase != Failed {
			t.Errorf("got %v, %+v", err, r)
		}
		if got := w.running(); !slices.Equal(got, []string{"blue-1"}) {
			t.Errorf("running %v", got)
		}
		h.close()
	})
}

func TestAfterTheSwitchTheDeployIsFinishedThoughItsCallerLeft(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		var drained bool
		w.let(func() {
			w.drain = func(ctx context.Context) error {
				select {
				case <-time.After(20 * time.Second):
					drained = true
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		r, err := h.Deploy(ctx, Request{}, func(p Progress) {
			if p.Step == StepSwitched {
				cancel()
			}
		})
		if err != nil || r.Phase != Settled || !drained {
			t.Errorf("got %v, %+v, drained %v", err, r, drained)
		}
		h.close()
	})
}

func TestAnOldColorThatDoesNotDrainIsStoppedAtTheLimit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() { w.drain = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() } })
		began := time.Now()
		if _, err := h.Deploy(t.Context(), Request{}, nil); err != nil {
			t.Fatal(err)
		}
		// Two good probes 200 ms apart, then the limit.
		if took := time.Since(began); took != 30*time.Second+200*time.Millisecond {
			t.Errorf("took %v", took)
		}
		if got := w.running(); !slices.Equal(got, []string{"green-2"}) {
			t.Errorf("running %v", got)
		}
		h.close()
	})
}

func TestStoppingMainstayUndoesADeployBeforeItsSwitch(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() { w.birth = func(_ Spec, c *fakeCopy) error { c.sick = errSick; return nil } })
		done := make(chan error, 1)
		go func() {
			_, err := h.Deploy(t.Context(), Request{}, nil)
			done <- err
		}()
		synctest.Wait()
		h.close()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "mainstay stops") {
			t.Errorf("got %v", err)
		}
		want := []string{"start blue-1", "apply blue-1", "start green-2", "stop green-2", "stop blue-1"}
		if diff := cmp.Diff(want, w.journalled()); diff != "" {
			t.Error(diff)
		}
		if _, err := h.Deploy(t.Context(), Request{}, nil); !errors.Is(err, ErrNotRunning) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestStoppingMainstayCutsADrainShort(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() { w.drain = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() } })
		done := make(chan Record, 1)
		go func() {
			r, _ := h.Deploy(t.Context(), Request{}, nil)
			done <- r
		}()
		time.Sleep(time.Second)
		began := time.Now()
		h.close()
		if r := <-done; r.Phase != Settled || time.Since(began) != 0 || len(w.running()) != 0 {
			t.Errorf("record %+v, %v later, running %v", r, time.Since(began), w.running())
		}
	})
}

func TestAnEdgeThatRefusesThePlanLeavesTheOldColorLive(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() { w.applyErr = errors.New("no such listener") })
		_, err := h.Deploy(t.Context(), Request{}, nil)
		if err == nil || !strings.Contains(err.Error(), "switch to green: tell the edge where requests go: no such listener") {
			t.Errorf("got %v", err)
		}
		if got := w.running(); !slices.Equal(got, []string{"blue-1"}) || h.Status().Live.ID != "blue-1" {
			t.Errorf("running %v, live %+v", got, h.Status().Live)
		}
		was, err := loadState(dir, slog.New(slog.DiscardHandler))
		if err != nil || was.Live.Copy.ID != "blue-1" || len(was.Others) != 0 {
			t.Errorf("state %+v, %v", was, err)
		}
		h.close()
	})
}

func TestADeployThatCannotBeWrittenDownChangesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		block := filepath.Join(dir, stateFile+".new") // a folder where the new state would be written
		if err := os.Mkdir(block, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Deploy(t.Context(), Request{}, nil); err == nil || !strings.Contains(err.Error(), "nothing was started: write state.json") {
			t.Errorf("got %v", err)
		}
		if got := w.running(); !slices.Equal(got, []string{"blue-1"}) {
			t.Errorf("running %v", got)
		}
		if err := os.Remove(block); err != nil {
			t.Fatal(err)
		}
		// And when the disk fills up between the start and the switch.
		_, err := h.Deploy(t.Context(), Request{}, func(p Progress) {
			if p.Step == StepHealthy {
				_ = os.Mkdir(block, 0o700)
			}
		})
		if err == nil || h.Status().Live.ID != "blue-1" || !slices.Equal(w.running(), []string{"blue-1"}) {
			t.Errorf("got %v, running %v", err, w.running())
		}
		h.close()
	})
}

func TestADeployMayReplaceAnAppThatCrashesAllTheTime(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() {
			w.birth = func(s Spec, c *fakeCopy) error {
				if s.Color == blue {
					return errors.New("out of memory")
				}
				return nil
			}
		})
		w.copy("blue-1").die(Exit{Code: 3})
		time.Sleep(10 * time.Second)
		if st := h.Status().Live; st.State != Down || !strings.Contains(st.Reason, "out of memory") || st.LastExit != "exit code 3" {
			t.Errorf("live %+v", st)
		}
		if _, err := h.Deploy(t.Context(), Request{}, nil); err != nil {
			t.Fatal(err)
		}
		n := len(w.startTimes())
		time.Sleep(time.Hour)
		if got := w.running(); len(w.startTimes()) != n || len(got) != 1 || !strings.HasPrefix(got[0], green) {
			t.Errorf("running %v, %d starts after the deploy", got, len(w.startTimes())-n)
		}
		h.close()
	})
}

func TestACopyThatWillNotEndIsTriedAgainByTheNextLife(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		stuck := w.copy("blue-1")
		stuck.stuck = errors.New("the kernel holds it")
		if _, err := h.Deploy(t.Context(), Request{}, nil); err != nil {
			t.Fatal(err)
		}
		if e := w.named("app_stuck"); len(e) != 1 {
			t.Errorf("events %v", e)
		}
		h.close()
		stuck.stuck = nil
		h = open(t, w, dir, configured())
		synctest.Wait()
		was, err := loadState(dir, slog.New(slog.DiscardHandler))
		if err != nil || stuck.alive() || len(was.Others) != 0 {
			t.Errorf("alive %v, others %v, %v", stuck.alive(), was.Others, err)
		}
		h.close()
	})
}

func TestHistoryIsBoundedAndOutlivesMainstay(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		for i := range maxHistory + 5 {
			if _, err := h.Deploy(t.Context(), Request{Version: fmt.Sprint(i)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		h.close()
		h = open(t, w, dir, configured())
		got := h.History()
		if len(got) != maxHistory || got[0].Number != maxHistory+5 || got[maxHistory-1].Number != 6 {
			t.Errorf("%d records, from %d to %d", len(got), got[0].Number, got[len(got)-1].Number)
		}
		h.close()
	})
}

func TestARequestIsCheckedBeforeAnythingStarts(t *testing.T) {
	r := Request{Command: Command{""}, Dir: "here", Env: []string{"A=1", "oops", "PORT=80"}, Why: strings.Repeat("x", maxWords+1)}
	err := r.check()
	for _, want := range []string{"command: must name a program", "dir: must be absolute", `env: "oops" is not KEY=value`, "env: must not set PORT", "why: must not be longer"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
}
