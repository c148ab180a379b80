// Package fair decides who gets a pool's next server: fair across users, first
// come first served among one user's clients, with guaranteed minima, caps and
// priorities.
//
// Only the pooler imports it. A [Line] is pure bookkeeping: it knows no
// connection, no clock and no lock, and belongs to whoever holds its pool's lock.
package fair

import "time"

// A Share is what one user may have of a pool.
type Share struct {
	Min      int // servers that others leave free for this user
	Max      int // servers that this user's clients may have at once; 0: as many as there are
	Weight   int // of the user's part when several want more than there is; 0 counts as 1
	Priority int // higher goes first; among equals the weights decide
}

// A Line is who waits for a pool's servers, and the account of who has how many.
//
// A server that is free goes, among the users who may have another: to one below
// its Min first, then to the highest Priority, then to the one with the fewest
// servers for its Weight, then to the one that was served, or came, longest ago.
// So a user's wait depends on how many users there are, not on how many clients
// another one sends: between two leases of one user, no other user of the same
// priority and weight that has no more servers gets two.
type Line[T any] struct {
	size     int // servers that may be leased at once
	share    func(user string) Share
	accounts map[string]*account[T]
	queued   []*account[T] // with somebody waiting; in no order
	kept     int           // sum of what minima are not used up
	held     int
	waiting  int
	turn     uint64      // counts what changes the order
	recent   *account[T] // the one that was asked for last; nil: look for it
}

type account[T any] struct {
	user        string
	share       Share
	held        int
	turn        uint64 // when it was served last, or came
	first, last *Place[T]
	waiting     int
	at          int // in queued; -1: nobody waits
}

// A Place is one client's place in the line. The client owns it and may use it
// again when it has left the line.
type Place[T any] struct {
	Value T
	Since time.Time // of the wait
	acc   *account[T]
	prev  *Place[T]
	next  *Place[T]
}

// Queued reports whether the place is in a line.
func (p *Place[T]) Queued() bool { return p.acc != nil }

// New returns the line of a pool with room for size leases. share says what a user
// may have; users with a Min are named in advance, since what they do not use is
// kept for them before they come.
func New[T any](size int, share func(user string) Share, named []string) *Line[T] {
	l := &Line[T]{accounts: map[string]*account[T]{}}
	l.Allot(size, share, named)
	return l
}

// Allot changes the rules. Nobody who waits or holds a server loses by it at once.
func (l *Line[T]) Allot(size int, share func(user string) Share, named []string) {
	l.size, l.share = size, share
	for _, a := range l.accounts {
		a.share = share(a.user)
	}
	for _, user := range named {
		l.account(user)
	}
	l.kept = 0
	for _, a := range l.accounts {
		l.kept += a.unused()
	}
	for _, a := range l.accounts {
		l.forget(a)
	}
}

// Resize changes how many servers may be leased at once.
func (l *Line[T]) Resize(size int) { l.size = size }

// Waiting counts who waits.
func (l *Line[T]) Waiting() int { return l.waiting }

// Held counts leases, of one user.
func (l *Line[T]) Held(user string) int {
	if a := l.accounts[user]; a != nil {
		return a.held
	}
	return 0
}

// Cap is how many servers a user may have; 0: as many as there are.
func (l *Line[T]) Cap(user string) int { return l.share(user).Max }

// Kept counts the servers that are left free for others than this user.
func (l *Line[T]) Kept(user string) int {
	if a := l.accounts[user]; a != nil {
		return l.kept - a.unused()
	}
	return l.kept
}

// Wanted counts the servers that those who wait could be given, were there enough.
func (l *Line[T]) Wanted() (n int) {
	for _, a := range l.queued {
		some := a.waiting
		if a.share.Max > 0 {
			some = min(some, max(0, a.share.Max-a.held))
		}
		n += some
	}
	return n
}

// Each visits who waits, in no order, until visit returns false.
func (l *Line[T]) Each(visit func(*Place[T]) bool) {
	for _, a := range l.queued {
		for p := a.first; p != nil; p = p.next {
			if !visit(p) {
				return
			}
		}
	}
}

// Oldest returns who has waited longest; nil if nobody waits.
func (l *Line[T]) Oldest() (oldest *Place[T]) {
	for _, a := range l.queued {
		if oldest == nil || a.first.Since.Before(oldest.Since) {
			oldest = a.first
		}
	}
	return oldest
}

func (l *Line[T]) account(user string) *account[T] {
	a := l.known(user)
	if a == nil {
		l.turn++
		a = &account[T]{user: user, share: l.share(user), turn: l.turn, at: -1}
		l.accounts[user] = a
		l.kept += a.unused()
	}
	return a
}

// known returns the account of a user; nil: there is none. Most often it is the one that was
// asked for last.
func (l *Line[T]) known(user string) *account[T] {
	if l.recent == nil || l.recent.user != user {
		l.recent = l.accounts[user]
	}
	return l.recent
}

// remembered bounds the accounts of users who neither wait nor have anything. They
// are kept so that a lease makes none anew.
const remembered = 256

// forget drops an account that nothing is known by, if there are many.
func (l *Line[T]) forget(a *account[T]) {
	if len(l.accounts) > remembered && a.held == 0 && a.waiting == 0 && a.share.Min == 0 {
		delete(l.accounts, a.user)
		l.recent = nil
	}
}

// unused is what is kept for the account.
func (a *account[T]) unused() int { return max(0, a.share.Min-a.held) }

// may reports whether the account may have another server.
func (l *Line[T]) may(a *account[T]) bool {
	if a.share.Max > 0 && a.held >= a.share.Max {
		return false
	}
	return a.held < a.share.Min || l.held+l.kept < l.size
}

// Take leases a server that is free to a user, past those who wait. It reports
// false if the user may have no other now. It is for servers that nobody in the
// line may have: see [Line.Give].
func (l *Line[T]) Take(user string) bool {
	a := l.account(user)
	if !l.may(a) {
		l.forget(a)
		return false
	}
	l.lease(a)
	return true
}

func (l *Line[T]) lease(a *account[T]) {
	l.kept -= a.unused()
	a.held++
	l.kept += a.unused()
	l.held++
	l.turn++
	a.turn = l.turn
}

// Give leases a server that is free to whoever is to have it, and takes it out of
// the line; nil if nobody may have it.
func (l *Line[T]) Give() *Place[T] {
	var best *account[T]
	for _, a := range l.queued {
		if l.may(a) && (best == nil || a.before(best)) {
			best = a
		}
	}
	if best == nil {
		return nil
	}
	p := best.first
	l.unlink(p)
	l.lease(best)
	return p
}

// before reports whether a is to be served before b.
func (a *account[T]) before(b *account[T]) bool {
	if x, y := a.unused() > 0, b.unused() > 0; x != y {
		return x
	}
	if a.share.Priority != b.share.Priority {
		return a.share.Priority > b.share.Priority
	}
	if x, y := a.held*max(1, b.share.Weight), b.held*max(1, a.share.Weight); x != y {
		return x < y
	}
	return a.turn < b.turn
}

// Return ends a lease.
func (l *Line[T]) Return(user string) {
	a := l.known(user)
	if a == nil || a.held == 0 {
		return
	}
	l.kept -= a.unused()
	a.held--
	l.kept += a.unused()
	l.held--
	l.forget(a)
}

// Join puts a place at the end of its user's queue.
func (l *Line[T]) Join(p *Place[T], user string) {
	a := l.account(user)
	p.acc, p.prev, p.next = a, a.last, nil
	if a.last == nil {
		a.first, a.at = p, len(l.queued)
		l.queued = append(l.queued, a)
	} else {
		a.last.next = p
	}
	a.last = p
	a.waiting++
	l.waiting++
}

// Leave takes a place out of the line, if it is in it.
func (l *Line[T]) Leave(p *Place[T]) {
	if a := p.acc; a != nil {
		l.unlink(p)
		l.forget(a)
	}
}

func (l *Line[T]) unlink(p *Place[T]) {
	a := p.acc
	if p.prev == nil {
		a.first = p.next
	} else {
		p.prev.next = p.next
	}
	if p.next == nil {
		a.last = p.prev
	} else {
		p.next.prev = p.prev
	}
	p.acc, p.prev, p.next = nil, nil, nil
	a.waiting--
	l.waiting--
	if a.first == nil {
		end := len(l.queued) - 1
		l.queued[a.at] = l.queued[end]
		l.queued[a.at].at = a.at
		l.queued[end] = nil
		l.queued, a.at = l.queued[:end], -1
	}
}
