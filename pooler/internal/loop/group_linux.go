package loop

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Group is workers over one epoll instance. One worker serves as long as it is
// enough; a batch of events that is full calls another.
type Group struct {
	ep    int // the epoll instance
	watch watch
	conns table
	turns atomic.Int32  // connections that were adopted
	help  chan struct{} // a worker is called
	ended atomic.Bool

	awake   atomic.Int32 // workers that will look at the queue before they rest
	waiting atomic.Int32 // tasks in the queue
	mu      sync.Mutex
	queue   []*Task
	aside   sync.WaitGroup // workers that were called for the queue alone
}

type events [batch]unix.EpollEvent

// New returns a group that serves when it is [Group.Run].
func New() (*Group, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create an epoll instance: %w", err)
	}
	g := &Group{ep: ep, help: make(chan struct{}, 1)}
	if err := g.watch.open(ep); err != nil {
		_ = unix.Close(ep) // it is the error above that matters
		return nil, err
	}
	return g, nil
}

// Run serves until ctx ends. Connections must not be used afterwards, but for their
// Close.
func (g *Group) Run(ctx context.Context) {
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) - 1 {
		workers.Go(func() { g.assist(ctx) })
	}
	stop := context.AfterFunc(ctx, func() {
		g.ended.Store(true)
		g.watch.end() // wakes the worker that leads
	})
	defer stop()
	g.lead(&Worker{Scratch: make([]byte, ScratchSize)})
	workers.Wait()
	g.aside.Wait()
	g.watch.close()
	_ = unix.Close(g.ep) // there is nothing to be done about it
}

// assist is the life of a worker that serves when it is called.
func (g *Group) assist(ctx context.Context) {
	w := &Worker{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.help:
		}
		if w.Scratch == nil {
			w.Scratch = make([]byte, ScratchSize)
		}
		g.awake.Add(1)
		for n := g.poll(w); n > 0; n = g.poll(w) {
			g.serve(w, n)
		}
		g.rest(w)
	}
}

// rest lets the worker sleep, when the queue is empty. Who puts something there later
// sees that it sleeps.
func (g *Group) rest(w *Worker) {
	for g.awake.Add(-1); g.waiting.Load() > 0; g.awake.Add(-1) {
		g.awake.Add(1)
		g.drain(w)
	}
}

// poll takes events without waiting. The calls of the kernel here and in Conn return
// at once, so the scheduler need not know of them.
func (g *Group) poll(w *Worker) int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(g.ep), uintptr(unsafe.Pointer(&w.events[0])), batch, 0, 0, 0)
	w.Now = time.Now()
	if errno != 0 {
		return 0
	}
	return int(n)
}

// serve runs the tasks of n events. All events are noted before the first is served:
// what is claimed for it may be what another one tells the end of. An event may be of a
// connection that has been closed since, whose descriptor another one has now: that must
// not hear of its predecessor's end.
func (g *Group) serve(w *Worker, n int) {
	if n == batch {
		select {
		case g.help <- struct{}{}:
		default:
		}
	}
	for i := range n {
		e := &w.events[i]
		if c := g.conns.at(int(e.Fd)); c != nil && c.turn == e.Pad {
			w.ready[i] = c
			c.note(e.Events)
		}
	}
	for i := range n {
		if c := w.ready[i]; c != nil {
			w.ready[i] = nil
			c.ready(w, w.events[i].Events)
			if n <= few { // nobody's answer waits for what is done for others
				g.drain(w)
			}
		}
	}
	g.drain(w)
	if w.woke {
		w.woke = false
		runtime.Gosched() // goroutines that it woke would wait for it
	}
}

// Post runs a task soon.
func (g *Group) Post(t *Task) {
	g.mu.Lock()
	g.queue = append(g.queue, t)
	g.waiting.Add(1)
	g.mu.Unlock()
	if g.awake.Load() == 0 {
		g.aside.Go(func() {
			w := workers.Get().(*Worker)
			defer workers.Put(w)
			w.Now = time.Now()
			g.drain(w)
		})
	}
}

// workers are for tasks that are posted while all others rest.
var workers = sync.Pool{New: func() any { return &Worker{Scratch: make([]byte, ScratchSize)} }}

// drain runs the tasks of the queue, and those that were put off.
func (g *Group) drain(w *Worker) {
	for {
		g.clear(w)
		w.flush()
		if len(w.later) == 0 && len(w.writes) == 0 {
			return
		}
		tasks := w.later
		w.later = w.past[:0]
		for i, t := range tasks {
			tasks[i] = nil
			t.Step(w)
		}
		w.past = tasks
	}
}

// clear runs the tasks of the queue.
func (g *Group) clear(w *Worker) {
	for g.waiting.Load() > 0 {
		g.mu.Lock()
		tasks := g.queue
		g.queue = w.spare[:0]
		g.waiting.Add(-int32(len(tasks)))
		g.mu.Unlock()
		for i, t := range tasks {
			tasks[i] = nil
			t.Step(w)
		}
		w.spare = tasks
	}
}

// A table finds connections by their file descriptors, without a lock.
type table struct {
	mu    sync.Mutex
	parts [1 << 10]atomic.Pointer[[1 << 10]atomic.Pointer[Conn]]
}

// most is how many descriptors a table has room for.
const most = 1 << 20

func (t *table) at(fd int) *Conn {
	part := t.parts[fd>>10].Load()
	if part == nil {
		return nil
	}
	return part[fd&1023].Load()
}

func (t *table) set(fd int, c *Conn) {
	part := t.parts[fd>>10].Load()
	if part == nil {
		t.mu.Lock()
		if part = t.parts[fd>>10].Load(); part == nil {
			part = new([1 << 10]atomic.Pointer[Conn])
			t.parts[fd>>10].Store(part)
		}
		t.mu.Unlock()
	}
	part[fd&1023].Store(c)
}
