package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A program is a process that is kept running: one that ends by itself is started
// again a second later, as a container runtime or systemd would. What it writes
// goes to a file.
type program struct {
	name  string
	path  string
	args  []string
	env   []string
	log   string        // path of the file that it writes to
	grace time.Duration // from SIGTERM to SIGKILL

	mu      sync.Mutex // over what follows
	running *process
	wanted  bool
	crashes int
	keeper  sync.WaitGroup
	halt    chan struct{} // closed by stop: no more restarts
}

// A process is one life of a program.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended; valid after done
}

// A crash is started over after this pause.
const restartPause = time.Second

// start starts the program and keeps it running until stop.
func (p *program) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wanted {
		return fmt.Errorf("start %s: it runs already", p.name)
	}
	life, err := p.launch()
	if err != nil {
		return err
	}
	p.running, p.wanted, p.halt = life, true, make(chan struct{})
	p.keeper.Go(func() { p.keep(life, p.halt) })
	return nil
}

// launch makes a process of the program, in a group of its own: a Ctrl-C in the
// terminal reaches the demo alone, which then stops all in order.
func (p *program) launch() (*process, error) {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	cmd := exec.Command(p.path, p.args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = p.env, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	endWithUs(cmd.SysProcAttr)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	life := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		life.err = cmd.Wait()
		close(life.done)
	}()
	return life, nil
}

// keep starts the program again whenever it ends, until halt is closed.
func (p *program) keep(life *process, halt <-chan struct{}) {
	for {
		select {
		case <-halt:
			return
		case <-life.done:
		}
		select {
		case <-halt:
			return
		case <-time.After(restartPause):
		}
		next, ok := p.relaunch()
		if !ok {
			return
		}
		if next != nil {
			life = next
		}
	}
}

// relaunch is one attempt to start over; nil means that it must be tried again,
// false that the program is no longer wanted.
func (p *program) relaunch() (*process, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.wanted {
		return nil, false
	}
	p.crashes++
	life, err := p.launch()
	if err != nil {
		return nil, true
	}
	p.running = life
	return life, true
}

// stop ends the program: SIGTERM, a grace, SIGKILL to all of its group. It returns
// when the process is gone, and may be called when nothing runs.
func (p *program) stop() {
	p.mu.Lock()
	if !p.wanted {
		p.mu.Unlock()
		return
	}
	p.wanted = false
	close(p.halt)
	life := p.running
	p.mu.Unlock()
	p.keeper.Wait()

	// Errors mean that it has ended already.
	_ = life.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-life.done:
	case <-time.After(p.grace):
	}
	_ = syscall.Kill(-life.cmd.Process.Pid, syscall.SIGKILL)
	<-life.done
}

// ended is closed when the present life of the program is over.
func (p *program) ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running.done
}

// lives is how often the program had to be started again.
func (p *program) lives() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.crashes
}

// lastWords is the end of what the program wrote, for an error message.
func (p *program) lastWords() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return tail(text)
}

// tail is the last few lines of text.
func tail(text []byte) string {
	text = bytes.TrimSpace(text[max(0, len(text)-4000):])
	if len(text) == 0 {
		return "it wrote nothing"
	}
	lines := strings.Split(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}

// call runs a program to its end and returns what it wrote to standard output. An
// error says the program's own last words.
func call(ctx context.Context, env []string, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	endWithUs(cmd.SysProcAttr)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		said := tail(append(out.Bytes(), errs.Bytes()...))
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), errors.Join(ctx.Err(), err), said)
	}
	return out.String(), nil
}
