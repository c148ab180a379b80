package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"mainstay.dev/mainstay/internal/deploy"
)

// Each release runs from its own folder with its own environment, also when it is
// gone back to after mainstay was stopped, or killed and the app with it.
func TestAReleaseRunsFromItsFolderAndIsGoneBackToAfterARestart(t *testing.T) {
	t.Parallel()
	s := newStage(t, "\n  release: {dir: RELEASES, keep: 2}\n  dir: RELEASES/current\n  run: \"VERSION=$(cat version)-$EXTRA exec TESTAPP\"\n")
	releases := filepath.Join(filepath.Dir(s.file), "releases")
	s.edit("RELEASES", releases)
	s.edit("RELEASES", releases)
	s.edit("TESTAPP", testapp())
	for i := range 4 {
		folder := filepath.Join(releases, fmt.Sprint(i+1))
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "version"), []byte(fmt.Sprint(i+1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("1", filepath.Join(releases, "current")); err != nil {
		t.Fatal(err)
	}
	s.start()
	serves := func(want string) {
		t.Helper()
		if status, _, body := s.get("/work"); status != 200 || body != want {
			t.Errorf("%d %q, want %q", status, body, want)
		}
	}
	serves("1-")
	deployed := func(args ...string) {
		t.Helper()
		if code, out := s.verb(append([]string{"deploy"}, args...)...); code != 0 {
			t.Fatalf("deploy %v: %d\n%s", args, code, out)
		}
	}
	deployed("--release", "2", "--env", "EXTRA=two")
	serves("2-two")
	deployed("--release", filepath.Join(releases, "3"), "--env", "EXTRA=three")
	serves("3-three")
	if code, out := s.verb("deploy", "--release", "9"); code != 1 || !strings.Contains(out, "there is no folder") {
		t.Errorf("a release that is not there: %d\n%s", code, out)
	}
	s.isPrivate(t, "EXTRA=three")

	stopped := func(signal syscall.Signal) {
		t.Helper()
		st := s.app()
		if err := s.cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		<-s.exited
		if signal == syscall.SIGKILL { // as when the machine dies: the app is gone, too
			for _, c := range []*deploy.Copy{st.Live, st.Old} {
				_ = syscall.Kill(-c.PID, syscall.SIGKILL)
			}
		}
		s.again()
		eventually(t, "the standby is back", func() (bool, string) {
			st := s.app()
			return st.Old != nil && st.Old.State == deploy.Healthy, fmt.Sprintf("%+v", st.Old)
		})
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		stopped(signal)
		serves("3-three")
		if st := s.app(); filepath.Base(st.Live.Dir) != "3" || filepath.Base(st.Old.Dir) != "2" {
			t.Errorf("%v: live in %s, old in %s", signal, st.Live.Dir, st.Old.Dir)
		}
	}
	if code, out := s.verb("rollback"); code != 0 {
		t.Fatalf("rollback: %d\n%s", code, out)
	}
	serves("2-two")

	deployed("--release", "4")
	serves("4-two") // the environment of what ran stays
	// Two that ran are kept, and all that are in use; the first was no deploy's.
	eventually(t, "release 3 is removed", func() (bool, string) {
		_, err := os.Stat(filepath.Join(releases, "3"))
		return os.IsNotExist(err), fmt.Sprint(err)
	})
	for _, left := range []string{"1", "2", "4"} {
		if _, err := os.Stat(filepath.Join(releases, left)); err != nil {
			t.Error(err)
		}
	}
	rs, err := s.client.Deploys(t.Context())
	if err != nil || len(rs) != 4 || filepath.Base(rs[2].Dir) != "3" || filepath.Base(rs[3].Dir) != "2" || rs[3].Version != "2" {
		t.Errorf("history %+v, %v", rs, err)
	}
}

// isPrivate checks that what may hold secrets is for the owner alone, and in no
// record.
func (s *stage) isPrivate(t *testing.T, secret string) {
	t.Helper()
	dir := filepath.Join(s.dir, "app")
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, f := range files {
		info, err := f.Info()
		if err != nil || f.IsDir() {
			continue
		}
		b, _ := os.ReadFile(filepath.Join(dir, f.Name()))
		if strings.Contains(string(b), secret) {
			found++
			if f.Name() == "history.json" || info.Mode().Perm() != 0o600 {
				t.Errorf("%s (%v) holds the environment", f.Name(), info.Mode())
			}
		}
	}
	if found == 0 {
		t.Error("the environment is not kept")
	}
}
