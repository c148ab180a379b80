package pooler

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"mainstay.dev/mainstay/pooler/internal/again"
	"mainstay.dev/mainstay/pooler/internal/explain"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
)

// A debt is an answer that the server owes. Only those are kept that are needed to
// tell the server's answers apart.
type debt struct {
	kind      debtKind
	unnamed   bool         // a Parse or Close of the unnamed statement, ours included
	aside     bool         // a replay that may fail: see teach
	taken     bool         // a Parse that the server has to refuse: the name is taken
	at        int32        // how many messages of its cycle are answered before this one; of a replay that changes settings, how many of its statements, the first, are its BEGIN and what leads others' back
	statement *statement   // the one that a Parse creates, or a Close removes
	name      string       // the client's, for that statement or the one it drops
	was       *replaced    // what stood there before; nil: nothing, or this is its cycle's first message
	before    *known       // what owesDropAll has made forgotten
	cursor    *sighting    // what owesOurDescribe tells
	tells     *description // what owesDescription does, or a replay
}

// replaced is an unnamed statement that another has replaced, unless the server skips that.
type replaced struct {
	unnamed
	there ticket // what the server had
}

// known is what names stood for, and what the server knew.
type known struct {
	names     map[string]*statement
	nameBytes int32
	prepared  map[*statement]uint64
}

type debtKind uint8

const (
	owesParse       debtKind = iota // ParseComplete for the client
	owesOurParse                    // ParseComplete for us
	owesOurDescribe                 // the description, for us, of what the Parse before this has made
	owesOurRun                      // BindComplete and CommandComplete for us
	owesClose                       // CloseComplete for the client
	owesOurClose                    // CloseComplete for us
	owesDescription                 // the description of a statement, for the client, of which something is noted
	owesDrop                        // CommandComplete of a DEALLOCATE of the client's statement of this name
	owesDropAll                     // CommandComplete of a DEALLOCATE ALL or DISCARD ALL
	owesCopy                        // CopyInResponse to data that has been sent
	owesSync                        // ReadyForQuery after a Sync
	owesQuery                       // ReadyForQuery after a Query or FunctionCall
	owesOurSync                     // ReadyForQuery for us
	owesReplay                      // ReadyForQuery after settings that the client had before
)

// ready reports whether the debt is a ReadyForQuery.
func (k debtKind) ready() bool { return k >= owesSync }

// debts are what the server owes, oldest first.
//
// Each message of a cycle, but for its last, has one answer that ends what the server says to
// it. They are counted: so it is known which message an error is the answer to, and which
// others it has made the server skip.
type debts struct {
	queue[debt]
	asked     int32 // messages of the cycle that is being sent
	answered  int32 // those of the cycle that is being answered
	uncounted bool  // which has swallowed another
	failed    bool  // something of the cycle that is being sent has failed: the server passes over the rest of it
	inquired  bool  // it has been asked for what owesOurClose tells: see amid; nobody reads the client meanwhile
	ours      bool  // what comes next is what owesOurDescribe or owesOurRun stands for; of whoever reads the answers
}

// skips reports whether the server, which has answered with an error, passes over the message
// that this debt is for.
func (d *debts) skips(one debt) bool { return !d.uncounted && one.at > d.answered }

func (d *debts) none() bool { return d.len() == 0 }

// clear notes that all has been answered.
func (d *debts) clear() {
	clear(d.list[d.head:])
	d.list, d.head, d.answered, d.uncounted = d.list[:0], 0, 0, false
}

// firstReady returns the oldest ReadyForQuery that is owed.
func (d *debts) firstReady() (debt, bool) {
	for _, one := range d.list[d.head:] {
		if one.kind.ready() {
			return one, true
		}
	}
	return debt{}, false
}

// takeCopy notes that the server takes COPY data. What the client had sent up to the
// end of its data, Syncs included, belongs to that. ended reports whether that end has been sent, syncs how
// many the server does not answer.
func (d *debts) takeCopy() (syncs int, ended bool) {
	owed := d.list[d.head:]
	end := slices.IndexFunc(owed, func(one debt) bool { return one.kind == owesCopy })
	kept := owed[:0]
	for i, one := range owed {
		switch {
		case i == end:
		case one.kind == owesSync && (end < 0 || i < end):
			syncs++
		default:
			kept = append(kept, one)
		}
	}
	clear(owed[len(kept):])
	d.list = d.list[:d.head+len(kept)]
	d.uncounted = d.uncounted || syncs > 0
	return syncs, end >= 0
}

// goesOn notes that what seemed to be the first cycle's end is not: the next belongs to it.
func (s *session) goesOn() {
	c, _ := s.cycles.pop()
	if s.cycles.len() == 0 {
		c.bytes += s.next.bytes
		s.next = c
		return
	}
	next := &s.cycles.list[s.cycles.head]
	next.start, next.bytes = c.start, next.bytes+c.bytes
}

// uncertain reports whether an error of the server's may change what a name stands for,
// or, unless it is renewed, the unnamed statement.
func (d *debts) uncertain(renewed bool) bool {
	return slices.ContainsFunc(d.list[d.head:], func(one debt) bool {
		return one.name != "" || one.statement != nil || one.kind == owesDropAll || one.cursor != nil || one.unnamed && !renewed
	})
}

// A queue is first in, first out. It keeps its memory.
type queue[T any] struct {
	list []T
	head int
}

func (q *queue[T]) len() int { return len(q.list) - q.head }

func (q *queue[T]) push(v T) {
	if q.head > 32 && q.head > len(q.list)/2 {
		n := copy(q.list, q.list[q.head:])
		clear(q.list[n:])
		q.list, q.head = q.list[:n], 0
	}
	q.list = append(q.list, v)
}

func (q *queue[T]) pop() (v T, ok bool) {
	if q.len() == 0 {
		return v, false
	}
	var zero T
	v, q.list[q.head] = q.list[q.head], zero
	q.head++
	if q.head == len(q.list) {
		q.list, q.head = q.list[:0], 0
	}
	return v, true
}

func (q *queue[T]) first() (v T, ok bool) {
	if q.len() == 0 {
		return v, false
	}
	return q.list[q.head], true
}

// owe notes a debt. The lock is held, here and below.
func (s *session) owe(d debt) {
	switch {
	case d.kind.ready():
		s.debts.asked, s.debts.failed = 0, false
	case d.kind <= owesOurClose:
		d.at = s.debts.asked
		s.debts.asked++
	case d.kind == owesDescription: // which is counted when it has been sent
		d.at = s.debts.asked
	}
	s.debts.push(d)
}

// What PostgreSQL refuses for the moment, it may take the next time: that is not the statement's fault. A client that waits
// for what its cycle uses is told so, and nothing of the cycle is carried out.

// momentary reports whether an error is no matter of what was asked for.
func momentary(body []byte) bool {
	return !(&explain.Refused{SQLState: string(pgwire.Field(body, 'C'))}).Lasting()
}

// setBack notes such an error in a replay, which comes before the client's cycle is sent.
func (s *session) setBack(body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.setback == nil && s.cycles.len() == 0 {
		s.setback = &unmade{name: namePrefix, body: bytes.Clone(body)}
	}
}

// soon is no schema's count: what is missing since then is made with the next transaction.
const soon = ^uint64(0)

// lose notes that what SQL's PREPARE made as this could not be made again, and why.
func (s *session) lose(name, text string, body []byte) {
	s.missing = s.missing.With(name, text)
	if s.vanished == nil {
		s.vanished = map[string][]byte{}
	}
	s.vanished[name] = bytes.Clone(body)
	switch {
	case momentary(body):
		s.missingAt = soon
	case s.missingAt != soon:
		s.missingAt = s.backend.pool.statements.schema.Load()
	}
}

// handOn sees to it that a cancel request ends not only the replay that it met, but what the client waits for: it is
// passed on once more to what has been sent already, and what has not is turned down.
func (s *session) handOn(body []byte) {
	if !s.busy || string(pgwire.Field(body, 'C')) != "57014" {
		return
	}
	s.mu.Lock()
	meant := s.canceled == s.turn.Load()
	if meant {
		s.overdueSince = time.Time{} // the sweep sees to it, too
		s.passesOn = s.cycles.len() > 0 || slices.ContainsFunc(s.debts.list[s.debts.head+1:], func(d debt) bool { return d.name != "" || d.statement != nil || d.unnamed })
	}
	s.mu.Unlock()
	if meant {
		s.setBack(body)
	}
}

// beginCancel notes that a cancel request is about to go to the server, which is not given on until it has come. The lock is held.
func (s *session) beginCancel() {
	b := s.backend
	b.canceling++
	b.cancels.Add(1)
	if b.replays > 0 {
		s.canceled = s.turn.Load()
	}
}

// cancelAgain does so when the server has ended that replay: before, it would take the request for that one's. The lock
// is held.
func (s *session) cancelAgain() {
	if !s.passesOn {
		return
	}
	b := s.backend
	s.passesOn = false
	b.canceling++
	b.cancels.Add(1)
	b.pool.opening.Go(func() { s.cancelOn(b) })
}

// turnDown lets the server refuse the cycle whose next message, of n bytes, is about to be sent, by a name that never
// exists; [session.tellWhy] knows better. It reports whether that message, which is the last, is not to be sent itself: a
// server does not pass over a Query. The lock is held.
func (s *session) turnDown(typ byte, n int) (instead bool) {
	b := s.backend
	for _, st := range s.setback.taught {
		s.unlearn(st)
	}
	s.why, s.setback = s.setback, nil
	b.out = pgwire.Append(b.out, pgwire.Bind, nul, []byte(namePrefix), make([]byte, 7))
	s.debts.asked++
	s.behind, s.open = true, true
	if typ != pgwire.Query && typ != pgwire.FunctionCall {
		return false
	}
	b.unnamed, s.unnamed.version = ticket{}, 0 // as if it had been
	b.out = pgwire.Append(b.out, pgwire.Sync)
	s.excess, s.midway = pgwire.HeaderSize+n, false
	s.noteSent(pgwire.Sync)
	return true
}

// hear notes a setting that the server reports to the client. A client that has reset one
// which it chose at login hears of what it chose: it will have that again. keep reports whether
// the message is for the client.
func (s *session) hear(body []byte) (keep bool) {
	name, value, _, ok := pgwire.Strings(body)
	if !ok {
		return true
	}
	b := s.backend
	s.mu.Lock() // the uplink reads what the server reports
	defer s.mu.Unlock()
	b.note(body)
	tells, keep := string(value), true
	if s.resets {
		usual, _ := b.atLogin.Get(string(name))
		if chosen, ok := s.chosen(string(name)); ok && tells == usual && chosen != tells {
			tells, keep = chosen, false
		}
	}
	if told, _ := s.told.Get(string(name)); !keep && told != tells {
		s.held = pgwire.AppendParameter(s.held, string(name), tells)
	}
	s.told = b.pool.settings.Intern(s.told.With(string(name), tells))
	switch string(name) {
	case "is_superuser", "in_hot_standby", "server_version", "server_encoding":
		return keep // these follow from others
	}
	b.left |= scan.Setting
	s.sensed = nil
	b.stains.Change(b.left, name)
	b.mentions.Add(string(name))
	return keep
}

// chosen is what the client was told at login of a setting that it had chosen.
func (s *session) chosen(name string) (value string, ok bool) {
	if value, ok = s.login.Get(strings.ToLower(name)); !ok {
		return "", false
	}
	if canonical, ok := s.login.Told().Get(name); ok {
		value = canonical
	}
	return value, true
}

// suspect notes what the statement that is being sent may leave behind. The lock is held.
func (s *session) suspect(text []byte, whole bool) scan.Effect {
	if s.harmless {
		return 0
	}
	return s.suspectText(text, whole)
}

// suspectText is suspect for a text that may be another one than the client's.
func (s *session) suspectText(text []byte, whole bool) scan.Effect {
	b := s.backend
	known := b.pool.home().hidden.known.Load()
	e, varies := s.read(text, known)
	if !whole {
		e, varies = s.partly(e, text, known), true
	}
	if e&scan.Executes != 0 {
		e |= s.executesSQL()
		b.mentions.Find(text, b.backslash(), e) // what it is given
	}
	if e == 0 {
		if !varies {
			s.learnHarmless(text, known)
		}
		return 0
	}
	if e&scan.Prepares != 0 {
		s.findDropped(text)
	}
	b.stains.Doubt(e&sways, text, b.backslash())
	s.taint(e)
	s.resets = s.resets || e&scan.Back != 0
	s.next.ends = s.next.ends || e&scan.Ends != 0
	return e
}

// taint notes what the message that is being sent may leave behind, now or when what it binds is executed. The lock is held.
func (s *session) taint(e scan.Effect) {
	if e&sways != 0 && !s.swayed() {
		s.sensed = s.settings // so far
	}
	s.does |= e
	s.backend.taint(e)
}

// onlyUnnamed reports whether, of portals of which something is known, there is the unnamed one alone.
func (s *session) onlyUnnamed() bool {
	_, there := s.portals[""]
	return there && len(s.portals) == 1
}

// alters notes that the server's client changes the schema, up to the transaction's end.
func (s *backend) alters() {
	if !s.changing {
		s.changing = true
		s.pool.home().hidden.changing.Add(1)
	}
}

// altersSchema is that by what the server says that it has done.
func (s *session) altersSchema(command []byte) {
	if bytes.HasSuffix(command, []byte("FUNCTION")) || bytes.HasSuffix(command, []byte("PROCEDURE")) {
		s.backend.pool.home().hidden.planned.Store(true) // where it is harmless, the catalog is not read for it
	}
	s.mu.Lock()
	if b := s.backend; !b.changing { // by a DROP
		b.left |= scan.Temporary // so that its end is looked after
		b.alters()
	}
	s.mu.Unlock()
	s.backend.pool.outdate() // the types of a statement's parameters are those of when it was prepared
}

// A portal is one whose execution changes what is known of its session.
type portal struct {
	use
	sways bool   // it may change settings
	makes []byte // what SQL's PREPARE or DEALLOCATE is executed; nil: neither
}

// bind notes what executing a portal will do. It reports whether something is carried out behind it.
func (s *session) bind(name, statement []byte) (behind bool) {
	p, left, body := portal{use: s.unnamed.use}, s.unnamed.left, s.unnamed.body
	if len(statement) > 0 {
		p.use, left, body = use{}, 0, nil
		if st := s.names[string(statement)]; st != nil {
			p.use, left, body = st.use, st.left, st.body
		}
	}
	if p.drops = p.dropped(); p.drops != "" {
		s.offerDecoy(decoy, p.drops)
	}
	if p.again, p.sways = s.again(statement), s.maySway(body); left&scan.Prepares != 0 {
		text, _, _ := pgwire.String(body)
		p.makes = bytes.Clone(text)
	}
	if len(name) > 0 { // if there is one of this name, it stays
		p.sways = p.sways || s.portals[string(name)].sways
	}
	switch {
	case p.drops != "" || p.all || p.again != nil || p.sways || p.makes != nil:
		if s.portals == nil {
			s.portals = map[string]portal{}
		}
		s.portals[string(name)] = p
	case len(s.portals) > 0:
		delete(s.portals, string(name))
	}
	return p.again != nil
}

// execute notes what an Execute does. If it fails, what follows in its cycle
// does too: so it may be taken for granted here. It returns what is to be carried out behind it.
func (s *session) execute(n int) *again.Statements {
	name, _, _ := pgwire.String(s.head(n))
	p, noted := s.portals[string(name)]                   // which stays: PostgreSQL may pass over this, or be asked for more
	if p.sways || !noted && len(name) > 0 && s.swayed() { // it may be a cursor of SQL's
		s.sway()
	}
	if p.makes != nil && !s.debts.failed {
		s.made.Executes(p.makes, s.backend.backslash(), s.prepares, s.present())
	}
	b := s.backend
	switch {
	case p.drops != "":
		s.owe(debt{kind: owesDrop, name: p.drops, statement: s.names[p.drops]})
		s.unname(p.drops)
	case p.all:
		b.cleared.all = true
		s.owe(debt{kind: owesDropAll, before: &known{s.names, s.nameBytes, b.prepared}})
		s.names, s.nameBytes, b.prepared = nil, 0, map[*statement]uint64{}
	}
	return p.again
}

// maySway reports whether executing a text, of which s.does says the rest, may change the settings in force: by what it fetches, or
// what it calls that was made in the same transaction.
func (s *session) maySway(text []byte) bool {
	return s.does&(sways|scan.Ends|scan.Executes|scan.Fetches) != 0 || s.swayed() && (s.backend.left&scan.Catalog != 0 || scan.Contains(text, "move"))
}

// doubt notes that something has failed, and its transaction may have been rolled back. The lock is held.
func (s *session) doubt() {
	s.unsure = false
	s.made.Doubt()
}

// mustHold reports whether the client's next cycle has to wait for the answers to
// those before. The lock is held.
func (s *session) mustHold(typ byte, n int) bool {
	b := s.backend
	if s.open || s.copying || s.debts.len() == b.replays || b.pool.sessions() {
		return false
	}
	// What a name stands for is not certain before the server has answered, and neither is
	// the unnamed statement.
	renewed := typ == pgwire.Query || typ == pgwire.Parse && n > 0 && s.head(1)[0] == 0
	if b.replays > 0 || b.left&(scan.Prepares|scan.Discards) != 0 || typ == pgwire.Query && (s.usesNames(n) || s.resetsNext(n)) || s.debts.uncertain(renewed) || s.varied || s.resets && s.login.Len() > 0 || s.unmet() || s.learnsLate() || s.unproven() || s.senses() || s.attempt.anew != nil || s.severed > 0 {
		return true
	}
	return s.ear != nil && len(s.ear.channels) > 0 || b.left&scan.Listens != 0 || b.left&(scan.Begins|scan.Unseen) != 0 && b.pool.statementMode()
}
