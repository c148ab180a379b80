package pooler

import (
	"bytes"
	"slices"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
)

// A text does not show the settings that it was prepared under: which tables search_path led
// to, what a date was. PostgreSQL keeps what it made of them. So a server that is to learn a
// statement later than its client prepared it learns it under those settings, in front of the
// cycle that uses it: in a transaction, or behind a savepoint, of which nothing stays but the
// statement. That costs a round trip, and is done only where the client's settings may give
// the text another meaning by now.

// sways are the effects in an open transaction behind which the client's settings are not known.
const sways = scan.Setting | scan.AnyChange | scan.Back | scan.Discards | scan.Nameless | scan.Unseen | scan.Local

// swayed reports whether the client may have changed its settings in the transaction that is open.
func (s *session) swayed() bool { return s.backend.left&sways != 0 }

// varies reports whether a name stands for what was prepared under settings of another meaning.
func (s *session) varies() bool {
	same := s.settings
	for _, st := range s.names {
		if st.under == same || st.under == nil {
			continue
		}
		if !st.under.MeansSame(s.settings) {
			return true
		}
		same = st.under
	}
	return false
}

// strange reports whether what was prepared under these settings may now mean something else.
func (s *session) strange(under *state.Settings) bool {
	return under != nil && (s.swayed() || !under.MeansSame(s.settings))
}

// unlearned reports whether the cycle that is buffered uses statements that are to be taught.
func (s *session) unlearned() bool {
	named, unnamed := s.toLearn()
	return unnamed || len(named) > 0
}

// toLearn lists them; unnamed is whether the unnamed one is to be as well.
func (s *session) toLearn() (named []*statement, unnamed bool) {
	b, u := s.backend, &s.unnamed
	open := b.status == pgwire.InBlock && s.swayed() && (len(s.names) > 0 || u.version != 0)
	if !s.varied && !open && (u.version == 0 || u.under == s.settings || u.under == nil) {
		return nil, false
	}
	if b.status == pgwire.InFailed || b.pool.sessions() || s.open { // open: the cycle has been sent in part
		return nil, false
	}
	wants := func(st *statement) {
		for ; st != nil; st = st.runs {
			text, _, _ := pgwire.String(st.body)
			_, known := b.prepared[st]
			if !known && s.strange(st.under) && (b.status == pgwire.Idle || scan.Analysed(text)) && !slices.Contains(named, st) {
				named = append(named, st)
			}
		}
	}
	s.eachUse(func(name []byte) {
		switch {
		case len(name) > 0:
			wants(s.names[string(name)])
		case u.version != 0 && u.kept:
			wants(u.runs)
			text, _, _ := pgwire.String(u.body)
			unnamed = s.strange(u.under) && (b.status == pgwire.Idle || scan.Analysed(text)) && (b.unnamed != ticket{s.id, u.version} || len(named) > 0)
		}
	})
	return named, unnamed
}

// eachUse yields the names of the statements that the cycle that is buffered uses, in SQL too, as far
// as it does not give them a meaning itself.
func (s *session) eachUse(yield func(name []byte)) {
	own := map[string]bool{}
	for rest := s.in.Peek(s.in.Buffered()); pgwire.Holds(rest); {
		typ, n, body := pgwire.Split(rest)
		rest = rest[n:]
		var name, text []byte
		switch typ {
		case pgwire.Sync, pgwire.FunctionCall:
			return
		case pgwire.Query:
			text, rest = bytes.TrimSuffix(body, nul), nil
		case pgwire.Parse:
			name, text, _, _ = pgwire.Strings(body)
		case pgwire.Bind:
			_, name, _, _ = pgwire.Strings(body)
		case pgwire.Describe, pgwire.Close:
			if len(body) < 2 || body[0] != 'S' {
				continue
			}
			name = body[1 : len(body)-1]
		default:
			continue
		}
		if len(s.names) > 0 && len(text) > 0 {
			for _, use := range scan.Uses(text, s.backend.backslash()) {
				if !own[use.Name] && !use.Drops && !use.Makes {
					yield([]byte(use.Name))
				}
			}
		}
		switch typ {
		case pgwire.Parse, pgwire.Close:
			own[string(name)] = true
		case pgwire.Bind, pgwire.Describe:
			if !own[string(name)] {
				yield(name)
			}
		}
	}
}

// unmet reports whether the cycle that is buffered uses statements that the server does not know, in a
// transaction that may be aborted by then: that has to be known when they are prepared. The lock is held.
func (s *session) unmet() (found bool) {
	b, u := s.backend, &s.unnamed
	if b.status == pgwire.Idle && b.left&scan.Begins == 0 {
		return false
	}
	s.eachUse(func(name []byte) {
		st := s.names[string(name)]
		_, known := b.prepared[st]
		found = found || st != nil && !known || len(name) == 0 && u.version != 0 && u.kept && b.unnamed != ticket{s.id, u.version}
	})
	return found
}

// teach makes the server learn what the cycle uses and was prepared under other settings.
// What it refuses then is prepared where it is used, and refused there.
func (s *session) teach() error {
	named, unnamed := s.toLearn()
	if len(named) == 0 && !unnamed {
		return nil
	}
	s.mu.Lock()
	for _, st := range named {
		s.teachOne(st.under, st, st.name, st.body)
	}
	if u := &s.unnamed; unnamed { // last: each of our own queries drops it
		s.teachOne(u.under, nil, "", u.body)
		s.backend.unnamed = ticket{s.id, u.version}
	}
	s.mu.Unlock()
	return s.replayed()
}

// teachOne sends what makes the server learn one statement; st is nil for the unnamed one.
func (s *session) teachOne(under *state.Settings, st *statement, name string, body []byte) {
	b := s.backend
	begin, undo := "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE", []string{"ROLLBACK"}
	if b.status == pgwire.InBlock {
		begin, undo = "SAVEPOINT _ms", []string{"ROLLBACK TO SAVEPOINT _ms", "RELEASE SAVEPOINT _ms"}
	}
	aside := func(d debt) {
		d.kind = owesReplay
		s.owe(d)
		b.replays++
	}
	for _, sql := range append([]string{begin}, under.Meaning()...) {
		b.out = pgwire.AppendQuery(b.out, sql)
		aside(debt{aside: true})
	}
	b.unnamed = ticket{}
	if st != nil {
		s.learn(st)
	}
	b.out = pgwire.Append(b.out, pgwire.Parse, []byte(name), nul, body)
	b.out = pgwire.Append(b.out, pgwire.Sync)
	aside(debt{aside: true, statement: st, unnamed: st == nil})
	for i, sql := range undo { // by names, which leave the unnamed ones alone
		b.out = pgwire.Append(b.out, pgwire.Parse, []byte("_ms_undo"), nul, []byte(sql), nul, nul, nul)
		b.out = pgwire.Append(b.out, pgwire.Bind, []byte("_ms_undo"), nul, []byte("_ms_undo"), make([]byte, 7))
		b.out = pgwire.Append(b.out, pgwire.Execute, []byte("_ms_undo"), make([]byte, 5))
		b.out = pgwire.Append(b.out, pgwire.Close, []byte("S_ms_undo"), nul)
		b.out = pgwire.Append(b.out, pgwire.Close, []byte("P_ms_undo"), nul) // which would last as long as the transaction
		b.out = pgwire.Append(b.out, pgwire.Sync)
		aside(debt{aside: i < len(undo)-1})
	}
}

// untaught notes that the server has refused what it was to learn.
func (s *session) untaught(d debt) {
	if d.statement != nil {
		delete(s.backend.prepared, d.statement)
	}
	if d.unnamed {
		s.backend.unnamed = ticket{}
	}
}

// forgotten notes that the server has closed a statement to make room for one that it learns.
func (s *session) forgotten() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.debts.first(); ok && d.kind == owesOurClose {
		s.debts.pop()
	}
}

// unmade is why the server did not prepare a statement that SQL is about to execute.
type unmade struct {
	name string
	body []byte // of the ErrorResponse
}

// tellWhy tells the client that, in place of an error that says that there is no such statement: with
// a connection of its own it has it, and PostgreSQL finds the same fault with it then.
func (s *session) tellWhy(body []byte) bool {
	if s.why == nil || string(pgwire.Field(body, 'C')) != "26000" || !bytes.Contains(pgwire.Field(body, 'M'), []byte(`"`+s.why.name+`"`)) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exchange.DB.SQLState = string(pgwire.Field(s.why.body, 'C'))
	s.held = pgwire.Append(s.held, pgwire.ErrorResponse, s.why.body)
	return true
}
