package deploy

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/traffic"
)

func TestTheAppServesBeforeReadyIsCalledAndIsStoppedAtTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		w.let(func() {
			w.birth = func(_ Spec, c *fakeCopy) error {
				c.sick = errSick
				time.AfterFunc(5*time.Second, func() { c.fallIll(nil) })
				return nil
			}
		})
		began := time.Now()
		h := open(t, w, dir, configured())
		// Sick until 5 s, then two good probes 200 ms apart.
		if took := time.Since(began).Round(200 * time.Millisecond); took < 5*time.Second || took > 5400*time.Millisecond {
			t.Errorf("ready after %v", took)
		}
		if diff := cmp.Diff([]string{"start blue-1", "apply blue-1"}, w.journalled()); diff != "" {
			t.Error(diff)
		}
		if st := h.Status().Live; st.State != Healthy || st.Address != "127.0.0.1:20001" || st.PID != 4711 || st.Command != "app" {
			t.Errorf("live %+v", st)
		}
		h.close()
		if len(w.running()) != 0 {
			t.Errorf("running %v", w.running())
		}
		if was, err := loadState(dir, slog.New(slog.DiscardHandler)); err != nil || was.Live.Copy != nil || was.NextID != 2 {
			t.Errorf("state %+v, %v", was, err)
		}
	})
}

func TestAnAppThatCannotBeBroughtUpIsAnErrorThatSaysWhy(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		w.let(func() {
			w.birth = func(_ Spec, c *fakeCopy) error {
				c.lines = []string{"sh: 1: nmp: not found"}
				c.sick = errSick
				c.die(Exit{Code: 127})
				return nil
			}
		})
		err := build(t, w, dir, configured()).Run(t.Context(), func() { t.Error("ready") })
		if err == nil || !strings.Contains(err.Error(), "blue-1 ended before it was healthy: exit code 127; its last lines:\n    sh: 1: nmp: not found") {
			t.Errorf("got %v", err)
		}
	})
}

func TestAStartThatIsCalledOffLeavesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		w.let(func() { w.birth = func(_ Spec, c *fakeCopy) error { c.sick = errSick; return nil } })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := build(t, w, dir, configured()).Run(ctx, func() { t.Error("ready") })
		if err != nil || len(w.running()) != 0 || len(w.applied()) != 0 {
			t.Errorf("got %v, running %v", err, w.running())
		}
	})
}

func TestANewLifeAdoptsTheCopyThatServedOn(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		if _, err := h.Deploy(t.Context(), Request{Command: Command{"app", "2"}, Env: []string{"A=1"}, Version: "2"}, nil); err != nil {
			t.Fatal(err)
		}
		h.kill()
		h = open(t, w, dir, configured())
		if diff := cmp.Diff([]string{"adopt green-2", "apply green-2"}, w.journalled()); diff != "" {
			t.Error(diff)
		}
		st := h.Status().Live
		if !st.Adopted || st.ID != "green-2" || st.Version != "2" || st.Command != "app 2" || len(w.named("app_adopted")) != 1 {
			t.Errorf("live %+v", st)
		}
		// It is supervised like any other, with the environment that its deploy asked for.
		w.copy("green-2").die(Exit{Code: -1, Unknown: true})
		time.Sleep(3 * time.Second)
		if c := w.copy("green-3"); c == nil || !slices.Contains(c.spec.Env, "A=1") || h.Status().Live.ID != "green-3" {
			t.Errorf("live %+v", h.Status().Live)
		}
		h.close()
	})
}

func TestANewLifeStartsAgainWhatEndedMeanwhile(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		h.kill()
		w.copy("blue-1").die(Exit{Code: 1})
		h = open(t, w, dir, configured())
		if diff := cmp.Diff([]string{"start blue-2", "apply blue-2"}, w.journalled()); diff != "" {
			t.Error(diff)
		}
		h.close()
	})
}

func TestANewLifeReplacesASurvivorThatDoesNotServe(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.copy("blue-1").fallIll(errSick)
		h.kill()
		h = open(t, w, dir, configured())
		if diff := cmp.Diff([]string{"adopt blue-1", "stop blue-1", "start blue-2", "apply blue-2"}, w.journalled()); diff != "" {
			t.Error(diff)
		}
		h.close()
	})
}

func TestANewLifeStopsTheUnfinishedColorOfADeploy(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() { w.birth = func(_ Spec, c *fakeCopy) error { c.sick = errSick; return nil } })
		go func() { _, _ = h.Deploy(context.Background(), Request{}, nil) }()
		synctest.Wait()
		h.kill()
		if got := w.running(); !slices.Equal(got, []string{"blue-1", "green-2"}) {
			t.Fatalf("running %v", got)
		}
		h = open(t, w, dir, configured())
		synctest.Wait()
		if got := w.running(); !slices.Equal(got, []string{"blue-1"}) {
			t.Errorf("running %v", got)
		}
		if was, err := loadState(dir, slog.New(slog.DiscardHandler)); err != nil || len(was.Others) != 0 {
			t.Errorf("others %v, %v", was.Others, err)
		}
		h.close()
	})
}

func TestTheReleaseThatWasDeployedLastComesBackAfterAStop(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		if _, err := h.Deploy(t.Context(), Request{Command: Command{"app", "2"}, Dir: "/srv", Version: "2"}, nil); err != nil {
			t.Fatal(err)
		}
		h.close()
		h = open(t, w, dir, configured())
		if st := h.Status().Live; st.ID != "green-3" || st.Command != "app 2" || st.Dir != "/srv" || st.Version != "2" {
			t.Errorf("live %+v", st)
		}
		h.close()
		// But what the file says now wins, once it says something else.
		cfg := configured()
		cfg.Run = Command{"app", "3"}
		h = open(t, w, dir, cfg)
		if st := h.Status().Live; st.Command != "app 3" || st.Dir != "/" || st.Version != "" {
			t.Errorf("live %+v", st)
		}
		h.close()
	})
}

func TestASurvivorOfAnOlderFileServesUntilTheNewCommandIsDeployed(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		h.kill()
		cfg := configured()
		cfg.Run = Command{"other"}
		h = open(t, w, dir, cfg)
		time.Sleep(time.Second)
		want := []string{"adopt blue-1", "apply blue-1", "start green-2", "apply green-2 (blue-1)", "apply green-2", "drain", "stop blue-1"}
		if diff := cmp.Diff(want, w.journalled()); diff != "" {
			t.Error(diff)
		}
		if st := h.Status().Live; st.Command != "other" {
			t.Errorf("live %+v", st)
		}
		h.close()
	})
}

func TestAnEmptyRequestDeploysAgainWhatRuns(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		if _, err := h.Deploy(t.Context(), Request{Command: Command{"app", "2"}, Env: []string{"A=1"}, Dir: "/srv"}, nil); err != nil {
			t.Fatal(err)
		}
		r, err := h.Deploy(t.Context(), Request{}, nil)
		if err != nil || !r.Command.equal(Command{"app", "2"}) || r.Dir != "/srv" || !slices.Contains(w.copy("blue-3").spec.Env, "A=1") {
			t.Errorf("got %+v, %v", r, err)
		}
		cfg := configured()
		cfg.Run = Command{"app", "new"}
		commit, err := h.Prepare(cfg)
		if err != nil {
			t.Fatal(err)
		}
		commit()
		if r, err = h.Deploy(t.Context(), Request{}, nil); err != nil || !r.Command.equal(cfg.Run) || r.Dir != "/" {
			t.Errorf("after the reload: %+v, %v", r, err)
		}
		h.close()
	})
}

func TestPrepareReportsEveryMistakeAndChangesNothing(t *testing.T) {
	w := newWorld()
	d := build(t, w, t.TempDir(), configured())
	bad := configured()
	bad.Run, bad.Grace, bad.Health.Interval = nil, -1, 0
	_, err := d.Prepare(bad)
	for _, want := range []string{"run: there is nothing to run", "grace: must not be negative", "health.interval: must be positive"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	good := configured()
	good.Drain = time.Minute
	commit, err := d.Prepare(good)
	if err != nil || d.policy.Load().Drain != 30*time.Second {
		t.Fatalf("%v, drain %v", err, d.policy.Load().Drain)
	}
	commit()
	if d.policy.Load().Drain != time.Minute {
		t.Error("commit changed nothing")
	}
}

func TestADamagedStateIsRefusedWithTheMend(t *testing.T) {
	for name, text := range map[string]string{
		"cut off":               `{"format": 1, "live": {"co`,
		"no color":              `{"format": 1, "live": {}}`,
		"newer":                 `{"format": 7}`,
		"a phase of no machine": `{"format": 2, "share": 100, "deploy": {"phase": "flying"}}`,
		"no share":              `{"format": 2, "share": 0}`,
		"empty":                 ``,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			err := build(t, newWorld(), dir, configured()).Run(t.Context(), func() { t.Error("ready") })
			if err == nil || !strings.Contains(err.Error(), "remove ") || !strings.Contains(err.Error(), stateFile) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestADamagedHistoryIsPutAside(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		if err := os.WriteFile(filepath.Join(dir, historyFile), []byte("["), 0o600); err != nil {
			t.Fatal(err)
		}
		h := open(t, w, dir, configured())
		if _, err := os.Stat(filepath.Join(dir, historyFile+".damaged")); err != nil || len(h.History()) != 0 {
			t.Errorf("%v, history %v", err, h.History())
		}
		h.close()
	})
}

func TestTwoMainstaysCannotShareADataFolder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		err := build(t, newWorld(), dir, configured()).Run(t.Context(), func() { t.Error("ready") })
		if err == nil || !strings.Contains(err.Error(), "another mainstay runs with the data folder") {
			t.Errorf("got %v", err)
		}
		h.close()
		h = open(t, w, dir, configured())
		h.close()
	})
}

func TestTheStateFileIsForItsOwnerAlone(t *testing.T) {
	dir := t.TempDir()
	if err := writeFile(dir, stateFile, state{}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, stateFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(dir, stateFile+".new")); err == nil {
		t.Error("the temporary file is still there")
	}
}

func TestACrashedAppIsRestartedAfterGrowingPauses(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.let(func() { w.birth = func(_ Spec, c *fakeCopy) error { c.die(Exit{Code: 1}); return nil } })
		w.forget()
		w.copy("blue-1").die(Exit{Code: -1, Signal: "SIGSEGV"})
		time.Sleep(2 * time.Minute)
		want := []time.Duration{1, 3, 7, 15, 31, 61, 91}
		for i := range want {
			want[i] *= time.Second
		}
		if diff := cmp.Diff(want, w.startTimes()); diff != "" {
			t.Error(diff)
		}
		e := w.named("app_crashed")
		if len(e) != 1 || e[0].Level != slog.LevelWarn || !strings.Contains(e[0].Text, "blue-1 crashed: ended by SIGSEGV") {
			t.Errorf("events %+v", e)
		}
		h.close()
	})
}

func TestACopyThatServedForAWhileIsRestartedSoonAgain(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		for i := range 5 {
			time.Sleep(2 * time.Minute)
			w.forget()
			w.copy(h.Status().Live.ID).die(Exit{Code: 1})
			time.Sleep(2 * time.Second)
			if len(w.startTimes()) != 1 || w.startTimes()[0] != time.Second {
				t.Errorf("crash %d: starts after %v", i, w.startTimes())
			}
		}
		if st := h.Status().Live; st.Restarts != 5 || st.LastExit != "exit code 1" || len(w.named("app_restarted")) != 5 {
			t.Errorf("live %+v", st)
		}
		last := w.applied()[len(w.applied())-1]
		if len(w.applied()) != 11 || w.applied()[9].Mode != traffic.Hold || last.Targets[0].ID != "blue-6" || last.Targets[0].Address != h.Status().Live.Address {
			t.Errorf("plans %+v", w.applied())
		}
		h.close()
	})
}

func TestStoppingMainstayDoesNotWaitForABackoff(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		w.copy("blue-1").die(Exit{Code: 1})
		synctest.Wait()
		began := time.Now()
		h.close()
		if time.Since(began) != 0 || len(w.startTimes()) != 1 {
			t.Errorf("%v, %d starts", time.Since(began), len(w.startTimes()))
		}
	})
}

func TestProbesTellIllnessAndRecoveryOnceEach(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		c := w.copy("blue-1")
		c.fallIll(errSick)
		time.Sleep(2500 * time.Millisecond) // two bad probes
		if st := h.Status().Live.State; st != Healthy {
			t.Errorf("after two bad probes: %s", st)
		}
		time.Sleep(5 * time.Second)
		if st := h.Status().Live; st.State != Unhealthy || st.Reason != errSick.Error() || len(w.named("app_unhealthy")) != 1 {
			t.Errorf("ill: %+v", st)
		}
		c.fallIll(nil)
		time.Sleep(5 * time.Second)
		if st := h.Status().Live; st.State != Healthy || st.Reason != "" || len(w.named("app_healthy")) != 1 {
			t.Errorf("well: %+v", st)
		}
		if len(w.applied()) != 1 {
			t.Errorf("the traffic was moved: %v", w.applied())
		}
		h.close()
	})
}

func TestLevelsTellHealthAndRestarts(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		got := map[string]float64{}
		for _, l := range h.Levels() {
			got[l.Name] = l.Value
		}
		want := map[string]float64{"mainstay_app_healthy": 1, "mainstay_app_share": 100, "mainstay_maintenance": 0, "mainstay_app_restarts": 0, "mainstay_deploy_underway": 0}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		h.close()
	})
}
