package test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"mainstay.dev/mainstay/internal/deploy"
)

// direct asks a copy of the app past mainstay.
func direct(c *deploy.Copy) error {
	resp, err := http.Get("http://" + c.Address + "/version")
	if err == nil {
		resp.Body.Close()
	}
	return err
}

// A kill -9 of mainstay in every state: both colors live on, and the next life
// undoes what had no traffic, goes on with what had, and keeps what was decided.
func TestAKillOfMainstayInAnyStateIsUndoneOrResumed(t *testing.T) {
	for phase, tc := range map[deploy.Phase]struct {
		order string // to get there from watching
		then  string // to end it
		ends  deploy.Phase
		live  string
	}{
		deploy.Preparing:  {"", "", deploy.Failed, "blue"},
		deploy.Warming:    {"", "", deploy.Failed, "blue"},
		deploy.Verifying:  {"", "", deploy.Failed, "blue"},
		deploy.Switching:  {"", "promote", deploy.Settled, "green"},
		deploy.Watching:   {"", "rollback", deploy.RolledBack, "blue"},
		deploy.Frozen:     {"freeze", "rollback", deploy.RolledBack, "blue"},
		deploy.Settled:    {"promote", "", deploy.Settled, "green"},
		deploy.RolledBack: {"rollback", "", deploy.RolledBack, "blue"},
	} {
		t.Run(string(phase), func(t *testing.T) {
			t.Parallel()
			s := newStage(t, careful)
			s.start(testapp())
			blue := s.app().Live
			d := s.launch(phase)
			var green *deploy.Copy
			if tc.order == "" {
				green = s.reach(d, phase)
			} else {
				green = s.reach(d, deploy.Watching)
				if _, err := s.client.Order(t.Context(), tc.order, deploy.Order{}); err != nil {
					t.Fatal(err)
				}
				d.wait(t)
			}
			t.Cleanup(func() { // whatever happens below
				for _, c := range []*deploy.Copy{blue, green} {
					_ = syscall.Kill(-c.PID, syscall.SIGKILL)
				}
			})
			s.killed()
			if err := direct(blue); err != nil {
				t.Fatalf("blue died with mainstay: %v", err)
			}
			s.open()
			s.again(testapp())
			if tc.then != "" {
				eventually(t, tc.then, func() (bool, string) {
					_, err := s.client.Order(t.Context(), tc.then, deploy.Order{})
					return err == nil, fmt.Sprint(err)
				})
			}
			s.ended(t, tc.ends, tc.live, blue, green)
		})
	}
}

// ended checks where a deploy that a kill has cut short stands in the end.
func (s *stage) ended(t *testing.T, ends deploy.Phase, live string, blue, green *deploy.Copy) {
	t.Helper()
	want, other := blue, green
	if live == "green" {
		want, other = green, blue
	}
	eventually(t, live+" serves", func() (bool, string) {
		st := s.app()
		return st.Deploying == nil && st.Live.PID == want.PID && st.Live.Share == 100, fmt.Sprintf("%+v", st.Live)
	})
	for range 10 {
		if status, code, body := s.get("/work"); status != 200 || body != live {
			t.Fatalf("%d %s %s", status, code, body)
		}
	}
	rs, err := s.client.Deploys(t.Context())
	if err != nil || len(rs) != 1 || rs[0].Phase != ends {
		t.Errorf("history %+v, %v", rs, err)
	}
	if live == "blue" { // what did not settle is ended
		eventually(t, "green is stopped", func() (bool, string) { return !alive(other.PID), fmt.Sprint(other.PID) })
	} else if !alive(other.PID) {
		t.Error("blue does not stand by")
	}
	// And everything works as ever.
	d := s.launch(deploy.Settled)
	s.reach(d, deploy.Watching)
	if _, err := s.client.Order(t.Context(), "promote", deploy.Order{}); err != nil {
		t.Fatal(err)
	}
	if r := d.wait(t); r.Phase != deploy.Settled || r.Number != 2 {
		t.Errorf("the next deploy: %+v, %v", r, d.err)
	}
}

// full makes every write of a file below the state folder meet a full disk.
func (s *stage) full(name string) (freed func()) {
	s.t.Helper()
	path := filepath.Join(s.dir, "app", name+".new")
	if err := errors.Join(os.RemoveAll(path), os.Symlink("/dev/full", path)); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.t.Error(err)
		}
	}
}

func TestAFullDiskStopsNoTrafficAndNoRollback(t *testing.T) {
	t.Parallel()
	s := newStage(t, careful)
	s.start(testapp())
	f := s.traffic()
	freed := s.full("state.json")
	if r := s.launch(deploy.Settled).wait(t); r.Phase != deploy.Failed || !strings.Contains(r.Error, "no space left on device") || s.app().Next != nil {
		t.Errorf("a deploy on a full disk: %+v", r)
	}
	freed()

	d := s.launch(deploy.Verifying)
	s.reach(d, deploy.Verifying)
	freed = s.full("state.json")
	s.open()
	if r := d.wait(t); r.Phase != deploy.Failed || !strings.Contains(r.Error, "no space left on device") {
		t.Errorf("full before the switch: %+v", r)
	}
	freed()

	d = s.launch(deploy.Watching)
	green := s.reach(d, deploy.Watching)
	freed = s.full("state.json")
	s.harm(green, "killed")
	if r := d.wait(t); r.Phase != deploy.RolledBack {
		t.Errorf("full while it was watched: %+v", r)
	}
	f.more(t, "blue", 20)
	if failed := f.end(); len(failed) > 0 {
		t.Errorf("%d requests failed, first %s", len(failed), failed[0])
	}
	freed()
}

func TestAStateFileThatCannotBeUsedIsToldAndTheLiveColorServesOn(t *testing.T) {
	t.Parallel()
	s := newStage(t, careful)
	s.start(testapp())
	blue := s.app().Live
	t.Cleanup(func() { _ = syscall.Kill(-blue.PID, syscall.SIGKILL) })
	dir := filepath.Join(s.dir, "app")
	state, twin := filepath.Join(dir, "state.json"), filepath.Join(dir, "state.twin.json")
	whole, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	spoil := func(path string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	served := func(what string) {
		t.Helper()
		if status, _, body := s.get("/work"); status != 200 || body != "blue" || s.app().Live.PID != blue.PID {
			t.Errorf("%s: %d %s, live %+v", what, status, body, s.app().Live)
		}
	}
	refused := func(what string, words ...string) {
		t.Helper()
		s.mainstay.launch(testapp())
		<-s.exited
		if code := s.cmd.ProcessState.ExitCode(); code == 0 {
			t.Errorf("%s: exit code 0", what)
		}
		for _, w := range words {
			if log := s.log.String() + s.out.String(); !strings.Contains(log, w) {
				t.Errorf("%s: nothing says %q:\n%s", what, w, tail(log, 5))
			}
		}
		if err := direct(blue); err != nil {
			t.Errorf("%s: blue does not serve on: %v", what, err)
		}
	}
	s.killed()
	spoil(state, whole[:len(whole)/2])
	s.again(testapp())
	served("one file is damaged")
	if _, err := os.Stat(state + ".damaged"); err != nil {
		t.Error(err)
	}

	s.killed()
	spoil(state, []byte("{}"))
	spoil(twin, nil)
	refused("both are damaged", "state.json is damaged", "remove both files", "the app runs on as it is")

	newer := strings.Replace(string(whole), `"format": 2`, `"format": 99`, 1)
	spoil(state, []byte(newer))
	spoil(twin, []byte(newer))
	refused("a later mainstay wrote it", "has format 99", "run the mainstay that wrote it")

	// The version before knew no shares, phases or twin.
	former := strings.NewReplacer(`"format": 2`, `"format": 1`, `"share": 100,`, "").Replace(string(whole))
	if former == string(whole) {
		t.Fatal("the state file has another form than the test thinks")
	}
	spoil(state, []byte(former))
	if err := os.Remove(twin); err != nil {
		t.Fatal(err)
	}
	s.again(testapp())
	served("the version before wrote it")
	if d := s.launch(deploy.Settled); s.reach(d, deploy.Watching) == nil {
		t.Error("no deploy after it")
	}
}
