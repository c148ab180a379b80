// Package loop serves many sockets with few goroutines: sockets that it adopts leave
// the runtime's poller for an epoll instance of the package's own, whose workers run
// a task when its socket has something to say. An idle connection costs no goroutine
// and no buffer, and a busy one neither a wake-up of a goroutine nor a read in vain.
//
// The epoll instance is watched by another one, which is registered with the runtime's
// poller, so that no thread is blocked in it: timers, the garbage collector and ordinary
// goroutines live beside the loops as usual. Only while events come one by one, and the
// process has processors to spare, a worker waits in the kernel itself, two milliseconds at
// a time. A connection may change sides at any time: [Conn] is a net.Conn for a goroutine,
// and has calls that never wait for a task.
//
// Only the pooler imports it. Where there is no epoll, nothing is adopted.
package loop

import (
	"net"
	"time"
)

// ErrWait means that a call would have to wait: the connection's task runs again when
// it need not. To crypto/tls it is a passing error, after which it goes on.
var ErrWait net.Error = wait{}

type wait struct{}

func (wait) Error() string   { return "would block" }
func (wait) Timeout() bool   { return false }
func (wait) Temporary() bool { return true }

// batch is how many events a worker takes at once.
const batch = 128

// ScratchSize is that of a worker's buffer, in bytes.
const ScratchSize = 64 << 10

// A Task is what is run when a connection that it owns is ready, or when it is
// posted.
type Task struct{ Stepper }

// A Stepper does what a task is for. Several workers may call it at once: it has to lock
// what it touches. It must not wait for anything.
type Stepper interface{ Step(*Worker) }

// A Worker runs tasks. It belongs to the call of the task.
type Worker struct {
	Scratch []byte    // ScratchSize bytes, the task's until it returns
	Now     time.Time // when there was seen to be something to do
	Lent    bool      // the task's mark that it uses Scratch
	Kept    any       // what a task leaves for the next one, of any connection
	events  events
	ready   [batch]*Conn
	spare   []*Task
	later   []*Task // run when all that is ready has been looked at
	past    []*Task // empty; the memory of the last later
	writes  []write // to be done when all that is ready has been looked at
	written []write // empty; the memory of the last writes
	wrote   *write  // the one that the task is run for; or nil
	woke    bool    // a goroutine was told that it can go on
}

// Later runs the task again when all that is ready now has been served.
func (w *Worker) Later(t *Task) { w.later = append(w.later, t) }

// A write is one that was put off.
type write struct {
	task *Task
	conn *Conn
	p    []byte
	n    int
	err  error
}

// Write writes p when all that is ready now has been served, and then runs the task, which asks for
// [Worker.Wrote]. Until then p must stay as it is. A task that is run for something else meanwhile,
// maybe by another worker, sees that by [Worker.Writes].
func (w *Worker) Write(t *Task, c *Conn, p []byte) {
	w.writes = append(w.writes, write{task: t, conn: c, p: p})
}

// Writes reports whether the task is run for a write.
func (w *Worker) Writes() bool { return w.wrote != nil }

// Wrote returns what became of the write that the task is run for.
func (w *Worker) Wrote() (int, error) { return w.wrote.n, w.wrote.err }

// flush does the writes that were put off, in a row, and then runs their tasks.
func (w *Worker) flush() {
	writes := w.writes
	w.writes = w.written[:0]
	for i := range writes {
		o := &writes[i]
		o.n, o.err = o.conn.TryWrite(o.p)
	}
	for i := range writes {
		w.wrote = &writes[i]
		w.wrote.task.Step(w)
	}
	w.wrote = nil
	clear(writes)
	w.written = writes
}

// Try is a Conn whose Read does not wait: it returns ErrWait.
type Try Conn

// Read is TryRead.
func (t *Try) Read(p []byte) (int, error) { return (*Conn)(t).TryRead(p) }

// Waits reports whether a Try call's error means that it would have to wait.
func Waits(err error) bool {
	_, ok := err.(wait) //nolint:errorlint // nobody wraps it, and it is asked for each read
	return ok
}
