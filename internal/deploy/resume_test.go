package deploy

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/internal/traffic"
)

// Every phase of a deploy, and a kill -9 of Mainstay in it.
func TestAKillInAnyPhaseIsResumedOrUndone(t *testing.T) {
	atPhase := func(h *house, p Phase) {
		for h.Status().Deploying == nil || h.Status().Deploying.Phase != p {
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
	}
	for _, tc := range []struct {
		phase Phase
		plan  string // in the end
		ends  Phase
	}{
		{Preparing, "blue-1", Failed},
		{Warming, "blue-1", Failed},
		{Verifying, "blue-1", Failed},
		{Switching, "green-2 (blue-1)", Settled},
		{Watching, "green-2 (blue-1)", Settled},
	} {
		t.Run(string(tc.phase), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world, dir string) {
				cfg := careful()
				cfg.Warm.Mirror = 10
				cfg.Hooks = []Hook{{On: string(Verifying), URL: "http://127.0.0.1:1/", Timeout: time.Minute}}
				h := slow(open(t, w, dir, cfg))
				w.let(func() {
					w.birth = func(_ Spec, c *fakeCopy) error {
						c.fallIll(errSick)
						time.AfterFunc(time.Second, func() { c.fallIll(nil) })
						return nil
					}
				})
				done := h.launch(Request{Version: "2"})
				atPhase(h, tc.phase)
				h.kill()
				<-done
				h = slow(open(t, w, dir, cfg))
				time.Sleep(5 * time.Minute)
				if got := lastPlan(w); got != tc.plan {
					t.Errorf("plan %s", got)
				}
				if r := h.History(); len(r) != 1 || r[0].Phase != tc.ends || h.Status().Deploying != nil {
					t.Errorf("history %+v", r)
				}
				if was, err := loadState(dir, slog.New(slog.DiscardHandler)); err != nil || was.Deploy != nil || len(was.Others) != 0 {
					t.Errorf("state %+v, %v", was, err)
				}
				// And everything works as ever.
				if r, err := h.Deploy(t.Context(), Request{}, nil); err != nil || r.Number != 2 {
					t.Errorf("the next deploy: %+v, %v", r, err)
				}
				h.close()
			})
		})
	}
}

func TestAKillDuringTheWatchAndADeathOfAColor(t *testing.T) {
	for name, tc := range map[string]struct {
		dead []string
		plan string
		ends Phase
		live string
	}{
		"the new color died": {[]string{"green-2"}, "blue-1", RolledBack, ""},
		"the old color died": {[]string{"blue-1"}, "green-2 (blue-3)", Settled, ""},
		"both died":          {[]string{"green-2", "blue-1"}, "blue-3", RolledBack, "app"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world, dir string) {
				h := open(t, w, dir, careful())
				done := h.launch(Request{Command: Command{"app", "2"}})
				time.Sleep(30 * time.Second)
				h.kill()
				<-done
				for _, id := range tc.dead {
					w.copy(id).die(Exit{Code: 1})
				}
				h = open(t, w, dir, careful())
				time.Sleep(5 * time.Minute)
				if got := lastPlan(w); got != tc.plan {
					t.Errorf("plan %s", got)
				}
				if r := h.History(); len(r) != 1 || r[0].Phase != tc.ends {
					t.Errorf("history %+v", r)
				}
				if tc.live != "" && h.Status().Live.Command != tc.live {
					t.Errorf("live %+v", h.Status().Live)
				}
				h.close()
			})
		})
	}
}

func TestStoppingMainstayDuringAWatchGoesBackToTheOldRelease(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, careful())
		done := h.launch(Request{Command: Command{"app", "2"}})
		time.Sleep(30 * time.Second)
		h.close()
		if err := <-done; !errors.Is(err, ErrRolledBack) || len(w.running()) != 0 {
			t.Errorf("got %v, running %v", err, w.running())
		}
		h = open(t, w, dir, careful())
		if st := h.Status(); st.Live.Command != "app" || st.Old != nil || h.History()[0].Phase != RolledBack {
			t.Errorf("live %+v", st.Live)
		}
		h.close()
	})
}

func TestADamagedStateIsReadFromItsTwin(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, configured())
		h.kill()
		if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(`{"format": 2, "li`), 0o600); err != nil {
			t.Fatal(err)
		}
		h = open(t, w, dir, configured())
		if lastPlan(w) != "blue-1" || !h.Status().Live.Adopted {
			t.Errorf("plan %s", lastPlan(w))
		}
		if _, err := os.Stat(filepath.Join(dir, stateFile+".damaged")); err != nil {
			t.Error(err)
		}
		h.close()
	})
}

func TestAStateOfTheFormatBeforeIsUnderstood(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		former := `{"format":1,"next_id":7,"next_record":3,"live":{"color":"green","release":{"command":["app","2"],"dir":"/","began":"2026-01-02T03:04:05Z","config_run":["app"],"config_dir":"/"}}}`
		past := `[{"number":1,"color":"green","outcome":"done","steps":[]},{"number":2,"color":"blue","outcome":"failed","error":"x","steps":[]}]`
		if err := errors.Join(os.WriteFile(filepath.Join(dir, stateFile), []byte(former), 0o600), os.WriteFile(filepath.Join(dir, historyFile), []byte(past), 0o600)); err != nil {
			t.Fatal(err)
		}
		h := open(t, w, dir, configured())
		if st := h.Status().Live; st.ID != "green-7" || st.Command != "app 2" || st.Share != 100 {
			t.Errorf("live %+v", st)
		}
		if hs := h.History(); len(hs) != 2 || hs[1].Phase != Settled || hs[0].Phase != Failed || hs[0].Kind != KindDeploy {
			t.Errorf("history %+v", hs)
		}
		h.close()
	})
}

func TestARollbackGoesOnThoughTheDiskIsFull(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		h := open(t, w, dir, careful())
		done := h.launch(Request{})
		time.Sleep(5 * time.Second)
		block := filepath.Join(dir, stateFile+".new")
		if err := os.Mkdir(block, 0o700); err != nil {
			t.Fatal(err)
		}
		w.copy("green-2").die(Exit{Code: 1})
		if err := <-done; !errors.Is(err, ErrRolledBack) || lastPlan(w) != "blue-1" {
			t.Errorf("got %v, plan %s", err, lastPlan(w))
		}
		if err := os.Remove(block); err != nil {
			t.Fatal(err)
		}
		h.close()
	})
}

func TestANewColorMayBePreviewedAndWarmedBeforeItHasTraffic(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, dir string) {
		cfg := careful()
		cfg.Preview = Preview{Header: "X-Preview", Secret: "s"}
		cfg.Warm.Mirror = 10
		cfg.Switch.Sticky = Sticky{By: "cookie", Name: "color"}
		h := open(t, w, dir, cfg)
		if _, err := h.Deploy(t.Context(), Request{}, nil); err != nil {
			t.Fatal(err)
		}
		ps := w.applied()
		if p := ps[1]; spoken(p) != "blue-1 [green-2]" || p.Preview.Color != green || p.Mirror.Color != "" {
			t.Errorf("healthy: %+v", p)
		}
		if p := ps[2]; p.Mirror != (traffic.Mirror{Color: green, Requests: 10}) {
			t.Errorf("warming: %+v", p)
		}
		if p := ps[4]; spoken(p) != "green-2:10 blue-1:90" || p.Preview.Color != green || p.Sticky.Name != "color" || p.Mirror.Color != "" {
			t.Errorf("in traffic: %+v", p)
		}
		if p := ps[len(ps)-1]; p.Preview.Color != "" || p.Sticky.By != "" || p.Preview.Secret != "" {
			t.Errorf("settled: %+v", p)
		}
		h.close()
	})
}
