//go:build linux

package loop

import (
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The thread that looked into the runtime's poller for all goroutines may be that of a worker
// that attends. Another one has to look there then, or a goroutine learns of what has come for
// it when the worker sleeps again.
func TestGoroutinesAreNotLateBesideAnAttendingWorker(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 {
		if os.Getenv("CI") == "true" {
			t.Fatal("one processor alone: nothing attends, and CI=true allows no skip")
		}
		t.Skip("nothing attends with one processor")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	to := int(w.Fd())
	g := start(t)
	ours, theirs := pair(t, g, "tcp", "127.0.0.1:0")
	other := g.Adopt(theirs)
	if other == nil {
		t.Fatal("not adopted")
	}
	defer other.Close()
	const tells, ends = 10, 50
	var exchanges atomic.Int64
	var attended atomic.Bool // or the rest of this would say nothing
	for _, c := range []*Conn{ours, other} {
		c.Own(taskOf(func(w *Worker) {
			n, err := c.TryRead(w.Scratch)
			if err != nil {
				return
			}
			if !g.watch.rings { // the bell is silent only then
				attended.Store(true)
			}
			pause := unix.Timespec{Nsec: 50_000} // the processor is free meanwhile
			_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
			switch exchanges.Add(1) {
			case tells:
				_, _ = unix.Write(to, []byte("x"))
			case ends:
				return
			}
			_, _ = c.TryWrite(w.Scratch[:n])
		}))
	}
	// late counts of fifty times those when the goroutine learned of it at the end only.
	late := func() (n int) {
		for range 50 {
			time.Sleep(10 * time.Millisecond) // so that the worker sleeps
			exchanges.Store(0)
			if _, err := ours.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if exchanges.Load() == ends {
				n++
			}
		}
		return n
	}
	var times []int // three: on a busy machine the other thread may really be late
	for range 3 {
		times = append(times, late())
		if times[len(times)-1] < 4 {
			if !attended.Load() {
				t.Error("the worker has not attended")
			}
			return
		}
	}
	t.Errorf("goroutines learn too late of what has come for them, %v times of 50", times)
}

func TestAttendingEndsWhenNothingComesAndIsTriedLessOften(t *testing.T) {
	g, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer g.watch.close()
	defer g.watch.end()
	w := &Worker{Now: time.Now()}
	for _, skips := range []int{1, 3, 7, 15, 31, 63, 127, 255, 255} {
		w.Now = time.Now()
		g.attend(w) // only its clock can end that
		if g.watch.skips != skips {
			t.Fatalf("%d are skipped, want %d", g.watch.skips, skips)
		}
	}
	g.watch.looked = w.Now // the processor's time is not looked at
	tries := 0
	for ; !g.watch.worthIt(w); tries++ {
	}
	if tries != 255 {
		t.Errorf("it was skipped %d times", tries)
	}
}

func TestAProcessThatNeedsItsProcessorsDoesNotAttend(t *testing.T) {
	var h watch
	w := &Worker{Now: time.Now()}
	h.spent = -time.Hour // so that an hour of processor time was used since then
	h.looked = w.Now.Add(-2 * budget)
	if h.worthIt(w) {
		t.Error("it attends though others need the processors")
	}
	h.spent = time.Hour
	h.looked = w.Now.Add(-2 * budget)
	if others := runtime.GOMAXPROCS(0) > 1; h.worthIt(w) != others {
		t.Errorf("it attends: %v, with idle processors beside it: %v", !others, others)
	}
}
