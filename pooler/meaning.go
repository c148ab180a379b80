package pooler

import (
	"bytes"
	"maps"
	"slices"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/prepared"
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

// present are the settings under which a text that is being sent is prepared, as far as they decide what it means; nil:
// they are not known.
func (s *session) present() *state.Settings {
	if !s.swayed() || s.sensed == nil && s.beside(state.Decides) {
		return s.settings
	}
	return s.sensed
}

// beside reports whether nothing of what the client may have changed in the open transaction decides what a text means.
func (s *session) beside(decides func(name string) bool) bool {
	b := s.backend
	return b.left&sways == scan.Setting && !b.mentions.Full && !b.mentions.Odd && !slices.ContainsFunc(b.mentions.Settings, decides)
}

// senses reports whether those have to be asked for: the cycle that is buffered prepares what is kept, behind a
// change in the same transaction, before it does anything else.
func (s *session) senses() bool {
	b := s.backend
	if s.present() != nil || b.status == pgwire.InFailed || b.pool.sessions() || s.open {
		return false
	}
	rest := s.in.Peek(s.in.Buffered())
	if len(rest) > pgwire.HeaderSize && rest[0] == pgwire.Parse && rest[pgwire.HeaderSize] != 0 && !pgwire.Holds(rest) {
		return true
	}
	for pgwire.Holds(rest) {
		typ, n, body := pgwire.Split(rest)
		rest = rest[n:]
		switch typ {
		case pgwire.Parse:
			if name, text, _, ok := pgwire.Strings(body); ok && len(name) > 0 && scan.Sensitive(text) {
				return true
			}
		case pgwire.Query:
			_, ok := scan.PreparedBy(bytes.TrimSuffix(body, nul))
			return ok
		case pgwire.Bind, pgwire.Describe, pgwire.Close:
		default:
			return false
		}
	}
	return false
}

// sense asks for them.
func (s *session) sense() error {
	s.mu.Lock()
	s.sensing = &audit.Findings{}
	s.runAside(state.Present(), true)
	s.mu.Unlock()
	if err := s.replayed(); err != nil || s.sensing == nil {
		return err
	}
	s.senseIs()
	return nil
}

// senseIs takes the answer.
func (s *session) senseIs() {
	b, all := s.backend, audit.Question{Effects: scan.AnyChange, Known: state.None}
	user, _ := b.atLogin.Get("session_authorization")
	has, _ := s.sensing.Settings(&all, state.None, user)
	s.sensing = nil
	if slices.ContainsFunc(has.All(), func(p pgwire.Param) bool { return len(p.Value) >= state.MostShown }) {
		return // one may have been cut short
	}
	for _, p := range s.login.All() { // which the client may have written in another way
		if value, _ := s.chosen(p.Name); value != "" {
			if is, ok := has.Get(p.Name); ok && is == value {
				has = has.With(p.Name, p.Value)
			}
		}
	}
	if s.sensed = has.Sense(); s.sensed.MeansSame(s.settings) {
		s.sensed = s.settings
	}
}

// under is present for this text.
func (s *session) under(text []byte) *state.Settings {
	under := s.present()
	if under == nil && !scan.Sensitive(text) {
		return s.settings
	}
	return under
}

// varies reports whether a name stands for what was prepared under settings of another meaning.
func (s *session) varies() bool {
	same := s.settings
	for _, st := range s.names {
		if st.under == same || st.under == nil {
			continue
		}
		if same = st.under; !same.MeansSame(s.settings) {
			return true
		}
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
	first, _ := s.severs()
	return unnamed || len(named) > 0 || s.unproven() || s.senses() || s.toType() || first != nil
}

// toLearn lists them; unnamed is whether the unnamed one is to be as well.
func (s *session) toLearn() (named []*statement, unnamed bool) {
	b, u := s.backend, &s.unnamed
	open := b.status == pgwire.InBlock && s.swayed() && (len(s.names) > 0 || u.version != 0)
	late := s.learnsLate()
	if !s.varied && !open && !late && (u.version == 0 || u.under == s.settings || u.under == nil) {
		return nil, false
	}
	if b.status == pgwire.InFailed || b.pool.sessions() || s.open { // open: the cycle has been sent in part
		return nil, false
	}
	var wants func(name string, depth int)
	wants = func(name string, depth int) {
		st := s.names[name]
		if st == nil || depth == maxChain {
			return
		}
		if l := st.late; l.executes() { // which has to be there before it
			wants(l.named.Name, depth+1)
		}
		text, _, _ := pgwire.String(st.body)
		_, known := b.prepared[st]
		if (!known || b.stains.Foreign(st, s.id)) && !st.outgrown() && (s.strange(st.under) || late && st.varies && st.under != nil) && (b.status == pgwire.Idle || scan.Analysed(text)) && !slices.Contains(named, st) {
			named = append(named, st)
		}
	}
	s.eachUse(func(name []byte) {
		switch {
		case len(name) > 0:
			wants(string(name), 0)
		case u.version != 0 && u.kept:
			if u.late.executes() {
				wants(u.late.named.Name, 0)
			}
			text, _, _ := pgwire.String(u.body)
			unnamed = !u.outgrown() && (s.strange(u.under) || late && u.under != nil) && (b.status == pgwire.Idle || scan.Analysed(text)) && (b.unnamed != ticket{s.id, u.version} || len(named) > 0)
		}
	})
	return named, unnamed
}

// eachUse yields the names of the statements that the cycle that is buffered uses, in SQL too, as far
// as it does not give them a meaning itself.
func (s *session) eachUse(yield func(name []byte)) {
	prepared.Uses(s.in.Peek(s.in.Buffered()), s.backend.backslash(), len(s.names) > 0, yield)
}

// sway notes that the settings in force are not known from here on. The lock is held.
func (s *session) sway() { s.sensed, s.unsure = nil, false }

// assure makes certain what is in doubt: the unnamed statement was prepared under the settings that there are now.
func (s *session) assure() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := &s.unnamed; s.unsure && u.under == nil {
		u.under = s.settings
	}
	s.unsure = false
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
// What it refuses then for good is prepared where it is used, and refused there.
func (s *session) teach() error {
	s.findTypes()
	if err := s.sever(); err != nil {
		return err
	}
	if s.senses() {
		if err := s.sense(); err != nil {
			return err
		}
	}
	if err := s.prove(); err != nil {
		return err
	}
	named, unnamed := s.toLearn()
	if len(named) == 0 && !unnamed || s.setback != nil {
		return nil
	}
	s.mu.Lock()
	for _, st := range named {
		s.unlearn(st)
		s.teachOne(st.under, st, st.asTyped(), nil)
	}
	if u := &s.unnamed; unnamed { // last: each of our own queries drops it
		s.teachOne(u.under, nil, u.asTyped(), nil)
		s.backend.unnamed = ticket{s.id, u.version}
	}
	s.mu.Unlock()
	if err := s.replayed(); err != nil || s.setback == nil {
		return err
	}
	s.setback.taught, s.backend.unnamed = named, ticket{} // maybe under the wrong settings
	return nil
}

// makeAgain sends what makes a statement that SQL's PREPARE made. It stays, whatever becomes of the
// transaction that it was made in. If settings are refused before it, nothing of it ends their transaction.
func (s *session) makeAgain(name, value string) {
	b := s.backend
	text, under := state.OfCarried(value)
	if under == nil || under.MeansSame(s.settings) {
		s.sendReplay(text, name)
		return
	}
	for _, sql := range append([]string{beginReplay + ";SAVEPOINT _ms"}, under.Meaning()...) {
		b.out = pgwire.AppendQuery(b.out, sql)
		s.aside(debt{aside: true, name: name})
	}
	b.out = pgwire.AppendQuery(b.out, text)
	s.aside(debt{aside: true, name: name})
	b.out = pgwire.AppendQuery(b.out, "ROLLBACK TO SAVEPOINT _ms")
	s.aside(debt{aside: true})
	b.out = pgwire.AppendQuery(b.out, "SELECT;ROLLBACK")
	s.aside(debt{at: 1}) // as what leads others' settings back: if a cancel has met this, or what comes before it, the cycle goes to another server
}

// aside notes that what is ready for the server is answered for us.
func (s *session) aside(d debt) {
	d.kind = owesReplay
	s.owe(d)
	s.backend.replays++
}

// runAside sends a statement of ours by names, which leaves the client's unnamed ones alone.
func (s *session) runAside(sql string, mayFail bool) {
	b, name := s.backend, []byte(namePrefix+"_undo")
	b.out = pgwire.Append(b.out, pgwire.Parse, name, nul, []byte(sql), nul, nul, nul)
	b.out = pgwire.Append(b.out, pgwire.Bind, name, nul, name, make([]byte, 7))
	b.out = pgwire.Append(b.out, pgwire.Execute, name, make([]byte, 5))
	b.out = pgwire.Append(b.out, pgwire.Close, []byte{'S'}, name, nul)
	b.out = pgwire.Append(b.out, pgwire.Close, []byte{'P'}, name, nul) // which would last as long as the transaction
	b.out = pgwire.Append(b.out, pgwire.Sync)
	s.aside(debt{aside: mayFail})
}

// untaught notes that the server has refused what it was to learn.
func (s *session) untaught(d debt, body []byte) {
	s.sound = string(pgwire.Field(body, 'R')) == "exec_parse_message"
	s.sensing, s.debts.uncounted = nil, true
	if momentary(body) {
		s.setBack(body)
	}
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
	name   string
	body   []byte       // of the ErrorResponse
	taught []*statement // which the server is to forget
}

// tellWhy tells the client that, in place of an error that says that there is no such statement: with
// a connection of its own it has it, and PostgreSQL finds the same fault with it then.
func (s *session) tellWhy(body []byte) bool {
	if string(pgwire.Field(body, 'C')) != "26000" {
		return false
	}
	s.mu.Lock() // the uplink may send what is unknown, too
	defer s.mu.Unlock()
	message := pgwire.Field(body, 'M')
	names := func(name string) bool { return bytes.Contains(message, []byte(`"`+name+`"`)) }
	var why []byte
	if s.why != nil && names(s.why.name) {
		why = s.why.body
	}
	for name, body := range s.vanished {
		if names(name) {
			why = body
		}
	}
	if slices.ContainsFunc(s.outgrown, func(name string) bool { return prepared.Names(message, name) }) {
		why = prepared.Changed(pgwire.Field(body, 'S'))
	}
	if why == nil {
		return false
	}
	s.exchange.DB.SQLState = string(pgwire.Field(why, 'C'))
	s.held = pgwire.Append(s.held, pgwire.ErrorResponse, why)
	return true
}

// Nor does PostgreSQL let a statement return other columns than when it was prepared (0A000), or give its parameters
// other types, which its operators may not have (42883). A statement that a server learned for one
// client before a table was changed elsewhere would so fail for another client that has prepared the same since.
// Such a client has been told nothing of it but that it is prepared: it is prepared anew,
// and the cycle that used it first is carried out again, if the server has done nothing of it yet.

// untry notes that a name stands for what others may have prepared before.
func (s *session) untry(name string) {
	if s.untried == nil {
		s.untried = map[string]bool{}
	}
	s.untried[name] = false
}

// try notes that a name is used, which may be for the first time.
func (s *session) try(name []byte) {
	if len(s.untried) == 0 {
		return
	}
	if _, ok := s.untried[string(name)]; ok {
		s.untried[string(name)] = true
	}
}

// triedAgain notes the end of a cycle. It reports whether the cycle is carried out again, as it
// can be if the server owes nothing more. The lock is held.
func (s *session) triedAgain(done bool) bool {
	a := &s.attempt
	if a.anew != nil && done && s.backend.status == pgwire.Idle {
		return true
	}
	s.held = append(s.held, a.anew...)
	a.anew = nil
	for name, tried := range s.untried { // whatever it is, its client has been told
		if tried {
			delete(s.untried, name)
		}
	}
	return false
}

// outdated reports whether the server's error is of a statement that was prepared before the
// client prepared the same, so that the cycle is to be carried out again.
func (s *session) outdated(body []byte) bool {
	s.mu.Lock() // the uplink may prepare something now
	none := len(s.untried) == 0
	s.mu.Unlock()
	if none {
		return false
	}
	a, b := &s.attempt, s.backend
	if a.size == 0 || a.last || a.told || s.mute || len(s.held) > 0 || !bytes.HasSuffix(body, []byte{0, 0}) { // which is cut short
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.cycle == nil && s.uplink == nil {
		a.cycle = s.in.Behind(a.size)
	}
	alone := a.cycle != nil && s.cycles.len() == 1 && !s.open && !s.midway && !s.copying && s.stage == running && s.lost == nil
	making, typed := s.refuses()
	if !alone || s.exchange.DB.Queries > 0 || making && !typed {
		return false // it has done something, or it is what is prepared now that is wrong
	}
	if !making && !s.blames(body, a.cycle) {
		return false
	}
	if making || string(pgwire.Field(body, 'C')) == "0A000" {
		b.pool.outdate()
	}
	s.exchange.DB.SQLState = string(pgwire.Field(body, 'C'))
	a.cycle, a.anew = bytes.Clone(a.cycle), pgwire.Append(bytes.Clone(b.In.Run()), pgwire.ErrorResponse, body)
	b.In.Taken()
	s.forgive()
	return true
}

// blames reports whether an error is the answer to the first use of a statement that may be out of
// date, and may be due to that. A parameter may have another type now too.
func (s *session) blames(body, cycle []byte) bool {
	class := string(pgwire.Field(body, 'C'))
	class = class[:min(2, len(class))]
	var name []byte
	switch typ, message, _ := pgwire.Unanswered(cycle, s.backend.In.Run()); typ {
	case pgwire.Query: // in SQL, it is found out when nothing has been carried out yet
		changed := string(pgwire.Field(body, 'R')) == "RevalidateCachedQuery"
		analysed := bytes.HasPrefix(pgwire.Field(body, 'F'), []byte("parse_"))
		return (changed || analysed) && pgwire.Field(body, 'W') == nil && slices.Contains(slices.Collect(maps.Values(s.untried)), true)
	case pgwire.Bind:
		_, name, _, _ = pgwire.Strings(message)
	case pgwire.Describe:
		name, _ = bytes.CutPrefix(bytes.TrimSuffix(message, nul), []byte{'S'}) // or a portal's, which is no such name
	}
	return s.untried[string(name)] && slices.Contains([]string{"0A", "22", "42", "XX"}, class) // the last, of a type that is gone
}

// prepareAnew makes the client's cycle the next that it sends, and new statements of those that it uses for the
// first time. It reports whether it did: there may be no room.
func (s *session) prepareAnew(a attempt) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.in.Unread(a.cycle) {
		return false
	}
	for name, tried := range s.untried {
		if st := s.names[name]; st != nil && tried {
			fresh := s.pool.statements.anew(st)
			for other := range s.untried {
				if s.names[other] == st {
					s.names[other] = fresh
				}
			}
		}
	}
	for name, tried := range s.untried {
		if tried {
			delete(s.untried, name)
		}
	}
	_, _, carried := pgwire.Unanswered(a.cycle, a.anew)
	for rest := a.cycle[:carried]; len(rest) > 0; {
		typ, n, body := pgwire.Split(rest)
		rest = rest[n:]
		if name, _, ok := pgwire.String(body); ok && typ == pgwire.Parse {
			s.unname(string(name)) // it is prepared again
		}
	}
	s.attempt = attempt{tries: a.tries, began: s.exchange.Start, last: true}
	s.exchange.DB.SQLState, s.exchange.FirstByte = "", 0
	return true
}

// anew returns a statement like this one that no server knows yet, for all who prepare it from now on.
func (r *registry) anew(st *statement) *statement {
	r.mu.Lock()
	defer r.mu.Unlock()
	if other := r.by[st.key]; other != nil && other != st {
		return other
	}
	c := r.copyOf(st)
	if r.by == nil {
		r.by = map[string]*statement{}
	}
	r.by[st.key] = c
	return c
}
