package loop

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A watch is how a group's first worker waits for events.
//
// It sleeps in the runtime's poller, which costs nothing while it lasts, and much when it
// ends: the scheduler finds a processor (a P, not the machine's), a thread and the
// goroutine, and looks elsewhere for work before the worker may sleep again. So, while
// events come often and few at a time, it attends: it stays on its processor and waits in the
// kernel itself. Nobody else can have that processor meanwhile, and a stop of the world has to
// wait for it: so there is a clock that ends each such wait soon.
type watch struct {
	bell  *os.File // an epoll instance that watches the group's; registered with the runtime's poller
	raw   syscall.RawConn
	clock int     // a timer, watched by the group's epoll instance
	rings bool    // the bell tells of events
	vain  int     // how often in a row attending was not worth it
	skips int     // how often it is not tried
	usual float32 // events that have come while the worker slept, as they lately were

	looked time.Time     // when the process's processor time was looked at
	spent  time.Duration // what that was
	busy   bool          // others may need the processor
}

// Lengths of waits.
const (
	tick   = 2 * time.Millisecond   // of the clock
	stint  = 5 * time.Millisecond   // a worker attends for little longer at most: after 10 ms it would be sent a signal
	budget = 100 * time.Millisecond // how often the process's processor time is looked at
)

// Events at a time: few are dealt with one by one; many, or half as many as a rule, make attending not worth it, since each
// wake-up serves so many then.
const few, many = 4, 16

// A stint was worth it if it served at least so many events, and so many for each connection that was
// made meanwhile: goroutines make them, on another processor, and to wait for that costs more.
const enough, perConn = 32, 16

// open prepares to watch the epoll instance ep.
func (h *watch) open(ep int) error {
	bell, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("create an epoll instance: %w", err)
	}
	if err := unix.SetNonblock(bell, true); err != nil { // else the runtime does not poll it
		_ = unix.Close(bell) // it is the error above that matters
		return fmt.Errorf("create an epoll instance: %w", err)
	}
	h.bell = os.NewFile(uintptr(bell), "epoll")
	if h.raw, err = h.bell.SyscallConn(); err == nil {
		h.clock, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	}
	if err != nil {
		_ = h.bell.Close() // it is the error above that matters
		return fmt.Errorf("watch an epoll instance: %w", err)
	}
	err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, h.clock, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(h.clock)})
	if err == nil {
		err = unix.EpollCtl(bell, unix.EPOLL_CTL_ADD, ep, &unix.EpollEvent{})
	}
	if err != nil {
		_ = h.bell.Close() // it is the error above that matters
		h.close()
		return fmt.Errorf("watch an epoll instance: %w", err)
	}
	return nil
}

// end wakes the worker if it sleeps.
func (h *watch) end() { _ = h.bell.Close() }

// close gives back what end does not.
func (h *watch) close() { _ = unix.Close(h.clock) }

// lead is the life of the worker that waits for events, until the group ends. Behind few events
// it asks for no more: it is called again when there has been something new, also while it served.
func (g *Group) lead(w *Worker) {
	h := &g.watch
	wakes := func(bell uintptr) bool {
		h.ring(int(bell), g.ep, true) // it does not tell of what came before: that is looked for below
		g.awake.Add(1)
		served := 0
		for n := batch; n > few; {
			n = g.poll(w)
			g.serve(w, n)
			served += n
		}
		g.rest(w)
		h.usual += (float32(served) - h.usual) / 8
		if served == 0 || h.usual > many/2 || !h.worthIt(w) {
			return g.ended.Load()
		}
		h.ring(int(bell), g.ep, false) // each event would call a thread that has nothing to do
		return true
	}
	for h.raw.Read(wakes) == nil && !g.ended.Load() { // it fails when the group ends
		g.attend(w)
	}
}

// ring has the bell tell of events of ep, or be silent. It goes on watching, since the kernel
// looks at every connection when that begins.
func (h *watch) ring(bell, ep int, tells bool) {
	if tells == h.rings {
		return
	}
	h.rings = tells
	e := unix.EpollEvent{}
	if tells {
		e.Events = unix.EPOLLIN
	}
	_ = unix.EpollCtl(bell, unix.EPOLL_CTL_MOD, ep, &e) // cannot fail: it is watched
}

// attend serves, and waits in the kernel for more, until a stint is over, nothing comes or too
// much.
func (g *Group) attend(w *Worker) {
	h := &g.watch
	// The thread of this worker may be the one that waited in the runtime's poller for all
	// goroutines of the process, and nobody does that now. A goroutine that is begun calls a
	// thread to an idle processor, which will do it when that goroutine is over.
	go func() {}()
	h.run(tick)
	served, n, quiet, turns := 0, 0, false, g.turns.Load()
	for began := w.Now; n <= many && w.Now.Sub(began) < stint; {
		n = g.wait(w)
		if n == 1 && int(w.events[0].Fd) == h.clock {
			if quiet {
				break
			}
			quiet = true
			continue
		}
		g.awake.Add(1)
		g.serve(w, n)
		g.rest(w)
		served, quiet = served+n, false
	}
	h.run(0)
	made := int(g.turns.Load() - turns)
	if h.vain++; served >= enough && served >= made*perConn && n <= many {
		h.vain = 0
	}
	h.skips = 1<<min(h.vain, 8) - 1
}

// wait takes events, and waits until there are some. The scheduler is not told: it would take the
// processor away every 10 ms.
func (g *Group) wait(w *Worker) int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(g.ep), uintptr(unsafe.Pointer(&w.events[0])), batch, ^uintptr(0), 0, 0)
	w.Now = time.Now()
	if errno != 0 {
		return 0
	}
	return int(n)
}

// run has the clock tick from now on; 0: no more.
func (h *watch) run(every time.Duration) {
	at := unix.NsecToTimespec(int64(every))
	_ = unix.TimerfdSettime(h.clock, 0, &unix.ItimerSpec{Interval: at, Value: at}, nil) // cannot fail
}

// worthIt reports whether the worker is to attend: it has not been in vain lately, and the
// process leaves half of its processors idle.
func (h *watch) worthIt(w *Worker) bool {
	if h.skips--; h.skips >= 0 {
		return false
	}
	h.skips = 0
	if past := w.Now.Sub(h.looked); past > budget {
		var t unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) // cannot fail
		spent := time.Duration(t.Nano())
		h.busy = runtime.GOMAXPROCS(0) < 2 || (spent-h.spent)*2 > past*time.Duration(runtime.GOMAXPROCS(0))
		h.looked, h.spent = w.Now, spent
	}
	return !h.busy
}
