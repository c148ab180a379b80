package pooler

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"time"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/prepared"
	"mainstay.dev/mainstay/pooler/internal/scan"
)

// answer relays what the server says until it owes nothing more. A session that has its server to itself stays here until it ends.
func (s *session) answer() error {
	in := s.backend.In
	for {
		done, err := s.scan()
		s.pass()
		if err != nil {
			return err
		}
		if done {
			return s.join(false)
		}
		if err := in.Fill(); err != nil {
			done, err := s.readFailed(err)
			if err != nil {
				return err
			}
			if done {
				return s.join(false)
			}
		}
		if s.busy && s.exchange.FirstByte == 0 {
			s.exchange.FirstByte = time.Since(s.exchange.Start)
		}
	}
}

// beginNext starts the exchange of a cycle that the uplink has sent, when the server
// begins to answer it. What the server says by itself belongs to none.
func (s *session) beginNext() {
	s.mu.Lock()
	c, ok := s.cycles.first()
	if !ok && s.open { // answers to a Flush, before the cycle's end is sent
		c, ok = s.next, true
	}
	s.mu.Unlock()
	if !ok {
		return
	}
	s.begin()
	s.exchange.Start = c.start
	s.exchange.FirstByte = time.Since(c.start)
}

// lookInto is how much of a message's body is looked at, of those that are.
const lookInto = 1 << 10

// scan walks the messages that are buffered and marks those for the client. done
// reports that the server owes nothing more.
func (s *session) scan() (done bool, err error) {
	in := s.backend.In
	if wants, err := s.swallow(); wants || err != nil {
		return false, err
	}
	s.inform()
	for !in.Partial() {
		typ, n, ok, err := in.Header()
		if err != nil {
			return false, s.confused(err)
		}
		if !ok {
			return false, nil
		}
		if !s.busy {
			s.beginNext()
		}
		keep := !s.debts.ours
		if typ != pgwire.DataRow && typ != pgwire.CopyData {
			look := pgwire.HeaderSize + min(n, lookInto)
			if typ == pgwire.Notification || typ == pgwire.ParameterDesc || typ == pgwire.RowDescription {
				look = min(pgwire.HeaderSize+n, in.Size())
			}
			if in.Buffered() < look {
				return false, nil
			}
			if keep, done, err = s.observe(typ, in.Peek(look)[pgwire.HeaderSize:]); err != nil {
				return false, err
			}
		} else if !keep {
			if taken, err := s.takeRow(n); !taken {
				return false, err
			}
		} else if typ == pgwire.DataRow {
			s.rows++
		}
		if !keep {
			s.pass()
			in.Drop(pgwire.HeaderSize + n)
			if done {
				return true, nil
			}
			continue
		}
		if len(s.held) > 0 {
			s.pass()
			s.tellHeld()
		}
		s.exchange.BytesOut += int64(pgwire.HeaderSize + n)
		in.Pass(pgwire.HeaderSize + n)
		if done {
			return true, nil
		}
	}
	return false, nil
}

// pass writes the marked messages to the client. One that does not take them any
// more is not written to again.
func (s *session) pass() {
	in := s.backend.In
	run := in.Run()
	if len(run) == 0 {
		return
	}
	if !s.mute {
		s.attempt.told = true
		began := time.Now()
		err := s.give(run)
		s.exchange.DB.Client += time.Since(began)
		if err != nil {
			s.mute = true
			s.backend.interrupt(grace)
		}
	}
	in.Taken()
}

// readFailed says what it means that the server could not be read: an error, the end
// of the answer, or nothing.
func (s *session) readFailed(err error) (done bool, _ error) {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false, s.serverLost(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stage == killed:
		return false, s.sentence()
	case s.lost != nil:
		return false, s.lost
	case s.mute:
		return false, errGone
	case s.stage == draining && s.quiet() && s.backend.status == pgwire.Idle:
		return false, s.sentence()
	}
	if err := s.backend.SetReadDeadline(time.Time{}); err != nil {
		return false, s.serverLost(err)
	}
	return s.settled(), nil
}

// settled reports whether the server owes nothing more and serve may read the client
// again. If so the uplink has to end. The lock is held.
func (s *session) settled() bool {
	b := s.backend
	stays := b.pool.sessions() && s.lost == nil && (s.stage == running || b.status != pgwire.Idle)
	if !s.quiet() || stays {
		return false
	}
	s.answering, s.closing = false, true
	s.made.Settled()
	return true
}

// observe notes what a message from the server means. keep reports whether it is for
// the client, done that the server owes nothing more. body may be cut short.
func (s *session) observe(typ byte, body []byte) (keep, done bool, err error) {
	switch typ {
	case pgwire.ParseComplete:
		return s.acknowledge(owesParse, owesOurParse)
	case pgwire.CloseComplete:
		return s.acknowledge(owesClose, owesOurClose)
	case pgwire.CommandComplete:
		s.debts.answered++
		if s.ran(true) {
			return false, false, nil
		}
		s.completed(body)
		return !s.holdBack(body), false, nil
	case pgwire.EmptyQuery:
		s.debts.answered++
		s.exchange.DB.Queries++
	case pgwire.PortalSuspended: // which does not say how many
		s.exchange.DB.Rows, s.rows = s.exchange.DB.Rows+s.rows, 0
		s.debts.answered++
	case pgwire.BindComplete:
		s.debts.answered++
		return !s.debts.ours, false, nil
	case pgwire.ParameterDesc:
		s.describesTypes(body)
		return !s.debts.ours, false, nil
	case pgwire.RowDescription, pgwire.NoData:
		s.describesColumns(typ, body)
		s.debts.answered++
		ours, err := s.sighted(typ, body)
		return !ours && !s.ran(false), false, err
	case pgwire.ErrorResponse:
		if s.mayRepeat(body) {
			return false, false, errRepeat
		}
		if s.outdated(body) || !s.failed(body) {
			return false, false, nil
		}
		s.explain()
		if s.tellWhy(body) {
			return false, false, nil
		}
		prepared.Tell(body)
		return !s.relocate(typ, body), false, nil
	case pgwire.ParameterStatus:
		return s.hear(body), false, nil
	case pgwire.NoticeResponse:
		return !s.debts.ours && !s.signal(body) && !s.relocate(typ, body), false, nil
	case pgwire.Notification:
		if s.backend.pool.sessions() {
			return true, false, nil
		}
		s.backend.catch(body)
		return false, false, nil
	case pgwire.CopyIn:
		s.takesCopy()
	case pgwire.CopyBoth:
		return false, false, s.confused(errors.New("CopyBothResponse"))
	case pgwire.ReadyForQuery:
		if len(body) != 1 {
			return false, false, s.confused(errOutOfStep)
		}
		return s.ready(body[0])
	}
	return true, done, err
}

// acknowledge notes that a Parse or Close was carried out: the client's, or one of
// ours that it must not hear of.
func (s *session) acknowledge(theirs, ours debtKind) (keep, done bool, err error) {
	if s.backend.pool.sessions() && theirs != owesClose {
		return true, false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.debts.answered++
	d, ok := s.debts.pop()
	for ok && (d.kind == owesDrop || d.kind == owesDropAll || d.kind == owesCopy || d.kind == owesDescription) { // not carried out, since a portal had none
		if d.kind == owesDrop {
			s.undo(d, s.debts.list[s.debts.head:])
		}
		d, ok = s.debts.pop()
	}
	switch {
	case ok && d.taken:
		// An earlier cycle failed before it gave the name its meaning, and this Parse
		// was sent before that was known. What follows it means another statement.
		return false, false, s.confused(errMeaning)
	case ok && d.kind == theirs:
		next, _ := s.debts.first()
		s.debts.ours = next.kind == owesOurDescribe
		return true, false, nil
	case ok && d.kind == ours:
		next, _ := s.debts.first()
		s.debts.ours = next.kind == owesOurRun || next.kind == owesOurDescribe
		s.nudge()
		return false, false, nil
	}
	return false, false, s.confused(errOutOfStep)
}

// completed notes the end of a command.
func (s *session) completed(body []byte) {
	command, rows := pgwire.Tag(body)
	db := &s.exchange.DB
	db.Command = commandName(command)
	db.Rows, s.rows = db.Rows+rows, 0
	db.Queries++
	switch db.Command {
	case "DEALLOCATE ALL", "DISCARD ALL":
		s.mu.Lock()
		if d, ok := s.debts.first(); ok && d.kind == owesDropAll {
			s.debts.pop()
			s.backend.brief = unbriefed
			maps.DeleteFunc(s.untried, func(name string, _ bool) bool { return s.names[name] == nil })
			s.findNone()
		} else {
			s.forget()
		}
		if b := s.backend; db.Command == "DISCARD ALL" && b.left&scan.Nameless == 0 {
			b.pins &^= scan.Nameless
		}
		s.mu.Unlock()
	case "DEALLOCATE":
		s.mu.Lock()
		if d, ok := s.debts.first(); ok && d.kind == owesDrop {
			s.debts.pop()
			if d.statement == nil {
				s.unname(d.name)
			}
		}
		s.mu.Unlock()
	}
	if db.Command == "DISCARD ALL" || db.Command == forgetSequences {
		s.backend.pins &^= scan.Sequence
	}
	if changesSchema(string(command)) {
		s.altersSchema(command)
	}
}

// forget notes that the server has dropped all its statements at the client's wish.
// Those that it was told to prepare since are still to come.
func (s *session) forget() {
	b := s.backend
	b.unlearn()
	clear(s.names)
	clear(s.untried)
	s.nameBytes = 0
	s.findNone()
	for _, d := range s.debts.list[s.debts.head:] {
		if d.statement == nil || d.kind == owesOurClose || d.kind == owesClose || d.kind == owesDrop {
			continue
		}
		b.uses++
		b.prepared[d.statement] = b.uses
		if d.name != "" {
			s.names[d.name] = d.statement
			s.nameBytes += int32(len(d.statement.body))
		}
	}
}

// failed notes an error: what was sent behind it in the same cycle is skipped. It
// reports whether the error is for the client.
func (s *session) failed(body []byte) (keep bool) {
	code := pgwire.Field(body, 'C')
	severity := pgwire.Field(body, 'V')
	if severity == nil {
		severity = pgwire.Field(body, 'S')
	}
	s.fatal = string(severity) == "FATAL" || string(severity) == "PANIC"
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.debts.firstReady(); ok && d.kind == owesOurSync && !s.fatal {
		if d, _ := s.debts.first(); d.statement != nil && bytes.HasSuffix(body, []byte{0, 0}) {
			s.why = &unmade{name: d.statement.name, body: bytes.Clone(body)}
		}
		s.forgive()
		return false // what the client sent fails too, behind it
	}
	x := s.exchange
	x.DB.SQLState = string(code)
	x.DB.Queries++
	s.backend.cleared, s.copying = cleared{}, false
	s.doubt()
	// A plan that does not fit any more: a new Parse must really be one, everywhere.
	if _, typed := s.refuses(); typed || x.DB.SQLState == "0A000" {
		s.backend.pool.outdate()
	}
	s.forgive()
	if _, ended := s.debts.firstReady(); !ended && s.open {
		s.failedAmid()
	}
	return true
}

// relocate lets an error or notice point at the same place of the client's text. It reports
// whether the client is told so instead of what the server says.
func (s *session) relocate(typ byte, body []byte) bool {
	s.mu.Lock() // the uplink may send the next
	defer s.mu.Unlock()
	at, err := strconv.Atoi(string(pgwire.Field(body, 'P')))
	if s.renamed == nil || err != nil || !bytes.HasSuffix(body, []byte{0, 0}) { // which may be cut short
		return false
	}
	done := s.exchange.DB.Queries
	if typ == pgwire.ErrorResponse {
		done-- // counts it
	}
	to := s.renamed.Place(at, done, string(pgwire.Field(body, 'C')), string(pgwire.Field(body, 'R')))
	if to == at {
		return false
	}
	was, is := fmt.Sprintf("\x00P%d\x00", at), fmt.Sprintf("\x00P%d\x00", to)
	s.held = pgwire.Append(s.held, typ, bytes.Replace(body, []byte(was), []byte(is), 1))
	return true
}

// takesCopy notes that the server takes COPY data from now on, so that client and
// server talk at the same time.
func (s *session) takesCopy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.debts.firstReady()
	extended := !ok || d.kind == owesSync
	// In the extended protocol the client may have sent its Sync already, which the
	// server ignores while it takes data; another follows the data.
	syncs, ended := s.debts.takeCopy()
	s.copying = !ended
	for range syncs {
		s.goesOn()
	}
	s.open = s.open || extended && s.cycles.len() == 0
	s.split()
}

// ready notes that the server has finished a cycle and records it. done reports
// whether it owes nothing more and the client may be read by serve again, keep whether
// the client is to hear of it.
func (s *session) ready(status byte) (keep, done bool, err error) {
	s.mu.Lock()
	b := s.backend
	s.forgive()
	s.debts.answered, s.debts.uncounted, s.rows = 0, false, 0
	switch d, ok := s.debts.pop(); {
	case !ok:
		s.mu.Unlock()
		return false, false, s.confused(errOutOfStep)
	case d.kind == owesOurSync:
		b.status, s.block = status, status
		s.mu.Unlock()
		return false, false, nil
	}
	for d, ok := s.debts.first(); ok && d.kind == owesCopy; d, ok = s.debts.first() {
		s.debts.pop() // of a COPY that was refused
	}
	b.status, s.block, s.copying, s.renamed, s.why, s.added = status, status, false, nil, nil, nil
	c, _ := s.cycles.pop()
	if s.cycles.len() > 0 { // what was sent behind it begins now
		s.cycles.list[s.cycles.head].start = time.Now()
	} else if s.open {
		s.next.start = time.Now()
	}
	if s.back.name != "" {
		s.hearBack()
	}
	done = s.settled()
	again := s.triedAgain(done)
	s.severedEnds()
	s.withheld = again || done && (status == pgwire.Idle && (s.mustAttend() || s.synced != nil) || status != pgwire.Idle && b.pool.statementMode())
	if s.withheld && status != pgwire.Idle {
		s.exchange.DB.SQLState = "0A000"
	}
	s.mu.Unlock()
	if !again {
		s.record(&c)
	}
	return !s.withheld && !s.mum, done, nil
}

// join ends the uplink and takes the client over from it. After a failure the server
// is interrupted too, since the uplink may be waiting for it.
func (s *session) join(failed bool) error {
	s.mu.Lock()
	s.answering, s.closing = false, true
	uplink, b := s.uplink, s.backend
	if uplink != nil {
		_ = s.conn.SetReadDeadline(longAgo) // a closed connection is as good
		if failed && b != nil {
			b.interruptWrite()
		}
	}
	s.mu.Unlock()
	if uplink != nil {
		<-uplink
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uplink, s.closing = nil, false
	if failed {
		if b != nil && uplink != nil && len(b.out) > 0 {
			b.broken.Store(true) // a message may have been cut
		}
		return nil
	}
	if s.lost != nil {
		return s.lost
	}
	if s.mute {
		return errGone
	}
	if uplink == nil || s.stage == killed {
		return nil
	}
	b.out = b.out[:0] // at most the rest of a COPY that the server has ended
	return s.conn.SetReadDeadline(time.Time{})
}
