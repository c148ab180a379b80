package pooler

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// What functions and triggers do to the session is not seen in the texts that use them. So
// a database's sources are read from its catalog (package scan, [scan.Hints]): by the first
// connection before anybody has it, behind a transaction that changed the schema, and
// once a minute behind some transaction, in case somebody else did. That look also shows
// whether tables have changed, which makes statements that are prepared from then on new.

// catalogEvery is how often the catalog is looked at for changes that were made elsewhere.
const catalogEvery = time.Minute

// catalogLimit bounds each of the two questions; mostly they take milliseconds. PostgreSQL
// gives up a little earlier.
const catalogLimit = 30 * time.Second

// hidden is what a database's catalog hides. Its methods may be called from several
// goroutines.
type hidden struct {
	known atomic.Pointer[revealed]
	next  atomic.Int64 // when it is to be looked at again, in nanoseconds since 1970
	first sync.Mutex   // over the first look, which all wait for
}

// revealed is what was read from the catalog.
type revealed struct {
	mark  string
	hints scan.Hints

	columns string // a mark of what tables are like
}

// hiddenIn is what a statement's text does by the functions that it calls.
type hiddenIn struct {
	by     *revealed
	effect scan.Effect
	said   scan.Mentions
}

// home is the pool that knows the catalog: members share their parent's.
func (p *pool) home() *pool {
	if p.parent != nil {
		return p.parent
	}
	return p
}

// hints are those that are known; nil if there are none.
func (h *hidden) hints() scan.Hints { return h.known.Load().all() }

// all are the hints; nil of what has not been read.
func (r *revealed) all() scan.Hints {
	if r == nil {
		return nil
	}
	return r.hints
}

// due reports whether the catalog is to be looked at, and that the caller is to do it.
func (h *hidden) due(now time.Time) bool {
	next := h.next.Load()
	return now.UnixNano() > next && h.next.CompareAndSwap(next, now.Add(catalogEvery).UnixNano())
}

// learnHidden reads the catalog on a new connection, if nobody has before.
func (s *backend) learnHidden() error {
	h := &s.pool.home().hidden
	h.first.Lock()
	defer h.first.Unlock()
	if s.pool.sessions() || h.known.Load() != nil || !h.due(time.Now()) {
		return nil
	}
	return s.reveal()
}

// reveal reads the catalog if it has changed. A server that refuses to show it is served
// without; only a connection that is lost is an error.
func (s *backend) reveal() error {
	var found audit.Hidden
	h := &s.pool.home().hidden
	known := h.known.Load()
	if err := s.execWithin(catalogLimit, audit.State, found.Row); err != nil {
		return s.unlessRefused(err)
	}
	if known != nil && known.columns != found.Columns {
		s.pool.statements.renew() // what is prepared from now on is prepared anew
	}
	if known != nil && known.mark == found.Mark {
		if known.columns != found.Columns {
			h.known.Store(&revealed{known.mark, known.hints, found.Columns})
		}
		return nil
	}
	version, _ := s.atLogin.Get("server_version")
	version, _, _ = strings.Cut(version, ".")
	major, _ := strconv.Atoi(version) // 0 if it is no number
	if err := s.execWithin(catalogLimit, audit.Catalog(major), found.Row); err != nil {
		return s.unlessRefused(err)
	}
	r := &revealed{mark: found.Mark, hints: found.Hints(), columns: found.Columns}
	h.known.Store(r)
	s.pool.statements.renew()
	if s.left&scan.AnyChange != 0 { // the transaction may have used what it made
		for _, hint := range r.hints {
			for _, name := range hint.Settings {
				s.mentions.Add(name)
			}
		}
	}
	return nil
}

// lookIntoCatalog reads the catalog behind a transaction.
func (s *session) lookIntoCatalog(b *backend) error {
	err := b.reveal()
	b.left &^= scan.Catalog
	if err == nil {
		return nil
	}
	b.broken.Store(true)
	if b.left == 0 && b.pins == 0 { // the client has nothing there
		return nil
	}
	return s.unread(err)
}

// unlessRefused ends the transaction in which PostgreSQL refused to show its catalog.
func (s *backend) unlessRefused(err error) error {
	if _, refused := errors.AsType[*upstream.Refused](err); !refused {
		return err
	}
	s.pool.log.Warn("the sources of functions cannot be read: what they leave in a session is not seen", "database", s.pool.name, "err", err)
	return s.rollBack()
}

// hiddenIn is what a statement does by the functions that it calls; nil: nothing.
func (s *session) hiddenIn(st *statement) *hiddenIn {
	known := s.backend.pool.home().hidden.known.Load()
	if known == nil || known.hints == nil {
		return nil
	}
	in := st.hidden.Load()
	if in == nil || in.by != known {
		in = &hiddenIn{by: known}
		text, _, _ := bytes.Cut(st.body, nul)
		in.effect = known.hints.Find(text, false, &in.said)
		st.hidden.Store(in)
	}
	return in
}

// leavesOf is what a statement, which may be nil, may leave behind.
func (s *session) leavesOf(st *statement) scan.Effect {
	if st == nil {
		return 0
	}
	left := st.left | s.leavesOf(st.runs)
	if in := s.hiddenIn(st); in != nil {
		left |= in.effect
	}
	return left
}

// effectsOf says what may be left behind by executing statements that SQL prepared.
func effectsOf(named *state.Settings) (e scan.Effect) {
	for _, p := range named.All() {
		e |= scan.Effects([]byte(p.Value), false)
	}
	return e &^ scan.Prepares
}

// Nor does a text show the settings that it was prepared under: which tables search_path led
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

// What PostgreSQL says of a prepared FETCH's columns is settled when it is prepared: there are none if there
// was no such cursor then. If there was one, and it is gone, PostgreSQL (as of 15) crashes when it is asked.
// So a server is never asked about one that it was told to prepare at another time, maybe for another
// client: a statement that stands in for it is described. Whether there was a cursor the server is
// asked behind the client's Parse, unless there can't have been; such statements are not shared.

// A sighting is what became known of a cursor when a FETCH was prepared.
type sighting struct {
	told  bool // it is known
	there bool // the cursor was
}

// cursorless reports whether no cursor can be open when the message that is being sent is carried out.
func (s *session) cursorless() bool {
	b := s.backend
	return b.status == pgwire.Idle && !s.behind && s.cycles.len() == 0 && (b.left|b.pins)&scan.Hold == 0
}

// apart is the same statement, of one client alone.
func (r *registry) apart(st *statement) *statement {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	return &statement{
		name: namePrefix + strconv.FormatUint(r.last, 36), body: st.body, left: st.left, said: st.said, use: st.use, under: st.under, shape: st.shape,
		cursor: &sighting{},
	}
}

// fetch is the statement, or the one that it executes, that is a FETCH; nil: none.
func (st *statement) fetch() *statement {
	for st != nil && st.left&scan.Fetches == 0 {
		st = st.runs
	}
	return st
}

// sight asks the server what columns it has found for the FETCH that it has just prepared as this.
func (s *session) sight(cursor *sighting, as string) {
	s.owe(debt{kind: owesOurDescribe, cursor: cursor})
	s.backend.out = pgwire.Append(s.backend.out, pgwire.Describe, []byte{'S'}, []byte(as), nul)
}

// sighted takes the answer to that. It reports whether this is it, and so not for the client.
func (s *session) sighted(typ byte) bool {
	if !s.debts.ours {
		return false
	}
	s.debts.ours = false
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.debts.first(); ok && d.kind == owesOurDescribe {
		s.debts.pop()
		*d.cursor = sighting{told: true, there: typ == pgwire.RowDescription}
	}
	return true
}

// describeFetch returns the name of what is to be described in place of a FETCH.
func (s *session) describeFetch(st *statement) string {
	_, known := s.backend.prepared[st]
	return s.standInForFetch(st.body, st.cursor, known, st.name)
}

// standInForFetch is describeFetch for one with this body, which the server knows as this, if it knows it.
func (s *session) standInForFetch(body []byte, cursor *sighting, known bool, as string) string {
	switch {
	case cursor == nil || cursor.told && !cursor.there:
		return s.standIn(body)
	case !cursor.told && known: // in the cycle that prepares it
		return as
	}
	const name = namePrefix + "_fetch"
	b := s.backend
	b.out = pgwire.Append(b.out, pgwire.Close, []byte{'S'}, []byte(name), nul)
	s.owe(debt{kind: owesOurClose})
	b.out = pgwire.Append(b.out, pgwire.Parse, []byte(name), nul, body)
	s.owe(debt{kind: owesOurParse})
	return name
}
