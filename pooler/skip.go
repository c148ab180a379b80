package pooler

import (
	"bytes"
	"slices"
	"time"

	"mainstay.dev/mainstay/pooler/internal/again"
	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/prepared"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
)

// What fails has PostgreSQL pass over the messages behind it, up to the next Sync. What was noted of those when they were sent is
// taken back: what names stand for, and what the server has.

// forgive drops what will not come because of an error: all up to the cycle's end. It
// is undone in reverse, since a name may have changed its meaning more than once.
func (s *session) forgive() {
	owed := s.debts.list[s.debts.head:]
	s.debts.ours = false
	n := 0
	for n < len(owed) && !owed[n].kind.ready() {
		n++
	}
	for i := n - 1; i >= 0; i-- {
		s.undo(owed[i], owed[n:])
	}
	for range n {
		s.debts.pop()
	}
}

// undo takes back what was noted when a message was sent that the server did not
// carry out. What was sent later, in other cycles, may have given the name a new
// meaning, which stays.
func (s *session) undo(d debt, later []debt) {
	b := s.backend
	again := slices.IndexFunc(later, func(l debt) bool { return d.name != "" && l.name == d.name })
	renamed := again >= 0
	if renamed && d.kind == owesParse && later[again].kind == owesClose {
		later[again].statement = nil // what it closes is not there
	}
	switch {
	case d.kind == owesOurClose && d.statement != nil:
		b.prepared[d.statement] = 0 // it is still there
	case d.kind == owesDropAll:
		s.names, s.nameBytes, b.prepared = d.before.names, d.before.nameBytes, d.before.prepared
	case d.kind == owesDrop && d.statement != nil && !renamed:
		s.names[d.name] = d.statement
		s.nameBytes += int32(len(d.statement.body))
	case d.kind == owesDescription:
		d.tells.untold(&s.unnamed)
	case d.kind.ready() || d.kind == owesOurDescribe || d.kind == owesOurRun || d.kind == owesOurClose || d.kind == owesDrop || d.kind == owesCopy:
	case d.unnamed:
		s.undoUnnamed(d, later)
	case d.kind == owesClose && renamed:
	case d.kind == owesClose && d.statement != nil:
		s.names[d.name] = d.statement
		s.nameBytes += int32(len(d.statement.body))
	case d.kind == owesClose: // of what is not there
	case d.statement != nil:
		delete(b.prepared, d.statement)
	case d.was != nil && s.debts.skips(d) && !slices.ContainsFunc(later, changesUnnamed):
		b.unnamed = d.was.there
	}
	if d.kind == owesParse && d.name != "" && !renamed {
		s.unname(d.name)
	}
}

// changesUnnamed reports whether, from then on, the server has another unnamed statement, or none: what Parse of a
// name sends of a statement that the server knows has none.
func changesUnnamed(d debt) bool {
	return d.unnamed || d.kind == owesQuery || d.kind == owesReplay || d.kind == owesParse && d.statement == nil && !d.taken
}

// undoUnnamed takes back what was noted of the unnamed statement: one that was skipped has
// replaced nothing, one that was refused has left nothing there.
func (s *session) undoUnnamed(d debt, later []debt) {
	b := s.backend
	switch {
	case slices.ContainsFunc(later, changesUnnamed):
		// What another cycle has made of it since counts.
	case d.kind == owesOurParse: // the server has not got it
		b.unnamed = ticket{}
	case d.was != nil && s.debts.skips(d):
		last := s.unnamed.last
		s.unnamed, b.unnamed = d.was.unnamed, d.was.there
		s.unnamed.last = last
	default: // better none than a wrong one
		b.unnamed, s.unnamed.version = ticket{}, 0
	}
}

// unname forgets what a name stands for.
func (s *session) unname(name string) {
	if st := s.names[name]; st != nil {
		s.nameBytes -= int32(len(st.body))
		delete(s.names, name)
		delete(s.untried, name)
	}
}

// A Query may stand in the middle of a cycle of the extended protocol, with no Sync before it. If something of what comes before it
// fails, PostgreSQL passes over it, too, and says nothing more until it is sent a Sync.

// replayPause is between two looks of the uplink at whether a replay is over.
const replayPause = time.Millisecond

// inStep reports whether the next message, of n bytes, need not wait for the answers to what comes before it in its cycle. Only the
// uplink may wait for them.
func (s *session) inStep(typ byte, n int) (goes bool, err error) {
	switch {
	case s.open && (typ == pgwire.Query || typ == pgwire.FunctionCall):
		return s.amid(n)
	case !s.mustSense(typ, n):
		return true, nil
	case s.uplink == nil:
		return false, errHold
	}
	return s.senseAmid()
}

// amid reports whether such a Query (or FunctionCall), of n bytes, is to be sent now. It waits until the server has answered all
// that comes before it, and is dropped if that has failed. The lock is held, but while it waits.
func (s *session) amid(n int) (goes bool, err error) {
	if caught, err := s.caughtUp(); !caught {
		return false, err
	}
	if s.debts.failed {
		s.excess = pgwire.HeaderSize + n
		s.dropExcess()
		return false, nil
	}
	return true, nil
}

// caughtUp reports whether the server has answered all that has been sent, or has failed in the cycle that is being sent. Until
// then it is to be called again.
func (s *session) caughtUp() (caught bool, err error) {
	d, b := &s.debts, s.backend
	switch {
	case d.failed:
	case !d.inquired: // by closing what is not there
		b.out = pgwire.Append(b.out, pgwire.Close, []byte{'P'}, []byte(namePrefix), nul)
		s.owe(debt{kind: owesOurClose})
		s.inquire()
		return false, nil
	case !d.none():
		s.mu.Unlock()
		defer s.mu.Lock()
		if err := s.flush(); err != nil {
			return false, s.serverLost(err)
		}
		select {
		case <-s.caught:
		case <-time.After(10 * replayPause): // the session may be over
		}
		return false, nil
	}
	d.inquired = false
	return true, nil
}

// inquire has the server answer what it has been sent up to now.
func (s *session) inquire() {
	if s.caught == nil {
		s.caught = make(chan struct{}, 1)
	}
	s.backend.out = pgwire.Append(s.backend.out, pgwire.Flush)
	s.debts.inquired = true
}

// nudge ends the wait for that, if all has been answered. The lock is held.
func (s *session) nudge() {
	if !s.debts.inquired || !s.debts.none() {
		return
	}
	select {
	case s.caught <- struct{}{}:
	default: // there is one already
	}
}

// failedAmid notes that something has failed in the cycle that is being sent. The lock is held.
func (s *session) failedAmid() {
	s.nudge()
	s.debts.failed, s.debts.inquired, s.sensing = true, false, nil
}

// A Parse, or SQL's PREPARE, may stand behind what changes settings, in the middle of a cycle, too: what the statement means has to be
// known to make it again elsewhere. PostgreSQL takes the transaction's snapshot to look into it, so that a question before it takes
// nothing away.

// mustSense reports whether the next message, of n bytes, is such a Parse of what is kept, executes SQL's PREPARE, or uses what the
// server does not know yet and prepares now if that means the same.
func (s *session) mustSense(typ byte, n int) bool {
	if typ == pgwire.Sync || !s.open || s.debts.failed || s.backend.pool.sessions() || s.present() != nil || s.aborted() {
		return false
	}
	body := s.head(n)
	switch typ {
	case pgwire.Execute:
		name, _, _ := pgwire.String(body)
		_, makes := scan.PreparedBy(s.portals[string(name)].makes)
		return makes
	case pgwire.Bind:
		_, name, _, _ := pgwire.Strings(body)
		return s.mustLearn(name)
	case pgwire.Describe:
		name, isStatement := bytes.CutPrefix(bytes.TrimSuffix(body, nul), []byte{'S'})
		return isStatement && s.mustLearn(name)
	case pgwire.Parse:
		name, rest, _ := pgwire.String(body)
		if len(name) == 0 || s.names[string(name)] != nil {
			return false
		}
		text, _, ok := pgwire.String(rest)
		return !ok || scan.Sensitive(text)
	}
	return false
}

// mustLearn reports whether what the client calls this depends on settings, and the server is to learn it, maybe anew.
func (s *session) mustLearn(name []byte) bool {
	st := s.names[string(name)]
	_, known := s.backend.prepared[st]
	return st != nil && st.varies && (!known || s.backend.stains.Foreign(st, s.id))
}

// learnsLate reports whether the cycle that is buffered uses such a statement behind something that it executes, which may change how
// its constants are read.
func (s *session) learnsLate() (found bool) {
	b, u := s.backend, &s.unnamed
	if s.open || len(s.names) == 0 && u.version == 0 || b.status == pgwire.InFailed || b.pool.sessions() {
		return false
	}
	prepared.UsedBehind(s.in.Peek(s.in.Buffered()), func(name []byte) bool {
		found = s.mustLearn(name) || len(name) == 0 && u.version != 0 && u.kept && !s.hasUnnamed()
		return !found
	})
	return found && (b.status == pgwire.Idle || !s.early())
}

// senseAmid is sense there. It reports whether the Parse is to be sent now.
func (s *session) senseAmid() (goes bool, err error) {
	if s.sensing == nil {
		s.sensing = &audit.Findings{}
		s.runBehind(state.Present())
		s.inquire()
		return false, nil
	}
	if caught, err := s.caughtUp(); !caught {
		return false, err
	}
	s.senseIs()
	return true, nil
}

// runBehind sends a statement of ours among the client's, whose answers are swallowed. It is not counted by itself.
func (s *session) runBehind(sql string) {
	s.backend.out = again.Append(s.backend.out, namePrefix+"_again", sql)
	for _, kind := range []debtKind{owesOurClose, owesOurParse, owesOurRun, owesOurClose} {
		if kind == owesOurRun {
			s.debts.asked++ // for two answers
		}
		s.owe(debt{kind: kind})
	}
}

// takeRow takes a row, of n bytes, of what runBehind has sent; it is not taken if it has not come whole.
func (s *session) takeRow(n int) (taken bool, err error) {
	in := s.backend.In
	switch {
	case pgwire.HeaderSize+n > in.Size():
		return false, s.confused(pgwire.ErrTooLong)
	case in.Buffered() < pgwire.HeaderSize+n:
		return false, nil
	}
	if s.sensing == nil || s.sensing.Row(in.Peek(pgwire.HeaderSize + n)[pgwire.HeaderSize:]) != nil {
		return false, s.confused(errOutOfStep)
	}
	return true, nil
}

// replaces notes what the unnamed statement is, before the message that is being sent
// changes it. What is its cycle's first message is not skipped: for that it costs nothing.
func (s *session) replaces() *replaced {
	if !s.behind || s.unnamed.version == 0 {
		return nil
	}
	was := &replaced{s.unnamed, s.backend.unnamed}
	s.unnamed.body = nil // it is the other's
	return was
}

// displaces is replaces for what takes the server's unnamed statement away, and not the client's.
func (s *session) displaces() *replaced {
	if !s.behind || !s.hasUnnamed() {
		return nil
	}
	return &replaced{there: s.backend.unnamed}
}

// hasUnnamed reports whether the server's unnamed statement is the client's.
func (s *session) hasUnnamed() bool {
	return s.unnamed.version != 0 && s.backend.unnamed == ticket{s.id, s.unnamed.version}
}
