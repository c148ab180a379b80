//go:build linux

package loop

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"
)

// start runs a group until the test ends.
func start(t testing.TB) *Group {
	t.Helper()
	g, err := New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return g
}

// pair is a connection whose first end the group has, and the other end.
func pair(t testing.TB, g *Group, network, address string) (ours *Conn, theirs net.Conn) {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if theirs, err = net.Dial(network, ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if ours = g.Adopt(accepted); ours == nil {
		t.Fatal("not adopted")
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// inTime fails the test if what it waits for never comes.
func inTime[T any](t testing.TB, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(20 * time.Second):
		t.Fatal("waited in vain: " + what)
	}
	return v
}

func TestForAGoroutineItIsAnOrdinaryConnection(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": t.TempDir() + "/s"} {
		t.Run(network, func(t *testing.T) {
			g := start(t)
			nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				ln, err := net.Listen(network, address)
				if err != nil {
					return nil, nil, nil, err
				}
				defer ln.Close()
				dialed, err := net.Dial(network, ln.Addr().String())
				if err != nil {
					return nil, nil, nil, err
				}
				accepted, err := ln.Accept()
				if err != nil {
					return nil, nil, nil, err
				}
				a, b := g.Adopt(dialed), g.Adopt(accepted)
				return a, b, func() { a.Close(); b.Close() }, nil
			})
		})
	}
}

func TestATaskRunsForEverythingThatComes(t *testing.T) {
	g := start(t)
	ours, theirs := pair(t, g, "tcp", "127.0.0.1:0")
	var mu sync.Mutex
	got := make(chan string, 100)
	ours.Own(taskOf(func(w *Worker) {
		mu.Lock()
		defer mu.Unlock()
		for {
			n, err := ours.TryRead(w.Scratch)
			switch {
			case err == nil:
				got <- string(w.Scratch[:n])
				continue
			case !Waits(err):
				got <- err.Error()
			}
			return
		}
	}))
	for _, text := range []string{"one", "two", "three"} {
		if _, err := io.WriteString(theirs, text); err != nil {
			t.Fatal(err)
		}
		if s := inTime(t, text, got); s != text {
			t.Fatalf("got %q, want %q", s, text)
		}
	}
	if !ours.Quiet() || ours.HungUp() {
		t.Errorf("quiet %v, hung up %v", ours.Quiet(), ours.HungUp())
	}
	theirs.Close()
	if s := inTime(t, "the end", got); s != "EOF" {
		t.Fatalf("got %q", s)
	}
	if !ours.HungUp() {
		t.Error("the end is not known")
	}
}

func TestWhatIsPostedRunsThoughAllRest(t *testing.T) {
	g := start(t)
	var ran atomic.Int32
	done := make(chan struct{}, 1)
	task := &Task{}
	task.Stepper = stepFunc(func(w *Worker) {
		if len(w.Scratch) != ScratchSize {
			t.Error("no scratch")
		}
		if ran.Add(1) < 1000 {
			g.Post(task)
			return
		}
		done <- struct{}{}
	})
	g.Post(task)
	inTime(t, "a thousand turns", done)
	for range 100 {
		ran.Store(999)
		g.Post(task)
		inTime(t, "one more", done)
	}
}

// idle is a group that nobody serves but the test.
func idle(t testing.TB) *Group {
	g, err := New()
	if err != nil {
		t.Fatal(err)
	}
	g.awake.Add(1) // or others would serve what is posted
	t.Cleanup(func() { g.watch.end(); g.watch.close(); _ = unix.Close(g.ep) })
	return g
}

func TestWhatIsPutOffRunsBehindAllThatIsPosted(t *testing.T) {
	g, w := idle(t), &Worker{}
	var order []string
	note := func(what string) { order = append(order, what) }
	last := taskOf(func(*Worker) { note("last") })
	later := taskOf(func(w *Worker) { note("later"); w.Later(last) })
	g.Post(taskOf(func(w *Worker) {
		w.Later(later)
		note("first")
		for range 3 {
			g.Post(taskOf(func(*Worker) { note("posted") }))
		}
	}))
	g.drain(w)
	if want := []string{"first", "posted", "posted", "posted", "later", "last"}; !slices.Equal(order, want) {
		t.Errorf("%v, want %v", order, want)
	}
}

func TestWhatIsPostedWhileAllRestKnowsTheTime(t *testing.T) {
	g := start(t)
	now := make(chan time.Time, 1)
	g.Post(taskOf(func(w *Worker) { now <- w.Now }))
	if inTime(t, "the task", now).IsZero() {
		t.Error("nobody looked at the clock")
	}
}

func TestWhatIsPutOffWaitsForOthersOnlyWhereManyCome(t *testing.T) {
	for n, want := range map[int]string{few: "rwrw", few + 1: "rrrr"} {
		g := idle(t)
		w, order := &Worker{Scratch: make([]byte, ScratchSize)}, ""
		var ends []net.Conn
		for range n {
			ours, theirs := pair(t, g, "unix", t.TempDir()+"/s")
			ours.Own(taskOf(func(w *Worker) {
				order += "r"
				w.Later(taskOf(func(*Worker) { order += "w" }))
			}))
			ends = append(ends, theirs)
		}
		if n := g.poll(w); n != 0 {
			t.Errorf("%d events of connections of which nothing has come", n)
		}
		for _, c := range ends {
			if _, err := io.WriteString(c, "x"); err != nil {
				t.Fatal(err)
			}
		}
		if got := g.poll(w); got != n {
			t.Fatalf("%d events, want %d", got, n)
		}
		if g.serve(w, n); order[:4] != want || len(order) != 2*n {
			t.Errorf("%d at once: %s", n, order)
		}
	}
}

func TestManyConnectionsAreServedByTheFewWorkers(t *testing.T) {
	g := start(t)
	const clients, rounds = 300, 20
	var all sync.WaitGroup
	for range clients {
		ours, theirs := pair(t, g, "tcp", "127.0.0.1:0")
		var mu sync.Mutex
		ours.Own(taskOf(func(w *Worker) { // an echo
			mu.Lock()
			defer mu.Unlock()
			for {
				n, err := ours.TryRead(w.Scratch)
				if err != nil {
					return
				}
				if _, err := ours.TryWrite(w.Scratch[:n]); err != nil {
					t.Error(err)
				}
			}
		}))
		all.Go(func() {
			buf := make([]byte, 5)
			for range rounds {
				if _, err := io.WriteString(theirs, "hello"); err != nil {
					t.Error(err)
					return
				}
				if _, err := io.ReadFull(theirs, buf); err != nil || string(buf) != "hello" {
					t.Errorf("%q, %v", buf, err)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestAConnectionGoesToAGoroutineAndBack(t *testing.T) {
	g := start(t)
	ours, theirs := pair(t, g, "tcp", "127.0.0.1:0")
	stepped := make(chan struct{}, 1000)
	task := taskOf(func(*Worker) {
		select {
		case stepped <- struct{}{}:
		default:
		}
	})
	buf := make([]byte, 1)
	for range 100 {
		ours.Own(task)
		if _, err := theirs.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		inTime(t, "the task", stepped)
		ours.Own(nil)
		if n, err := ours.Read(buf); n != 1 || err != nil { // what the task has left
			t.Fatal(n, err)
		}
		got := make(chan error, 1)
		go func() { _, err := ours.Read(buf); got <- err }()
		if _, err := theirs.Write([]byte("y")); err != nil {
			t.Fatal(err)
		}
		if err := inTime(t, "the goroutine", got); err != nil {
			t.Fatal(err)
		}
		ours.Unblock()
		ours.Stir()
		if _, err := ours.TryRead(buf); !Waits(err) {
			t.Fatal(err)
		}
	}
}

func TestAClosedConnectionFailsAndItsNumberIsNotItsHeirs(t *testing.T) {
	g := start(t)
	for range 50 {
		ours, _ := pair(t, g, "tcp", "127.0.0.1:0")
		got := make(chan error, 1)
		go func() { _, err := ours.Read(make([]byte, 1)); got <- err }()
		ours.Close()
		if err := inTime(t, "the read", got); !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		if _, err := ours.TryRead(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		if _, err := ours.TryWrite([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		if readable, ended := ours.Look(); !readable || !ended {
			t.Fatal(readable, ended)
		}
		if err := ours.Close(); !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
}

func TestAnAdoptedConnectionIsNoneOfTheRuntimesAnyMore(t *testing.T) {
	g := start(t)
	ours, theirs := pair(t, g, "tcp", "127.0.0.1:0")
	if ours.RemoteAddr().String() != theirs.LocalAddr().String() || ours.LocalAddr().String() != theirs.RemoteAddr().String() {
		t.Errorf("%v %v, want %v %v", ours.LocalAddr(), ours.RemoteAddr(), theirs.RemoteAddr(), theirs.LocalAddr())
	}
	if pipe, _ := net.Pipe(); g.Adopt(pipe) != nil {
		t.Error("a pipe was adopted")
	}
	if err := ours.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

func TestAnExchangeAllocatesNothing(t *testing.T) {
	g := start(t)
	ours, theirs := pair(t, g, "tcp", "127.0.0.1:0")
	ours.Own(taskOf(func(w *Worker) {
		for {
			n, err := ours.TryRead(w.Scratch)
			if err != nil {
				return
			}
			_, _ = ours.TryWrite(w.Scratch[:n])
		}
	}))
	buf := make([]byte, 5)
	round := func() {
		if _, err := theirs.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(theirs, buf); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		round()
	}
	if n := testing.AllocsPerRun(1000, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// stepFunc is a task that is a function.
type stepFunc func(*Worker)

func (f stepFunc) Step(w *Worker) { f(w) }

func taskOf(f stepFunc) *Task { return &Task{f} }

func TestAConnectionDoesNotHearOfItsPredecessorsEnd(t *testing.T) {
	g := start(t)
	ours, theirs := pair(t, g, "tcp", "127.0.0.1:0")
	w := &Worker{Scratch: make([]byte, ScratchSize)}
	w.events[0] = unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLHUP, Fd: int32(ours.fd), Pad: ours.turn - 1}
	g.serve(w, 1)
	if ours.HungUp() {
		t.Error("it counts as hung up")
	}
	theirs.Close()
	for deadline := time.Now().Add(10 * time.Second); !ours.HungUp(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not hear of its own end")
		}
	}
}

func TestWritesThatArePutOffAreDoneInARowBeforeTheirTasksRun(t *testing.T) {
	g := start(t)
	first, one := pair(t, g, "tcp", "127.0.0.1:0")
	second, two := pair(t, g, "tcp", "127.0.0.1:0")
	gone, _ := pair(t, g, "tcp", "127.0.0.1:0")
	gone.Close()
	type end struct {
		what    string
		n       int
		err     error
		visible bool // what all others were to write has been written
	}
	ends := make(chan end, 3)
	tell := func(what string, peer net.Conn) *Task {
		return taskOf(func(w *Worker) {
			if !w.Writes() {
				t.Errorf("the task of %s does not run for its write", what)
				return
			}
			n, err := w.Wrote()
			ends <- end{what, n, err, readableNow(t, peer)}
		})
	}
	g.Post(taskOf(func(w *Worker) {
		if w.Writes() {
			t.Error("a task that was posted runs for a write")
		}
		w.Write(tell("first", two), first, []byte("1"))
		w.Write(tell("gone", two), gone, []byte("0"))
		w.Write(tell("second", one), second, []byte("22"))
	}))
	for _, want := range []end{{"first", 1, nil, true}, {"gone", 0, net.ErrClosed, true}, {"second", 2, nil, true}} {
		if got := inTime(t, "an end", ends); got.what != want.what || got.n != want.n || !errors.Is(got.err, want.err) || !got.visible {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// readableNow reports whether something has come that was not read.
func readableNow(t testing.TB, c net.Conn) (is bool) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Error(err)
		return false
	}
	err = raw.Control(func(fd uintptr) {
		fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(fds[:], 0)
		is = n > 0
	})
	if err != nil {
		t.Error(err)
	}
	return is
}
