package pooler

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/telemetry"
)

// A session that has logged in, without TLS, goes through the plain part of its life
// on the event loops, without a goroutine: it takes the same steps as live does, as
// far as none of them has to wait for anything but the client's next cycle, a server
// connection, or the server's answer. Whatever else comes, a goroutine takes its life
// up where it stands (escalate), and brings it back between two transactions (park).

// A place is where a session without a goroutine stands.
type place uint8

const (
	aside   place = iota // a goroutine has it
	resting              // waits for the client's next cycle
	queued               // waits for a server
	asking               // waits for the server's answer
)

// An entry is where a goroutine takes a session's life up.
type entry uint8

const (
	atLogin   entry = iota
	atTurn          // between two cycles
	atRest          // wait for the next cycle, whatever it is
	atClaim         // the cycle is buffered
	atForward       // there is a server; it may not suit yet
	atFlush         // the cycle is ready for the server, sent in part
	atAnswer        // the server was sent all of it
	atPass          // it has answered; the client has not taken all of it
	atRelease       // the answer has been passed on
	atEnd           // it is over; failure says why
)

// errParked means that the session goes on without a goroutine.
var errParked = errors.New("parked")

// exchanges are for sessions that have something to do.
var exchanges = sync.Pool{New: func() any { return new(telemetry.Exchange) }}

// park lets the session go on without its goroutine, if it can.
func (s *session) park() bool {
	if s.sock == nil || s.conn != s.raw || s.backend != nil || s.excess > 0 || s.mute || !s.pool.laned() {
		return false
	}
	s.lane.Lock()
	defer s.lane.Unlock()
	if s.ending.Load() {
		return false
	}
	s.sock.Unblock()
	s.sock.Stir()
	s.sock.Own(&s.task)
	s.in.Shrink()
	s.spare()
	s.at = resting
	s.pooler.loops.Post(&s.task) // looks for what has come meanwhile
	return true
}

// attach gives a session what it needs to do something.
func (s *session) attach() {
	if s.exchange == nil {
		s.exchange = exchanges.Get().(*telemetry.Exchange)
	}
}

// spare gives back what an idle session does not need.
func (s *session) spare() {
	if s.exchange != nil && !s.busy {
		s.exchange.Err = nil
		exchanges.Put(s.exchange)
		s.exchange = nil
	}
}

// escalate gives the session to a goroutine. The lane is locked.
func (s *session) escalate(from entry) {
	s.at = aside
	s.sock.Own(nil)
	s.in.Own()
	if s.exchange == nil {
		s.attach()
		s.exchange.Reset(plane)
	}
	if from == atAnswer || from == atPass {
		s.mu.Lock()
		s.answering = true
		s.mu.Unlock()
	}
	go s.goOn(from)
}

// fail gives the session to a goroutine that ends it.
func (s *session) fail(err error) {
	s.failure = err
	s.escalate(atEnd)
}

// step is run by the event loops whenever something has come that the session may
// have waited for. What is looked at in vain does no harm.
func (s *session) step(w *loop.Worker) {
	s.lane.Lock()
	defer s.lane.Unlock()
	if s.at == aside {
		return
	}
	defer func() {
		if v := recover(); v != nil {
			s.pooler.deps.Log.Error("panic in a session", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			if s.at != aside {
				s.fail(end(Internal, "internal error of Mainstay", "see Mainstay's log"))
			}
		}
	}()
	for s.advance(w) {
	}
	if s.at != aside {
		s.in.Settle()
	}
}

// advance takes the session to where it has to wait next. It reports whether it may
// go on from there at once.
func (s *session) advance(w *loop.Worker) bool {
	switch s.at {
	case resting:
		return s.awaitNow(w) && s.claimNow()
	case queued:
		return s.granted()
	case asking:
		return s.answerNow() && s.releaseNow()
	}
	return false
}

// awaitNow looks whether the client's next cycle is there.
func (s *session) awaitNow(w *loop.Worker) bool {
	if s.ending.Load() {
		s.escalate(atRest)
		return false
	}
	s.in.Borrow(w.Scratch)
	for {
		if typ, _, ok, err := s.in.Header(); ok || err != nil {
			switch extent := s.in.Cycle(); {
			case extent == pgwire.Whole:
				s.begin()
				return true
			case extent == pgwire.Wants, s.in.Full(), !clientType(typ):
				s.escalate(atRest)
				return false
			}
		}
		switch err := s.in.FillFrom((*loop.Try)(s.sock)); {
		case err == nil:
		case loop.Waits(err):
			if s.backend == nil {
				s.spare()
			}
			return false
		default: // a goroutine meets it again
			s.escalate(atRest)
			return false
		}
	}
}

// claimNow takes a server, or a place in the line, and sends the cycle.
func (s *session) claimNow() bool {
	if s.backend != nil {
		return s.forwardNow()
	}
	for {
		p, err := s.route()
		if err != nil {
			s.fail(err)
			return false
		}
		s.waiter.parked = true
		s.waiter.place.Value, s.waiter.place.Since = &s.waiter, s.exchange.Start
		b, err := p.take(&s.waiter)
		switch {
		case errors.Is(err, errRetired): // a reload has replaced the pool
		case err != nil:
			s.fail(err)
			return false
		case b == nil:
			s.at = queued
			return s.waiter.got.Load()
		default:
			return s.take(b)
		}
	}
}

// granted goes on with what ends the wait for a server.
func (s *session) granted() bool {
	w := &s.waiter
	g, ok := w.take()
	if !ok {
		if s.sock.HungUp() {
			s.pool.withdraw(w, errGone)
		}
		return false
	}
	s.at = resting
	s.exchange.Waited += time.Since(w.place.Since)
	switch {
	case errors.Is(g.err, errRetired):
		return s.claimNow()
	case g.err != nil:
		s.fail(g.err)
		return false
	}
	return s.take(g.backend)
}

// take goes on with a server that was claimed.
func (s *session) take(b *backend) bool {
	if !b.quiet() {
		s.offered = b
		s.escalate(atClaim)
		return false
	}
	s.mu.Lock()
	s.backend = b
	s.mu.Unlock()
	if b.sock == nil || b.settings != s.settings || b.named != s.prepares || b.reports != s.told {
		s.escalate(atForward)
		return false
	}
	s.equip() // it has all but the sequences' values
	b.sock.Own(&s.task)
	return s.forwardNow()
}

// forwardNow sends the cycle, which is whole.
func (s *session) forwardNow() bool {
	b := s.backend
	if s.resets {
		s.escalate(atForward)
		return false
	}
	s.mu.Lock()
	s.next.start = s.exchange.Start
	s.mu.Unlock()
	for ends := false; !ends; {
		typ, n, _, err := s.in.Header()
		if err == nil && b.replays > 0 && s.mayEnd(typ, n) {
			s.escalate(atForward)
			return false
		}
		if err == nil {
			ends, err = s.send(typ, n)
		}
		if err != nil {
			s.fail(err)
			return false
		}
	}
	s.at = asking
	n, err := b.sock.TryWrite(b.out)
	b.sent(n)
	switch {
	case err == nil:
		return true
	case loop.Waits(err):
		s.escalate(atFlush)
	default:
		s.fail(s.serverLost(err))
	}
	return false
}

// answerNow passes on what the server has answered. It returns true when that was all.
func (s *session) answerNow() bool {
	b := s.backend
	for {
		if s.copying || s.sock.HungUp() || s.ending.Load() || s.overdue.Load() != nil {
			s.escalate(atAnswer)
			return false
		}
		switch err := b.In.FillFrom((*loop.Try)(b.sock)); {
		case err == nil:
		case loop.Waits(err):
			return false
		default: // a goroutine meets it again
			s.escalate(atAnswer)
			return false
		}
		if s.busy && s.exchange.FirstByte == 0 {
			s.exchange.FirstByte = time.Since(s.exchange.Start)
		}
		done, err := s.scan()
		n, werr := s.sock.TryWrite(b.In.Run())
		b.In.TakenPart(n)
		s.moved.Add(1)
		switch {
		case err != nil:
			s.fail(err)
			return false
		case werr != nil && done:
			s.escalate(atPass)
			return false
		case werr != nil:
			s.escalate(atAnswer)
			return false
		case done:
			if err := s.join(false); err != nil {
				s.fail(err)
				return false
			}
			return true
		}
	}
}

// releaseNow gives the server back, if the transaction is over and nothing is left
// there.
func (s *session) releaseNow() bool {
	b := s.backend
	if b.status != pgwire.Idle {
		s.at = resting
		return true
	}
	s.keepSequences(b)
	if b.left|b.pins != 0 || b.pool.resetAlways() {
		if b.pool.resetAlways() || (b.left|b.pins)&(scan.Lasting|audit.Wreck) != 0 || audit.Wipe(b.left|b.pins) != "" {
			s.escalate(atRelease)
			return false
		}
		b.forgive()
	}
	s.mu.Lock()
	if b.canceling > 0 || b.hurried.Load() {
		s.mu.Unlock()
		s.escalate(atRelease)
		return false
	}
	s.backend, s.block = nil, pgwire.Idle
	s.mu.Unlock()
	b.sock.Own(nil)
	b.pool.release(b)
	s.at = resting
	return true
}
