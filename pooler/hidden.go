package pooler

import (
	"bytes"
	"cmp"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/explain"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/prepared"
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
	blind atomic.Bool  // that has shown nothing, and servers were given out without

	changing atomic.Int32  // on so many servers the schema may be changing: what they have done of that is not known yet
	changes  atomic.Uint32 // of what is known: who used a function before that was seen may have left what was not asked for
	looks    *audit.Looks  // behind transactions
	planned  atomic.Bool   // a function has been made since, which may have plans
}

// revealed is what was read from the catalog.
type revealed struct {
	mark    string
	hints   scan.Hints
	foreign bool   // there are hints by names with letters beyond ASCII
	plans   bool   // there are functions whose texts a session analyses but once
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

// outdate makes new what is prepared from now on, for all users of the database.
func (p *pool) outdate() {
	home := p.home()
	home.statements.renew()
	for _, m := range home.family() {
		m.statements.renew()
	}
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
	if s.pool.sessions() || h.known.Load() != nil || h.blind.Load() || !h.due(time.Now()) {
		return nil
	}
	err := s.reveal(true)
	if h.blind.Store(h.known.Load() == nil); err != nil {
		h.lookSoon(0) // not before others are served: whatever breaks it may do so again
	}
	return err
}

// lookSoon has the catalog looked at behind the next transaction that begins in so long.
func (h *hidden) lookSoon(wait time.Duration) { h.next.Store(time.Now().Add(wait).UnixNano()) }

// anew is after how long the catalog is asked again when PostgreSQL could not answer.
const anew = 5 * time.Second

// reveal reads the catalog if it has changed. A server that refuses to show it is served
// without; only a connection that is lost is an error. tables is whether they may have changed without our having seen it.
func (s *backend) reveal(tables bool) error {
	var found audit.Hidden
	h := &s.pool.home().hidden
	known := h.known.Load()
	if err := s.ask(audit.State(tables), found.Row); err != nil {
		return s.unlessRefused(err)
	}
	if !tables && known != nil {
		found.Columns = known.columns
	}
	if known != nil && known.columns != found.Columns {
		s.pool.outdate() // what is prepared from now on is prepared anew
	}
	if known != nil && known.mark == found.Mark {
		if known.columns != found.Columns {
			h.known.Store(&revealed{known.mark, known.hints, known.foreign, known.plans, found.Columns})
		}
		return nil
	}
	version, _ := s.atLogin.Get("server_version")
	digits, _, _ := strings.Cut(version, ".")
	major, _ := strconv.Atoi(digits) // 0 if it is no number
	marks := found
	err := s.ask(audit.Catalog(major, true), found.Row)
	if refused, ok := errors.AsType[*upstream.Refused](err); ok && refused.SQLState == "55P03" { // somebody has locked a table
		if err = s.rollBack(); err == nil {
			found = marks
			err = s.ask(audit.Catalog(major, false), found.Row)
		}
		found.Mark += "?" // so that it is read again in a minute
	}
	if err != nil {
		return s.unlessRefused(err)
	}
	hints := found.Hints()
	h.known.Store(&revealed{found.Mark, hints, hints.Foreign(), found.Plans, found.Columns})
	if known != nil && !hints.Equal(known.hints) || known == nil && h.blind.Load() { // not before: who gets a server from here on knows them
		h.changes.Add(1)
	}
	s.pool.outdate()
	return nil
}

// PL/pgSQL analyses what stands in a function when a session first gets there: what a constant means ('2024-01-01'::timestamptz)
// is decided for good, by the TimeZone and its kind of then. So whoever differs in these has the server forget it.

// replan notes that a client with other settings has the server now, or, if own, that they are there by other means. It reports whether what was
// analysed there is to be forgotten first.
func (s *backend) replan(under *state.Settings, own bool) (forget bool) {
	constants := under.Constants(s.atLogin)
	if own {
		s.mixed = s.mixed || s.analysed != constants
		return false
	}
	known, made := s.pool.home().hidden.known.Load(), s.pool.home().hidden.planned.Load()
	forget = known != nil && (made || known.plans) && (s.mixed || s.analysed != constants)
	s.analysed, s.mixed = constants, false
	return forget
}

// ask asks the catalog, once more if something that it leads to went away meanwhile: PostgreSQL calls that an
// internal error (XX000).
func (s *backend) ask(sql string, row func([]byte) error) error {
	err := s.execWithin(catalogLimit, sql, row)
	if refused, ok := errors.AsType[*upstream.Refused](err); ok && refused.SQLState == "XX000" {
		if err = s.rollBack(); err == nil {
			err = s.execWithin(catalogLimit, sql, row)
		}
	}
	return err
}

// lookIntoCatalog reads the catalog behind a transaction.
func (s *session) lookIntoCatalog(b *backend) error {
	h := &b.pool.home().hidden
	tables := b.due || !changesSchema(s.exchange.DB.Command) // otherwise what is prepared is new already
	err := h.looks.Look(catalogLimit, tables, func() error { return b.reveal(tables) })
	b.left &^= scan.Catalog
	b.changed()
	if b.due = false; err == nil {
		for _, hint := range h.hints() {
			if b.left&scan.AnyChange == 0 {
				break // the transaction has not used what it made
			}
			for _, name := range hint.Settings {
				b.mentions.Add(name)
			}
		}
		return nil
	}
	h.lookSoon(0)
	b.broken.Store(true)
	if b.left == 0 && b.pins == 0 { // the client has nothing there
		return nil
	}
	return s.unread(err)
}

// changed notes that all that the client has changed of the schema is known by now.
func (s *backend) changed() {
	if s.changing {
		s.changing = false
		s.pool.home().hidden.changing.Add(-1)
	}
}

// unlessRefused ends the transaction in which PostgreSQL refused to show its catalog.
func (s *backend) unlessRefused(err error) error {
	refused, ok := errors.AsType[*upstream.Refused](err)
	if !ok {
		return err
	}
	if class := refused.SQLState[:min(2, len(refused.SQLState))]; class == "53" || class == "57" { // of resources, or canceled
		s.pool.home().hidden.lookSoon(anew)
	}
	s.pool.log.Warn("the sources of functions cannot be read: what they leave in a session is not seen", "database", s.pool.name, "err", err)
	return s.rollBack()
}

// turn tells two states of what is hidden apart.
func (h *hidden) turn() uint16 { return uint16(h.changes.Load()) }

// relearn reads the unnamed statement's text anew if what is known has changed since it was prepared: functions and triggers
// may have.
func (s *session) relearn() {
	h, u := &s.backend.pool.home().hidden, &s.unnamed
	turn := h.turn()
	if u.by == turn || u.version == 0 {
		return
	}
	if u.by = turn; !u.kept {
		u.left |= scan.Unknown
		return
	}
	text, _, _ := pgwire.String(u.body)
	e, _ := s.read(text, h.known.Load())
	u.left |= e
	s.keepSaid(text)
}

// hiddenIn is what a statement does by the functions that it calls or makes; nil: not known.
func (s *session) hiddenIn(st *statement) *hiddenIn {
	known := s.backend.pool.home().hidden.known.Load()
	if known == nil {
		return nil
	}
	in := st.hidden.Load()
	if in == nil || in.by != known {
		in = &hiddenIn{by: known}
		text, _, _ := bytes.Cut(st.body, nul)
		in.effect = eachWay(scan.Modes(text, false, false), func(backslash bool) scan.Effect {
			e, _ := known.hints.Changes(text, backslash)
			return e | known.hints.Find(text, backslash, &in.said)
		})
		if in.effect&scan.Opaque != 0 { // its constants may be executed
			in.said.Find(text, false, in.effect)
		}
		st.hidden.Store(in)
	}
	return in
}

// effectsOf says what may be left behind by executing statements that SQL prepared.
func effectsOf(named *state.Settings) (e scan.Effect) {
	for _, p := range named.All() {
		text, _ := state.OfCarried(p.Value)
		e |= scan.Effects([]byte(text), false)
	}
	return e &^ scan.Prepares
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

// apart is a FETCH, of one client alone.
func (r *registry) apart(st *statement) *statement {
	c := r.copyOf(st)
	c.cursor = &sighting{}
	return c
}

// copyOf is the same statement under another name, for those who take that.
func (r *registry) copyOf(st *statement) *statement {
	return &statement{
		name: newName(), key: st.key, body: st.body, left: st.left, garbled: st.garbled, said: st.said, use: st.use, under: st.under, shape: st.shape, schema: r.schema.Load(), varies: st.varies,
	}
}

// lastName counts the statements of all pools: clients keep theirs when another pool takes their pool's place, and
// a server must not know two by one name.
var lastName atomic.Uint64

func newName() string { return namePrefix + strconv.FormatUint(lastName.Add(1), 36) }

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
func (s *session) sighted(typ byte, body []byte) (ours bool, err error) {
	if !s.debts.ours {
		return false, nil
	}
	s.debts.ours = false
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.debts.first(); ok && d.kind == owesOurDescribe {
		s.debts.pop()
		if d.cursor == nil {
			return true, s.holds(d.tells, typ, body)
		}
		*d.cursor = sighting{told: true, there: typ == pgwire.RowDescription}
	}
	return true, nil
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
	b, name := s.backend, namePrefix+"_fetch"
	b.out = pgwire.Append(b.out, pgwire.Close, []byte{'S'}, []byte(name), nul)
	s.owe(debt{kind: owesOurClose})
	b.out = pgwire.Append(b.out, pgwire.Parse, []byte(name), nul, body)
	s.owe(debt{kind: owesOurParse})
	return name
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

// standsIn reports whether another is to stand in for a statement that the server does not know: in an aborted
// transaction, and where its parameters do not fit.
func (s *session) standsIn(left scan.Effect, body []byte, typ byte, rest []byte) bool {
	if typ == pgwire.Bind && prepared.Misfits(body, rest) {
		return true
	}
	return left&scan.Ends == 0 && s.aborted() && (typ == pgwire.Bind || prepared.Describable(body))
}

// standIn makes an empty statement with the same parameters as the one with this body: using it is refused for the
// same reason, and it can be prepared in an aborted transaction too.
func (s *session) standIn(body []byte) string {
	b, name := s.backend, namePrefix+"_stand_in"
	b.out = pgwire.Append(b.out, pgwire.Close, []byte{'S'}, []byte(name), nul)
	s.owe(debt{kind: owesOurClose})
	b.out = pgwire.Append(b.out, pgwire.Parse, []byte(name), nul, prepared.Empty(body, b.backslash()))
	s.owe(debt{kind: owesOurParse})
	return name
}

// vacate closes whatever else has the names of statements that the server does not know: a simple query that executes them is
// carried out even if their Parse is refused.
func (s *session) vacate(list []*statement) {
	b := s.backend
	for _, st := range list {
		for ; st != nil && st != occupied; st = st.runs {
			if _, known := b.prepared[st]; !known {
				b.out = pgwire.Append(b.out, pgwire.Close, []byte{'S'}, []byte(st.name), nul)
				s.owe(debt{kind: owesOurClose})
			}
		}
	}
}

// PostgreSQL tells what such a statement's parameters are, if it returns no rows. The types of those that a server does not
// know by then, and that the client has not named, are found out on a connection of its own.

// A nameless is a statement with parameters whose types are to be found out.
type nameless struct {
	body  []byte
	under *state.Settings
	found func(*description)
}

// untyped yields those that the cycle that is buffered describes.
func (s *session) untyped(yield func(nameless) bool) {
	b, u := s.backend, &s.unnamed
	if b.status != pgwire.InFailed || b.pool.sessions() || s.open {
		return
	}
	for rest := s.in.Peek(s.in.Buffered()); pgwire.Holds(rest); {
		typ, n, body := pgwire.Split(rest)
		rest = rest[n:]
		if typ != pgwire.Describe || len(body) < 2 || body[0] != 'S' {
			continue
		}
		st := s.names[string(body[1:len(body)-1])]
		_, known := b.prepared[st]
		switch {
		case st != nil && !known && st.described.Load() == nil && prepared.Nameless(st.body):
			if !yield(nameless{st.body, st.under, func(d *description) { st.describe(d) }}) {
				return
			}
		case len(body) == 2 && u.version != 0 && u.kept && b.unnamed != ticket{s.id, u.version} && u.described == nil && prepared.Nameless(u.body):
			if !yield(nameless{u.body, u.under, func(d *description) { u.described = d }}) {
				return
			}
		}
	}
}

// toType reports whether there are any.
func (s *session) toType() (any bool) {
	if len(s.names) == 0 && s.unnamed.version == 0 {
		return false
	}
	for range s.untyped {
		return true
	}
	return false
}

// findTypes finds them out. Those that PostgreSQL does not tell are not asked for again.
func (s *session) findTypes() {
	p := s.backend.pool
	for one := range s.untyped {
		settings := cmp.Or(one.under, s.settings).SQL()
		types, err := p.typesOf(settings, one.body)
		if err != nil {
			s.pooler.deps.Log.Debug("the types of a statement's parameters cannot be had", "database", p.name, "err", err)
			if refused, ok := errors.AsType[*explain.Refused](err); !ok || !refused.Lasting() {
				continue
			}
		}
		s.mu.Lock()
		one.found(&description{types: types, vain: err != nil})
		s.mu.Unlock()
	}
}
