package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mainstay.dev/mainstay/internal/deploy"
)

// An instance is one process group, started or adopted.
type instance struct {
	d       *Driver
	spec    deploy.Spec
	who     identity
	cmd     *exec.Cmd // nil: adopted
	pidfd   int       // of an adopted process
	tail    *tail
	logPath string

	stopping atomic.Bool // told to end: what it started may take its time too
	killing  atomic.Bool

	signals sync.Mutex // held while the group is signalled or given up
	gone    bool       // the group's number may be somebody else's

	exited chan struct{}
	exit   deploy.Exit // set before exited is closed
}

// begin starts the two goroutines of the instance: one reads the output, one waits
// for the end. Both end when the group has.
func (i *instance) begin() {
	i.tail.out.Say, i.tail.out.Count = i.say, i.count
	over, read := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(read)
		i.tail.run(over)
	}()
	go func() {
		i.awaitLeader()
		i.awaitGroup()
		i.exit = i.reap()
		close(over)
		<-read
		i.d.release(i.who.Port, i.logPath)
		close(i.exited)
	}()
}

// awaitLeader returns when the first process of the group has ended. Our own child
// stays unreaped, so that its number, which is the group's, stays taken.
func (i *instance) awaitLeader() {
	for {
		var err error
		if i.cmd != nil {
			err = unix.Waitid(unix.P_PID, i.who.PID, nil, unix.WEXITED|unix.WNOWAIT, nil)
		} else {
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(i.pidfd), Events: unix.POLLIN}}, -1)
		}
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// awaitGroup returns when no process of the group is left. After a crash the rest
// of the group is killed at once: without its first process it is no copy of the
// app. In a stop the rest has the same grace as the first.
func (i *instance) awaitGroup() {
	for pause := 5 * time.Millisecond; len(members(i.who.PID)) > 0; pause = min(2*pause, 100*time.Millisecond) {
		if !i.stopping.Load() || i.killing.Load() {
			_ = i.signal(syscall.SIGKILL)
		}
		time.Sleep(pause)
	}
}

// reap takes the exit status, where it is ours to take.
func (i *instance) reap() deploy.Exit {
	i.signals.Lock()
	defer i.signals.Unlock()
	i.gone = true
	if i.cmd == nil {
		_ = unix.Close(i.pidfd)
		return deploy.Exit{Code: -1, Unknown: true}
	}
	_ = i.cmd.Wait() // says what the state says
	ws, ok := i.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return deploy.Exit{Code: -1, Signal: unix.SignalName(ws.Signal())}
	}
	return deploy.Exit{Code: i.cmd.ProcessState.ExitCode()}
}

// signal signals every process of the group. A group that has ended is no error.
func (i *instance) signal(sig syscall.Signal) error {
	i.signals.Lock()
	defer i.signals.Unlock()
	if i.gone {
		return nil
	}
	if i.cmd == nil { // somebody else reaps it, so its number may have been given away
		if st, err := readStat(i.who.PID); err == nil && !i.who.is(st) {
			return nil
		}
	}
	if err := syscall.Kill(-i.who.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to process group %d: %w", unix.SignalName(sig), i.who.PID, err)
	}
	return nil
}

// killWait is how long a group may take to vanish after SIGKILL; longer means
// that the kernel holds it (a dead disk, a dead NFS server).
const killWait = 5 * time.Second

// Stop sends SIGTERM to the group, and SIGKILL when grace is over or ctx is done.
func (i *instance) Stop(ctx context.Context, grace time.Duration) error {
	i.stopping.Store(true)
	err := i.signal(syscall.SIGTERM)
	_ = i.signal(syscall.SIGCONT) // a stopped process cannot obey
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-i.exited:
		return nil
	case <-t.C:
	case <-ctx.Done():
	}
	i.killing.Store(true)
	err = errors.Join(err, i.signal(syscall.SIGKILL))
	t.Reset(killWait)
	select {
	case <-i.exited:
		return nil
	case <-t.C:
		return errors.Join(err, fmt.Errorf("processes %v did not end within %v of SIGKILL; the kernel holds them (look at their state in /proc/<pid>/status)", members(i.who.PID), killWait))
	}
}

func (i *instance) Handle() deploy.Handle {
	private, _ := json.Marshal(i.who) // three numbers and a string: cannot fail
	return deploy.Handle{
		Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(i.who.Port)).String(),
		PID:     i.who.PID, Log: i.logPath, Private: private,
	}
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

func (i *instance) Listening() ([]netip.AddrPort, error) { return listening(i.who.PID) }

func (i *instance) LastLines() []string { return i.tail.out.Last() }

func (i *instance) count(level slog.Level) {
	if i.d.lines != nil {
		i.d.lines(i.spec.Color, level)
	}
}

// say puts a line of the app's into the log. skipped counts the lines before it
// that were too many to be logged; they are in the file.
func (i *instance) say(line string, level slog.Level, skipped int) {
	if skipped > 0 {
		i.d.log.Warn("app output was too much to be logged", "color", i.spec.Color, "target", i.spec.ID, "lines", skipped, "file", i.logPath)
	}
	i.d.log.Log(context.Background(), level, "app", "color", i.spec.Color, "target", i.spec.ID, "line", line)
}
