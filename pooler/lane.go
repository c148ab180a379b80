package pooler

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/telemetry"
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
	asking                // waits for the server's answer
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
	s.attach()
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
	case arriving:
		return s.admitNow(w)
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
			if typ == pgwire.Terminate && s.backend == nil {
				s.quit()
				return false
			}
			switch extent := s.in.Cycle(); {
			case extent == pgwire.Whole:
				s.begin()
				return true
			case extent == pgwire.Wants, s.in.Full(), !clientType(typ):
				s.escalate(atRest)
				return false
			}
		}
		switch err := fillNow(s.in, s.conn, s.sock); {
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

// fillNow reads what there is. With TLS it is crypto/tls that reads, over a carrier that
// hurries.
func fillNow(in *pgwire.Reader, conn net.Conn, sock *loop.Conn) error {
	if loop.CarrierOf(conn) != nil {
		return in.Fill()
	}
	return in.FillFrom((*loop.Try)(sock))
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
	if g.backend != nil { // it has the server since then
		s.exchange.Waited += max(0, g.backend.since.Sub(w.place.Since))
	} else {
		s.exchange.Waited += time.Since(w.place.Since)
	}
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

// forwardNow sends the cycle, which is whole.
func (s *session) forwardNow() bool {
	b := s.backend
	s.mu.Lock()
	s.next.start = s.exchange.Start
	s.mu.Unlock()
	s.restore()
	if s.unlearned() {
		s.escalate(atForward)
		return false
	}
	s.attempt = attempt{tries: s.attempt.tries, began: s.attempt.began}
	size := 0
	for ends := false; !ends; {
		typ, n, _, err := s.in.Header()
		if err == nil && b.replays > 0 && s.mayEnd(typ, n) {
			s.escalate(atForward)
			return false
		}
		if err == nil {
			ends, err = s.send(typ, n)
			size += pgwire.HeaderSize + n
		}
		if err != nil {
			s.fail(err)
			return false
		}
	}
	if b.status == pgwire.Idle && size <= clientBuffer {
		s.asSent = append(s.asSent[:0], s.in.Behind(size)...)
		s.attempt.size, s.attempt.cycle = size, s.asSent
	}
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

// answerNow passes on what the server has answered. It returns true when that was all.
func (s *session) answerNow() bool {
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
		s.readAt = time.Now()
		if s.busy && s.exchange.FirstByte == 0 {
			s.exchange.FirstByte = s.readAt.Sub(s.exchange.Start)
		}
		if wants, err := s.swallow(); err != nil {
			s.fail(err)
			return false
		} else if wants {
			continue
		}
		if s.untold || !s.attempt.told && bytes.Contains(b.In.Peek(b.In.Buffered()), shutDown) {
			s.escalate(atAnswer)
			return false
		}
		done, err := s.scan()
		n, werr := loop.TryWrite(s.conn, s.sock, b.In.Run())
		b.In.TakenPart(n)
		s.attempt.told = s.attempt.told || n > 0
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

// shutDown is what an error holds whose server is being shut down.
var shutDown = []byte("C57P01\x00")

// releaseNow gives the server back, if the transaction is over and nothing is left
// there.
func (s *session) releaseNow() bool {
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
	b.pool.releaseAt(b, s.exchange.Start.Add(s.exchange.Took)) // which is now, more or less
	s.at = resting
	return true
}

// An errand is what a session needs only while it does something: one that rests on the
// event loops has none. A session that has a server has one.
type errand struct {
	exchange *telemetry.Exchange
	whole    *telemetry.Exchange // the transaction, where spans are of those; nil: none is open
	offered  *backend            // leased already, for the next claim
	failure  error               // why the session is over, at atEnd

	// Guarded by the session's lock.
	debts  debts // what the server owes
	cycles queue[cycle]
	next   cycle // being sent
	uplink chan struct{}
	lost   error // why the uplink ended by itself

	excess  int             // bytes from the client that go nowhere; of whoever reads the client
	refused error           // why the message that is being sent cannot be
	held    []byte          // a CommandComplete that has not been told to the client yet
	synced  <-chan struct{} // closed when the hub has caught up; nil: not waited for
	portals map[string]use  // those whose execution deallocates
	moves   []move          // in the text of the simple query that was sent last
	single  bool            // which is the only statement of its text
	why     *unmade         // the server could not prepare what that executes
	attempt attempt
	asSent  []byte    // the cycle, as the client sent it to the event loops; reused
	readAt  time.Time // when they read the answer last

	// What the sweep knows; only it uses these, with the session's lock.
	lastTurn     uint64
	lastMoved    uint32
	lastMove     time.Time
	quietTurn    uint64
	quietSince   time.Time // the transaction has had no query in this turn
	overdueSince time.Time // start of the query that was canceled last
	overdue      atomic.Pointer[overdue]
}

var errands = sync.Pool{New: func() any { return &errand{exchange: new(telemetry.Exchange)} }}

// attach gives a session what it needs to do something. Only who has the session calls
// it, as spare.
func (s *session) attach() {
	if s.errand != nil {
		return
	}
	e := errands.Get().(*errand)
	s.mu.Lock()
	s.errand = e
	s.mu.Unlock()
}

// spare gives it back, if it holds nothing.
func (s *session) spare() {
	e := s.errand
	if e == nil || s.busy || s.backend != nil || e.whole != nil || e.offered != nil || len(e.held) > 0 || e.excess > 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !e.debts.none() || e.cycles.len() > 0 || e.next.bytes > 0 || e.uplink != nil || e.lost != nil {
		return
	}
	s.errand = nil
	e.exchange.Err, e.failure, e.refused, e.next = nil, nil, nil, cycle{}
	e.debts.asked, e.debts.answered = 0, 0
	e.lastTurn, e.lastMoved, e.quietTurn = 0, 0, 0
	e.lastMove, e.quietSince, e.overdueSince = time.Time{}, time.Time{}, time.Time{}
	e.overdue.Store(nil)
	e.attempt = attempt{}
	clear(e.portals)
	e.moves, e.why = nil, nil
	errands.Put(e)
}
