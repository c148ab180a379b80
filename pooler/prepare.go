package pooler

import (
	"sync"
	"sync/atomic"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/fingerprint"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/prepared"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
)

// Prepared statements of the protocol (Parse with a name) outlive transactions, but
// in transaction mode a client's connection changes. So a name is the client's own:
// it stands for a statement, which each server connection knows under a name of
// ours, and learns on demand, when the client uses it there.

// A statement is a text with its parameters' types, under the settings that decide
// what it means. It is immutable, and shared by all clients that prepare the same.
type statement struct {
	name    string // on the servers
	key     string // in the registry
	body    []byte // of the Parse message, after the name
	left    scan.Effect
	garbled bool          // see [session.garbled]
	said    scan.Mentions // if what it leaves has names
	use

	under  *state.Settings // those of its client when it was prepared; nil: not known
	shape  *fingerprint.Shape
	hidden atomic.Pointer[hiddenIn] // what its text does by the functions that it calls
	schema uint64                   // the registry's, when it was made
	varies bool                     // its constants may mean something else under other settings

	described atomic.Pointer[description] // nil: nobody was told what its parameters are
	columns   atomic.Pointer[layout]      // nil: nobody was told of any
	forked    atomic.Bool                 // nobody was when the schema had changed and a server learned it: other servers may have other types
	strayed   atomic.Bool                 // a server may know something else by its name
	cursor    *sighting                   // of a FETCH that is one client's alone; nil: when it was prepared there was no cursor
}

// Names on the servers begin with namePrefix; the bare prefix never exists.
var namePrefix = prepared.Prefix

// decoy is an empty statement that a client's DEALLOCATE drops in place of its own,
// which others may use.
var decoy = namePrefix + "_decoy"

// occupied is an empty statement whose name stands for one that is taken.
var occupied = &statement{name: namePrefix + "0", body: []byte{0, 0, 0}, under: state.None}

// Bounds of what is kept for clients' prepared statements. A statement may be as
// long as PostgreSQL's own limit for a query that is worth preparing ever is.
const (
	maxStatement    = 1 << 20  // one statement's bytes
	maxNames        = 10_000   // statements of one client
	maxNameBytes    = 64 << 20 // of one client's statements
	maxRegistry     = 4096     // statements that new clients find again
	maxUnnamedBytes = 64 << 10 // of a client's unnamed statement that is remembered
)

// A registry knows the statements that several clients may share.
type registry struct {
	mu sync.Mutex
	by map[string]*statement

	schema atomic.Uint64 // counts changes of it
}

// intern returns the statement with this body, which has this use, prepared under these settings. It is nobody else's if that is
// said, or the settings are not known (nil). garbled is what [session.garbled] says of it. older is whether it was there before.
func (r *registry) intern(under *state.Settings, own, garbled bool, body []byte, u use, shape func(text []byte) *fingerprint.Shape) (st *statement, older bool) {
	key := ""
	if own = own || under == nil; !own {
		if key = under.Key() + u.key() + "\x00" + string(body); garbled {
			key = "!" + key
		}
		r.mu.Lock()
		st = r.by[key]
		r.mu.Unlock()
		if st != nil {
			return st, true
		}
	}
	text, _, _ := pgwire.String(body)
	made := &statement{key: key, body: append([]byte(nil), body...), use: u, under: under, shape: shape(text), varies: scan.HasConstants(text)}
	made.left = eachWay(scan.Modes(text, false, false), func(backslash bool) scan.Effect { return scan.Effects(text, backslash) })
	if u.renames() {
		made.left &^= scan.Prepares | scan.Executes // what it names is nothing that stays
	}
	if made.garbled = garbled; garbled {
		made.left |= scan.Unknown | scan.Catalog
	}
	if made.left&(scan.Setting|scan.AnyChange) != 0 {
		for _, backslash := range scan.Modes(text, false, false) {
			made.said.Find(text, backslash, made.left)
		}
	}
	r.mu.Lock() // which those who prepare on the event loops wait for
	defer r.mu.Unlock()
	made.name, made.schema = newName(), r.schema.Load()
	if own {
		made.key = ownKey + made.name
		return made, false
	}
	if st := r.by[key]; st != nil {
		return st, true
	}
	if r.by == nil {
		r.by = map[string]*statement{}
	}
	for k := range r.by { // any: who holds it keeps it
		if len(r.by) < maxRegistry {
			break
		}
		delete(r.by, k)
	}
	r.by[key] = made
	return made, false
}

// ownKey begins the keys of statements that nobody else is given.
const ownKey = "?"

// renew makes every statement that is prepared from now on a new one.
func (r *registry) renew() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.schema.Add(1)
	clear(r.by)
}

// unnamed is a session's unnamed statement. Servers have one each, which every
// client overwrites.
type unnamed struct {
	version uint64 // 0: there is none
	last    uint64
	under   *state.Settings // those of the client when it was prepared; nil: not known
	body    []byte          // of its Parse, if it was short enough to keep
	kept    bool
	firm    bool   // its constants mean the same in whatever settings its client may have had
	by      uint16 // changes of what the catalog hides, as of when left was known
	left    scan.Effect
	said    scan.Mentions
	cursor  *sighting // as a statement's
	use

	described *description // nil: the client was told nothing of it
}

// rewrite puts the next message's header, and as much of its body as needs to be
// changed, to what is ready for the server, and returns how many bytes are to
// follow as they are. The lock is held.
func (s *session) rewrite(typ byte, n int, text []byte, whole bool) (rest int, err error) {
	b := s.backend
	if !b.pool.sessions() {
		switch typ {
		case pgwire.Parse:
			return s.rewriteParse(n, text, whole)
		case pgwire.Bind:
			return s.rewriteBind(n)
		case pgwire.Describe, pgwire.Close:
			return s.rewriteNamed(typ, n)
		case pgwire.Query:
			if s.rewriteQuery(text, whole) {
				s.in.Skip(pgwire.HeaderSize + n)
				return 0, nil
			}
		case pgwire.FunctionCall:
			b.stains.Doubt(scan.AnyChange, nil, false)
			s.taint(s.calls(n))
			s.sway()
		case pgwire.Execute:
			if again := s.execute(n); again != nil {
				s.executeReset(n, again)
				return 0, nil
			}
		}
	} else if typ == pgwire.Close {
		s.owe(debt{kind: owesClose}) // among which there may be one of ours: see amid
	} else if text != nil && whole {
		b.left |= scan.Effects(text, false) & (scan.Terminates | scan.Cancels | audit.Wreck&^scan.Seeds)
	}
	b.out = pgwire.AppendHeader(b.out, typ, n)
	s.in.Skip(pgwire.HeaderSize)
	return n, nil
}

// head is as much of the next message's body as is buffered.
func (s *session) head(n int) []byte {
	return s.in.Peek(min(pgwire.HeaderSize+n, s.in.Buffered()))[pgwire.HeaderSize:]
}

func (s *session) rewriteParse(n int, text []byte, whole bool) (int, error) {
	b := s.backend
	name, _, ok := pgwire.String(s.head(n))
	if !ok {
		return 0, protocolError("invalid Parse message")
	}
	if len(name) == 0 {
		was, u := s.replaces(), s.newUnnamed(text)
		var renamed []byte
		if renamed, u.use = s.rename(text, s.head(n)[1:], whole); renamed != nil {
			s.parseRenamed(renamed, was)
			s.in.Skip(pgwire.HeaderSize + n)
			return 0, nil
		}
		before := s.resets
		s.keepUnnamed(s.suspect(text, whole), s.head(n)[1:], whole)
		s.resets = before // it leads back when it is bound
		s.keepSaid(text)
		s.ownSequences(u.left)
		s.owe(debt{kind: owesParse, unnamed: true, was: was})
		b.out = pgwire.AppendHeader(b.out, pgwire.Parse, n)
		s.in.Skip(pgwire.HeaderSize)
		if u.left&scan.Fetches != 0 && !s.cursorless() {
			b.out = append(b.out, s.in.Peek(n)...)
			s.in.Skip(n)
			u.cursor = &sighting{}
			s.sight(u.cursor, "")
			return 0, nil
		}
		return n, nil
	}
	err := s.parseNamed(string(name), s.head(n)[len(name)+1:])
	s.in.Skip(pgwire.HeaderSize + n)
	return 0, err
}

// parseNamed lets the client's name stand for the statement with this body.
func (s *session) parseNamed(name string, body []byte) error {
	b := s.backend
	if s.names[name] != nil {
		// Let the server refuse it, as it would have: by a name that is taken.
		s.ensure(occupied)
		s.owe(debt{kind: owesParse, taken: true})
		b.out = pgwire.Append(b.out, pgwire.Parse, []byte(occupied.name), nul, body)
		return nil
	}
	if b.left&scan.Prepares != 0 || s.preparedBySQL(name) {
		// The server finds out whether SQL has made one of this name, and has it still: what
		// the client sent before may drop it. Nothing stays there under the client's name.
		b.left |= scan.Prepares
		b.out = pgwire.Append(b.out, pgwire.Parse, []byte(name), nul, body)
		s.owe(debt{kind: owesOurParse})
		b.out = pgwire.Append(b.out, pgwire.Close, []byte{'S'}, []byte(name), nul)
		s.owe(debt{kind: owesOurClose})
	}
	if len(s.names) >= maxNames || int(s.nameBytes)+len(body) > maxNameBytes {
		return end(Unsupported, "too many prepared statements in one session", "close those that are not needed")
	}
	text, _, _ := pgwire.String(body)
	renamed, u := s.rename(text, body, true)
	if renamed != nil {
		body = renamed
	}
	st, older := s.intern(s.under(text), s.private(text, &u), body, u)
	if st.left&scan.Fetches != 0 && !s.cursorless() {
		st = b.pool.statements.apart(st)
	}
	if s.names == nil {
		s.names = map[string]*statement{}
	}
	s.names[name] = st
	s.varied = s.varied || st.under != nil && !st.under.MeansSame(s.settings)
	s.nameBytes += int32(len(st.body))
	if older {
		s.untry(name)
	}
	b.earlier = b.left
	s.ownSequences(s.leavesOf(st))
	d := debt{kind: owesParse, statement: st, name: name}
	if _, known := b.prepared[st]; known {
		// The client is owed a ParseComplete, in its place: an empty statement gets one, and
		// the same text gets it if PostgreSQL would still take that.
		d.statement, d.was, b.unnamed = nil, s.displaces(), ticket{}
		if s.doubtful() {
			b.out = pgwire.Append(b.out, pgwire.Parse, nul, st.body)
		} else {
			b.out = pgwire.Append(b.out, pgwire.Parse, nul, nul, nul, nul)
		}
	} else {
		s.learn(st)
		b.out = pgwire.Append(b.out, pgwire.Parse, []byte(st.name), nul, st.asTyped())
	}
	s.owe(d)
	if d.statement != nil {
		s.compare(st, name)
	}
	if st.cursor != nil {
		s.sight(st.cursor, st.name)
	}
	return nil
}

// private reports whether what is prepared now by this text is nobody else's, nor anybody's already: it may lead to what others do
// not see, or shows the moment.
func (s *session) private(text []byte, u *use) bool {
	b := s.backend
	return (b.left|b.pins)&scan.Temporary != 0 || b.changing || u.ofSQL() || scan.Momentary(text)
}

var nul = []byte{0}

func (s *session) rewriteBind(n int) (int, error) {
	portal, name, _, ok := pgwire.Strings(s.head(n))
	if !ok {
		return 0, protocolError("invalid Bind message: its names are missing or too long")
	}
	before := s.resets
	s.back, s.bound, s.does = leadBack{}, nil, 0
	s.backend.earlier = s.backend.left
	s.asks(s.leaves(name))
	as := s.resolve(name, pgwire.Bind, s.head(n)[len(portal)+len(name)+2:])
	b := s.backend
	if s.bind(portal, name) {
		s.resets = before // what it leads back is given again right behind it
	}
	s.portal = append(s.portal[:0], portal...)
	b.left |= s.given(s.head(n)[len(portal)+len(name)+2:], n-len(portal)-len(name)-2)
	b.out = pgwire.AppendHeader(b.out, pgwire.Bind, n-len(name)+len(as))
	b.out = append(append(b.out, portal...), 0)
	b.out = append(append(b.out, as...), 0)
	taken := len(portal) + len(name) + 2
	s.in.Skip(pgwire.HeaderSize + taken)
	return n - taken, nil
}

// rewriteNamed handles Describe and Close, of which only those of a statement are
// changed.
func (s *session) rewriteNamed(typ byte, n int) (int, error) {
	b := s.backend
	head := s.head(n)
	if len(head) == 0 || head[0] != 'S' {
		if typ == pgwire.Close {
			s.owe(debt{kind: owesClose})
		} else {
			s.describesPortal(head)
		}
		b.out = pgwire.AppendHeader(b.out, typ, n)
		s.in.Skip(pgwire.HeaderSize)
		return n, nil
	}
	name, rest, ok := pgwire.String(head[1:])
	if !ok || len(rest) != 0 {
		return 0, protocolError("invalid Describe or Close message: its name is missing or too long")
	}
	as := ""
	switch {
	case typ == pgwire.Describe:
		s.leaves(name) // which finds out what it is now
		as = s.resolve(name, pgwire.Describe, nil)
	case len(name) == 0:
		s.owe(debt{kind: owesClose, unnamed: true, was: s.replaces()})
		b.unnamed, s.unnamed.version = ticket{}, 0
	case s.names[string(name)] == nil && (s.preparedBySQL(string(name)) || b.left&scan.Prepares != 0):
		as = string(name)
		s.owe(debt{kind: owesClose})
		b.left |= scan.Prepares
	default:
		// Others may use it: for the server, close one that does not exist.
		as = namePrefix
		s.owe(debt{kind: owesClose, name: string(name), statement: s.names[string(name)]})
		s.unname(string(name))
	}
	b.out = pgwire.AppendHeader(b.out, typ, len(as)+2)
	b.out = append(append(append(b.out, 'S'), as...), 0)
	s.in.Skip(pgwire.HeaderSize + n)
	return 0, nil
}

// resolve returns the name that the server knows the client's statement by, after
// making sure that it does. A name that means nothing becomes one that the server
// will refuse. typ is the message's, rest what follows the names of a Bind.
func (s *session) resolve(name []byte, typ byte, rest []byte) string {
	if len(name) == 0 {
		return s.resolveUnnamed(typ, rest)
	}
	st := s.names[string(name)]
	if st == nil {
		return string(name)
	}
	s.see(st, nil)
	s.try(name)
	if typ == pgwire.Describe && st.late != nil && st.late.silent {
		return s.standIn(st.late.body)
	}
	if f := st.fetch(); f != nil && typ == pgwire.Describe {
		return s.describeFetch(f)
	}
	if typ == pgwire.Describe && st.runs != nil && !s.aborted() {
		return s.describeLate(&st.use)
	}
	if _, known := s.backend.prepared[st]; !known && s.standsIn(st.left, st.asTyped(), typ, rest) {
		return s.standIn(st.asTyped())
	}
	s.run(st)
	s.describes(st, name, typ)
	return st.name
}

func (s *session) resolveUnnamed(typ byte, rest []byte) string {
	b, u := s.backend, &s.unnamed
	s.relearn()
	f, there := u.runs.fetch(), s.hasUnnamed()
	switch {
	case typ == pgwire.Describe && u.version != 0 && u.late != nil && u.late.silent:
		return s.standIn(u.late.body)
	case typ == pgwire.Describe && u.version != 0 && f != nil:
		return s.describeFetch(f)
	case typ == pgwire.Describe && u.version != 0 && u.runs != nil && !s.aborted():
		return s.describeLate(&u.use)
	case typ == pgwire.Describe && u.version != 0 && u.kept && u.left&scan.Fetches != 0:
		return s.standInForFetch(u.body, u.cursor, there, "")
	case there:
	case u.version != 0 && u.kept && s.standsIn(u.left, u.asTyped(), typ, rest):
		return s.standIn(u.asTyped())
	case u.version != 0 && u.kept && u.outgrown() && !s.aborted():
		s.outgrows(namePrefix)
		return namePrefix
	case u.version != 0 && u.kept && u.under == nil && !s.unsure && !u.firm && !s.aborted():
		s.why = &unmade{name: namePrefix, body: prepared.Unnamed}
		return namePrefix
	case u.version != 0 && u.kept:
		b.out = pgwire.Append(b.out, pgwire.Parse, nul, u.asTyped())
		if typ == pgwire.Describe && u.described == nil { // another server may have it with other types
			u.last++
			u.version = u.last
		}
		b.unnamed = ticket{s.id, u.version}
		s.owe(debt{kind: owesOurParse, unnamed: true})
	default:
		return namePrefix // never somebody else's
	}
	s.runFor(&u.use)
	s.recall(u.left, &u.said, u.body)
	if u.left&scan.Back != 0 && u.kept {
		text, _, _ := pgwire.String(u.body)
		s.leadsBack(u.left, text)
	}
	if typ == pgwire.Describe {
		s.describesUnnamed()
	}
	return ""
}

// ensure makes sure that the server knows a statement, or will by the time it gets
// the next message.
func (s *session) ensure(st *statement) {
	b := s.backend
	if b.uses++; !s.aborted() {
		s.stains(st)
	}
	if _, known := b.prepared[st]; known {
		b.prepared[st] = b.uses
		return
	}
	if (st.outgrown() || st.under == nil || s.behind && st.varies && s.reinterprets(st)) && !s.aborted() {
		s.outgrows(st.name)
		return
	}
	s.learn(st)
	b.out = pgwire.Append(b.out, pgwire.Parse, []byte(st.name), nul, st.asTyped())
	s.owe(debt{kind: owesOurParse, statement: st})
	s.assert(st)
}

// learn notes that the server is about to know a statement; it forgets another if it
// knows too many, and what it has by that name and is not it.
func (s *session) learn(st *statement) {
	b := s.backend
	s.unstray(st)
	for len(b.prepared) >= b.pool.limits().Statements {
		var oldest *statement
		for other, used := range b.prepared {
			if oldest == nil || used < b.prepared[oldest] {
				oldest = other
			}
		}
		s.unlearn(oldest)
	}
	if b.uses++; st.schema != b.pool.statements.schema.Load() && st.described.Load() == nil {
		st.forked.Store(true)
	}
	b.prepared[st] = b.uses
}

// unlearn lets the server forget a statement, if it knows it.
func (s *session) unlearn(st *statement) {
	b := s.backend
	if _, known := b.prepared[st]; !known {
		return
	}
	delete(b.prepared, st)
	b.stains.Drop(st)
	b.out = pgwire.Append(b.out, pgwire.Close, []byte{'S'}, []byte(st.name), nul)
	s.owe(debt{kind: owesOurClose, statement: st})
}
