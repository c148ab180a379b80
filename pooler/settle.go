package pooler

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/prepared"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
)

// At a transaction's end the server is asked what the client has left there (package audit), if that cannot be told without.

// taint notes what the message that is being sent may leave behind.
func (s *backend) taint(e scan.Effect) {
	s.earlier = s.left
	s.left |= e
	if e != 0 {
		s.cleared = cleared{}
	}
}

// A cleared is what the last text has ended, if it has been carried out, and the server need not be asked for. Many drivers
// send such a text whenever a connection goes back to a pool of theirs.
type cleared struct {
	by     scan.Effect // see [scan.Clears]
	chosen bool        // what was chosen at login has been given again behind it
}

// clears notes what is gone behind the text that is being sent, which may do e and is not in a transaction block.
func (s *backend) clears(e scan.Effect, text []byte) {
	const itself = scan.Setting | scan.Back | scan.Discards | scan.Temporary | scan.Locks | scan.Hold | scan.Listens | scan.Prepares
	if e != 0 && e&^itself == 0 {
		s.cleared.by = scan.Clears(text, s.backslash())
	}
}

// foretell completes what is known without asking.
func (s *session) foretell(b *backend) {
	c := &b.cleared
	if db := &s.exchange.DB; db.Command == "DISCARD ALL" && db.Queries == 1 && db.SQLState == "" {
		c.by = scan.Clears([]byte(db.Command), false) // in whatever protocol, and whatever was before
	}
	if _, role := s.login.Get("role"); role {
		c.by = 0 // it is not always led back
	}
	if b.pins&scan.Locks != 0 {
		c.by &^= scan.Locks // the function may be another one of this name
	}
}

// settle finds out what the client has left on its server at a transaction's end. It
// returns whether the server may go to another client.
func (s *session) settle(b *backend) (free bool, err error) {
	s.keepSequences(b)
	if b.left&scan.Catalog != 0 {
		if err := s.lookIntoCatalog(b); err != nil {
			return true, err
		}
	}
	if b.pins != 0 && s.settings.Temporary() {
		b.left |= scan.Temporary
	}
	if b.left&scan.Opaque != 0 || b.pins&scan.Temporary != 0 {
		b.opaque = s.id
		b.pool.opaque.Store(true)
	}
	if b.left&scan.Lasting != 0 {
		s.foretell(b)
		if err := s.look(b); err != nil {
			b.broken.Store(true)
			return true, err
		}
	}
	if b.pins != 0 {
		return false, nil
	}
	if b.left != 0 || b.pool.resetAlways() {
		_ = b.clean() // what cannot be cleaned is not used again
	}
	return true, nil
}

// tidy is settle at the end of a session, whose client will not hear of it.
func (s *session) tidy(b *backend) error {
	if err := b.rollBack(); err != nil {
		return err
	}
	s.keepSequences(b)
	if b.left&scan.Catalog != 0 {
		if err := s.lookIntoCatalog(b); err != nil {
			return err
		}
	}
	return b.clean()
}

// lookLimit bounds how long that may take: mostly it is less than a millisecond.
const lookLimit = 30 * time.Second

// look asks the server what the client has left there.
func (s *session) look(b *backend) (err error) {
	if b.mentions.Full || b.mentions.Odd && b.left&scan.AnyChange != 0 {
		b.left |= scan.Nameless
	}
	q := audit.Question{Effects: b.left, Names: b.mentions.Settings, Known: b.settings, Cleared: b.cleared.by}
	var found audit.Findings
	if sql := q.SQL(); sql != "" {
		if err := b.execWithin(lookLimit, sql, found.Row); err != nil {
			return s.unread(err)
		}
	}
	if b.status != pgwire.Idle {
		return s.unread(errOutOfStep)
	}
	user, _ := b.atLogin.Get("session_authorization")
	has, wants := found.Settings(&q, s.login, user)
	if q.Cleared&scan.Setting != 0 && b.cleared.chosen {
		has = wants // what was chosen at login has been given again
	}
	before := s.settings
	b.settings, s.settings = b.pool.settings.Intern(has), b.pool.settings.Intern(wants)
	s.assure()
	if s.settings != before {
		s.varied = s.varies()
	}
	if q.Asked()&scan.Prepares != 0 {
		if named := b.pool.settings.Intern(s.carried(found.Statements())); named != b.named {
			b.named, s.prepares = named, named
			s.executes = &executions{left: effectsOf(named)}
		}
		b.stuck = found.Stuck
	}
	if found.Pins&scan.Prepares != 0 {
		s.executes = &executions{left: scan.Unseen}
	}
	b.pins = b.pins&^q.Asked() | found.Pins | b.left&audit.Sticky
	b.left, b.cleared = 0, cleared{}
	b.mentions.Reset()
	b.executed = nil
	reasons := ""
	if b.pins != 0 {
		reasons = audit.Reasons(b.pins)
	}
	s.mu.Lock()
	s.pinned = reasons
	s.mu.Unlock()
	if err := s.attend(b, found.Channels); err != nil || !s.settings.Temporary() || q.Asked()&scan.Temporary != 0 {
		return err
	}
	b.left = scan.Temporary // what was made since is
	return s.look(b)
}

func (s *session) unread(err error) error {
	return end(Lost, "the session's settings could not be read back from the server", "connect again").because(fmt.Errorf("audit: %w", err))
}

// clean makes the server fit for another client: no transaction, nothing left
// behind. A server that cannot be cleaned is broken.
func (s *backend) clean() error {
	if err := s.rollBack(); err != nil {
		return err
	}
	left := s.left | s.pins
	if left&audit.Wreck != 0 {
		s.broken.Store(true)
		return errors.New("what the client left cannot be undone")
	}
	if s.pool.resetAlways() {
		left |= scan.Lasting | scan.Sequence
	}
	if s.opaque != nobodys {
		left |= scan.Opaque // it may have a seed
	}
	sql := audit.Wipe(left)
	if s.tuned {
		sql += s.pool.hub.Closes(0)
	}
	if sql == "" {
		s.forgive()
		return nil
	}
	if err := s.exec(sql); err != nil || s.status != pgwire.Idle {
		s.broken.Store(true)
		return fmt.Errorf("reset: %w", err)
	}
	if strings.Contains(sql, "RESET ALL") {
		s.settings, s.opaque = state.None, nobodys
	}
	if strings.Contains(sql, "DEALLOCATE") {
		clear(s.prepared)
		s.named = state.None
	}
	if strings.Contains(sql, forgetSequences) {
		s.sequences = nobodys
	}
	s.forgive()
	return nil
}

// forgive forgets what may have been left: it is not there, or it has been wiped.
func (s *backend) forgive() {
	s.left, s.pins, s.heard, s.tuned, s.stuck = 0, 0, nil, false, nil
	s.mentions.Reset()
	s.executed = nil
}

// discard wipes everything at the end of a session that had the server to itself.
func (s *backend) discard() error {
	if err := s.rollBack(); err != nil {
		return err
	}
	if (s.left|s.pins)&audit.Wreck != 0 {
		s.broken.Store(true)
		return errors.New("what the client left cannot be undone")
	}
	err := s.exec("DISCARD ALL")
	if err == nil {
		err = s.exec(audit.Reseed()) // which that does not
	}
	if err != nil {
		s.broken.Store(true)
		return err
	}
	s.settings, s.named, s.sequences, s.opaque = s.entered, state.None, nobodys, nobodys
	clear(s.prepared)
	s.forgive()
	return nil
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
	amid := s.behind || s.uplink != nil || s.debts.len() > b.replays
	if e&scan.Sequence == 0 {
		if e&scan.Opaque != 0 && b.sequences == severals && !amid && b.status != pgwire.InFailed && b.earlier&scan.Advances == 0 { // it may ask
			b.sequences = s.id
			s.sendReplay(forgetSequences, "")
		}
		return
	}
	if !b.pool.sequences.Load() {
		b.pool.sequences.Store(true)
	}
	switch {
	case b.sequences == s.id || b.status == pgwire.InFailed:
	case amid:
		s.refused = end(Unsupported, "currval or lastval is asked for in the middle of a pipeline, and the server may know another client's values",
			"use INSERT … RETURNING, or connect again: from now on servers forget them in time")
	default: // the database's first to ask
		b.sequences = s.id
		s.sendReplay(forgetSequences, "")
	}
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
	if b.left&scan.Local != 0 {
		s.unsure = s.unsure[:0]
	}
	if b.left&scan.Makes != 0 && b.left&(scan.Temporary|scan.Setting|scan.AnyChange|scan.Local) != 0 {
		b.left |= scan.Temporary | scan.Opaque // by where search_path leads now, and with defaults that nobody reads
	}
	b.left &= scan.Lasting
}

// What a client was told of a statement that it has prepared holds as long as that does, whatever becomes of the tables: it
// sends its parameters as these types, and PostgreSQL keeps to them. So does each server that learns the statement later.
// Nor does PostgreSQL let a statement return other columns than it has told (0A000), for which drivers prepare it anew. So
// where the schema has changed since they were told, a server is asked what they are now before it learns the statement, and
// does not learn one whose columns are others: its use gets the same error.

// A description is what was told of a statement.
type description struct {
	of      *statement // nil: the unnamed one
	types   []uint32   // of all its parameters; nil: as its body has them
	vain    bool       // it was asked for, and cannot be had
	portal  bool       // its columns alone were told
	forks   string     // the client's name, if servers may have it with several types
	columns layout
}

// A layout is what a statement's columns are.
type layout struct {
	mark    uint64 // see [prepared.Columns]; 0: not known
	schema  uint64 // the pool's, when they were told or looked after last
	changed bool   // they were others then
}

// noRows is the mark of a statement that returns none. Whether it does does not change.
const noRows = 1

// older reports whether the schema has changed since.
func (c *layout) older(schema uint64) bool { return c != nil && c.mark > noRows && c.schema != schema }

// outgrown reports whether its columns are others than its clients were told.
func (st *statement) outgrown() bool {
	c := st.columns.Load()
	return c != nil && c.changed
}

func (u *unnamed) outgrown() bool { return u.described != nil && u.described.columns.changed }

// outgrows notes that the server is not to know a name: it refuses its use, for which the client gets the error for such.
func (s *session) outgrows(name string) {
	if !slices.Contains(s.outgrown, name) {
		s.outgrown = append(s.outgrown, name)
	}
}

// describes notes that the client is about to be told of a statement, or may be by a portal.
func (s *session) describes(st *statement, name []byte, typ byte) {
	if st.late != nil || st.left&scan.Fetches != 0 {
		return
	}
	d, c, schema := st.described.Load(), st.columns.Load(), s.backend.pool.statements.schema.Load()
	switch {
	case typ == pgwire.Bind && c == nil:
		s.bound = st
	case typ == pgwire.Describe && (d == nil || d.vain || c == nil):
		d = &description{of: st, columns: layout{schema: schema}}
		if st.forked.Load() {
			d.forks = string(name)
		}
		s.owe(debt{kind: owesDescription, tells: d})
	}
	s.aged = s.aged || c.older(schema)
}

// describesPortal is that for what is described with this message.
func (s *session) describesPortal(message []byte) {
	if s.bound != nil && len(message) > 1 && string(message[1:len(message)-1]) == string(s.portal) {
		now := layout{schema: s.backend.pool.statements.schema.Load()}
		s.owe(debt{kind: owesDescription, tells: &description{of: s.bound, portal: true, columns: now}})
		s.bound = nil
	}
}

// describesUnnamed is that for the unnamed statement.
func (s *session) describesUnnamed() {
	if u := &s.unnamed; (u.described == nil || u.described.vain) && u.kept && u.late == nil {
		u.described = &description{columns: layout{schema: s.backend.pool.statements.schema.Load()}}
		s.owe(debt{kind: owesDescription, tells: u.described})
	}
}

// describe keeps what was told, unless somebody has been told before.
func (st *statement) describe(d *description) {
	was := st.described.Load()
	if was != nil && !was.vain {
		return
	}
	if slices.Equal(d.types, prepared.Types(st.body)) {
		d.types = nil
	}
	st.described.CompareAndSwap(was, d)
}

// telling is what is noted of the description that the server gives now; nil: nothing. The lock is held.
func (d *debts) telling() *description {
	if one, ok := d.first(); ok && one.kind == owesDescription && one.at == d.answered && !d.uncounted && !d.ours {
		return one.tells
	}
	return nil
}

// describesTypes notes the types of a statement's parameters that the client is told. body may be cut short.
func (s *session) describesTypes(body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.debts.telling(); d != nil {
		d.types = pgwire.ParameterTypes(body)
	}
}

// describesColumns notes what it is told last.
func (s *session) describesColumns(typ byte, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.debts.telling()
	if d == nil {
		return
	}
	s.debts.pop()
	d.columns.see(typ, body)
	s.aged = s.aged || d.columns.older(s.backend.pool.statements.schema.Load())
	if d.of == nil {
		return
	}
	if r := &s.backend.pool.statements; d.forks != "" && s.names[d.forks] == d.of { // from now on, with those that it has here
		d.of = r.copied(d.of)
		s.names[d.forks] = d.of
	}
	if d.columns.mark > 0 {
		d.of.columns.CompareAndSwap(nil, &d.columns)
	}
	if !d.portal {
		d.of.describe(d)
	}
}

// see notes columns that are told; body may be cut short.
func (c *layout) see(typ byte, body []byte) {
	if c.mark = noRows; typ == pgwire.RowDescription {
		c.mark = prepared.Columns(body)
	}
}

// assert asks the server what the columns are of a statement that it is learning, where they could not be looked after before:
// in the middle of a cycle that does not fit the buffer, or behind what may just have changed them.
func (s *session) assert(st *statement) {
	c, schema := st.columns.Load(), s.backend.pool.statements.schema.Load()
	if c.older(schema) || c != nil && c.mark > noRows && s.backend.left&scan.Catalog != 0 {
		s.owe(debt{kind: owesOurDescribe, tells: &description{of: st, columns: layout{schema: schema}}})
		s.backend.out = pgwire.Append(s.backend.out, pgwire.Describe, []byte{'S'}, []byte(st.name), nul)
	}
}

// holds is an error if the answer to that is not what clients were told: what comes next is not what they take it for.
func (d *description) holds(typ byte, body []byte) error {
	d.columns.see(typ, body)
	if was := d.of.columns.Load(); was.mark != d.columns.mark {
		return end(Lost, "the columns of a prepared statement have changed", "connect again")
	}
	return nil
}

// asTyped is its body with the types that clients were told.
func (st *statement) asTyped() []byte { return st.described.Load().typed(st.body) }

func (u *unnamed) asTyped() []byte { return u.described.typed(u.body) }

// typed is the body with these types; d may be nil.
func (d *description) typed(body []byte) []byte {
	if d == nil || len(d.types) == 0 {
		return body
	}
	return prepared.Typed(body, d.types)
}
