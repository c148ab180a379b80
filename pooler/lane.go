package pooler

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"time"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
)

// A session that has logged in goes through the plain part of its life
// on the event loops, without a goroutine: it takes the same steps as live does, as
// far as none of them has to wait for anything but the client's next cycle, a server
// connection, or the server's answer. Whatever else comes, a goroutine takes its life
// up where it stands (escalate), and brings it back between two transactions (park).

// A place is where a session without a goroutine stands.
type place uint8

const (
	aside    place = iota // a goroutine has it
	arriving              // waits for the client's first packet
	resting               // waits for the client's next cycle
	queued                // waits for a server
	sending               // the cycle is ready for the server
	asking                // waits for the server's answer
	passing               // all of the answer is ready for the client
)

// An entry is where a goroutine takes a session's life up.
type entry uint8

const (
	atLogin   entry = iota
	atWelcome       // it has proved who it is
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

// park lets the session go on without its goroutine, if it can.
func (s *session) park() bool {
	if s.sock == nil || s.backend != nil || s.excess > 0 || s.mute || s.ear != nil || !s.pool.laned() {
		return false
	}
	s.lane.Lock()
	defer s.lane.Unlock()
	if s.ending.Load() {
		return false
	}
	s.sock.Unblock()
	s.sock.Stir()
	loop.CarrierOf(s.conn).Hurry()
	s.sock.Own(&s.task)
	s.in.Shrink()
	s.spare()
	s.at = resting
	s.pooler.loops.Post(&s.task) // looks for what has come meanwhile
	return true
}

// escalate gives the session to a goroutine. The lane is locked.
func (s *session) escalate(from entry) {
	s.at = aside
	s.sock.Own(nil)
	s.in.Own()
	loop.CarrierOf(s.conn).Rest()
	if s.backend != nil {
		s.backend.carrier().Rest()
	}
	if s.errand == nil {
		s.attach()
		s.exchange.Again(plane, time.Now())
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
	s.attach()
	s.failure = err
	s.escalate(atEnd)
}

// Step is run by the event loops whenever something has come that the session may
// have waited for. What is looked at in vain does no harm.
func (s *session) Step(w *loop.Worker) {
	s.lane.Lock()
	defer s.stepped()
	s.steps(w)
}

// steps is Step, with the lane locked.
func (s *session) steps(w *loop.Worker) {
	if s.at == aside {
		return
	}
	for s.advance(w) {
	}
	if s.at != aside {
		s.in.Settle()
	}
}

// stepped is deferred: it ends a step, also one that panics.
func (s *session) stepped() {
	if v := recover(); v != nil {
		s.pooler.deps.Log.Error("panic in a session", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		if s.at != aside {
			s.fail(end(Internal, "internal error of Mainstay", "see Mainstay's log"))
		}
	}
	s.lane.Unlock()
}

// advance takes the session to where it has to wait next. It reports whether it may
// go on from there at once.
func (s *session) advance(w *loop.Worker) bool {
	switch s.at {
	case arriving:
		return s.admitNow(w)
	case resting:
		return s.awaitNow(w) && s.claimNow(w) && s.writes(w)
	case queued:
		return s.granted(w) && s.writes(w)
	case sending:
		return s.sendNow()
	case asking:
		return s.answerNow(w) && s.writes(w)
	case passing:
		return s.passNow() && s.releaseNow(w)
	}
	return false
}

// writes lets the worker write what is ready after it has read and understood all that has
// come: the kernel's way through a write, to the process that it wakes, leaves little of
// our code and data in the processor's caches. It reports whether there is nothing to write.
func (s *session) writes(w *loop.Worker) bool {
	if s.at != sending && s.at != passing {
		return true
	}
	w.Later(&s.task)
	return false
}

// awaitNow looks whether the client's next cycle is there.
func (s *session) awaitNow(w *loop.Worker) bool {
	if s.ending.Load() {
		s.escalate(atRest)
		return false
	}
	if s.in.Buffered() == 0 && s.sock.Quiet() && loop.CarrierOf(s.conn) == nil {
		s.rests(w)
		return false
	}
	s.in.Borrow(w.Scratch)
	for {
		if typ, _, ok, err := s.in.Header(); ok || err != nil {
			if typ == pgwire.Terminate && s.backend == nil {
				s.quit()
				return false
			}
			switch extent := s.in.Cycle(); {
			case extent == pgwire.Whole:
				return true
			case extent == pgwire.Wants, s.in.Full(), !clientType(typ):
				s.escalate(atRest)
				return false
			}
		}
		switch err := fillNow(&s.in, s.conn, s.sock); {
		case err == nil:
		case loop.Waits(err):
			s.rests(w)
			return false
		default: // a goroutine meets it again
			s.escalate(atRest)
			return false
		}
	}
}

// rests gives back what the session does not need while it waits for its client.
func (s *session) rests(w *loop.Worker) {
	if s.backend != nil {
		return
	}
	if e := s.shed(); e != nil && w.Kept == nil {
		w.Kept = e
	} else if e != nil {
		errands.Put(e)
	}
}

// beginOn is beginAt, with what the worker may have kept for it.
func (s *session) beginOn(w *loop.Worker, now time.Time) {
	if e, ok := w.Kept.(*errand); ok && s.errand == nil {
		w.Kept = nil
		s.carry(e)
	}
	s.beginAt(now)
}

// fillNow reads what there is. With TLS it is crypto/tls that reads, over a carrier that
// hurries.
func fillNow(in *pgwire.Reader, conn net.Conn, sock *loop.Conn) error {
	if loop.CarrierOf(conn) != nil {
		return in.Fill()
	}
	return in.FillFrom((*loop.Try)(sock))
}

// claimNow takes a server, or a place in the line, and makes the cycle ready.
func (s *session) claimNow(w *loop.Worker) bool {
	if s.backend != nil {
		s.beginOn(w, w.Now)
		return s.forwardNow()
	}
	since := w.Now
	if s.busy { // it has waited for a pool that was replaced
		since = s.exchange.Start
	}
	for {
		p, err := s.route()
		var b *backend
		if err == nil {
			s.waiter.parked = true
			s.waiter.place.Value, s.waiter.place.Since = &s.waiter, since
			b, err = p.take(&s.waiter, w.Now)
		}
		switch {
		case errors.Is(err, errRetired): // a reload has replaced the pool
			continue
		case err == nil && b == nil: // while it waits it needs no more than its place
			s.at = queued
			return s.waiter.got.Load()
		}
		if !s.busy {
			s.beginOn(w, since)
		}
		if err != nil {
			s.fail(err)
			return false
		}
		return s.take(b)
	}
}

// granted goes on with what ends the wait for a server.
func (s *session) granted(on *loop.Worker) bool {
	w := &s.waiter
	g, ok := w.take()
	if !ok {
		if s.sock.HungUp() {
			s.pool.withdraw(w, errGone)
		}
		return false
	}
	s.at = resting
	if !s.busy {
		s.beginOn(on, w.place.Since)
	}
	if g.backend != nil { // it has the server since then
		s.exchange.Waited += max(0, g.backend.since.Sub(w.place.Since))
	} else {
		s.exchange.Waited += time.Since(w.place.Since)
	}
	switch {
	case errors.Is(g.err, errRetired):
		return s.claimNow(on)
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
	if b.sock == nil {
		s.escalate(atForward)
		return false
	}
	s.equip()
	if s.untold && b.replays == 0 {
		s.escalate(atForward)
		return false
	}
	s.equip() // it has all but the sequences' values
	b.carrier().Hurry()
	b.sock.Own(&s.task)
	return s.forwardNow()
}

// forwardNow makes the cycle, which is whole, ready for the server.
func (s *session) forwardNow() bool {
	b := s.backend
	s.restore()
	if s.unlearned() {
		s.escalate(atForward)
		return false
	}
	s.attempt = attempt{tries: s.attempt.tries, began: s.attempt.began, last: s.attempt.last}
	size, err := s.sendPlain(), error(nil)
	if size == 0 {
		size, err = s.sendWhole()
	}
	switch {
	case errors.Is(err, errHold):
		s.attempt.cycle = bytes.Clone(s.in.Behind(size))
		s.escalate(atForward)
		return false
	case err != nil:
		s.fail(err)
		return false
	}
	if b.status == pgwire.Idle && size <= clientBuffer {
		s.asSent = append(s.asSent[:0], s.in.Behind(size)...)
		s.attempt.size, s.attempt.cycle = size, s.asSent
	}
	s.at = sending
	return true
}

// sendNow sends it. What has come meanwhile, an answer or the client's end, is looked at next.
func (s *session) sendNow() bool {
	b := s.backend
	s.at = asking
	n, err := loop.TryWrite(b.Conn.Conn, b.sock, b.out)
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

// answerNow passes on what the server has answered, but for the last of it, which it makes
// ready for the client; then it returns true.
func (s *session) answerNow(w *loop.Worker) bool {
	b := s.backend
	for {
		if s.copying || s.sock.HungUp() || s.ending.Load() || s.overdue.Load() != nil {
			s.escalate(atAnswer)
			return false
		}
		switch err := fillNow(b.In, b.Conn.Conn, b.sock); {
		case err == nil:
		case loop.Waits(err):
			return false
		default: // a goroutine meets it again
			s.escalate(atAnswer)
			return false
		}
		if s.readAt = w.Now; !s.readAt.After(s.exchange.Start) { // the server was faster than we have been since then
			s.readAt = time.Now()
		}
		if s.busy && s.exchange.FirstByte == 0 {
			s.exchange.FirstByte = s.readAt.Sub(s.exchange.Start)
		}
		if s.scanPlain() {
			s.at = passing
			return true
		}
		if wants, err := s.swallow(); err != nil {
			s.fail(err)
			return false
		} else if wants {
			continue
		}
		if !s.informed() || !s.attempt.told && bytes.Contains(b.In.Peek(b.In.Buffered()), shutDown) {
			s.escalate(atAnswer)
			return false
		}
		done, err := s.scan()
		if done && err == nil {
			s.at = passing
			return true
		}
		n, werr := loop.TryWrite(s.conn, s.sock, b.In.Run())
		b.In.TakenPart(n)
		s.attempt.told = s.attempt.told || n > 0
		s.moved.Add(1)
		switch {
		case err != nil:
			s.fail(err)
			return false
		case werr != nil:
			s.escalate(atAnswer)
			return false
		}
	}
}

// passNow passes on the last of the answer.
func (s *session) passNow() bool {
	b := s.backend
	n, werr := loop.TryWrite(s.conn, s.sock, b.In.Run())
	b.In.TakenPart(n)
	s.attempt.told = s.attempt.told || n > 0
	s.moved.Add(1)
	if werr != nil {
		s.escalate(atPass)
		return false
	}
	s.mu.Lock()
	alone := s.uplink == nil && s.lost == nil && !s.mute
	if alone {
		s.answering, s.closing = false, false
	}
	s.mu.Unlock()
	if alone {
		return true
	}
	if err := s.join(false); err != nil {
		s.fail(err)
		return false
	}
	return true
}

// shutDown is what an error holds whose server is being shut down.
var shutDown = []byte("C57P01\x00")

// releaseNow gives the server back, if the transaction is over and nothing is left
// there.
func (s *session) releaseNow(w *loop.Worker) bool {
	b := s.backend
	switch {
	case s.withheld:
		s.escalate(atRelease)
		return false
	case b.status != pgwire.Idle:
		s.at = resting
		return true
	}
	s.keepSequences(b)
	if b.left|b.pins != 0 || b.pool.resetAlways() {
		if b.pool.resetAlways() || (b.left|b.pins)&(scan.Lasting|scan.Catalog|audit.Wreck) != 0 || audit.Wipe(b.left|b.pins) != "" {
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
	clear(s.portals)
	s.attempt = attempt{}
	b.sock.Own(nil)
	b.carrier().Rest()
	b.pool.releaseAt(b, w.Now, w)
	s.at = resting
	return true
}
