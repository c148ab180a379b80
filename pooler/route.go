package pooler

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"mainstay.dev/mainstay/pooler/internal/credential"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// route finds the pool of the session's database.
func (s *session) route() (*pool, error) {
	policy := s.pooler.policy.Load()
	if s.routed == policy {
		return s.pool, nil
	}
	p := policy.pools[s.database]
	if p == nil {
		return nil, end(NoDatabase, fmt.Sprintf("database %q does not exist", s.database),
			"name it under pooler.databases, or connect to one that stands there")
	}
	if p.perClient() {
		if s.keys == nil {
			return nil, refusedLogin("28000", fmt.Sprintf("database %q is entered with the client's own login, and that was without a password", s.database),
				"log in by scram-sha-256, password or md5, with the secret that PostgreSQL has")
		}
		p = p.member(s.user, *s.keys) // another one when the client's password changes
	} else {
		s.routed = policy
	}
	s.mu.Lock()
	s.pool = p
	s.mu.Unlock()
	return p, nil
}

// claim takes a server from the session's pool and makes it ready for this client.
func (s *session) claim() error {
	if b := s.offered; b != nil {
		s.offered = nil
		if b.fresh() {
			s.mu.Lock()
			s.backend = b
			s.mu.Unlock()
			s.equip()
			return nil
		}
		b.pool.drop(b)
	}
	for {
		p, err := s.route()
		if err != nil {
			return err
		}
		b, err := p.claim(s)
		if errors.Is(err, errRetired) {
			continue // a reload has replaced the pool
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.backend = b
		s.mu.Unlock()
		s.equip()
		return nil
	}
}

// unsuited explains why a server could not be made ready for a client.
func unsuited(err error) error {
	if refused, ok := errors.AsType[*upstream.Refused](err); ok {
		return &ending{code: SQLError, fault: pgwire.Fault{SQLState: refused.SQLState, Message: refused.Message}}
	}
	return end(Lost, "the server closed the connection", "try again").because(err)
}

// release gives the server back at the end of a transaction, unless the client has
// something there that cannot be carried to another.
func (s *session) release() error {
	b := s.backend
	if b.status != pgwire.Idle {
		if !s.withheld {
			return nil
		}
		if err := s.refuseBlock(); err != nil {
			return err
		}
	}
	s.part()
	a := s.attempt
	s.attempt = attempt{}
	free, err := s.settle(b)
	if err == nil && !free {
		s.mu.Lock()
		s.backend = b
		s.mu.Unlock()
		s.equip()
		err = s.replayed()
	} else {
		b.pool.release(b)
	}
	s.awaitHub()
	if err == nil && s.withheld {
		s.withheld = false
		if a.anew != nil && s.prepareAnew(a) {
			return nil
		}
		s.held = append(s.held, a.anew...)
		s.tellHeld()
		s.deliver()
		if !s.mute && !s.mum {
			_ = s.give(pgwire.AppendReady(nil, pgwire.Idle)) // a client that is gone is noticed where it is served
		}
	}
	return err
}

// refuseBlock ends a transaction that the client has left open in statement mode, and
// says so.
func (s *session) refuseBlock() error {
	if err := s.backend.rollBack(); err != nil {
		return s.serverLost(err)
	}
	s.tellHeld()
	err := s.give(pgwire.Fault{
		SQLState: "0A000", Message: fmt.Sprintf("transaction blocks are not allowed in statement mode; this one was rolled back (database %q)", s.database),
		Hint: fmt.Sprintf("send the whole transaction as one query, or set pooler.databases.%s.mode: transaction", s.database),
	}.AppendError(nil))
	s.mute = s.mute || err != nil
	return nil
}

// part ends the lease and waits until no cancel request is under way that was meant
// for it: the next client must not be hit.
func (s *session) part() {
	s.mu.Lock()
	b := s.backend
	s.backend, s.block = nil, pgwire.Idle
	clear(s.portals)
	s.mu.Unlock()
	b.disown()
	b.cancels.Wait()
	b.calm()
}

// surrender gives the server back at the end of the session, in whatever state it
// is. A query that still runs for nobody is canceled.
func (s *session) surrender() {
	s.deaf()
	b := s.backend
	if b == nil {
		return
	}
	s.mu.Lock()
	quiet := s.quiet() && len(b.out) == 0
	s.mu.Unlock()
	if !quiet && !b.broken.Load() {
		s.cancel()
	}
	s.part()
	if !quiet || b.broken.Load() {
		if b.left&scan.Catalog != 0 {
			b.pool.home().hidden.lookSoon(0) // it may have been carried out
		}
		b.pool.drop(b)
		return
	}
	tidy := func() error { return s.tidy(b) }
	if b.pool.sessions() {
		tidy = b.discard
	}
	if err := tidy(); err != nil {
		b.broken.Store(true)
		s.pooler.deps.Log.Debug("drop a server connection", "database", b.pool.name, "err", err)
	}
	b.pool.release(b)
}

// quiet reports whether the server owes nothing and was sent nothing that it has not
// answered. The lock is held.
func (s *session) quiet() bool {
	return (s.errand == nil || s.debts.none()) && !s.open && !s.copying && !s.midway
}

// cancelLimit bounds how long a cancel request may be under way; the server is not
// given to anybody else meanwhile.
const cancelLimit = 5 * time.Second

// cancel passes a cancel request on to the server that the session has now. A
// session that waits for one waits no more.
func (s *session) cancel() {
	s.mu.Lock()
	b, p := s.backend, s.pool
	if b != nil {
		s.beginCancel()
	}
	s.mu.Unlock()
	if b == nil {
		if p != nil {
			p.withdraw(&s.waiter, end(Canceled, "canceling statement due to user request while it waited for a server connection", ""))
		}
		return
	}
	s.cancelOn(b)
}

// canceling reports whether a cancel request is under way for what has been answered: what is sent next must not meet it. The lock is held.
func (s *session) canceling() bool { return s.backend.canceling > 0 && s.debts.none() && !s.open }

// outwait waits for it.
func (s *session) outwait() {
	for ; s.canceling(); s.mu.Lock() {
		s.mu.Unlock()
		time.Sleep(replayPause)
	}
}

// cancelOn is cancel for a server that has been told that it is under way.
func (s *session) cancelOn(b *backend) {
	defer func() {
		s.mu.Lock()
		b.canceling--
		s.mu.Unlock()
		b.cancels.Done()
	}()
	ctx, done := context.WithTimeout(context.Background(), cancelLimit)
	defer done()
	if err := b.pool.target.Cancel(ctx, b.pool.dial, b.Conn); err != nil {
		b.broken.Store(true) // it may still come, and must not hit another client
		s.pooler.deps.Log.Warn("pass a cancel request on", "database", b.pool.name, "err", err)
	}
}

// cancelFor finds the session that a cancel request is for. As in PostgreSQL, who
// asks learns nothing, not even whether there is one.
func (p *Server) cancelFor(start pgwire.Startup) {
	p.mu.Lock()
	s := p.sessions[start.PID]
	p.mu.Unlock()
	if s != nil && s.admitted() && subtle.ConstantTimeCompare(s.secret[:], start.Key) == 1 {
		s.cancel()
	}
}

// signal ends, or cancels, the session whose id a client gives to pg_terminate_backend
// or pg_cancel_backend, since it was told that this is its server's process: what
// PostgreSQL warns of is that it has no such process. As there, clients may do that to
// those of their own user, here in their own database. It reports whether it did.
func (s *session) signal(notice []byte) bool {
	s.mu.Lock()
	asked := s.backend.left & (scan.Terminates | scan.Cancels)
	s.mu.Unlock()
	if asked == 0 || string(pgwire.Field(notice, 'C')) != "01000" {
		return false
	}
	id := pgwire.FirstNumber(pgwire.Field(notice, 'M'))
	s.pooler.mu.Lock()
	other := s.pooler.sessions[id]
	s.pooler.mu.Unlock()
	if id < firstID || other == nil || !other.admitted() || other.user != s.user || other.database != s.database {
		return false
	}
	if asked&scan.Terminates == 0 {
		s.pooler.ended.Go(other.cancel) // it has not ended while s has not
		return true
	}
	other.expel(end(Killed, "terminating connection due to administrator command", ""))
	return true
}

// enforce ends what takes longer than the database allows. The sweep calls it, and what it
// leaves behind for a query that will be too slow before the next sweep.
func (p *pool) enforce(l lease, now time.Time) {
	s, d := l.holder, p.config.Load()
	s.mu.Lock()
	if s.backend != l.server {
		s.mu.Unlock()
		return
	}
	quiet, began, turn := s.quiet(), s.next.start, s.turn.Load()
	if c, ok := s.cycles.first(); ok {
		began = c.start
	}
	if !quiet || s.block != pgwire.InBlock && s.block != pgwire.InFailed || turn != s.quietTurn {
		s.quietTurn, s.quietSince = turn, now
	}
	limited := !quiet && d.QueryTimeout > 0 && !began.IsZero() && began != s.overdueSince
	soon := began.Add(d.QueryTimeout).Sub(now)
	slow := limited && soon <= 0
	if slow {
		s.overdueSince = began
		s.overdue.Store(&overdue{turn, d.QueryTimeout})
		s.beginCancel() // of what has the server now, whatever that does when the request goes
	}
	rests := now.Sub(s.quietSince)
	s.mu.Unlock()
	switch {
	case slow:
		p.opening.Go(func() { s.cancelOn(l.server) })
	case limited && soon < sweepEvery:
		p.opening.Go(func() {
			select {
			case <-time.After(soon):
				p.enforce(l, time.Now())
			case <-p.context().Done():
			}
		})
	case quiet && d.IdleTransaction > 0 && rests > d.IdleTransaction:
		s.expel(end(IdleInTx, fmt.Sprintf("terminating connection due to idle-in-transaction timeout: no query for %v", d.IdleTransaction),
			fmt.Sprintf("end transactions sooner, or raise pooler.databases.%s.idle_in_transaction_timeout", p.name)))
	}
}

// An overdue is a query that was canceled because it took longer than limit.
type overdue struct {
	turn  uint64
	limit time.Duration
}

// explain tells the client, before an error of the server's, that we asked for it.
func (s *session) explain() {
	o := s.overdue.Swap(nil)
	if o == nil || o.turn != s.turn.Load() || s.mute || s.exchange.DB.SQLState != "57014" {
		return
	}
	s.pass()
	_ = s.give(pgwire.Fault{ // a client that is gone is noticed by pass
		SQLState: "57014", Message: fmt.Sprintf("Mainstay cancels this query: it took longer than query_timeout, which is %v", o.limit),
		Hint: fmt.Sprintf("make it faster, or raise pooler.databases.%s.query_timeout", s.database),
	}.AppendWarning(nil))
}

// expel ends a session for a reason of its own.
func (s *session) expel(why *ending) {
	s.verdict.CompareAndSwap(nil, why)
	s.tell(killed)
}

// doing says what a session that has a server does with it.
func (s *session) doing() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.backend == nil:
		return "getting ready"
	case !s.quiet():
		return "running a query"
	case s.block == pgwire.InBlock:
		return "idle in transaction"
	case s.block == pgwire.InFailed:
		return "idle in a failed transaction"
	}
	return "idle"
}

// ofMember is a database's configuration for one client's own pool: nothing is kept
// open, or free, for users who are not there.
func ofMember(d *Database) *Database {
	c := *d
	c.Login, c.Pool.Min = loginShared, 0
	c.Pool.Users = maps.Clone(c.Pool.Users)
	for name, s := range c.Pool.Users {
		s.Min = 0
		c.Pool.Users[name] = s
	}
	return &c
}

// perClient reports whether each client logs in as itself, in a pool of its own.
func (p *pool) perClient() bool { return p.config.Load().Login == loginClient }

// member returns the pool of one user, who has logged in with these keys. Other keys of the same user, since
// not every kind is good for the same, and since passwords change, have one of their own, until nobody uses it:
// none makes room for another, or two clients with a password each would take turns.
func (p *pool) member(user string, keys credential.Keys) *pool {
	p.mu.Lock()
	of := p.members[user]
	i := slices.IndexFunc(of, func(m *pool) bool { return m.target.Uses(keys) })
	var m *pool
	if i >= 0 {
		m = of[i]
	} else {
		m = newPool(p.name, ofMember(p.config.Load()), p.target.As(user, keys), Deps{Dial: p.dial, Log: p.log, Sink: p.sink, loops: p.loops})
		m.retired, m.parent, m.texts = p.retired, p, nil // it is the home that knows texts
		m.pauseAs(p.paused)
		if p.members == nil {
			p.members = map[string][]*pool{}
		}
		p.members[user] = append(of, m)
	}
	ctx := p.ctx
	p.mu.Unlock()
	if ctx != nil {
		m.start(ctx)
	}
	return m
}

// family lists the pools of single users.
func (p *pool) family() (all []*pool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, of := range p.members {
		all = append(all, of...)
	}
	return all
}

// prune forgets the pools of users who are gone. The sweep calls it.
func (p *pool) prune() {
	if b := p.shed(); b != nil {
		b.close()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for user, of := range p.members {
		if of = slices.DeleteFunc(of, (*pool).unused); len(of) > 0 {
			p.members[user] = of
		} else {
			delete(p.members, user)
		}
	}
}

// occupy takes room for one more connection of a member; false if the database's
// total is reached.
func (p *pool) occupy() bool {
	if p.parent == nil {
		return true
	}
	for {
		n, total := p.parent.occupied.Load(), int64(p.limits().Total)
		if total > 0 && n >= total {
			return false
		}
		if p.parent.occupied.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// vacate gives that room back.
func (p *pool) vacate() {
	if p.parent != nil {
		p.parent.occupied.Add(-1)
	}
}

// shed takes the connection out that no user has needed for longest, if the total is
// reached and somebody waits; nil if there is none, or no need.
func (p *pool) shed() *backend {
	total := int64(p.limits().Total)
	if total == 0 || p.occupied.Load() < total {
		return nil
	}
	var owner *pool
	var oldest time.Time
	wanted := false
	for _, m := range p.family() {
		m.mu.Lock()
		waiting := m.line.Waiting() > 0
		wanted = wanted || waiting
		if !waiting && len(m.idle) > 0 && (owner == nil || m.idle[0].since.Before(oldest)) {
			owner, oldest = m, m.idle[0].since
		}
		m.mu.Unlock()
	}
	if !wanted || owner == nil {
		return nil
	}
	owner.mu.Lock()
	defer owner.mu.Unlock()
	if len(owner.idle) == 0 {
		return nil
	}
	b := owner.idle[0]
	owner.idle = append(owner.idle[:0], owner.idle[1:]...)
	delete(owner.all, b)
	owner.vacate()
	return b
}

// unused retires a pool that holds nothing and has nobody waiting.
func (p *pool) unused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.all)+p.dialing+p.line.Waiting() > 0 || p.paused != nil || !p.hub.Idle() {
		return false
	}
	p.retired = true
	return true
}
