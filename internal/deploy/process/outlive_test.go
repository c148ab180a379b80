package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/deploytest"
	"mainstay.dev/mainstay/internal/traffic"
	"mainstay.dev/mainstay/telemetry"
)

// edge notes the plans it is given.
type edge struct {
	mu    sync.Mutex
	plans []traffic.Plan
}

func (e *edge) Apply(p traffic.Plan) (func(context.Context) error, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.plans = append(e.plans, p)
	return func(context.Context) error { return nil }, nil
}

// events is a sink that notes the events.
type events struct {
	mu  sync.Mutex
	got []telemetry.Event
}

func (e *events) Record(*telemetry.Exchange) {}
func (e *events) Emit(ev telemetry.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.got = append(e.got, ev)
}

func (e *events) named(name string) (texts []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.got {
		if ev.Name == name {
			texts = append(texts, ev.Text)
		}
	}
	return texts
}

// mainstay is as much of Mainstay as it takes to supervise an app.
func mainstay(dir string, cfg deploy.Config, e deploy.Edge, s telemetry.Sink) (*deploy.Deployer, error) {
	log := slog.New(slog.DiscardHandler)
	driver, err := New(Options{Dir: dir, Log: log})
	if err != nil {
		return nil, err
	}
	return deploy.New(cfg, deploy.Deps{
		Edge: e, Driver: driver, Dir: dir, Log: log, Sink: s,
		Env: func(color string) ([]string, error) {
			return append(os.Environ(), "COLOR="+color, deploytest.Brisk), nil
		},
	})
}

func config(words ...string) deploy.Config {
	var c deploy.Config
	c.SetDefaults()
	c.Run = deploytest.App(words...)
	c.Dir = os.TempDir()
	c.Health.Interval = 20 * time.Millisecond
	c.Health.Timeout = 20 * time.Second
	return c
}

// open runs a Deployer until it is ready, and stops it when the test ends.
func open(t *testing.T, dir string, cfg deploy.Config) (*deploy.Deployer, *edge, *events) {
	t.Helper()
	var e edge
	var s events
	d, err := mainstay(dir, cfg, &e, &s)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran, ready := make(chan error, 1), make(chan struct{})
	go func() { ran <- d.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ran:
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return d, &e, &s
}

const superviseWord = "deploytest-supervise"

// superviseIfTold turns the test binary into a Mainstay that supervises an app in
// the folder it is given, says ready, and deploys a color that never becomes
// healthy; it is there to be killed.
func superviseIfTold() {
	if len(os.Args) != 3 || os.Args[1] != superviseWord {
		return
	}
	d, err := mainstay(os.Args[2], config("serve"), &edge{}, telemetry.Discard)
	if err == nil {
		err = d.Run(context.Background(), func() {
			go func() {
				_, _ = d.Deploy(context.Background(), deploy.Request{Command: deploytest.App("silent")}, func(p deploy.Progress) {
					if p.Step == deploy.StepWaiting {
						st := d.Status()
						fmt.Println("ready", st.Live.PID, st.Next.PID)
					}
				})
			}()
		})
	}
	fmt.Println("ended:", err)
	os.Exit(1)
}

func TestTheAppOutlivesAKillOfMainstayAndIsAdopted(t *testing.T) {
	dir := t.TempDir()
	first := exec.Command(os.Args[0], superviseWord, dir)
	out, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var live, next int
	if _, serr := fmt.Sscanf(line, "ready %d %d", &live, &next); err != nil || serr != nil {
		t.Fatalf("%q, %v, %v", line, err, serr)
	}
	t.Cleanup(func() { // whatever happens below
		for _, pid := range []int{live, next} {
			_ = syscall.Kill(-pid, syscall.SIGKILL)
		}
	})
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()

	d, e, s := open(t, dir, config("serve"))
	st := d.Status().Live
	if st.PID != live || !st.Adopted || st.Color != "blue" {
		t.Fatalf("live %+v, was %d", st, live)
	}
	if p := e.plans[0].Targets[0]; p.ID != st.ID || p.Address != st.Address {
		t.Errorf("plan %+v", p)
	}
	if len(s.named("app_adopted")) != 1 {
		t.Errorf("events %v", s.got)
	}
	deploytest.Await(t, "the color that was being deployed is stopped", func() bool { return len(members(next)) == 0 })
	// It is supervised as if it were our own child.
	if err := syscall.Kill(live, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deploytest.Await(t, "the app is restarted", func() bool {
		st := d.Status().Live
		return st.State == deploy.Healthy && st.PID != live && st.Restarts == 1
	})
	if got := s.named("app_crashed"); len(got) != 1 || !strings.Contains(got[0], "exit code is unknown") {
		t.Errorf("crashed: %q", got)
	}
}

func TestACrashedAppIsRestartedOnAFreshPort(t *testing.T) {
	d, e, s := open(t, t.TempDir(), config("serve"))
	was := d.Status().Live
	if err := syscall.Kill(was.PID, syscall.SIGSEGV); err != nil {
		t.Fatal(err)
	}
	deploytest.Await(t, "the app is restarted", func() bool { return len(s.named("app_restarted")) == 1 })
	now := d.Status().Live
	if now.ID != "blue-2" || now.PID == was.PID || now.LastExit == "" {
		t.Errorf("was %+v, is %+v", was, now)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.plans) != 3 || e.plans[1].Mode != traffic.Hold || e.plans[2].Targets[0].Address != now.Address {
		t.Errorf("plans %+v", e.plans)
	}
}

func TestARealDeployLeavesOnlyTheNewColor(t *testing.T) {
	d, _, _ := open(t, t.TempDir(), config("parent", "serve"))
	was := d.Status().Live.PID
	r, err := d.Deploy(t.Context(), deploy.Request{Command: deploytest.App("serve")}, nil)
	if err != nil || r.Phase != deploy.Settled {
		t.Fatalf("%+v, %v", r, err)
	}
	if st := d.Status(); st.Old == nil || st.Old.PID != was || st.Old.State != deploy.Healthy {
		t.Errorf("the old color does not stand by: %+v", st.Old)
	}
	if err := d.Settle(t.Context(), deploy.Order{Who: "ann"}); err != nil {
		t.Fatal(err)
	}
	if left := members(was); len(left) != 0 {
		t.Errorf("left of the old color: %v", left)
	}
	if st := d.Status(); st.Live.Color != "green" || st.Old != nil {
		t.Errorf("status %+v", st)
	}
}

func TestARealAppThatIgnoresPortIsToldTheMendLongBeforeItsDeadline(t *testing.T) {
	d, _, _ := open(t, t.TempDir(), config("serve"))
	ctx, cancel := context.WithCancel(t.Context())
	var told []string
	r, err := d.Deploy(ctx, deploy.Request{Command: deploytest.App("parent", "elsewhere")}, func(p deploy.Progress) {
		told = append(told, p.Text)
		if strings.Contains(p.Text, "the app listens on ") && strings.Contains(p.Text, "make it read PORT") {
			cancel() // heard
		}
	})
	if !errors.Is(err, context.Canceled) || r.Phase != deploy.Failed {
		t.Errorf("got %v, told %q", err, told)
	}
	if st := d.Status().Live; st.ID != "blue-1" || st.State != deploy.Healthy {
		t.Errorf("live %+v", st)
	}
}
