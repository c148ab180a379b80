package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/deploytest"
)

func TestMain(m *testing.M) {
	deploytest.RunIfApp()
	superviseIfTold()
	os.Exit(m.Run())
}

// journal is a log that can be read while it is written.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func newDriver(t *testing.T, dir string) (*Driver, *journal) {
	t.Helper()
	var j journal
	d, err := New(Options{Dir: dir, Log: slog.New(slog.NewTextHandler(&j, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return d, &j
}

func TestTheDriverKeepsTheContract(t *testing.T) {
	deploytest.Contract(t, func(t *testing.T) deploy.Driver {
		d, _ := newDriver(t, t.TempDir())
		return d
	})
}

func TestAGroupEndsAsAWhole(t *testing.T) {
	for name, words := range map[string][]string{
		"children that obey": {"parent", "parent", "serve"},
		"a deaf grandchild":  {"parent", "parent", "serve", "deaf"},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := newDriver(t, t.TempDir())
			in := deploytest.Start(t, d, "blue-1", words...)
			deploytest.Ask(t, in)
			group := in.Handle().PID
			if n := len(members(group)); n != 3 {
				t.Fatalf("%d processes in the group", n)
			}
			if err := in.Stop(t.Context(), 200*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if left := members(group); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
			if e := in.Exit(); e.Signal != "SIGTERM" { // its first process obeyed
				t.Errorf("exit %+v", e)
			}
		})
	}
}

func TestChildrenHaveTheirGraceThoughTheirParentDiesAtOnce(t *testing.T) {
	d, _ := newDriver(t, t.TempDir())
	in := deploytest.Start(t, d, "blue-1", "parent", "serve")
	deploytest.Ask(t, in)
	if err := in.Stop(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if l := in.LastLines(); l[len(l)-1] != "bye" {
		t.Errorf("last lines %q", l)
	}
}

func TestWhatACrashLeavesOfTheGroupIsKilled(t *testing.T) {
	d, _ := newDriver(t, t.TempDir())
	in := deploytest.Start(t, d, "blue-1", "parent", "serve", "deaf")
	deploytest.Ask(t, in)
	if err := syscall.Kill(in.Handle().PID, syscall.SIGSEGV); err != nil { // the first process alone
		t.Fatal(err)
	}
	deploytest.AwaitExit(t, in)
	if left := members(in.Handle().PID); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestASignalThatEndedTheAppIsNamed(t *testing.T) {
	d, _ := newDriver(t, t.TempDir())
	in := deploytest.Start(t, d, "blue-1", "kill", strconv.Itoa(int(syscall.SIGKILL)))
	if e := deploytest.AwaitExit(t, in); e.Signal != "SIGKILL" || e.Code != -1 {
		t.Errorf("exit %+v", e)
	}
}

func TestAStoppedProcessCanBeStopped(t *testing.T) {
	d, _ := newDriver(t, t.TempDir())
	in := deploytest.Start(t, d, "blue-1", "serve")
	deploytest.Ask(t, in)
	if err := syscall.Kill(in.Handle().PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := in.Stop(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if e := in.Exit(); e != (deploy.Exit{}) {
		t.Errorf("exit %+v", e)
	}
}

func TestAReusedProcessIDIsNotAdopted(t *testing.T) {
	d, _ := newDriver(t, t.TempDir())
	in := deploytest.Start(t, d, "blue-1", "serve")
	deploytest.Ask(t, in)
	var who identity
	if err := json.Unmarshal(in.Handle().Private, &who); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*identity){
		"another start time":   func(w *identity) { w.Start-- },
		"another boot":         func(w *identity) { w.Boot = "00000000-0000-0000-0000-000000000000" },
		"a process not a copy": func(w *identity) { w.PID = os.Getpid() },
		"no process":           func(w *identity) { w.PID = 1 << 30 },
	} {
		other := who
		change(&other)
		h := in.Handle()
		h.Private, _ = json.Marshal(other)
		if _, err := d.Adopt(t.Context(), deploytest.Spec("blue-1"), h); !errors.Is(err, deploy.ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
	h := in.Handle()
	h.Private = json.RawMessage(`{"pid":1}`)
	if _, err := d.Adopt(t.Context(), deploytest.Spec("blue-1"), h); err == nil || errors.Is(err, deploy.ErrGone) {
		t.Errorf("pid 1: %v", err)
	}
	if got := deploytest.Ask(t, in); !strings.HasPrefix(got, strconv.Itoa(who.PID)) {
		t.Errorf("the copy was disturbed: %q", got)
	}
}

func TestWhatIsLeftOfADeadCopysGroupIsClearedByAdopt(t *testing.T) {
	d, _ := newDriver(t, t.TempDir())
	in := deploytest.Start(t, d, "blue-1", "parent", "serve", "deaf")
	deploytest.Ask(t, in)
	i := in.(*instance)
	i.stopping.Store(true) // so that this life does not clear it, as if it were dead
	if err := syscall.Kill(i.who.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deploytest.Await(t, "the child is alone", func() bool { return len(members(i.who.PID)) == 1 })
	later, _ := newDriver(t, t.TempDir())
	if _, err := later.Adopt(t.Context(), deploytest.Spec("blue-1"), in.Handle()); !errors.Is(err, deploy.ErrGone) {
		t.Errorf("got %v", err)
	}
	deploytest.AwaitExit(t, in)
}

func TestNoFileAndNoZombieIsLeftBehind(t *testing.T) {
	d, _ := newDriver(t, t.TempDir())
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	run := func() {
		in := deploytest.Start(t, d, "blue-1", "exit", "0")
		deploytest.AwaitExit(t, in)
		if st, err := readStat(in.Handle().PID); err == nil && st.ended() {
			t.Errorf("zombie %+v", st)
		}
	}
	run() // whatever is opened once
	before := count()
	for range 10 {
		run()
	}
	if after := count(); after > before {
		t.Errorf("%d open files before, %d after", before, after)
	}
	if d.ports.Taken() != 0 || len(d.files) != 0 {
		t.Errorf("%d ports and files %v are still held", d.ports.Taken(), d.files)
	}
}

func TestACopyGetsNoneOfOurFiles(t *testing.T) {
	secret, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	d, _ := newDriver(t, t.TempDir())
	in := deploytest.Start(t, d, "blue-1", "silent")
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", in.Handle().PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == secret.Name() {
			t.Errorf("%s leads to %s", fd, to)
		}
	}
	if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/0", in.Handle().PID)); err != nil || to != "/dev/null" {
		t.Errorf("standard input is %s, %v", to, err)
	}
}

func TestWhatCannotBeStartedIsNamedWithTheMend(t *testing.T) {
	dir := t.TempDir()
	d, _ := newDriver(t, dir)
	plain := filepath.Join(dir, "plain")
	junk := filepath.Join(dir, "junk")
	for path, mode := range map[string]os.FileMode{plain: 0o600, junk: 0o700} {
		if err := os.WriteFile(path, []byte("\x01\x02"), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		command []string
		dir     string
		want    string
	}{
		{[]string{"nmp", "start"}, dir, `start blue-1 (nmp start): there is no program "nmp" in PATH; install it, or give its whole path`},
		{[]string{"./server"}, dir, "there is no program ./server; build it"},
		{[]string{"/bin/true"}, dir + "/gone", "the folder " + dir + "/gone does not exist; set app.dir"},
		{[]string{plain}, dir, plain + " may not be run; try chmod +x"},
		{[]string{junk}, dir, "is neither a program for this machine nor a script"},
	} {
		_, err := d.Start(t.Context(), deploy.Spec{ID: "blue-1", Color: "blue", Command: c.command, Dir: c.dir})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: got %v", c.command, err)
		}
	}
	if d.ports.Taken() != 0 || len(d.files) != 0 {
		t.Errorf("%d ports and files %v are still held", d.ports.Taken(), d.files)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Start(ctx, deploytest.Spec("blue-1", "serve")); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}

func TestARelativeProgramIsFoundInItsFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "server"), []byte("#!/bin/sh\necho here; exit 7\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	d, _ := newDriver(t, t.TempDir())
	in, err := d.Start(t.Context(), deploy.Spec{ID: "blue-1", Color: "blue", Command: deploy.Command{"./server"}, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if e := deploytest.AwaitExit(t, in); e.Code != 7 || in.LastLines()[0] != "here" {
		t.Errorf("exit %+v, %q", e, in.LastLines())
	}
}
