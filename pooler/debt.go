package pooler

import (
	"fmt"
	"slices"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
)

// A debt is an answer that the server owes. Only those are kept that are needed to
// tell the server's answers apart.
type debt struct {
	kind      debtKind
	statement *statement // the one that a Parse creates, or a Close removes
	name      string     // the client's, for that statement or the one it drops
	unnamed   bool       // a Parse of the unnamed statement
	taken     bool       // a Parse that the server has to refuse: the name is taken
}

type debtKind uint8

const (
	owesParse    debtKind = iota // ParseComplete for the client
	owesOurParse                 // ParseComplete for us
	owesClose                    // CloseComplete for the client
	owesOurClose                 // CloseComplete for us
	owesDrop                     // CommandComplete of a DEALLOCATE of the client's statement of this name
	owesSync                     // ReadyForQuery after a Sync
	owesQuery                    // ReadyForQuery after a Query or FunctionCall
	owesOurSync                  // ReadyForQuery for us
	owesReplay                   // ReadyForQuery after settings that the client had before
)

// ready reports whether the debt is a ReadyForQuery.
func (k debtKind) ready() bool { return k >= owesSync }

// debts are what the server owes, oldest first.
type debts struct{ queue[debt] }

func (d *debts) none() bool { return d.len() == 0 }

// firstReady returns the oldest ReadyForQuery that is owed.
func (d *debts) firstReady() (debt, bool) {
	for _, one := range d.list[d.head:] {
		if one.kind.ready() {
			return one, true
		}
	}
	return debt{}, false
}

// dropSyncs forgets every ReadyForQuery that is owed for a Sync.
func (d *debts) dropSyncs() {
	kept := d.list[d.head:d.head]
	for _, one := range d.list[d.head:] {
		if one.kind != owesSync {
			kept = append(kept, one)
		}
	}
	d.list = d.list[:d.head+len(kept)]
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

func (q *queue[T]) clear() {
	clear(q.list)
	q.list, q.head = q.list[:0], 0
}

// owe notes a debt. The lock is held, here and below.
func (s *session) owe(d debt) { s.debts.push(d) }

// forgive drops what will not come because of an error: all up to the cycle's end. It
// is undone in reverse, since a name may have changed its meaning more than once.
func (s *session) forgive() {
	owed := s.debts.list[s.debts.head:]
	n := 0
	for n < len(owed) && !owed[n].kind.ready() {
		n++
	}
	for i := n - 1; i >= 0; i-- {
		s.undo(owed[i], owed[n:])
	}
	for range n {
		s.debts.pop()
	}
}

// undo takes back what was noted when a message was sent that the server did not
// carry out. What was sent later, in other cycles, may have given the name a new
// meaning, which stays.
func (s *session) undo(d debt, later []debt) {
	b := s.backend
	again := slices.IndexFunc(later, func(l debt) bool { return d.name != "" && l.name == d.name })
	renamed := again >= 0
	if renamed && d.kind == owesParse && later[again].kind == owesClose {
		later[again].statement = nil // what it closes is not there
	}
	switch {
	case d.kind == owesOurClose && d.statement != nil:
		b.prepared[d.statement] = 0 // it is still there
	case d.kind.ready() || d.kind == owesOurClose || d.kind == owesDrop:
	case d.kind == owesClose && renamed:
	case d.kind == owesClose && d.statement != nil:
		s.names[d.name] = d.statement
		s.nameBytes += len(d.statement.body)
	case d.kind == owesClose: // of the unnamed one: it stays forgotten
	case d.statement != nil:
		delete(b.prepared, d.statement)
	case d.name == "":
		b.unnamed = ticket{}
	}
	switch {
	case d.kind != owesParse || renamed:
	case d.name != "":
		s.unname(d.name)
	case d.unnamed && !slices.ContainsFunc(later, func(l debt) bool { return l.unnamed }):
		// Whatever it has replaced is not known any more: better none than a wrong one.
		s.unnamed.version = 0
	}
}

// enrol notes what the client is told at login, and what it chose.
func (s *session) enrol(welcome []byte) {
	s.settings = s.pool.settings.Intern(s.settings)
	s.login = s.settings
	s.told = s.pool.settings.OfWelcome(welcome)
}

// inform tells the client what the server reports differently from what the client
// was told last.
func (s *session) inform() {
	if s.backend.reports == s.told {
		return
	}
	var out []byte
	for _, p := range s.backend.reports.All() {
		if value, ok := s.told.Get(p.Name); !ok || value != p.Value {
			out = pgwire.AppendParameter(out, p.Name, p.Value)
		}
	}
	s.told = s.backend.reports
	if len(out) > 0 && !s.mute {
		_, _ = s.conn.Write(out) // a client that is gone is noticed where it is served
	}
}

// hear notes a setting that the server reports to the client.
func (s *session) hear(body []byte) {
	name, value, _, ok := pgwire.Strings(body)
	if !ok {
		return
	}
	b := s.backend
	s.mu.Lock() // the uplink reads what the server reports
	defer s.mu.Unlock()
	b.note(body)
	s.told = b.pool.settings.Intern(s.told.With(string(name), string(value)))
	switch string(name) {
	case "is_superuser", "in_hot_standby", "server_version", "server_encoding":
		return // these follow from others
	}
	b.left |= scan.Setting
	b.mentions.Add(string(name))
}

// suspect notes what a statement may leave behind, by its text. The lock is held.
func (s *session) suspect(text []byte, whole bool) scan.Effect {
	b := s.backend
	if !whole {
		b.left |= scan.Unseen
		return scan.Unseen
	}
	e := scan.Effects(text, b.backslash())
	if e&scan.Executes != 0 {
		e |= s.executes
		for _, p := range s.prepares.All() {
			b.mentions.Find([]byte(p.Value), false)
		}
	}
	b.left |= e
	s.resets = s.resets || e&scan.Back != 0
	if e&(scan.Setting|scan.AnyChange) != 0 {
		b.mentions.Find(text, b.backslash())
	}
	return e
}

// settle finds out what the client has left on its server at a transaction's end. It
// returns whether the server may go to another client.
func (s *session) settle(b *backend) (free bool, err error) {
	s.keepSequences(b)
	if b.left&scan.Lasting != 0 {
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

// look asks the server what the client has left there.
func (s *session) look(b *backend) error {
	q := audit.Question{Effects: b.left, Names: b.mentions.Settings, Known: b.settings}
	var found audit.Findings
	if err := b.exec(q.SQL(), found.Row); err != nil {
		return s.unread(err)
	}
	if b.status != pgwire.Idle {
		return s.unread(errOutOfStep)
	}
	user, _ := b.atLogin.Get("session_authorization")
	has, wants := found.Settings(&q, s.login, user)
	b.settings, s.settings = b.pool.settings.Intern(has), b.pool.settings.Intern(wants)
	if named := b.pool.settings.Intern(found.Statements(&q, b.named)); named != b.named {
		b.named, s.prepares = named, named
		s.executes = effectsOf(named)
	}
	if found.Pins&scan.Prepares != 0 {
		s.executes = scan.Unseen
	}
	b.pins = b.pins&^q.Asked() | found.Pins | b.left&audit.Sticky
	b.left = 0
	b.mentions.Settings = b.mentions.Settings[:0]
	reasons := ""
	if b.pins != 0 {
		reasons = audit.Reasons(b.pins)
	}
	s.mu.Lock()
	s.pinned = reasons
	s.mu.Unlock()
	if len(b.heard) > 0 && !s.mute {
		_, _ = s.conn.Write(b.heard) // a client that is gone is noticed where it is served
	}
	b.heard = nil
	return nil
}

func (s *session) unread(err error) error {
	return end(Lost, "the session's settings could not be read back from the server", "connect again").because(fmt.Errorf("audit: %w", err))
}

// listening reports whether the client has a server to itself because it listens.
func (s *session) listening() bool {
	return s.backend != nil && s.backend.pins&scan.Listens != 0 && s.between()
}
