package pooler

import (
	"fmt"
	"slices"
	"strings"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/prepared"
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
	if b.replays > 0 {
		return // it has been equipped
	}
	s.untold = b.reports != s.told
	if !b.pool.sessions() && b.pool.home().hidden.due(s.exchange.Start) {
		b.left |= scan.Catalog
	}
	s.findAgain()
	sequences := s.takeSequences()
	if b.settings == s.settings && b.named == s.prepares && !sequences {
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
	q := audit.Question{Effects: s.backend.left, Names: s.backend.mentions.Settings, Known: s.settings, Locally: s.back.local}
	if sql := q.Restore(s.login); sql != "" {
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
		case pgwire.CloseComplete:
			s.forgotten()
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

// replayFails ends the session for settings that are refused. A prepared statement whose
// tables are gone is lost alone, until the schema changes: the client hears of it when it
// uses the name (26000).
func (s *session) replayFails(body []byte) error {
	b := s.backend
	s.mu.Lock()
	d, _ := s.debts.first()
	s.mu.Unlock()
	mild := string(pgwire.Field(body, 'V')) == "ERROR"
	if d.aside && mild {
		s.untaught(d)
		return nil
	}
	if d.name == "" || !mild {
		b.broken.Store(true)
		b.pool.unlearn(s.login)
		return unsuited(&upstream.Refused{SQLState: string(pgwire.Field(body, 'C')), Message: string(pgwire.Field(body, 'M'))})
	}
	if text, ok := s.prepares.Get(d.name); ok {
		s.missing, s.missingAt = s.missing.With(d.name, text), b.pool.statements.schema.Load()
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
	s.missing, s.prepares = state.None, s.backend.pool.settings.Intern(s.prepares)
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
	s.mu.Unlock()
	if !ok || d.kind != owesReplay || len(body) != 1 || body[0] != b.status && !d.aside {
		return s.confused(errOutOfStep)
	}
	s.untold = b.replays == 0
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
		return s.atLogin.Backslash()
	}
	return s.reports.Backslash()
}

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
		s.rebindUnnamed()
		return s.unnamed.left | s.leavesOf(s.unnamed.runs)
	}
	st := s.names[string(name)]
	if st != nil && st.late != nil {
		s.rebind(string(name), 0)
		st = s.names[string(name)]
	}
	return s.leavesOf(st)
}

// keepSequences pins the server, at a transaction's end, for a client that will ask for the
// values that it was given. What is over with the transaction is forgotten.
func (s *session) keepSequences(b *backend) {
	if s.straddles && b.left&scan.Advances != 0 {
		b.pins |= scan.Sequence
		s.mu.Lock()
		s.pinned = audit.Reasons(b.pins)
		s.mu.Unlock()
	}
	b.left &= scan.Lasting
}

// aborted reports whether the message that is being sent meets a transaction that is
// aborted: PostgreSQL refuses everything there but what ends it.
func (s *session) aborted() bool {
	return s.backend.status == pgwire.InFailed && s.cycles.len() == 0 && !s.next.ends
}

// unsettling are effects in an open transaction behind which a text that PostgreSQL has taken
// once may mean something else, or nothing.
const unsettling = scan.Setting | scan.AnyChange | scan.Back | scan.Discards | scan.Nameless | scan.Unseen | scan.Local | scan.Catalog | scan.Temporary

// doubtful reports whether PostgreSQL might now refuse a statement that the server knows, were
// it prepared again.
func (s *session) doubtful() bool {
	b := s.backend
	return b.status == pgwire.InFailed || s.cycles.len() > 0 || b.left&unsettling != 0
}

// standIn makes an empty statement with the same parameters as the one with this body: using it is refused for the
// same reason, and it can be prepared in an aborted transaction too.
func (s *session) standIn(body []byte) string {
	const name = namePrefix + "_stand_in"
	b := s.backend
	b.out = pgwire.Append(b.out, pgwire.Close, []byte{'S'}, []byte(name), nul)
	s.owe(debt{kind: owesOurClose})
	b.out = pgwire.Append(b.out, pgwire.Parse, []byte(name), nul, prepared.Empty(body, b.backslash()))
	s.owe(debt{kind: owesOurParse})
	return name
}

// queryRenamed sends a simple query that uses, in SQL, what the client prepared through the
// protocol, under the server's names. It reports whether this is one.
func (s *session) queryRenamed(text []byte) bool {
	b := s.backend
	uses := scan.Uses(text, b.backslash())
	if !slices.ContainsFunc(uses, func(u scan.Use) bool { return s.names[u.Name] != nil }) {
		return false
	}
	renamed, all := scan.Rename(text, b.backslash()), false
	var runs []*statement
	var drops []string           // by each DEALLOCATE; "" is none of these
	var decoys []string          // that are dropped in their place
	dropped := map[string]bool{} // from here on the name is SQL's alone
	for _, u := range uses {
		s.rebind(u.Name, 0)
		st, as := s.names[u.Name], ""
		all = all || u.Drops && u.Name == "" // ALL: all names are SQL's alone
		known := st != nil && !dropped[u.Name]
		switch {
		case all:
		case known && u.Drops:
			as = decoy + strings.Repeat("_", len(drops)+1)
			drops, decoys = append(drops, u.Name), append(decoys, as)
			dropped[u.Name] = true
		case u.Drops:
			drops, decoys = append(drops, ""), append(decoys, "")
		case known && u.Makes: // refused, by a name that is taken
			runs, as = append(runs, occupied), occupied.name
		case known:
			runs, as = append(runs, st), st.name
			if name := st.dropped(); name != "" {
				drops, decoys, dropped[name] = append(drops, name), append(decoys, decoy), true
			}
		}
		renamed.Use(u, as)
	}
	if s.renamed = nil; renamed.Renames() {
		s.renamed = renamed
	}
	var e scan.Effect
	if _, single := scan.UseOf(text, b.backslash()); single {
		e = s.suspectRenamed(text)
	} else {
		e = s.suspectText(text, true)
	}
	for _, st := range runs {
		e |= st.left
	}
	s.asks(e)
	s.runAll(runs)
	for i, name := range drops {
		if name != "" {
			s.offerDecoy(decoys[i], name)
		}
	}
	for _, name := range drops {
		s.owe(debt{kind: owesDrop, name: name})
	}
	b.out = pgwire.AppendQuery(b.out, renamed.Text())
	return true
}

// usesNames reports whether the next message, a simple query, may use what the client prepared
// through the protocol.
func (s *session) usesNames(n int) bool {
	return len(s.names) > 0 && len(scan.Uses(s.head(n), s.backend.backslash())) > 0
}

// runAll prepares for what a simple query executes.
func (s *session) runAll(list []*statement) {
	b := s.backend
	alone, news := s.debts.len() == b.replays, false
	for _, st := range list {
		known := s.knows(st) || st == occupied // which cannot fail
		if !known && (!alone || b.status == pgwire.InFailed && st.left&scan.Ends == 0) {
			continue // a Parse that fails makes the server skip everything up to a Sync
		}
		news = news || !known
		s.run(st)
	}
	if news {
		b.out = pgwire.Append(b.out, pgwire.Sync)
		s.owe(debt{kind: owesOurSync})
	}
}

// suspectRenamed notes what a renamed statement may leave behind: what it names is
// nothing that stays.
func (s *session) suspectRenamed(text []byte) scan.Effect {
	b := s.backend
	const names = scan.Prepares | scan.Executes
	before := b.left & names
	e := s.suspectText(text, true) &^ names
	b.left = b.left&^names | before
	return e
}

// offerDecoy makes a statement that the client's DEALLOCATE of a name can drop as this, if
// there is such a name.
func (s *session) offerDecoy(as, name string) {
	b := s.backend
	b.out = pgwire.Append(b.out, pgwire.Close, []byte{'S'}, []byte(as), nul)
	s.owe(debt{kind: owesOurClose})
	if s.names[name] != nil {
		b.out = pgwire.Append(b.out, pgwire.Parse, []byte(as), nul, nul, nul, nul)
		s.owe(debt{kind: owesOurParse})
	}
}

// run prepares for a statement that is executed, and for what that executes in SQL.
func (s *session) run(st *statement) {
	s.runFor(&st.use)
	s.ensure(st)
	s.recallOf(st)
}

// recallOf is recall for what a statement may leave behind.
func (s *session) recallOf(st *statement) {
	s.recall(st.left, &st.said)
	if st.left&scan.Back != 0 {
		text, _, _ := pgwire.String(st.body)
		s.leadsBack(st.left, text)
	}
	if in := s.hiddenIn(st); in != nil {
		s.recall(in.effect, &in.said)
	}
}
