package pooler

// A debt is an answer that the server owes. Only those are kept that are needed to
// tell the server's answers apart.
type debt struct {
	kind      debtKind
	statement *statement // the one that a Parse creates, or a Close of ours removes
	name      string     // the client's, for that statement
}

type debtKind uint8

const (
	owesParse    debtKind = iota // ParseComplete for the client
	owesOurParse                 // ParseComplete for us
	owesClose                    // CloseComplete for the client
	owesOurClose                 // CloseComplete for us
	owesSync                     // ReadyForQuery after a Sync
	owesQuery                    // ReadyForQuery after a Query or FunctionCall
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

// forgive drops what will not come because of an error: all up to the cycle's end.
func (s *session) forgive() {
	for s.debts.len() > 0 && !s.debts.list[s.debts.head].kind.ready() {
		d, _ := s.debts.pop()
		s.undo(d)
	}
}

// undo takes back what was noted when a message was sent that the server did not
// carry out.
func (s *session) undo(d debt) {
	b := s.backend
	switch {
	case d.kind == owesOurClose:
		b.prepared[d.statement] = 0 // it is still there
	case d.kind.ready() || d.kind == owesClose:
	case d.statement != nil:
		delete(b.prepared, d.statement)
	case d.name == "":
		b.unnamed = ticket{}
	}
	if d.kind == owesParse && d.name != "" {
		s.unname(d.name)
	}
}
