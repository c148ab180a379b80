package pooler

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"mainstay.dev/mainstay/pooler/internal/again"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
)

// What a text executes or deallocates by a name is what that name stands for when the text is executed, not when it is
// prepared. So the client's own text is kept, and with it whether PostgreSQL found, when it was prepared, that it
// returns rows: it says of one that did not know its name then that it returns none, whatever it does later.

// A use is what a statement does, in SQL, with another that was prepared through the
// protocol: its text has the server's name in place of the client's.
type use struct {
	drops string            // DEALLOCATE: of the client's statement of this name
	all   bool              // DEALLOCATE ALL or DISCARD ALL
	runs  *statement        // EXECUTE
	blind bool              // as if that returned no rows
	late  *late             // the text, if it names another
	again *again.Statements // RESET: what is to be carried out behind it, once it is bound
}

// key tells statements apart whose texts are the same on the servers.
func (u *use) key() string {
	switch l := u.late; {
	case l == nil:
		return u.drops
	case u.blind:
		return u.runs.name + " " + l.key()
	default:
		return u.drops + " " + l.key()
	}
}

// A late text names another statement.
type late struct {
	body   []byte // of the client's Parse
	named  scan.Use
	silent bool // PostgreSQL found no rows when it was prepared
}

// executes reports whether it executes that; there may be no such text.
func (l *late) executes() bool { return l != nil && !l.named.Drops && !l.named.Makes }

// key tells late texts apart.
func (l *late) key() string { return strconv.FormatBool(l.silent) + " " + string(l.body) }

// lately is the late text with this body, if it is one.
func (s *session) lately(text, body []byte) *late {
	b := s.backend
	found, ok := scan.UseOf(text, b.backslash())
	if !ok {
		return nil
	}
	st := s.names[found.Name]
	there := st != nil && !s.silent(st) && !scan.Rowless(st.body) || st == nil && (b.left&scan.Prepares != 0 || s.preparedBySQL(found.Name))
	return &late{bytes.Clone(body), found, found.Bare && !there}
}

// silent reports whether PostgreSQL found, when the client prepared a statement, that it returns no rows, and might now find
// that it does.
func (s *session) silent(st *statement) bool {
	if st.late != nil {
		return st.late.silent
	}
	return st.left&scan.Fetches != 0 && (st.cursor == nil || st.cursor.told && !st.cursor.there)
}

// use is what the text does as names stand now.
func (s *session) use(l *late) use {
	u := use{late: l}
	switch st := s.names[l.named.Name]; {
	case st == nil: // one that SQL prepared, or none
	case l.named.Makes: // refused, by a name that is taken
		u.runs = occupied
	case l.named.Drops:
		u.drops = l.named.Name
	default:
		u.runs, u.blind = st, l.named.Bare && s.silent(st)
	}
	return u
}

// body is the text as the servers are to have it: with their name in place of the client's.
func (u *use) body() []byte {
	l, as := u.late, ""
	switch {
	case u.drops != "":
		as = decoy
	case u.blind:
		as = blind
	case u.runs != nil:
		as = u.runs.name
	default:
		return l.body
	}
	return slices.Concat(l.body[:l.named.From], []byte(as), l.body[l.named.To:])
}

// dropped is the name that is deallocated in the end; "" if none is.
func (u *use) dropped() string {
	for u.runs != nil {
		u = &u.runs.use
	}
	return u.drops
}

// describeLate makes a text for the server to describe, since it may have got the other before what that executes, when it
// found no rows. It returns its name.
func (s *session) describeLate(u *use) string {
	b, name := s.backend, namePrefix+"_described"
	s.runFor(u)
	b.out = pgwire.Append(b.out, pgwire.Close, []byte{'S'}, []byte(name), nul)
	s.owe(debt{kind: owesOurClose})
	b.out = pgwire.Append(b.out, pgwire.Parse, []byte(name), nul, u.body())
	s.owe(debt{kind: owesOurParse})
	return name
}

// ofSQL reports whether it executes what SQL has prepared, and each client has its own of.
func (u *use) ofSQL() bool { return u.late.executes() && u.runs == nil }

// renames reports whether it names something of the protocol's.
func (u *use) renames() bool { return u.drops != "" || u.runs != nil }

// maxChain bounds how many statements that execute each other by their names are followed.
const maxChain = 8

// rebind lets a name stand for what its text does now; it may have no such text.
func (s *session) rebind(name string, depth int) {
	st := s.names[name]
	if st == nil || st.late == nil || depth == maxChain {
		return
	}
	l := st.late
	if l.named.Name != name {
		s.rebind(l.named.Name, depth+1)
	} else if l.executes() {
		return // it executes itself
	}
	u := s.use(l)
	if u == st.use {
		return
	}
	now, _ := s.intern(st.under, u.ofSQL() || strings.HasPrefix(st.key, ownKey), u.body(), u)
	s.names[name] = now
	s.nameBytes += int32(len(now.body) - len(st.body))
}

// rebindUnnamed is rebind for the unnamed statement.
func (s *session) rebindUnnamed() {
	u := &s.unnamed
	if u.late == nil || u.version == 0 || !u.kept {
		return
	}
	s.rebind(u.late.named.Name, 0)
	now := s.use(u.late)
	if now == u.use {
		return
	}
	u.last++
	u.version, u.use, u.body = u.last, now, append(u.body[:0], now.body()...)
	text, _, _ := pgwire.String(u.body)
	u.left = s.suspectLate(text, &now)
}

// suspectLate notes what such a text may leave behind: what of the protocol's it names is nothing that stays.
func (s *session) suspectLate(text []byte, u *use) scan.Effect {
	if u.renames() {
		return s.suspectRenamed(text)
	}
	return s.suspectText(text, true)
}

// blind is a statement that executes another, and of which the server has found that it returns no rows: the other one,
// whose name is hiddenName, was not there yet.
var (
	blind      = namePrefix + "_blind"
	hiddenName = namePrefix + "_hidden"
)

// runFor prepares for what a text executes.
func (s *session) runFor(u *use) {
	st, b := u.runs, s.backend
	switch {
	case st == nil:
	case u.blind:
		s.runFor(&st.use)
		for _, name := range []string{blind, hiddenName} {
			b.out = pgwire.Append(b.out, pgwire.Close, []byte{'S'}, []byte(name), nul)
			s.owe(debt{kind: owesOurClose})
		}
		b.out = pgwire.Append(b.out, pgwire.Parse, []byte(blind), nul, []byte("execute "+hiddenName), nul, nul, nul)
		s.owe(debt{kind: owesOurParse})
		b.out = pgwire.Append(b.out, pgwire.Parse, []byte(hiddenName), nul, st.asTyped())
		s.owe(debt{kind: owesOurParse})
		s.recallOf(st)
	case st.cursor != nil && st.cursor.there:
		s.unlearn(st) // the server may have found no cursor
		s.run(st)
	default:
		s.run(st)
	}
}

// knows reports whether there is nothing to do for run.
func (s *session) knows(st *statement) bool {
	_, known := s.backend.prepared[st]
	return known && !s.backend.stains.Foreign(st, s.id) && (st.runs == nil || !st.blind && (st.runs.cursor == nil || !st.runs.cursor.there) && s.knows(st.runs))
}

// rename puts the server's name into a text that deallocates or executes by name, in
// SQL, what the client prepared through the protocol; nil if the text does not. body is the Parse's.
func (s *session) rename(text, body []byte, whole bool) (renamed []byte, u use) {
	switch {
	case !whole, s.harmless:
	case scan.DropsAll(text):
		u.all = true
	default:
		if l := s.lately(text, body); l != nil {
			s.rebind(l.named.Name, 0)
			u = s.use(l)
		}
		if u.renames() {
			renamed = u.body()
		}
	}
	return renamed, u
}

// parseRenamed sends the unnamed statement, whose text was renamed.
func (s *session) parseRenamed(body []byte, was *replaced) {
	b, u := s.backend, &s.unnamed
	text, _, _ := pgwire.String(body)
	u.version, u.left, u.kept = u.last, s.suspectRenamed(text), true
	u.said = scan.Mentions{}
	s.keepSaid(text)
	u.body, u.firm = append(u.body[:0], body...), true
	b.unnamed = ticket{s.id, u.version}
	s.owe(debt{kind: owesParse, unnamed: true, was: was})
	b.out = pgwire.Append(b.out, pgwire.Parse, nul, u.body)
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
			s.try([]byte(u.Name))
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

// runAll prepares for what a simple query executes.
func (s *session) runAll(list []*statement) {
	b := s.backend
	alone, news := s.debts.len() == b.replays && !s.behind, false // amid a cycle, a Sync would end its transaction
	s.vacate(list)
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

// run prepares for a statement that is executed, and for what that executes in SQL.
func (s *session) run(st *statement) {
	s.runFor(&st.use)
	s.ensure(st)
	s.recallOf(st)
}

// recallOf is recall for what a statement may leave behind.
func (s *session) recallOf(st *statement) {
	s.recall(st.left, &st.said, st.body)
	if st.left&scan.Back != 0 {
		text, _, _ := pgwire.String(st.body)
		s.leadsBack(st.left, text)
	}
	if in := s.hiddenIn(st); in != nil {
		s.recall(in.effect, &in.said, nil)
	}
}

// In an aborted transaction PostgreSQL prepares nothing. So a text that ends one, and then executes what its server does not know,
// is sent in two: behind the first statement that can be made. The second is as long as the whole, so that
// errors point into the client's text.

// severs returns the first statement of a text that has to be sent so. The cycle is buffered.
func (s *session) severs() (first, text []byte) {
	b, cycle := s.backend, s.in.Peek(s.in.Buffered())
	if b.status != pgwire.InFailed || b.pool.sessions() || s.open || len(s.names) == 0 || !pgwire.Holds(cycle) {
		return nil, nil
	}
	typ, _, body := pgwire.Split(cycle)
	text, whole := bytes.CutSuffix(body, nul)
	if typ != pgwire.Query || !whole {
		return nil, nil
	}
	if first = scan.First(text, b.backslash()); scan.Effects(first, b.backslash())&scan.Ends == 0 {
		return nil, nil
	}
	unknown := slices.ContainsFunc(scan.Uses(text, b.backslash()), func(u scan.Use) bool {
		st := s.names[u.Name]
		return st != nil && !u.Drops && !u.Makes && !s.knows(st)
	})
	if !unknown {
		return nil, nil
	}
	return first, text
}

// sever makes two of it, if it has no fault for which PostgreSQL would carry out nothing of it.
func (s *session) sever() error {
	first, text := s.severs()
	if first == nil {
		return nil
	}
	b := s.backend
	s.mu.Lock()
	s.sound = false
	b.out = pgwire.Append(b.out, pgwire.Parse, []byte(namePrefix+"_whole"), nul, text, nul, nul, nul) // which is refused, as several statements or before that
	b.out = pgwire.Append(b.out, pgwire.Sync)
	s.aside(debt{aside: true})
	s.mu.Unlock()
	if err := s.replayed(); err != nil || !s.sound {
		return err
	}
	blank := bytes.Repeat([]byte{' '}, utf8.RuneCount(first))
	two := pgwire.AppendQuery(pgwire.AppendQuery(nil, string(first)), string(blank)+string(text[len(first):]))
	whole := bytes.Clone(s.in.Peek(pgwire.HeaderSize + len(text) + 1))
	s.in.Skip(len(whole))
	if !s.in.Unread(two) {
		s.in.Unread(whole)
		return nil
	}
	s.mu.Lock()
	s.severed = len(two) - pgwire.HeaderSize - len(first) - 1
	s.mu.Unlock()
	return nil
}

// severedEnds notes the end of the first of the two. The client is not told of it, unless it failed: then
// there is no second. The lock is held.
func (s *session) severedEnds() {
	if s.mum = false; s.severed == 0 {
		return
	}
	if s.mum = s.exchange.DB.SQLState == ""; s.mum {
		s.severed = 0
	}
}

// intern is the registry's, for what this client prepares now.
func (s *session) intern(under *state.Settings, own bool, body []byte, u use) (st *statement, older bool) {
	text, _, _ := pgwire.String(body)
	return s.backend.pool.statements.intern(under, own, s.garbled(text), body, u, s.shapeOf)
}

// executions are what executing what a client has prepared by SQL may do. It is found out once, and not for each
// message that may execute something: there may be many of either.
type executions struct {
	left scan.Effect // by the texts alone

	// As they were when the rest was found out.
	of *state.Settings
	by *revealed

	hidden scan.Effect // by the functions that they call
	said   scan.Mentions
}

// executesSQL is what executing something that SQL prepared may leave behind.
func (s *session) executesSQL() scan.Effect {
	b := s.backend
	hidden := &b.pool.home().hidden
	x, known := s.executes, hidden.known.Load()
	if x == nil {
		x = &executions{}
	}
	if x.of != s.prepares || x.by != known {
		x = &executions{left: x.left, of: s.prepares, by: known}
		for _, p := range s.prepares.All() {
			text, _ := state.OfCarried(p.Value)
			x.said.Find([]byte(text), false, 0)
			x.hidden |= hidden.hints().Find([]byte(text), false, &x.said)
		}
		s.executes = x
	}
	if b.executed != x {
		b.executed = x
		b.mentions.Join(&x.said)
	}
	left := x.left | x.hidden
	if left&(scan.AnyChange|scan.Unseen) != 0 {
		left |= scan.Opaque // it may be given a name that is computed
	}
	return left
}
