package pooler

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"mainstay.dev/mainstay/pooler/internal/again"
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
// what ends a transaction; that waits for the replay's answer (mustKnow). If it fails before
// it has begun, PostgreSQL passes over what follows (sendChange). Then the
// session ends with PostgreSQL's reason, and the server is closed. If it is what another
// client has left that cannot be led back, the client goes on elsewhere; so it does if it was
// canceled meanwhile, and is told so there (astray).

const beginReplay = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE"

// equip gives the server that was claimed what the client carries, before whatever the
// client sends: what that takes is ready to be sent. It does not wait.
func (s *session) equip() {
	b := s.backend
	if b.replays > 0 || b.status != pgwire.Idle || s.open {
		return // it has been equipped
	}
	s.untold = b.reports != s.told
	if s.settings.Temporary() {
		b.left |= scan.Temporary
	}
	if !b.pool.sessions() && b.pool.home().hidden.due(s.exchange.Start) {
		b.left, b.due = b.left|scan.Catalog, true
	}
	s.findAgain()
	sequences, opaque := s.takeSequences(), b.opaque != nobodys && b.opaque != s.id
	changes := b.pool.home().hidden.changes.Load()
	others := b.had != s.id // what is there is not its own
	stale := b.changes != changes && others
	opaque, b.had = opaque || stale, s.id
	if b.settings == s.settings && b.named == s.prepares && !sequences && !opaque && (!b.mixed || !others) {
		return
	}
	s.mu.Lock()
	forget, back := b.named.Forget(s.prepares)
	replan := b.replan(s.settings, !others) // which it may have changed elsewhere since

	// Else what SQL's PREPARE has made was asked for; what is prepared would be analysed anew, too.
	if stale || replan {
		forget, back, b.named = "DEALLOCATE ALL;", 1, state.None
		b.unlearn()
	}
	if replan {
		forget, back = forget+"DISCARD PLANS;", back+1
	}
	if sequences {
		forget, back = forget+forgetSequences+";", back+1
	}
	apart := opaque && b.settings.Recodes(s.settings)
	if opaque {
		wipe := audit.WipeUnseen()
		forget, back = forget+wipe, back+strings.Count(wipe, ";")
		b.settings, b.opaque, b.changes = state.None, nobodys, changes
		b.pool.wiped.Add(1)
	}
	queries, leave := b.settings.Change(s.settings)
	if back += leave; forget != "" && (len(queries) == 0 || apart) {
		queries = slices.Insert(queries, 0, strings.TrimSuffix(forget, ";"))
	} else if forget != "" {
		queries[0] = forget + queries[0]
	}
	for i, query := range queries {
		if i > 0 || !others {
			back = 0
		}
		s.sendChange(query, back)
	}
	s.prepares.Make(b.named, s.makeAgain)
	b.settings, b.named = s.settings, s.prepares
	s.mu.Unlock()
}

// restore makes RESET in a transaction lead back to what was chosen at login, from the
// client's next messages on.
func (s *session) restore() {
	s.outgrown = s.outgrown[:0]
	if !s.resets {
		return
	}
	s.resets = false
	if s.backend.status != pgwire.InBlock { // behind a transaction the audit does so
		return
	}
	q := audit.Question{Effects: s.backend.left, Names: s.backend.mentions.Settings, Known: s.settings, Locally: s.back.local}
	if sql := q.Restore(s.login); sql != "" {
		s.mu.Lock()
		s.sendReplay(sql, "")
		s.mu.Unlock()
	}
}

// Nor must it see the server's own default behind a RESET in the same text, or in the same cycle. So what it chose is given
// again by statements of ours right behind it, whose answers are swallowed.

// resetsNext reports whether the next message, a simple query, has such a RESET.
func (s *session) resetsNext(n int) bool {
	if s.login == state.None {
		return false
	}
	resets, _ := scan.Resets(bytes.TrimSuffix(s.head(n), nul), s.backend.backslash())
	return len(resets) > 0
}

// rewriteQuery notes what a simple query does. It reports whether it has sent another text in its place.
func (s *session) rewriteQuery(text []byte, whole bool) (instead bool) {
	b := s.backend
	b.unnamed, s.unnamed.version, s.does = ticket{}, 0, 0 // PostgreSQL drops it
	defer func() {
		if s.does&scan.Prepares != 0 {
			s.made.Executes(text, b.backslash(), s.prepares, s.present())
		}
		if s.maySway(text) {
			s.sway()
		}
	}()
	if whole && len(s.names) > 0 && !s.harmless && s.queryRenamed(text) {
		return true
	}
	before, first := s.resets, b.left&^scan.Catalog == 0 && whole
	e := s.suspect(text, whole)
	s.leadsBack(e, text)
	s.asks(e)
	if b.cleared.all = e&scan.Discards != 0; first && b.status == pgwire.Idle {
		b.clears(e, text)
	}
	if whole && e&scan.Back != 0 && s.login != state.None && s.queryReset(text) {
		b.cleared.chosen = true
		s.resets = before || e&(scan.AnyChange|scan.Unseen) != 0 || !s.login.Wholly() // all others are led back at once
		return true
	}
	return false
}

// queryReset sends a simple query with what gives again what its RESETs lead back. It reports whether there
// are any.
func (s *session) queryReset(text []byte) bool {
	b := s.backend
	longer, ours := again.Text(text, b.backslash(), b.status == pgwire.InBlock, s.login)
	if longer == nil {
		return false
	}
	s.renamed, s.added, s.back = longer, ours, leadBack{} // the server reports what it has been given
	b.out = pgwire.AppendQuery(b.out, longer.Text())
	return true
}

// again is what gives again what the client's statement of this name leads back.
func (s *session) again(name []byte) *again.Statements {
	if s.login == state.None || s.leaves(name)&scan.Back == 0 {
		return nil
	}
	body, runs := s.unnamed.body, s.unnamed.runs
	if st := s.names[string(name)]; st != nil {
		body, runs = st.body, st.runs
	} else if len(name) > 0 || !s.unnamed.kept {
		return nil
	}
	for ; runs != nil; runs = runs.runs { // what is executed in the end
		body = runs.body
	}
	text, _, _ := pgwire.String(body)
	return again.Behind(text, s.backend.backslash(), s.login)
}

// executeReset sends the next message, an Execute, with what is carried out behind it.
func (s *session) executeReset(n int, statements *again.Statements) {
	b := s.backend
	b.out = append(b.out, s.in.Peek(pgwire.HeaderSize+n)...)
	s.in.Skip(pgwire.HeaderSize + n)
	s.debts.asked++
	b.cleared.chosen = true
	for _, sql := range statements.SQL {
		s.runBehind(sql)
	}
	s.debts.asked-- // the Execute is counted when it has been sent
}

// ran reports whether what the server says is of a statement of ours among the client's. ends is whether it
// ends it.
func (s *session) ran(ends bool) bool {
	if !s.debts.ours {
		return s.added.Ours(ends)
	}
	if ends {
		s.mu.Lock()
		s.debts.pop()
		s.mu.Unlock()
		s.debts.ours = false
	}
	return true
}

// Where that cannot be done, since the login chose something that is not ASCII, or a DISCARD ALL bears nothing beside it, the client
// is told at least what it has from its next message on.

// A leadBack is the setting that the text that was sent last leads back to what was chosen at login, or "all".
type leadBack struct {
	name  string // until its answer has come
	local bool   // until the transaction's end
}

// leadsBack notes that the message that is being sent, which may do e, carries out this text, and maybe no other.
func (s *session) leadsBack(e scan.Effect, text []byte) {
	if s.back = (leadBack{}); e&scan.Back != 0 && s.login.Len() > 0 {
		s.back.name, s.back.local = scan.LeadsBack(text)
	}
}

// hearBack lets the client hear of what it chose at login, and has now led back to, where the server has nothing to say:
// what the client had set last is the server's own default. The lock is held.
func (s *session) hearBack() {
	b, db, back := s.backend, &s.exchange.DB, s.back.name
	if s.cycles.len() > 0 {
		return // it is the answer to an earlier text
	}
	if s.back.name = ""; s.back.local && b.status == pgwire.Idle {
		return // it had no effect
	}
	done := db.Command == "RESET" || db.Command == "SET" || db.Command == "DISCARD ALL"
	if !done || db.Queries != 1 || db.SQLState != "" {
		return
	}
	for _, p := range b.reports.All() {
		chosen, ok := s.chosen(p.Name)
		usual, _ := b.atLogin.Get(p.Name)
		told, _ := s.told.Get(p.Name)
		if ok && (back == "all" || strings.EqualFold(back, p.Name)) && p.Value == usual && told == usual && chosen != usual {
			s.held = pgwire.AppendParameter(s.held, p.Name, chosen)
			s.told = b.pool.settings.Intern(s.told.With(p.Name, chosen))
		}
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
	s.replaying.Store(true)
	defer s.replaying.Store(false)
	if err := s.flush(); err != nil {
		return s.serverLost(err)
	}
	for {
		if _, err := s.swallow(); errors.Is(err, errRepeat) {
			return err // what that server reports is not for the client
		} else if err != nil || b.replays == 0 {
			s.inform()
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
		case (typ == pgwire.RowDescription || typ == pgwire.ParameterDesc) && pgwire.HeaderSize+n > b.In.Size():
			s.shows(pgwire.RowDescription, nil) // a ParameterDesc is not the last
			b.In.Drop(pgwire.HeaderSize + n)
			continue
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
		case pgwire.CommandComplete:
			s.debts.answered++
		case pgwire.CloseComplete:
			s.forgotten()
		case pgwire.RowDescription, pgwire.NoData:
			s.shows(typ, body)
		case pgwire.DataRow:
			if s.sensing != nil && s.sensing.Row(body) != nil {
				s.sensing = nil
			}
		case pgwire.ParameterStatus:
			b.note(body)
		case pgwire.Notification:
			b.catch(body)
		case pgwire.ReadyForQuery:
			if err := s.replayEnds(body); err != nil {
				return false, err
			}
		}
		b.In.Skip(pgwire.HeaderSize + n)
	}
	return false, nil
}

// shows takes what the server says of the columns that it is asked for; nil is more than any that was told.
func (s *session) shows(typ byte, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.debts.first()
	if !ok || d.tells == nil {
		return
	}
	if d.tells.see(typ, body); body == nil {
		d.tells.columns.mark = ^uint64(0)
	}
}

// replayFails ends the session for settings that are refused. A prepared statement whose
// tables are gone is lost alone, until the schema changes, or, if it is refused for the moment, until the next
// transaction: the client hears of it when it uses the name (26000).
func (s *session) replayFails(body []byte) error {
	b := s.backend
	s.mu.Lock()
	d, _ := s.debts.first()
	s.mu.Unlock()
	mild := string(pgwire.Field(body, 'V')) == "ERROR"
	s.handOn(body)
	if d.aside && mild && d.name == "" {
		s.untaught(d, body)
		return nil
	}
	if mild && s.astray(d, body) {
		return errRepeat
	}
	if d.name == "" || !mild {
		b.broken.Store(true)
		b.pool.unlearn(s.login)
		return unsuited(&upstream.Refused{SQLState: string(pgwire.Field(body, 'C')), Message: string(pgwire.Field(body, 'M'))})
	}
	if text, ok := s.prepares.Get(d.name); ok {
		s.lose(d.name, text, body)
	}
	if d.aside { // what follows may be carried out all the same, if it was the BEGIN
		b.left |= scan.Prepares
	}
	b.named = b.pool.settings.Intern(b.named.Without(d.name))
	s.prepares = b.named
	return nil
}

// findAgain tries again to make what was lost, if the schema has changed.
func (s *session) findAgain() {
	if s.missing == state.None || s.backend.pool.statements.schema.Load() == s.missingAt {
		return
	}
	for _, p := range s.missing.All() {
		if _, made := s.prepares.Get(p.Name); !made {
			s.prepares = s.prepares.With(p.Name, p.Value)
		}
	}
	s.missingAt, s.prepares = 0, s.backend.pool.settings.Intern(s.prepares)
	s.findNone()
}

// findNone notes that the client wants nothing of that any more.
func (s *session) findNone() {
	s.missing = state.None
	clear(s.vanished)
}

// findDropped makes again what could not be, and a text is about to deallocate: with a connection of its own the client has it, however
// little it is good for.
func (s *session) findDropped(text []byte) {
	if s.missing == state.None || s.behind || s.uplink != nil || s.debts.len() > s.backend.replays {
		return
	}
	for _, u := range scan.Uses(text, s.backend.backslash()) {
		if _, lost := s.missing.Get(u.Name); !lost || !u.Drops {
			continue
		}
		if a := &s.attempt; a.missing == nil {
			a.missing, a.vanished = s.missing, maps.Clone(s.vanished)
		}
		s.sendReplay(`PREPARE "`+strings.ReplaceAll(u.Name, `"`, `""`)+`" AS SELECT`, "")
		s.missing = s.missing.Without(u.Name)
		delete(s.vanished, u.Name)
	}
}

// preparedBySQL reports whether the client's statement of this name was made by SQL's
// PREPARE: the server has it under the same name.
func (s *session) preparedBySQL(name string) bool {
	_, ok := s.prepares.Get(name)
	return (ok || slices.Contains(s.backend.stuck, name)) && s.names[name] == nil
}

// replayEnds notes the end of a replay. After the last, the client hears what has
// changed for it.
func (s *session) replayEnds(body []byte) error {
	b := s.backend
	s.mu.Lock()
	d, ok := s.debts.pop()
	b.replays--
	s.cancelAgain()
	s.mu.Unlock()
	s.debts.answered, s.debts.uncounted = 0, false
	if !ok || d.kind != owesReplay || len(body) != 1 || body[0] != b.status && !d.aside {
		return s.confused(errOutOfStep)
	}
	s.untold = b.replays == 0
	return nil
}

// mustKnow reports whether the client's next message, which is buffered whole, may end a
// transaction, which must not follow settings that the server may yet refuse, or drop what a
// replay makes, if it can.
func (s *session) mustKnow(typ byte, n int) bool {
	body := s.head(n)
	switch typ {
	case pgwire.Query, pgwire.Parse:
		if typ == pgwire.Parse {
			_, body, _ = pgwire.String(body)
		}
		text, _, _ := pgwire.String(body)
		e := scan.Effects(text, s.backend.backslash())
		return e&scan.Ends != 0 || e&scan.Prepares != 0 && s.prepares.Len() > 0
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
		return s.atLogin.Backslash()
	}
	return s.reports.Backslash()
}

// stains notes that the client uses a statement that others share, under settings which may give constants, also of functions in SQL that
// it calls, another meaning: that may stay on its server, which forgets what another client may have left so. The lock is held.
func (s *session) stains(st *statement) {
	if s.backend.stains.Foreign(st, s.id) {
		s.unlearn(st)
	}
	if (s.varied || s.backend.stains.Doubted) && s.reinterprets(st) {
		s.backend.stains.Add(st, s.id)
	}
}

func (s *session) reinterprets(st *statement) bool {
	now := s.present()
	return st.under != nil && (now == nil && s.backend.stains.Doubted || now != nil && !now.InterpretsSame(st.under))
}
