package pooler

import (
	"bytes"
	"errors"
	"net"
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
	proving               // waits for what it answers to a question for its password
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
	atProof         // it was asked for its password
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

// Step is run by the event loops whenever something has come that the session may
// have waited for. What is looked at in vain does no harm.
func (s *session) Step(w *loop.Worker) {
	s.lane.Lock()
	defer s.stepped()
	s.steps(w)
}

// steps is Step, with the lane locked.
func (s *session) steps(w *loop.Worker) {
	switch {
	case s.at == aside:
		return
	case s.putOff && !w.Writes(): // only the step behind the write knows what came of it
		s.missed = true
		return
	}
	for s.advance(w) {
	}
	if w.Lent {
		w.Lent = false
		if s.at != aside {
			s.in.Settle()
		}
	}
}

// stepped is deferred: it ends a step, also one that panics.
func (s *session) stepped() {
	if v := recover(); v != nil {
		if err := s.panicked(v); s.at != aside {
			s.fail(err)
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
	case proving:
		return s.proveNow(w)
	case resting:
		return s.awaitNow(w) && s.claimNow(w) && s.writes(w)
	case queued:
		return s.granted(w) && s.writes(w)
	case sending:
		return s.sendNow(w)
	case asking:
		return s.answerNow(w) && s.writes(w)
	case passing:
		return s.passNow(w)
	}
	return false
}

// writes leaves what is ready to the worker, which writes it after it has read and understood all
// that has come, and all of one batch in a row: the kernel's way through a write, to the process
// that it wakes, leaves little of our code and data in the processor's caches. It reports whether
// there is nothing to write.
func (s *session) writes(w *loop.Worker) bool {
	if s.at != sending && s.at != passing {
		return true
	}
	b := s.backend
	s.missed = s.sock.HungUp() // which is not told again
	switch {
	case s.at == sending && b.carrier() == nil:
		s.putOff = true
		w.Write(&s.task, b.sock, b.out)
	case s.at == passing && loop.CarrierOf(s.conn) == nil:
		s.putOff = true
		w.Write(&s.task, s.sock, b.In.Run())
	default: // crypto/tls writes
		w.Later(&s.task)
	}
	return false
}

// wrote returns what became of a write that was put off, or writes now.
func (s *session) wrote(w *loop.Worker, conn net.Conn, sock *loop.Conn, p []byte) (int, error) {
	if s.putOff {
		s.putOff = false
		return w.Wrote()
	}
	return loop.TryWrite(conn, sock, p)
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
	w.Lent = true
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
			return s.waiter.granted()
		}
		if err != nil {
			if !s.busy {
				s.beginOn(w, since)
			}
			s.fail(err)
			return false
		}
		return s.take(w, b, since, 0)
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
	if g.backend != nil { // it has the server since then
		return s.take(on, g.backend, w.place.Since, max(0, g.backend.since.Sub(w.place.Since)))
	}
	if !s.busy {
		s.beginOn(on, w.place.Since)
	}
	s.exchange.Waited += time.Since(w.place.Since)
	if errors.Is(g.err, errRetired) {
		return s.claimNow(on)
	}
	s.fail(g.err)
	return false
}

// take goes on with a server that was claimed, after a wait that began then.
func (s *session) take(w *loop.Worker, b *backend, since time.Time, waited time.Duration) bool {
	e, quiet := s.errand, b.quiet()
	if e == nil {
		e = kept(w)
	}
	s.mu.Lock()
	s.errand = e
	if quiet {
		s.backend = b
	}
	s.mu.Unlock()
	if !s.busy {
		s.beginAt(since)
	}
	s.exchange.Waited += waited
	if b.sock != nil {
		b.sock.Own(&s.task)
	}
	switch {
	case !quiet:
		s.offered = b
		s.escalate(atClaim)
		return false
	case b.sock == nil:
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
	return s.forwardNow()
}

// forwardNow makes the cycle, which is whole, ready for the server.
func (s *session) forwardNow() bool {
	b := s.backend
	s.restore()
	if s.unlearned() || b.replays > 0 && s.in.Buffered() > clientBuffer { // which has to be kept until they are answered
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

// sendNow sends it. What has come meanwhile, an answer or the client's end, is looked at next: it
// returns false if there is nothing, without a look at what has not been touched for a while.
func (s *session) sendNow(w *loop.Worker) bool {
	b := s.backend
	s.at = asking
	n, err := s.wrote(w, b.Conn.Conn, b.sock, b.out)
	b.sent(n)
	switch {
	case err == nil:
		return s.missed || !b.sock.Quiet() || b.carrier() != nil
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
		if wants, err := s.swallow(); errors.Is(err, errRepeat) {
			s.escalate(atAnswer) // a goroutine meets it again
			return false
		} else if err != nil {
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
		if len(s.stuck) > 0 {
			s.leaveStuck(done, err)
			return false
		}
		if done && err == nil {
			s.at = passing
			return true
		}
		if err != nil {
			s.leaveStuck(false, err)
			return false
		}
		n, werr := loop.TryWrite(s.conn, s.sock, b.In.Run())
		b.In.TakenPart(n)
		s.attempt.told = s.attempt.told || n > 0
		s.moved.Add(1)
		if werr != nil {
			s.escalate(atAnswer)
			return false
		}
	}
}

// passNow passes on the last of the answer. Where nothing stands against that the server is given
// back at once.
func (s *session) passNow(w *loop.Worker) bool {
	b := s.backend
	n, werr := s.wrote(w, s.conn, s.sock, b.In.Run())
	b.In.TakenPart(n)
	s.attempt.told = s.attempt.told || n > 0
	if werr != nil {
		s.escalate(atPass)
		return false
	}
	free := !s.withheld && b.status == pgwire.Idle && b.left|b.pins == 0 && !b.pool.resetAlways()
	var e *errand
	s.mu.Lock()
	alone := s.uplink == nil && s.lost == nil && !s.mute
	if alone {
		s.answering, s.closing = false, false
	}
	if free = free && alone && b.canceling == 0 && !b.hurried.Load(); free {
		s.backend, s.block = nil, pgwire.Idle
		e = s.shedLocked()
	}
	s.mu.Unlock()
	switch {
	case free:
		if e == nil {
			s.dropAttempt()
		}
		keep(w, e)
		s.freed(w, b)
		return true
	case alone:
		return s.releaseNow(w)
	}
	if err := s.join(false); err != nil {
		s.fail(err)
		return false
	}
	return s.releaseNow(w)
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
	s.dropAttempt()
	s.freed(w, b)
	return true
}

// dropAttempt forgets the cycle, which is over.
func (s *session) dropAttempt() {
	clear(s.portals)
	s.attempt = attempt{}
}

// freed gives the server on.
func (s *session) freed(w *loop.Worker, b *backend) {
	b.carrier().Rest()
	b.pool.releaseAt(b, w.Now, w)
	s.at = resting
}
