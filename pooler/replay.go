package pooler

import (
	"fmt"
	"strings"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// What a client carries, its settings and what it prepared with SQL's PREPARE, travels in
// front of its first messages, in the same write: it costs no round trip. What the
// server answers to that is swallowed here.
//
// Should settings be refused, what is behind them must not run: it would under the
// settings of somebody else. So each change of settings is a transaction block of its own. One
// that fails is left aborted, and PostgreSQL refuses everything that follows, but for
// what ends a transaction; that waits for the replay's answer (mayEnd). Then the
// session ends with PostgreSQL's reason, and the server is closed.

// replay is the text that carries out one of [state.Settings.Change]'s queries.
func replay(query string) string {
	return "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE;" + query + ";COMMIT"
}

// equip gives the server that was claimed what the client carries, before whatever the
// client sends: what that takes is ready to be sent. It does not wait.
func (s *session) equip() {
	b := s.backend
	sequences := s.takeSequences()
	if b.settings == s.settings && b.named == s.prepares && !sequences {
		s.inform()
		return
	}
	s.mu.Lock()
	queries := b.settings.Change(s.settings)
	forget := b.named.Forget(s.prepares)
	if sequences {
		forget += forgetSequences + ";"
	}
	if len(queries) > 0 {
		queries[0] = forget + queries[0]
	} else if forget != "" {
		queries = []string{strings.TrimSuffix(forget, ";")}
	}
	for _, query := range queries {
		s.sendReplay(replay(query), "")
	}
	s.prepares.Make(b.named, func(name, text string) { s.sendReplay(text, name) })
	b.settings, b.named = s.settings, s.prepares
	s.mu.Unlock()
	if b.replays == 0 {
		s.inform()
	}
}

// restore makes RESET in a transaction lead back to what was chosen at login, from the
// client's next messages on.
func (s *session) restore() {
	if !s.resets {
		return
	}
	s.resets = false
	if s.backend.status != pgwire.InBlock { // behind a transaction the audit does so
		return
	}
	if sql := audit.Restore(s.login); sql != "" {
		s.mu.Lock()
		s.sendReplay(sql, "")
		s.mu.Unlock()
	}
}

// sendReplay sends a simple query whose answer is swallowed: settings, or what makes the
// prepared statement of this name.
func (s *session) sendReplay(sql, name string) {
	b := s.backend
	b.out = pgwire.AppendQuery(b.out, sql)
	s.owe(debt{kind: owesReplay, name: name})
	b.replays++
	b.unnamed = ticket{} // PostgreSQL drops it with every simple query
}

// replayed waits until the server has the client's settings. What is ready for the
// server is sent before.
func (s *session) replayed() error {
	b := s.backend
	if b.replays == 0 {
		return nil
	}
	if err := s.flush(); err != nil {
		return s.serverLost(err)
	}
	for {
		if _, err := s.swallow(); err != nil || b.replays == 0 {
			return err
		}
		if err := b.In.Fill(); err != nil {
			if _, err := s.readFailed(err); err != nil {
				return err
			}
		}
	}
}

// swallow takes the buffered answers to a replay. wants reports that more has to come.
func (s *session) swallow() (wants bool, err error) {
	b := s.backend
	for b.replays > 0 {
		typ, n, ok, err := b.In.Header()
		switch {
		case err != nil:
			return false, s.confused(err)
		case !ok:
			return true, nil
		case pgwire.HeaderSize+n > b.In.Size():
			return false, s.confused(fmt.Errorf("message %q of %d bytes in answer to settings: %w", typ, n, pgwire.ErrTooLong))
		case b.In.Buffered() < pgwire.HeaderSize+n:
			return true, nil
		}
		body := b.In.Peek(pgwire.HeaderSize + n)[pgwire.HeaderSize:]
		switch typ {
		case pgwire.ErrorResponse:
			if err := s.replayFails(body); err != nil {
				return false, err
			}
		case pgwire.ParameterStatus:
			b.note(body)
		case pgwire.Notification:
			b.In.Pass(pgwire.HeaderSize + n)
			s.pass()
			continue
		case pgwire.ReadyForQuery:
			if err := s.replayEnds(body); err != nil {
				return false, err
			}
		}
		b.In.Skip(pgwire.HeaderSize + n)
	}
	return false, nil
}

// replayFails ends the session for settings that are refused. A prepared statement whose
// tables are gone is lost alone: the client hears of it when it uses the name (26000).
func (s *session) replayFails(body []byte) error {
	b := s.backend
	s.mu.Lock()
	d, _ := s.debts.first()
	s.mu.Unlock()
	if d.name == "" || string(pgwire.Field(body, 'V')) != "ERROR" {
		b.broken.Store(true)
		return unsuited(&upstream.Refused{SQLState: string(pgwire.Field(body, 'C')), Message: string(pgwire.Field(body, 'M'))})
	}
	b.named = b.pool.settings.Intern(b.named.Without(d.name))
	s.prepares = b.named
	return nil
}

// effectsOf says what may be left behind by executing statements that SQL prepared.
func effectsOf(named *state.Settings) (e scan.Effect) {
	for _, p := range named.All() {
		e |= scan.Effects([]byte(p.Value), false)
	}
	return e &^ scan.Prepares
}

// preparedBySQL reports whether the client's statement of this name was made by SQL's
// PREPARE: the server has it under the same name.
func (s *session) preparedBySQL(name string) bool {
	_, ok := s.prepares.Get(name)
	return ok && s.names[name] == nil
}

// replayEnds notes the end of a replay. After the last, the client hears what has
// changed for it.
func (s *session) replayEnds(body []byte) error {
	b := s.backend
	s.mu.Lock()
	d, ok := s.debts.pop()
	b.replays--
	s.mu.Unlock()
	if !ok || d.kind != owesReplay || len(body) != 1 || body[0] != b.status {
		return s.confused(errOutOfStep)
	}
	if b.replays == 0 {
		s.inform()
	}
	return nil
}

// mayEnd reports whether the client's next message, which is buffered whole, may end a
// transaction: such a one must not follow settings that the server may yet refuse.
func (s *session) mayEnd(typ byte, n int) bool {
	body := s.head(n)
	switch typ {
	case pgwire.Query, pgwire.Parse:
		if typ == pgwire.Parse {
			_, body, _ = pgwire.String(body)
		}
		text, _, _ := pgwire.String(body)
		return scan.Effects(text, s.backend.backslash())&scan.Ends != 0
	case pgwire.Bind:
		_, name, _, _ := pgwire.Strings(body)
		return s.leaves(name)&scan.Ends != 0
	}
	return false
}

const conforming = "standard_conforming_strings"

// backslash reports whether plain strings know backslash escapes: by what the server
// reported, or is about to.
func (s *backend) backslash() bool {
	if s.replays > 0 {
		if v, ok := s.settings.Get(conforming); ok {
			return state.Off(v)
		}
		v, _ := s.atLogin.Get(conforming)
		return v == "off"
	}
	v, _ := s.reports.Get(conforming)
	return v == "off"
}
