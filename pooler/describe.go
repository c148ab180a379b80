package pooler

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/fingerprint"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/prepared"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
)

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
	name    string     // the client's
	columns layout
}

// A layout is what a statement's columns are.
type layout struct {
	mark    uint64 // see [prepared.Columns]; 0: not known
	schema  uint64 // the pool's, when they were told or looked after last
	changed bool   // they were others then
}

// Marks of a statement that returns none. Whether it does does not change, but of a CALL.
const (
	noRows = 1 + iota
	noResult
)

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
	c, schema := st.columns.Load(), s.backend.pool.statements.schema.Load()
	switch {
	case typ == pgwire.Bind && c == nil:
		s.bound = st
	case typ == pgwire.Describe:
		s.owe(debt{kind: owesDescription, tells: &description{of: st, name: string(name), columns: layout{schema: schema}}})
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

// untold notes that it has not been told. One of the unnamed statement is that statement's from when it is asked for.
func (d *description) untold(u *unnamed) {
	if u.described == d {
		u.described = nil
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
	d.see(typ, body)
	s.aged = s.aged || d.columns.older(s.backend.pool.statements.schema.Load())
	if d.of == nil {
		return
	}
	if !d.portal {
		s.fork(d)
	}
	if d.columns.mark > 0 {
		d.of.columns.CompareAndSwap(nil, &d.columns)
	}
	if !d.portal {
		d.of.describe(d)
	}
}

// fork lets a name of the client's be from now on what it is here, if servers may have it as several or others were told something else.
func (s *session) fork(d *description) {
	differs := d.differs()
	if differs { // which the server would take it for
		s.backend.stray(d.of)
	}
	if (differs || d.of.forked.Load()) && s.names[d.name] == d.of {
		d.of = s.backend.pool.statements.copyOf(d.of)
		s.names[d.name] = d.of
	}
}

// stray notes that what the server knows by a statement's name is not it: it returns other columns than others were told. It
// is the first to be forgotten.
func (s *backend) stray(st *statement) {
	if _, known := s.prepared[st]; known {
		st.strayed.Store(true)
		delete(s.prepared, st)
		s.prepared[&statement{name: st.name}] = 0
	}
}

// unstray lets the server forget that, before it learns the statement.
func (s *session) unstray(st *statement) {
	if !st.strayed.Load() {
		return
	}
	for other := range s.backend.prepared {
		if other.name == st.name {
			s.unlearn(other)
		}
	}
}

// compare asks the server what the columns are of a statement that the client prepares, and others were told of, while the
// schema may be changing: if they are others, it is another statement.
func (s *session) compare(st *statement, name string) {
	c := st.columns.Load()
	if c != nil && c.mark > noRows && st.cursor == nil && s.backend.pool.home().hidden.changing.Load() > 0 {
		s.owe(debt{kind: owesOurDescribe, tells: &description{of: st, name: name}})
		s.backend.out = pgwire.Append(s.backend.out, pgwire.Describe, []byte{'S'}, []byte(st.name), nul)
	}
}

// differs reports whether others were told something else, as they may be while the schema changes.
func (d *description) differs() bool {
	was, c := d.of.described.Load(), d.of.columns.Load()
	if was != nil && !was.vain && !slices.Equal(prepared.Types(was.typed(d.of.body)), d.types) {
		return true
	}
	return c != nil && d.columns.mark > 0 && c.mark != d.columns.mark
}

// see notes columns that are told; body may be cut short.
func (d *description) see(typ byte, body []byte) {
	const call = scan.Ends | scan.AnyChange
	switch {
	case typ == pgwire.RowDescription:
		d.columns.mark = prepared.Columns(body)
	case d.of != nil && d.of.left&call == call:
		d.columns.mark = noResult
	default:
		d.columns.mark = noRows
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

// holds takes the answer to that. It is an error if it is not what clients were told: what comes next is not what they take it
// for, unless they have just prepared it.
func (s *session) holds(d *description, typ byte, body []byte) error {
	if d.see(typ, body); d.name != "" {
		d.types = prepared.Types(d.of.asTyped()) // as which it was prepared
		s.fork(d)
		return nil
	}
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

// newUnnamed begins another version of the unnamed statement, by the text of a Parse.
func (s *session) newUnnamed(text []byte) *unnamed {
	u := &s.unnamed
	u.last++
	u.under, u.cursor, u.described, u.use, u.by = s.under(text), nil, nil, use{}, s.backend.pool.home().hidden.turn()
	s.unsure = u.under == nil && !s.debts.failed
	u.firm = u.under != nil || !scan.HasConstants(text) || s.beside(state.Interprets)
	return u
}

// keepUnnamed notes what it is, and that the server has it, or will have.
func (s *session) keepUnnamed(left scan.Effect, body []byte, whole bool) {
	u := &s.unnamed
	u.version, u.left, u.said, u.kept = u.last, left, scan.Mentions{}, whole && len(body) < maxUnnamedBytes
	if u.kept {
		u.body = append(u.body[:0], body...)
	}
	s.backend.unnamed = ticket{s.id, u.version}
}

// refuses reports whether the error that has come is of a Parse that makes a statement, and whether that gave it types that
// another client was told and this one may not have been. The lock is held.
func (s *session) refuses() (making, typed bool) {
	d, ok := s.debts.first()
	if making = ok && d.kind <= owesOurParse && d.at == s.debts.answered; !making || d.statement == nil {
		return making, false
	}
	if said := d.statement.described.Load(); said == nil || len(said.types) == 0 {
		return true, false
	}
	for name := range s.untried {
		typed = typed || s.names[name] == d.statement
	}
	return true, typed
}

// unproven reports whether the cycle that is buffered uses statements whose columns are to be looked after.
func (s *session) unproven() bool {
	named, unnamed := s.toProve()
	return unnamed || len(named) > 0
}

// toProve lists them: the server does not know them, and the schema has changed since they were told, or may be changing.
func (s *session) toProve() (named []*statement, unnamed bool) {
	b, u := s.backend, &s.unnamed
	schema, changing := b.pool.statements.schema.Load(), b.pool.home().hidden.changing.Load() > 0
	if s.schema != schema {
		s.schema, s.aged = schema, u.described != nil && u.described.columns.older(schema)
		for _, st := range s.names {
			s.aged = s.aged || st.columns.Load().older(schema)
		}
	}
	if !s.aged && !changing || b.status == pgwire.InFailed || b.pool.sessions() || s.open || b.status == pgwire.InBlock && s.early() {
		return nil, false // of named ones it is found out when they are learned
	}
	doubtful := func(c *layout) bool { return c.older(schema) || changing && c != nil && c.mark > noRows && !c.changed }
	s.eachUse(func(name []byte) {
		if len(name) == 0 {
			unnamed = u.version != 0 && u.kept && b.unnamed != ticket{s.id, u.version} && u.described != nil && doubtful(&u.described.columns)
			return
		}
		st := s.names[string(name)]
		for depth := 0; st != nil && depth < maxChain; depth++ {
			if _, known := b.prepared[st]; !known && doubtful(st.columns.Load()) && !slices.Contains(named, st) {
				named = append(named, st)
			}
			if !st.late.executes() {
				break
			}
			st = s.names[st.late.named.Name]
		}
	})
	return named, unnamed
}

// early reports whether the cycle that is buffered has what must come before the snapshot that it takes to prepare something.
func (s *session) early() bool {
	for rest := s.in.Peek(s.in.Buffered()); pgwire.Holds(rest); {
		typ, n, body := pgwire.Split(rest)
		rest = rest[n:]
		var text []byte
		switch typ {
		case pgwire.Parse:
			_, text, _, _ = pgwire.Strings(body)
		case pgwire.Bind:
			_, name, _, _ := pgwire.Strings(body)
			if st := s.names[string(name)]; st != nil {
				text, _, _ = pgwire.String(st.body)
			} else if len(name) == 0 && s.unnamed.version != 0 {
				text, _, _ = pgwire.String(s.unnamed.body)
			}
		case pgwire.Query:
			return scan.Early(bytes.TrimSuffix(body, nul))
		case pgwire.Sync:
			return false
		}
		if scan.Early(text) {
			return true
		}
	}
	return false
}

// prove lets the server learn such statements, and say what their columns are. From then on it holds them to these itself. What
// it refuses is prepared where it is used, and refused there.
func (s *session) prove() error {
	named, unnamed := s.toProve()
	if len(named) == 0 && !unnamed {
		return nil
	}
	var all []*description
	look := func(st *statement) *description {
		d := &description{of: st, columns: layout{schema: s.backend.pool.statements.schema.Load()}}
		all = append(all, d)
		return d
	}
	s.mu.Lock()
	for _, st := range named {
		s.teachOne(st.under, st, st.asTyped(), look(st))
	}
	if u := &s.unnamed; unnamed { // last, as in teach
		s.teachOne(u.under, nil, u.asTyped(), look(nil))
		s.backend.unnamed = ticket{s.id, u.version}
	}
	s.mu.Unlock()
	if err := s.replayed(); err != nil {
		return err
	}
	s.mu.Lock()
	for _, d := range all {
		s.proved(d)
	}
	s.schema-- // it may use no such statement any more
	s.mu.Unlock()
	return s.replayed()
}

// proved takes the answer to that. A statement that has other columns than its clients were told is closed. The lock is held.
func (s *session) proved(d *description) {
	b, is := s.backend, d.columns
	if d.of == nil {
		if was := &s.unnamed.described.columns; is.mark > 0 {
			was.schema, was.changed = is.schema, is.mark != was.mark
		}
		if s.unnamed.outgrown() {
			b.unnamed = ticket{}
		}
		return
	}
	was := d.of.columns.Load()
	if is.mark > 0 {
		d.of.columns.CompareAndSwap(was, &layout{was.mark, is.schema, is.mark != was.mark})
	}
	if is.mark != was.mark {
		delete(b.prepared, d.of)
		b.out = pgwire.Append(b.out, pgwire.Close, []byte{'S'}, []byte(d.of.name), nul)
		b.out = pgwire.Append(b.out, pgwire.Sync)
		s.aside(debt{aside: true})
	}
}

// teachOne sends what makes the server learn one statement, and say what it is if that is noted; st is nil for the unnamed one.
func (s *session) teachOne(under *state.Settings, st *statement, body []byte, tells *description) {
	b, name, strange := s.backend, "", tells == nil || s.strange(under)
	var undo []string
	if b.status == pgwire.InBlock {
		s.runAside("SAVEPOINT _ms", true)
		undo = []string{"ROLLBACK TO SAVEPOINT _ms", "RELEASE SAVEPOINT _ms"}
	} else if strange {
		s.runAside(beginReplay, true)
		undo = []string{"ROLLBACK"}
	}
	if strange {
		for _, sql := range under.Meaning() {
			b.out = pgwire.AppendQuery(b.out, sql)
			s.aside(debt{aside: true})
		}
		b.unnamed = ticket{}
	}
	if st != nil {
		s.learn(st)
		name = st.name
	}
	b.out = pgwire.Append(b.out, pgwire.Parse, []byte(name), nul, body)
	if tells != nil {
		b.out = pgwire.Append(b.out, pgwire.Describe, []byte{'S'}, []byte(name), nul)
	}
	b.out = pgwire.Append(b.out, pgwire.Sync)
	s.aside(debt{aside: true, statement: st, unnamed: st == nil, tells: tells})
	for i, sql := range undo {
		s.runAside(sql, i < len(undo)-1)
	}
}

// count finds out which of the statements that clients share the server has still: code that cannot be read may have dropped
// some by their names.
func (s *backend) count() error {
	var has audit.Listing
	if err := s.execWithin(lookLimit, audit.Shared, has.Row); err != nil {
		return err
	}
	maps.DeleteFunc(s.prepared, func(st *statement, _ uint64) bool { return !slices.Contains(has, st.name) })
	return nil
}

// changesSchema reports whether a command does.
func changesSchema(command string) bool {
	return strings.HasPrefix(command, "ALTER ") || strings.HasPrefix(command, "DROP ") || strings.HasPrefix(command, "CREATE ")
}

// shapeOf is the shape of a text that the client sends. The lock is held.
func (s *session) shapeOf(text []byte) *fingerprint.Shape {
	b, how := s.backend, fingerprint.Standard
	if bytes.IndexByte(text, '\\') >= 0 {
		_, halves := s.recoded()
		switch {
		case halves, (s.swayed() || b.pool.sessions()) && (s.behind || s.cycles.len() > 0): // there may be settings that have not been reported yet
			how = fingerprint.Unsure
		case b.backslash():
			how = fingerprint.Escapes
		}
	}
	return s.pooler.shapes.Of(text, how)
}

// recoded reports whether a text is converted, as far as that is known, and whether the second half of a character may be a
// backslash then.
func (s *session) recoded() (recoded, halves bool) {
	b := s.backend
	server, _ := b.reports.Get("server_encoding")
	client, _ := b.reports.Get("client_encoding")
	if b.replays > 0 { // it has not reported yet what it is about to have
		client, _ = b.atLogin.Get("client_encoding")
		if chosen, ok := s.settings.Get("client_encoding"); ok {
			client = strings.ToUpper(strings.ReplaceAll(chosen, "-", "")) // as the client writes it
		}
	}
	recoded = client != server && client != "SQL_ASCII" && server != "SQL_ASCII"
	return recoded, recoded && !slices.Contains(whole, client)
}
