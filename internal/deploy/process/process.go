// Package process runs copies of the app as processes of this machine: each in a
// process group of its own, on a free port that it is given as PORT, with its
// output going to a file.
//
// A copy outlives a kill -9 of Mainstay: nothing ties its life to the one who
// started it, its output goes to a file and not to a pipe, and by process id,
// start time and boot id the next Mainstay finds it again ([Driver.Adopt]). What
// leaves the process group (setsid, a daemon that forks twice) is out of reach.
//
// The package needs Linux, 5.10 or newer. Only app imports it.
package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/deploy/internal/sockets"
)

// Options says where and how copies are run.
type Options struct {
	// Dir is the state folder; the output of copies is below it, as
	// logs/<id>.log.
	Dir string
	// Log gets every line that a copy writes, as message "app". Required.
	Log *slog.Logger
	// MaxLog bounds the file of one copy, in bytes; 0: 16 MiB. When a file has
	// grown to it, its older three quarters are dropped. The files of the
	// newest ten copies are kept.
	MaxLog int64
	// Lines, if it is not nil, gets the color and the level of every line.
	Lines func(color string, level slog.Level)
}

const defaultMaxLog = 16 << 20

// Driver is a deploy.Driver. Its methods may be called from several goroutines at
// once.
type Driver struct {
	logs   string
	log    *slog.Logger
	maxLog int64
	boot   string

	lines func(color string, level slog.Level)
	ports sockets.Ports // of copies that live or are being started

	mu    sync.Mutex
	files map[string]bool // their output
}

var _ deploy.Driver = (*Driver)(nil)

// New checks the machine and makes the folder for the output.
func New(o Options) (*Driver, error) {
	if o.MaxLog == 0 {
		o.MaxLog = defaultMaxLog
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(filepath.Join(o.Dir, "logs"))
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("make the folder for the app's output: %w", err)
	}
	return &Driver{logs: dir, log: o.Log, maxLog: o.MaxLog, boot: boot, lines: o.Lines, files: map[string]bool{}}, nil
}

// identity is what tells a process from any other, ever: process ids are reused,
// but not with the same start time in the same boot.
type identity struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since boot, as /proc/<pid>/stat has it
	Boot  string `json:"boot"`
	Port  int    `json:"port"`
}

// Start starts a copy. The command is found in Mainstay's own PATH; standard input
// is empty, and of Mainstay's open files the copy gets none.
func (d *Driver) Start(ctx context.Context, s deploy.Spec) (deploy.Instance, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	port, err := d.ports.Claim()
	if err != nil {
		return nil, err
	}
	logPath := filepath.Join(d.logs, s.ID+".log")
	d.hold(logPath)
	i, err := d.launch(s, port, logPath)
	if err != nil {
		d.release(port, logPath)
		return nil, fmt.Errorf("start %s (%s): %w", s.ID, s.Command, err)
	}
	return i, nil
}

func (d *Driver) launch(s deploy.Spec, port int, logPath string) (*instance, error) {
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the copy has its own
	tail, err := openTail(logPath, d.maxLog)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(s.Command[0], s.Command[1:]...)
	cmd.Dir = s.Dir
	cmd.Env = append(slices.Clip(s.Env), "PORT="+strconv.Itoa(port))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		tail.close()
		return nil, mend(err, s)
	}
	st, err := readStat(cmd.Process.Pid)
	if err != nil { // it is our child and not reaped yet, so this is a machine without /proc
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		tail.close()
		return nil, err
	}
	i := &instance{
		d: d, spec: s, cmd: cmd, tail: tail, logPath: logPath, exited: make(chan struct{}),
		who: identity{PID: cmd.Process.Pid, Start: st.start, Boot: d.boot, Port: port},
	}
	i.begin()
	return i, nil
}

// mend says what to do about a command that could not be started.
func mend(err error, s deploy.Spec) error {
	if info, serr := os.Stat(s.Dir); s.Dir != "" && (serr != nil || !info.IsDir()) {
		return fmt.Errorf("the folder %s does not exist; set app.dir, or make the folder", s.Dir)
	}
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("there is no program %q in PATH; install it, or give its whole path", s.Command[0])
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no program %s; build it, or mend the path", s.Command[0])
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s may not be run; try chmod +x", s.Command[0])
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("%s is neither a program for this machine nor a script with a first line like #!/bin/sh", s.Command[0])
	}
	return err
}

// Adopt takes back the process that h names, if it still is that process.
func (d *Driver) Adopt(_ context.Context, s deploy.Spec, h deploy.Handle) (deploy.Instance, error) {
	var who identity
	if err := json.Unmarshal(h.Private, &who); err != nil || who.PID <= 1 {
		return nil, fmt.Errorf("the handle of %s names no process", s.ID)
	}
	if who.Boot != d.boot {
		return nil, deploy.ErrGone
	}
	fd, err := unix.PidfdOpen(who.PID, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINVAL) { // EINVAL: a thread has the number now
		return nil, fmt.Errorf("watch process %d (Linux 5.10 or newer is needed): %w", who.PID, err)
	}
	// The descriptor first, the identity second: what it refers to cannot change.
	st, serr := readStat(who.PID)
	if err != nil || serr != nil || !who.is(st) || st.ended() {
		if err == nil {
			_ = unix.Close(fd)
		}
		who.clearOrphans()
		return nil, deploy.ErrGone
	}
	tail, err := openTail(h.Log, d.maxLog)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("read the output of %s: %w", s.ID, err)
	}
	tail.skip()
	d.ports.Take(who.Port)
	d.hold(h.Log)
	i := &instance{d: d, spec: s, pidfd: fd, tail: tail, logPath: h.Log, who: who, exited: make(chan struct{})}
	i.begin()
	return i, nil
}

func (d *Driver) hold(logPath string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[logPath] = true
	if err := pruneLogs(d.logs, keepLogs, d.files); err != nil {
		d.log.Warn("old output of the app could not be removed", "err", err)
	}
}

func (d *Driver) release(port int, logPath string) {
	d.ports.Release(port)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, logPath)
}
