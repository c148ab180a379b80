package pooler

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"mainstay.dev/mainstay/pooler/internal/fingerprint"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// outLimit is how much may be sent to a server before its answers are read. Less
// than that fits the kernel's buffers, so that it never waits for us while we wait
// for it; more is sent by the uplink.
const outLimit = 16 << 10

// A cycle is what the client sends up to a message that the server answers with
// ReadyForQuery.
type cycle struct {
	start  time.Time
	bytes  int64
	trace  pgwire.Traceparent
	traced bool
	ends   bool               // it may end a transaction
	shape  *fingerprint.Shape // of its first statement; nil: not known
	sql    []byte             // of that, if its plan may be asked for
}

// forward sends the client's cycle to the server. One that is whole and small goes
// at once; what is more than that is left to the uplink.
func (s *session) forward(extent pgwire.Extent) error {
	b := s.backend
	var begun []byte
	s.mu.Lock()
	s.outwait()
	if s.open { // by an event loop
		begun = s.attempt.cycle
	}
	s.mu.Unlock()
	s.restore()
	a := &s.attempt
	*a = attempt{tries: a.tries, began: a.began, last: a.last, cycle: begun}
	if extent != pgwire.Whole || b.pool.sessions() {
		return s.startUplink()
	}
	for ends := false; !ends; {
		typ, n, _, err := s.in.Header()
		if err != nil {
			return protocolError(err.Error())
		}
		if b.replays > 0 && s.mustKnow(typ, n) {
			if err := s.replayed(); err != nil {
				return err
			}
		}
		if ends, err = s.send(typ, n); errors.Is(err, errHold) {
			return s.startUplink()
		} else if err != nil {
			return err
		}
		a.part += pgwire.HeaderSize + n
		if len(b.out) > outLimit {
			return s.startUplink()
		}
	}
	if err := s.flush(); err != nil {
		return s.serverLost(err)
	}
	s.mu.Lock()
	if b.status == pgwire.Idle && !b.tuned {
		a.size = len(begun) + a.part
		if begun != nil {
			a.cycle = append(begun, s.in.Behind(a.part)...)
		}
	}
	s.answering = true
	s.mu.Unlock()
	return nil
}

// startUplink starts the goroutine that reads the client from now on. Before it sends
// anything the server has the client's settings.
func (s *session) startUplink() error {
	s.mu.Lock()
	if s.cycles.len() == 0 || s.open {
		s.mu.Unlock()
		if err := s.replayed(); err != nil {
			return err
		}
		s.mu.Lock()
	}
	s.answering = true
	s.split()
	s.mu.Unlock()
	return nil
}

// split starts the uplink, if the session is between forward and the end of answer
// and has none. The lock is held.
func (s *session) split() {
	if !s.answering || s.uplink != nil || s.stage == killed || s.backend.replays > 0 && (s.cycles.len() == 0 || s.open) {
		return
	}
	if s.attempt.size > 0 && s.attempt.cycle == nil { // the uplink reads over it
		s.attempt.cycle = bytes.Clone(s.in.Behind(s.attempt.size))
	}
	done := make(chan struct{})
	s.uplink = done
	go s.pumpUntil(done)
}

// watch is called from outside when a session has been busy with one cycle for a
// while: from now on its client is read too, so that one who hangs up is noticed. A
// client that has kept the session waiting in the middle of something for longer
// than stall (0: forever) is disconnected.
func (s *session) watch(stall time.Duration) {
	now, turn, moved := time.Now(), s.turn.Load(), s.moved.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.errand == nil {
		return // it has ended meanwhile, what it did
	}
	if !s.writing.Load() && !s.wanting.Load() || turn != s.lastTurn || moved != s.lastMoved {
		s.lastTurn, s.lastMoved, s.lastMove = turn, moved, now
	}
	s.split()
	if (s.replaying.Load() || s.debts.inquired) && s.lost == nil && s.left() { // and its cycle has not been given to the server whole
		s.lost = errGone
		s.backend.interrupt(0)
	}
	if stall > 0 && now.Sub(s.lastMove) > stall && s.lost == nil {
		s.lost = end(ClientStalled, "terminating connection: the client neither read nor wrote for "+stall.String(), "")
		_ = s.conn.SetDeadline(longAgo) // a closed connection is as good
		if s.backend != nil {
			s.backend.interrupt(0)
		}
	}
}

// pumpUntil is the uplink's life.
func (s *session) pumpUntil(done chan struct{}) {
	defer close(done)
	err := s.pump()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || err == nil {
		return
	}
	if s.lost == nil {
		s.lost = err
	}
	b := s.backend
	switch lost := endingOf(err); {
	case s.quiet(), lost.code == ProtocolError, lost.code == Unsupported, s.stage == killed:
		b.interrupt(0)
	case errors.Is(err, errLeft) && !s.open && !s.copying:
		// It said goodbye before the answer came: what it asked for is done all the same.
	default:
		b.interrupt(grace)
	}
}

// grace is how long a query may still run whose client has hung up. Most are over by
// then, and their connection need not be given up.
const grace = 100 * time.Millisecond

// errHold means that a message must wait for the answers to those before.
var errHold = errors.New("must wait")

// errClosing is the end of the uplink when serve takes the client over.
var errClosing = errors.New("the uplink is over")

// pump sends what the client sends until serve tells it to end.
func (s *session) pump() (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = s.panicked(v)
		}
	}()
	for {
		if !s.dropExcess() {
			if err := s.need(1); err != nil {
				return err
			}
			continue
		}
		if err := s.need(pgwire.HeaderSize); err != nil {
			return err
		}
		typ, n, _, err := s.in.Header()
		if err != nil {
			return protocolError(err.Error())
		}
		if typ == pgwire.Terminate {
			if err := s.flush(); err != nil {
				return s.serverLost(err)
			}
			return errLeft
		}
		if !clientType(typ) {
			return protocolError("invalid frontend message type " + string(rune(typ)))
		}
		if err := s.need(min(pgwire.HeaderSize+n, s.in.Size())); err != nil {
			return err
		}
		ends, err := s.send(typ, n)
		if errors.Is(err, errHold) {
			if err = s.flush(); err != nil {
				return s.serverLost(err)
			}
			err = s.hold()
		}
		switch {
		case errors.Is(err, errClosing):
			return nil
		case err != nil:
			return err
		case ends || typ == pgwire.Flush || len(s.backend.out) >= outLimit:
			if err := s.flush(); err != nil {
				return s.serverLost(err)
			}
		}
	}
}

// need waits until n bytes from the client are buffered. What is ready for the
// server is sent before it waits.
func (s *session) need(n int) error {
	for s.in.Buffered() < n {
		if err := s.flush(); err != nil {
			return s.serverLost(err)
		}
		if err := s.fill(); err != nil {
			return err
		}
	}
	return nil
}

// fill reads from the client, for the uplink.
func (s *session) fill() error { return s.fillAs(s.midway || s.in.Buffered() > 0) }

// fillAs says whether a client that sends nothing is at fault.
func (s *session) fillAs(wanting bool) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return errClosing
	}
	s.wanting.Store(wanting)
	s.mu.Unlock()
	err := s.in.Fill()
	s.wanting.Store(false)
	s.moved.Add(1)
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return errClosing
	case s.stage == killed && errors.Is(err, os.ErrDeadlineExceeded):
		return s.sentence()
	case s.lost != nil:
		return s.lost
	}
	return errGone
}

// flush writes what is ready to the server.
func (s *session) flush() error { return s.flushBut(0) }

// flushBut leaves the last bytes.
func (s *session) flushBut(keep int) error {
	b := s.backend
	k := len(b.out) - keep
	if k <= 0 {
		return b.carrier().Flush() // what the event loops have left
	}
	_, err := b.Write(b.out[:k])
	b.out = append(b.out[:0], b.out[k:]...)
	if cap(b.out) > 8*outLimit && len(b.out) == 0 {
		b.out = nil
	}
	return err
}

// send moves the client's next message, whose header is buffered, to what is ready
// for the server, renamed if it names a prepared statement. A message that is not
// buffered whole is read on to its end, which only the uplink may do. ends reports
// whether it ends a cycle.
func (s *session) send(typ byte, n int) (ends bool, err error) {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return false, errClosing
	}
	copies := typ == pgwire.CopyData || typ == pgwire.CopyDone || typ == pgwire.CopyFail
	if !copies && s.mustHold(typ, n) {
		s.mu.Unlock()
		return false, errHold
	}
	if s.uplink != nil && (copies && s.backend.replays > 0 || !copies && s.canceling()) { // the COPY may yet have to go to another server
		s.mu.Unlock()
		time.Sleep(replayPause)
		return false, nil
	}
	if goes, err := s.inStep(typ, n); !goes {
		s.mu.Unlock()
		return false, err
	}
	// A client may send COPY data before it knows that the server takes it. What
	// comes when the server has answered is left of a COPY that failed.
	if copies && s.debts.none() && !s.open {
		s.mu.Unlock()
		s.excess = pgwire.HeaderSize + n
		s.dropExcess()
		return false, nil
	}
	if s.next.start.IsZero() {
		s.next.start = time.Now()
	}
	s.next.bytes += int64(pgwire.HeaderSize + n)
	s.behind = s.open
	s.open = s.open || !copies
	text, whole := s.text(typ, n)
	s.midway = !whole
	if s.setback != nil && !copies && s.turnDown(typ, n) {
		s.mu.Unlock()
		s.dropExcess()
		return true, nil
	}
	if name := s.longName(typ, n, whole); name != "" {
		s.mu.Unlock()
		return false, s.sendLongParse(name, n)
	}
	rest, err := s.rewrite(typ, n, text, whole)
	if err == nil {
		err = s.refused
	}
	s.mu.Unlock()
	if err != nil {
		return false, err
	}
	keep := 0
	if !whole && text != nil {
		keep = pgwire.CommentWindow + 1
	}
	if err := s.relay(rest, keep); err != nil {
		return false, err
	}
	if keep > 0 {
		s.seekTrace(s.backend.out)
	}
	return s.sent(typ), nil
}

// longName returns the name of a statement whose Parse does not fit the buffer but
// must be known whole, since it has a name.
func (s *session) longName(typ byte, n int, whole bool) string {
	if typ != pgwire.Parse || whole || s.backend.pool.sessions() {
		return ""
	}
	name, _, _ := pgwire.String(s.head(n))
	return string(name)
}

// sendLongParse reads a named statement that does not fit the buffer.
func (s *session) sendLongParse(name string, n int) error {
	if n > maxStatement {
		return end(Unsupported, fmt.Sprintf("a prepared statement of %d bytes is more than transaction mode carries", n),
			"do not give it a name, or use mode: session for this database")
	}
	s.in.Skip(pgwire.HeaderSize)
	body := make([]byte, 0, n)
	for {
		k := min(n-len(body), s.in.Buffered())
		body = append(body, s.in.Peek(k)...)
		s.in.Skip(k)
		if len(body) == n {
			break
		}
		if err := s.fill(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.midway = false
	body = body[len(name)+1:]
	if text, _, ok := pgwire.String(body); ok && !s.next.traced {
		s.next.trace, s.next.traced = pgwire.FindTraceparent(text)
	}
	return s.parseNamed(name, body)
}

// seekTrace finds the trace context of a statement that was too long to be held, in
// the end of its message.
func (s *session) seekTrace(tail []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := bytes.LastIndex(tail, []byte("*/"))
	if end < 0 || s.next.traced {
		return
	}
	// The text ends with a null; in a Parse, the parameters' types follow it.
	if behind := bytes.TrimLeft(tail[end+2:], "; \t\n\v\f\r"); len(behind) > 0 && behind[0] == 0 {
		s.next.trace, s.next.traced = pgwire.FindTraceparent(tail[:end+2])
	}
}

// relay moves the next n bytes from the client to what is ready for the server, and
// sends on the way all but the last keep bytes, if there are too many to hold.
func (s *session) relay(n, keep int) error {
	b := s.backend
	for {
		k := min(n, s.in.Buffered())
		b.out = append(b.out, s.in.Peek(k)...)
		s.in.Skip(k)
		if n -= k; n == 0 {
			return nil
		}
		if err := s.flushBut(keep); err != nil {
			return s.serverLost(err)
		}
		if err := s.fill(); err != nil {
			return err
		}
	}
}

// dropExcess drops what is buffered of a message that goes nowhere. It reports
// whether that was all of it.
func (s *session) dropExcess() bool {
	k := min(s.excess, s.in.Buffered())
	s.in.Skip(k)
	s.excess -= k
	return s.excess == 0
}

// sent notes that a message is ready to go, before it goes: the answer may come at
// any time after that. It reports whether the message ends a cycle.
func (s *session) sent(typ byte) (ends bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.noteSent(typ)
}

// noteSent is sent while the lock is held.
func (s *session) noteSent(typ byte) (ends bool) {
	if s.midway {
		s.midway = false
		if s.answering && s.quiet() {
			s.backend.interrupt(0) // the answer came before the message was complete
		}
	}
	switch typ {
	case pgwire.CopyDone, pgwire.CopyFail:
		if !s.copying {
			s.owe(debt{kind: owesCopy}) // sent before the server has asked for data
		}
		s.copying = false
		return true // not a cycle's end, but the server has something to say now
	case pgwire.Bind, pgwire.Describe, pgwire.Execute:
		s.debts.asked++
		return false
	case pgwire.Query, pgwire.FunctionCall:
		s.owe(debt{kind: owesQuery})
	case pgwire.Sync:
		if s.copying {
			// PostgreSQL ignores a Sync while it takes COPY data, unless the COPY has
			// failed meanwhile. What it owes is uncertain from here on.
			s.backend.broken.Store(true)
			return true
		}
		s.owe(debt{kind: owesSync})
	default:
		return false
	}
	s.cycles.push(s.next)
	s.next = cycle{}
	s.open, s.bound = false, nil
	return true
}

// hold waits, in the uplink, for serve to take the client over: what the client sends
// next must not go to the server before it has answered what went before. The client
// is read all the same, as far as there is room, so that one that hangs up is noticed.
func (s *session) hold() error {
	for !s.in.Full() {
		if err := s.fillAs(false); err != nil {
			return err
		}
	}
	return errClosing
}
