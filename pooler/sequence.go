package pooler

import (
	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
)

// currval and lastval answer with what the server's session was given last, whoever its
// client was. They must never answer with another client's value.
//
// Nothing is done for databases whose clients never ask for them. Once one has, each
// server forgets such values (DISCARD SEQUENCES, in front of the client's first message)
// when it changes hands. So a value that was given in the same transaction is right, and
// one that is not there is PostgreSQL's own error (55000). A client that asks for what an
// earlier transaction was given keeps its server from its next such transaction on;
// until then it gets the server that it had last, if nobody has had it since.

// Whose values a server's session knows, besides the id of a session.
const (
	nobodys  = 0
	severals = ^uint32(0)
)

// takeSequences makes the values that the server knows the client's own, if it matters. It
// reports whether the server has to forget those that it has.
func (s *session) takeSequences() (forget bool) {
	b := s.backend
	switch {
	case b.sequences == s.id:
	case b.sequences == nobodys:
		b.sequences = s.id
	case b.pool.sequences.Load():
		b.sequences = s.id
		return true
	default:
		b.sequences = severals
	}
	return false
}

const forgetSequences = "DISCARD SEQUENCES"

// asks notes that the next message, which may do e, is carried out now.
func (s *session) asks(e scan.Effect) {
	if e&scan.Sequence != 0 && (s.backend.left|e)&scan.Advances == 0 {
		s.straddles = true
	}
	s.ownSequences(e)
}

// ownSequences sees to it, before a message is sent that asks for a sequence's last value,
// that the server knows none of another client's. The lock is held.
func (s *session) ownSequences(e scan.Effect) {
	b := s.backend
	if e&scan.Sequence == 0 {
		return
	}
	if !b.pool.sequences.Load() {
		b.pool.sequences.Store(true)
	}
	switch {
	case b.sequences == s.id || b.status == pgwire.InFailed:
	case s.behind || s.uplink != nil || s.debts.len() > b.replays:
		s.refused = end(Unsupported, "currval or lastval is asked for in the middle of a pipeline, and the server may know another client's values",
			"use INSERT … RETURNING, or connect again: from now on servers forget them in time")
	default: // the database's first to ask
		b.sequences = s.id
		s.sendReplay(forgetSequences, "")
	}
}

// leaves is what the client's statement of this name may leave behind.
func (s *session) leaves(name []byte) scan.Effect {
	if len(name) == 0 {
		return s.unnamed.left | s.unnamed.runs.leaves()
	}
	st := s.names[string(name)]
	if st == nil {
		return 0
	}
	return st.leaves() | st.runs.leaves()
}

// keepSequences pins the server, at a transaction's end, for a client that will ask for the
// values that it was given.
func (s *session) keepSequences(b *backend) {
	if s.straddles && b.left&scan.Advances != 0 {
		b.pins |= scan.Sequence
		s.mu.Lock()
		s.pinned = audit.Reasons(b.pins)
		s.mu.Unlock()
	}
	b.left &^= scan.Sequence | scan.Advances
}

// leaves is what a statement may leave behind; it may be nil.
func (st *statement) leaves() scan.Effect {
	if st == nil {
		return 0
	}
	return st.left
}
