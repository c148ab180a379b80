package docker

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/deploytest"
	"mainstay.dev/mainstay/internal/traffic"
	"mainstay.dev/mainstay/telemetry"
)

// edge takes every plan.
type edge struct{}

func (edge) Apply(traffic.Plan) (func(context.Context) error, error) {
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

// mainstay is as much of Mainstay as it takes to supervise an app in containers.
func mainstay(at, dir string, s telemetry.Sink) (*deploy.Deployer, error) {
	log := slog.New(slog.DiscardHandler)
	o := Options{Image: testImage, Service: "outlive", Dir: dir, Log: log}
	o.Config.SetDefaults()
	o.Config.Engine = at
	driver, err := New(o)
	if err != nil {
		return nil, err
	}
	var c deploy.Config
	c.SetDefaults()
	c.Run = deploytest.App("serve")
	c.Health.Interval = 20 * time.Millisecond
	c.Health.Timeout = 20 * time.Second
	return deploy.New(c, deploy.Deps{
		Edge: edge{}, Driver: driver, Dir: dir, Log: log, Sink: s,
		Env: func(color string) ([]string, error) { return []string{"COLOR=" + color}, nil },
	})
}

const superviseWord = "deploytest-supervise"

// superviseIfTold turns the test binary into a Mainstay that supervises an app with
// the Engine and in the folder it is given, says ready, and deploys a color that
// never becomes healthy; it is there to be killed.
func superviseIfTold() {
	if len(os.Args) != 4 || os.Args[1] != superviseWord {
		return
	}
	d, err := mainstay(os.Args[2], os.Args[3], telemetry.Discard)
	if err == nil {
		err = d.Run(context.Background(), func() {
			go func() {
				_, _ = d.Deploy(context.Background(), deploy.Request{Command: deploytest.App("silent")}, func(p deploy.Progress) {
					if p.Step == deploy.StepWaiting {
						fmt.Println("ready", d.Status().Live.PID)
					}
				})
			}()
		})
	}
	fmt.Println("ended:", err)
	os.Exit(1)
}

// awaitOnly waits until the containers of the state folder are those named.
func awaitOnly(t *testing.T, e *engine, owner string, ids ...string) {
	t.Helper()
	deploytest.Await(t, "the containers are "+strings.Join(ids, ", "), func() bool {
		list, err := e.cli.ContainerList(context.Background(), client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("label", labelOwner+"="+owner)})
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, c := range list.Items {
			for _, id := range ids {
				if c.Labels[labelID] == id {
					found++
				}
			}
		}
		return found == len(ids) && len(list.Items) == len(ids)
	})
}

func TestContainersOutliveAKillOfMainstayAndAreAdopted(t *testing.T) {
	e, dir := need(t), t.TempDir()
	first := exec.Command(os.Args[0], superviseWord, e.at, dir)
	out, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var pid int
	_, serr := fmt.Sscanf(line, "ready %d", &pid)
	if kerr := first.Process.Kill(); err != nil || serr != nil || kerr != nil {
		t.Fatalf("%q, %v, %v, %v", line, err, serr, kerr)
	}
	_ = first.Wait()
	owner, err := ownerOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { awaitOnly(t, e, owner) }) // Mainstay has stopped by then

	var s events
	d := open(t, e, dir, &s)
	st := d.Status().Live
	if st.PID != pid || pid == 0 || !st.Adopted || st.Color != "blue" {
		t.Fatalf("live %+v, was %d", st, pid)
	}
	awaitOnly(t, e, owner, "blue-1") // green was being deployed

	list, err := e.cli.ContainerList(t.Context(), client.ContainerListOptions{Filters: client.Filters{}.Add("label", labelOwner+"="+owner)})
	if err != nil || len(list.Items) != 1 {
		t.Fatal(list.Items, err)
	}
	if _, err := e.cli.ContainerKill(t.Context(), list.Items[0].ID, client.ContainerKillOptions{Signal: "SIGKILL"}); err != nil {
		t.Fatal(err)
	}
	deploytest.Await(t, "the app is restarted", func() bool { return len(s.named("app_restarted")) == 1 })
	if got := s.named("app_crashed"); len(got) != 1 || !strings.Contains(got[0], "SIGKILL") { // the Engine knows the exit code of an adopted copy too
		t.Errorf("crashed: %q", got)
	}
	r, err := d.Deploy(t.Context(), deploy.Request{Command: deploytest.App("serve"), Why: "test"}, nil)
	if err != nil || r.Phase != deploy.Settled {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := d.Settle(t.Context(), deploy.Order{Who: "ann"}); err != nil {
		t.Fatal(err)
	}
	awaitOnly(t, e, owner, d.Status().Live.ID)
}

// open runs a Deployer until it is ready, and stops it when the test ends.
func open(t *testing.T, e *engine, dir string, s telemetry.Sink) *deploy.Deployer {
	t.Helper()
	d, err := mainstay(e.at, dir, s)
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
	return d
}
