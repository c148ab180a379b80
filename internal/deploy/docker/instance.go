package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"mainstay.dev/mainstay/internal/deploy"
)

// where is what a later life needs to find a copy.
type where struct {
	Container string `json:"container"`        // id; never given twice
	Port      int    `json:"port"`             // on this machine's loopback
	Inner     int    `json:"inner"`            // in the container
	Shared    bool   `json:"shared,omitempty"` // the container has this machine's network
}

func (w where) address() netip.AddrPort { return netip.AddrPortFrom(loopback, uint16(w.Port)) }

// An instance is one container, started or adopted.
type instance struct {
	d      *Driver
	spec   deploy.Spec
	where  where
	labels map[string]string
	feed   feed

	running    bool // when it was looked at
	stopSignal string
	began      time.Time
	pid        atomic.Int64 // on this machine; 0 if it is not here

	ask  sync.Once   // the request to end is made once
	kill atomic.Bool // by us: then it was not for want of memory

	exited chan struct{}
	exit   deploy.Exit // set before exited is closed
}

// look asks the Engine about a container.
func (d *Driver) look(ctx context.Context, id string) (*instance, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	got, err := d.engine.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return nil, err
	}
	c := got.Container
	i := &instance{
		d: d, where: where{Container: c.ID}, labels: c.Config.Labels, running: c.State.Running,
		stopSignal: c.Config.StopSignal, began: time.Now(), exited: make(chan struct{}),
	}
	if t, err := time.Parse(time.RFC3339Nano, c.State.StartedAt); err == nil && c.State.Running {
		i.began = t
	}
	if i.stopSignal == "" {
		i.stopSignal = "SIGTERM"
	}
	i.note(c.State)
	i.feed.engine, i.feed.id, i.feed.out.Say, i.feed.out.Count = d.engine, c.ID, i.say, i.count
	return i, nil
}

// note keeps the number of the container's first process, if it is one of ours.
func (i *instance) note(s *container.State) {
	pid := 0
	if isHere(s.Pid, i.where.Container) {
		pid = s.Pid
	}
	i.pid.Store(int64(pid))
}

// begin starts the two goroutines of the instance: one reads the output, one waits
// for the end. Both end when the container has.
func (i *instance) begin() {
	over, read := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(read)
		i.feed.follow(over)
	}()
	go func() {
		defer close(i.exited)
		i.exit = i.await()
		i.pid.Store(0)
		close(over)
		<-read
		if err := i.d.remove(context.Background(), i.where.Container); err != nil {
			i.d.log.Warn("a container that has ended could not be removed", "target", i.spec.ID, "container", i.where.Container[:12], "err", err)
		}
		i.d.ports.Release(i.where.Port)
		i.d.release(i.d.name(i.labels[labelID]))
	}()
}

// await returns how the container ended. While the Engine is away, which need not
// hurt its containers (live-restore), it waits on; so it does if the container runs
// again by then. As a rule a docker restart by hand is an end like any other, and
// deploy starts a copy anew.
func (i *instance) await() deploy.Exit {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		status, err := i.waitOnce()
		if err == nil {
			exit, running, ierr := i.verdict(status)
			if ierr == nil && !running {
				return exit
			}
			err = ierr
		}
		if errdefs.IsNotFound(err) {
			return deploy.Exit{Code: -1, Unknown: true}
		}
		time.Sleep(pause)
	}
}

// waitOnce asks the Engine to answer when the container has ended.
func (i *instance) waitOnce() (status int64, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w := i.d.engine.ContainerWait(ctx, i.where.Container, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case r := <-w.Result:
		return r.StatusCode, nil
	case err := <-w.Error:
		return 0, err
	}
}

// verdict tells how a container ended that is said to have, or that it runs.
func (i *instance) verdict(status int64) (e deploy.Exit, running bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	got, err := i.d.engine.ContainerInspect(ctx, i.where.Container, client.ContainerInspectOptions{})
	if errdefs.IsNotFound(err) { // somebody removed it at once
		return ended(status), false, nil
	}
	if err != nil {
		return deploy.Exit{}, false, err
	}
	s := got.Container.State
	if s.Running || s.Restarting {
		i.note(s)
		return deploy.Exit{}, true, nil
	}
	e = ended(int64(s.ExitCode))
	if e.Signal == "SIGKILL" && got.Container.HostConfig.Memory > 0 && !s.OOMKilled && !i.kill.Load() {
		s.OOMKilled = i.hearOfMemory(ctx)
	}
	e.OutOfMemory = s.OOMKilled && s.ExitCode != 0 && !i.kill.Load()
	return e, false, nil
}

// hearOfMemory gives the Engine a moment: it hears from the kernel of an end and of
// its cause by different ways, and the end may come first.
func (i *instance) hearOfMemory(ctx context.Context) bool {
	for range 20 {
		time.Sleep(50 * time.Millisecond)
		got, err := i.d.engine.ContainerInspect(ctx, i.where.Container, client.ContainerInspectOptions{})
		if err != nil || got.Container.State.Running || got.Container.State.OOMKilled {
			return err == nil && got.Container.State.OOMKilled
		}
	}
	return false
}

// ended reads an exit code as Docker and shells write it: 128 and the signal's
// number for a signal. An app that ends with such a code by itself looks the same.
func ended(status int64) deploy.Exit {
	if status > 128 && status <= 128+64 {
		if name := unix.SignalName(syscall.Signal(status - 128)); name != "" {
			return deploy.Exit{Code: -1, Signal: name}
		}
	}
	return deploy.Exit{Code: int(status)}
}

// killWait is how long a container may take to vanish after SIGKILL.
const killWait = 10 * time.Second

// young is how long a copy may not have got ready to be told to end: the first
// process of a container does not get a signal that it has no handler for.
const young = 5 * time.Second

// Stop sends the image's stop signal, SIGTERM as a rule, and SIGKILL when grace is
// over or ctx is done.
func (i *instance) Stop(ctx context.Context, grace time.Duration) error {
	var err error
	i.ask.Do(func() {
		if err = i.signal(i.stopSignal); err == nil {
			err = i.signal("SIGCONT") // a stopped process cannot obey
		}
	})
	limit := time.NewTimer(grace)
	defer limit.Stop()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for waiting := true; waiting; {
		select {
		case <-i.exited:
			return nil
		case <-again.C:
			if time.Since(i.began) < young {
				_ = i.signal(i.stopSignal)
			}
		case <-limit.C:
			waiting = false
		case <-ctx.Done():
			waiting = false
		}
	}
	i.kill.Store(true)
	err = errors.Join(err, i.signal("SIGKILL"))
	limit.Reset(killWait)
	select {
	case <-i.exited:
		return nil
	case <-limit.C:
		return errors.Join(err, fmt.Errorf("the container %s did not end within %v of SIGKILL; look at it with docker inspect, and at the Engine's log", i.where.Container[:12], killWait))
	}
}

// signal sends a signal to the container's first process. A container that has
// ended is no error.
func (i *instance) signal(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), killWait)
	defer cancel()
	_, err := i.d.engine.ContainerKill(ctx, i.where.Container, client.ContainerKillOptions{Signal: name})
	if err == nil || errdefs.IsNotFound(err) || errdefs.IsConflict(err) { // conflict: it is not running
		return nil
	}
	return fmt.Errorf("send %s to the container %s: %w", name, i.where.Container[:12], i.d.unreachable(err))
}

func (i *instance) Handle() deploy.Handle {
	private, _ := json.Marshal(i.where) // numbers and a string: cannot fail
	return deploy.Handle{Address: i.where.address().String(), PID: int(i.pid.Load()), Container: i.d.name(i.labels[labelID]), Private: private}
}

func (i *instance) Exited() <-chan struct{} { return i.exited }

func (i *instance) Exit() deploy.Exit {
	select {
	case <-i.exited:
		return i.exit
	default:
		return deploy.Exit{}
	}
}

func (i *instance) LastLines() []string { return i.feed.out.Last() }

func (i *instance) count(level slog.Level) {
	if i.d.lines != nil {
		i.d.lines(i.spec.Color, level)
	}
}

// say puts a line of the app's into the log. skipped counts the lines before it
// that were too many to be logged; docker logs has them as long as the copy runs.
func (i *instance) say(line string, level slog.Level, skipped int) {
	if skipped > 0 {
		i.d.log.Warn("app output was too much to be logged", "color", i.spec.Color, "target", i.spec.ID, "lines", skipped, "container", i.where.Container[:12])
	}
	i.d.log.Log(context.Background(), level, "app", "color", i.spec.Color, "target", i.spec.ID, "line", line)
}
