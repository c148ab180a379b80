package turns

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"mainstay.dev/mainstay/bench/internal/cputime"
)

// A target is a subject with the connections to it.
type target struct {
	Subject
	epoll   int
	clients []*client
	free    []int // clients without a transaction; who has been that for longest goes first
	took    []time.Duration
	outcome Outcome
	counted time.Duration // CPU time up to its last slice, where it counts in between
}

// A driver is the one thread that loads all targets.
type driver struct {
	plan    Plan
	writer  writer
	targets []*target
	events  [256]unix.EpollEvent
	buf     [64 << 10]byte
}

// carryOut connects to all subjects, loads them in turns and tells what came.
func carryOut(p Plan) ([]Outcome, error) {
	runtime.LockOSThread()
	// A wait is to end when it should, not up to 50 us later (prctl(2)).
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return nil, os.NewSyscallError("prctl", err)
	}
	sampled := -1.
	if p.Traced {
		sampled = p.Sampled
	}
	d := &driver{plan: p, writer: writer{protocol: p.Protocol, sampled: sampled, random: rand.New(rand.NewPCG(1, 2))}}
	for _, s := range p.Subjects {
		t, err := d.open(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		d.targets = append(d.targets, t)
	}
	for round := -warm; round < p.Rounds; round++ {
		for _, i := range order(len(d.targets), round+warm) {
			time.Sleep(p.Pause)
			if err := d.turn(d.targets[i], round); err != nil {
				return nil, fmt.Errorf("%s: %w", d.targets[i].Name, err)
			}
		}
	}
	if p.Rest > 0 {
		time.Sleep(p.Rest)
	}
	var all []Outcome
	for _, t := range d.targets {
		t.settle(p)
		o := &t.outcome
		o.P50, o.P95, o.P99 = percentiles(t.took)
		all = append(all, *o)
	}
	return all, nil
}

// open connects to a subject with all clients.
func (d *driver) open(s Subject) (*target, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	t := &target{Subject: s, epoll: epoll}
	for i := range d.plan.Clients {
		c, agreed, err := dial(s.Port, d.plan, &d.writer)
		if err != nil {
			return nil, fmt.Errorf("connect client %d of %d: %w", i+1, d.plan.Clients, err)
		}
		t.outcome.TLS = agreed
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)} // the client's index, which is all that is asked for
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, c.fd, &event); err != nil {
			return nil, os.NewSyscallError("epoll_ctl", err)
		}
		t.clients, t.free = append(t.clients, c), append(t.free, i)
	}
	return t, nil
}

// settle adds what the target spent since its last slice began to that slice, if the
// plan counts what it does between them.
func (t *target) settle(p Plan) {
	if n := len(t.outcome.Slices); p.Rest > 0 && n > 0 && t.PID != 0 {
		t.outcome.Slices[n-1].CPU = cputime.Spent(t.PID) - t.counted
	}
}

// turn is one slice of a target. Those of rounds before 0 do not count.
func (d *driver) turn(t *target, round int) error {
	t.settle(d.plan)
	from := len(t.took)
	var before time.Duration
	if t.PID != 0 {
		before = cputime.Spent(t.PID)
	}
	t.counted = before
	took, err := d.load(t, newSchedule(d.plan.Rate, d.plan.Slice, round+warm))
	if err != nil {
		return err
	}
	s := Slice{Took: took, Transactions: len(t.took) - from}
	if t.PID != 0 {
		s.CPU = cputime.Spent(t.PID) - before
	}
	s.P50, s.P95, s.P99 = percentiles(t.took[from:])
	if round < 0 {
		t.took = t.took[:0]
		return nil
	}
	t.outcome.Slices = append(t.outcome.Slices, s)
	return nil
}

// load begins what is due and takes the answers until none is owed.
func (d *driver) load(t *target, due *schedule) (took time.Duration, err error) {
	start := time.Now()
	for {
		now := time.Since(start)
		if now, err = d.begin(t, due, start, now); err != nil {
			return 0, err
		}
		owed := len(t.clients) - len(t.free)
		if owed == 0 && due.over(now) {
			return now, nil
		}
		limit := patience
		if len(t.free) > 0 {
			limit = due.wait(now, patience)
		}
		n, err := d.wait(t.epoll, limit)
		if err != nil {
			return 0, err
		}
		if n == 0 && limit == patience {
			return 0, fmt.Errorf("no answer comes for %v; %d are owed", patience, owed)
		}
		for i := range n {
			if err := d.receive(t, int(d.events[i].Fd), start); err != nil {
				return 0, err
			}
			if _, err := d.begin(t, due, start, time.Since(start)); err != nil {
				return 0, err
			}
		}
	}
}

// begin sends what is due by now on the clients that are free, and returns what time it is.
func (d *driver) begin(t *target, due *schedule, start time.Time, now time.Duration) (time.Duration, error) {
	for len(t.free) > 0 {
		at, ok := due.take(now)
		if !ok {
			break
		}
		c := t.clients[t.free[0]]
		t.free = append(t.free[:0], t.free[1:]...)
		c.busy, c.due, c.answer = true, at, answer{}
		if _, err := c.stream.Write(d.writer.transaction()); err != nil {
			return now, err
		}
		now = time.Since(start)
	}
	return now, nil
}

// receive takes what there is of a client's answer.
func (d *driver) receive(t *target, index int, start time.Time) error {
	c := t.clients[index]
	for {
		n, err := c.stream.Read(d.buf[len(c.rest):])
		if errors.Is(err, errAgain) {
			return nil
		}
		if err != nil {
			return err
		}
		data := d.buf[:len(c.rest)+n]
		copy(data, c.rest)
		done, err := c.walk(data)
		if err != nil {
			return err
		}
		if done {
			t.took = append(t.took, time.Since(start)-c.due)
			t.free = append(t.free, index)
		}
		// A socket that has more says so again; TLS may hold what the socket has given.
		if !c.tls {
			return nil
		}
	}
}

// walk goes through the messages of data and keeps what has not come to its end. It
// reports whether the transaction has.
func (c *client) walk(data []byte) (done bool, err error) {
	for {
		m, rest, whole, err := next(data)
		if err != nil {
			return done, err
		}
		if !whole {
			c.rest = append(c.rest[:0], rest...)
			return done, nil
		}
		data = rest
		if !c.busy && m.kind != 'N' && m.kind != 'S' {
			return done, fmt.Errorf("a message %q comes, but nothing was asked", m.kind)
		}
		last, err := c.answer.take(m)
		if err == nil && last {
			c.busy, done = false, true
			err = c.answer.check()
		}
		if err != nil {
			return done, err
		}
	}
}

// wait is epoll_pwait2, whose limit is exact to the nanosecond.
func (d *driver) wait(epoll int, limit time.Duration) (int, error) {
	until := unix.NsecToTimespec(limit.Nanoseconds())
	for {
		n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epoll), uintptr(unsafe.Pointer(&d.events)),
			uintptr(len(d.events)), uintptr(unsafe.Pointer(&until)), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, os.NewSyscallError("epoll_pwait2", errno)
	}
}
