package pooler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/pooler/internal/fair"
	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// errRetired means that a reload has replaced the pool: look for the database again.
var errRetired = errors.New("pool retired")

// A waiter is a session's place in the queue. The session owns it and reuses it.
type waiter struct {
	place fair.Place[*waiter]
	owner *session
	given chan grant // holds at most the one grant that ends the wait
	alarm *time.Timer

	parked bool          // the owner has no goroutine: the grant is told by its task
	grant  grant         // then
	grants atomic.Uint32 // counts those
	taken  uint32        // how many of them the owner has had
}

// give ends the wait; on is the worker that does so, or nil. The pool's lock is held.
func (w *waiter) give(g grant, on *loop.Worker) {
	if !w.parked {
		w.given <- g
		return
	}
	w.grant = g
	w.grants.Add(1)
	if on != nil {
		on.Later(&w.owner.task)
		return
	}
	w.owner.pooler.loops.Post(&w.owner.task)
}

// take returns the grant that ended the wait of an owner without a goroutine; false
// if it still waits.
func (w *waiter) take() (g grant, ok bool) {
	if !w.granted() {
		return g, false
	}
	g, w.grant = w.grant, grant{}
	w.taken++
	return g, true
}

// granted reports whether there is a grant to take.
func (w *waiter) granted() bool { return w.grants.Load() != w.taken }

// A grant ends a wait: with a server, or with the reason why there is none.
type grant struct {
	backend *backend
	err     error
}

// claim takes a live server connection for the session, or a place in the queue
// until there is one. Among one user's clients the queue is first come, first
// served; among users it is fair (see package fair). What it returns is an ending,
// or errRetired.
func (p *pool) claim(s *session) (*backend, error) {
	b, err := p.claimAny(s)
	if err != nil || !p.sessions() {
		return b, err
	}
	return p.enterAs(b, s)
}

func (p *pool) claimAny(s *session) (*backend, error) {
	w := &s.waiter
	w.place.Value, w.place.Since, w.parked = w, s.exchange.Start, false
	for {
		b, err := p.take(w, time.Now())
		if err != nil {
			return nil, err
		}
		if b == nil {
			if b, err = p.wait(w); err != nil {
				return nil, err
			}
			s.exchange.Waited += time.Since(w.place.Since)
			return b, nil
		}
		if b.fresh() {
			return b, nil
		}
		p.drop(b) // it died while it was idle
	}
}

// take returns an idle server, or nil when the session has been queued.
func (p *pool) take(w *waiter, now time.Time) (*backend, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.retired:
		return nil, errRetired
	case w.owner.dead.Load():
		return nil, w.owner.sentence()
	case len(p.idle) > 0 && p.paused == nil && p.line.Take(w.owner.user):
		b := p.popIdle(w.owner)
		p.lend(b, w.owner, now)
		return b, nil
	case p.outage != nil && len(p.all) == 0 && p.outage.told():
		p.grow(1) // so that the next one fares better
		return nil, p.unreachable(p.outage.err)
	}
	if w.given == nil && !w.parked {
		w.given = make(chan grant, 1)
	}
	p.line.Join(&w.place, w.owner.user)
	p.grow(0)
	return nil, nil
}

// popIdle takes the idle server that was used last, so that the others can grow old; before
// others one that has what the client carries, and before all the one that has its sequences' values, or what it set unseen.
func (p *pool) popIdle(s *session) *backend {
	at := -1
	if p.sequences.Load() {
		at = slices.IndexFunc(p.idle, func(b *backend) bool { return b.sequences == s.id })
	}
	if p.opaque.Load() && at < 0 {
		at = slices.IndexFunc(p.idle, func(b *backend) bool { return b.opaque == s.id })
	}
	for i := len(p.idle) - 1; i >= 0 && at < 0; i-- {
		if p.idle[i].settings.Equal(s.settings) && p.idle[i].named.Equal(s.prepares) {
			at = i
		}
	}
	if at < 0 {
		at = len(p.idle) - 1
		if p.sessions() {
			at = 0 // which is entered anew, and used least
		}
	}
	b := p.idle[at]
	p.idle = append(p.idle[:at], p.idle[at+1:]...)
	return b
}

// lend notes who has the server, from now on.
func (p *pool) lend(b *backend, to *session, now time.Time) {
	b.holder, b.before, b.since, b.turn = to, b.since, now, 0
}

// wait waits for the pool's grant, for at most the pool's acquire_timeout.
func (p *pool) wait(w *waiter) (*backend, error) {
	limit := p.limits().AcquireTimeout
	if w.alarm == nil {
		w.alarm = time.NewTimer(limit)
	} else {
		w.alarm.Reset(limit)
	}
	defer w.alarm.Stop()
	select {
	case g := <-w.given:
		return g.backend, g.err
	case <-w.alarm.C:
	}
	p.withdraw(w, p.exhausted(w))
	g := <-w.given
	return g.backend, g.err
}

// withdraw ends a wait with an error. A waiter who is no longer queued has got its
// grant already, and keeps it.
func (p *pool) withdraw(w *waiter, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.place.Queued() {
		p.line.Leave(&w.place)
		w.give(grant{err: err}, nil)
	}
}

// dismiss ends all waits with an error. The lock is held.
func (p *pool) dismiss(err error) {
	for place := p.line.Oldest(); place != nil; place = p.line.Oldest() {
		p.line.Leave(place)
		place.Value.give(grant{err: err}, nil)
	}
}

// maxNamed bounds how many holders an error names.
const maxNamed = 3

// exhausted explains a wait that was in vain: who has what the client waited for,
// and what to do.
func (p *pool) exhausted(w *waiter) error {
	user := w.owner.user
	p.mu.Lock()
	limits, outage, paused := p.limits(), p.outage, p.paused
	message := fmt.Sprintf("pool %q gave no server connection within %v: %d of %d are open, %d in use, %d waiting",
		p.name, time.Since(w.place.Since).Round(time.Millisecond), len(p.all), p.room(), len(p.all)-len(p.idle), p.line.Waiting())
	if ceiling := p.line.Cap(user); ceiling > 0 && p.line.Held(user) >= ceiling {
		message += fmt.Sprintf("; user %q has all %d that it may have", user, ceiling)
	}
	if kept := p.line.Kept(user); kept > 0 {
		message += fmt.Sprintf("; %d kept for other users (min)", kept)
	}
	held, limit, most := p.held(), "max", limits.Max
	p.mu.Unlock()
	if n := p.occupiedByAll(); limits.Total > 0 && n >= limits.Total {
		message += fmt.Sprintf("; %d of %d are open for all users together", n, limits.Total)
		held, limit, most = p.heldByAll(), "total", limits.Total
	}

	hint := fmt.Sprintf("raise pooler.databases.%s.pool.%s, or give connections back sooner", p.name, limit)
	parts := []string{message}
	for _, l := range held[:min(len(held), maxNamed)] {
		parts = append(parts, l.String())
	}
	if more := len(held) - maxNamed; more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	message = strings.Join(parts, "; ")
	if len(held) > 0 {
		hint = fmt.Sprintf("shorten the longest transaction, or raise pooler.databases.%s.pool.%s (it is %d)", p.name, limit, most)
	}
	if paused != nil {
		message += fmt.Sprintf("; the database is paused since %s", paused.since.Format(time.TimeOnly))
		hint = "end the pause: mainstay db resume " + p.name
	}
	e := end(QueueTimeout, message, hint)
	if outage != nil {
		e.cause = outage.err
	}
	return e
}

// A lease is who has a server, since when, and what it does with it.
type lease struct {
	holder *session
	server *backend
	since  time.Time
}

// held lists the leases, the longest first. The lock is held.
func (p *pool) held() (all []lease) {
	for b := range p.all {
		if b.holder != nil {
			all = append(all, lease{b.holder, b, b.since})
		}
	}
	slices.SortFunc(all, func(a, b lease) int { return a.since.Compare(b.since) })
	return all
}

// String must not be called under the pool's lock: it asks the session.
func (l lease) String() string {
	text := fmt.Sprintf("user %q (application %q, color %s) has one since %v and is %s",
		l.holder.user, l.holder.application, l.holder.color, time.Since(l.since).Round(time.Millisecond), l.holder.doing())
	l.holder.mu.Lock()
	defer l.holder.mu.Unlock()
	if l.holder.pinned != "" {
		text += ", pinned by: " + l.holder.pinned
	}
	return text
}

// unreachable explains that PostgreSQL cannot be reached. A refusal that says why
// keeps its own SQLSTATE when it is about the server, and not about us.
func (p *pool) unreachable(err error) error {
	e := end(Unreachable, fmt.Sprintf("the server of database %q cannot be reached: %v", p.name, err),
		fmt.Sprintf("check that PostgreSQL runs, and pooler.databases.%s.upstream", p.name)).because(err)
	if refused, ok := errors.AsType[*upstream.Refused](err); ok && refused.Passing() {
		e.fault.SQLState = refused.SQLState
	}
	return e
}

// release gives a server back that is clean, or drops it.
func (p *pool) release(b *backend) { p.releaseAt(b, time.Now(), nil) }

// releaseAt is release for a worker of the event loops, which has looked at the clock
// already.
func (p *pool) releaseAt(b *backend, now time.Time, on *loop.Worker) {
	if b.broken.Load() || b.status != pgwire.Idle || b.In.Buffered() > 0 {
		p.drop(b)
		return
	}
	p.mu.Lock()
	if p.retired || len(p.all) > p.room() || p.stale(b, now) {
		p.mu.Unlock()
		p.drop(b)
		return
	}
	p.end(b)
	p.hand(b, now, on)
	p.mu.Unlock()
}

// stale reports whether a server must not be used again, old as it is. The lock is
// held.
func (p *pool) stale(b *backend, now time.Time) bool {
	lifetime := p.limits().Lifetime
	return b.born.Before(p.renewed) || lifetime > 0 && now.Sub(b.born) > b.age(lifetime)
}

// end notes that nobody has the server any more. The lock is held.
func (p *pool) end(b *backend) {
	if b.holder != nil {
		p.line.Return(b.holder.user)
		b.holder = nil
	}
}

// hand gives a server to whoever is to have it, or to the idle ones. The lock is
// held.
func (p *pool) hand(b *backend, now time.Time, on *loop.Worker) {
	if p.paused == nil {
		if place := p.line.Give(); place != nil {
			p.lend(b, place.Value.owner, now)
			if !place.Value.parked { // else the next takes its task's place
				b.disown()
			}
			place.Value.give(grant{backend: b}, on)
			return
		}
	}
	b.disown()
	b.since = now
	p.idle = append(p.idle, b)
	p.rested()
}

// distribute hands out idle servers that somebody may have now, after a change of
// the rules. The lock is held.
func (p *pool) distribute() {
	for len(p.idle) > 0 && p.paused == nil {
		place := p.line.Give()
		if place == nil {
			return
		}
		b := p.popIdle(place.Value.owner)
		p.lend(b, place.Value.owner, time.Now())
		place.Value.give(grant{backend: b}, nil)
	}
}

// drop closes a server and lets the pool open another, if somebody needs it.
func (p *pool) drop(b *backend) {
	p.mu.Lock()
	if _, ours := p.all[b]; ours {
		delete(p.all, b)
		p.vacate()
		p.end(b)
		p.distribute() // what the lease stood in the way of
		p.grow(0)
		p.rested()
	}
	p.mu.Unlock()
	b.close()
}

// close ends the connection, politely if that does not take long.
func (s *backend) close() {
	s.changed()
	goodbye := pgwire.Append(nil, pgwire.Terminate)
	end := func() {
		_ = s.SetDeadline(time.Now().Add(time.Second))
		if _, err := s.Write(goodbye); err != nil {
			_ = s.Raw.Close() // else TLS tries to say goodbye too
		}
		_ = s.Conn.Close() // nothing is lost with it
	}
	switch { // the event loops must not wait
	case s.sock == nil:
		end()
	case s.carrier() == nil:
		_, _ = s.sock.TryWrite(goodbye)
		_ = s.Conn.Close()
	default:
		go end()
	}
}

// room is how many servers may be open: more than max while clients have waited
// for longer than reserve_after. The lock is held.
func (p *pool) room() int {
	limits := p.limits()
	if p.stretched {
		return limits.Max + limits.Reserve
	}
	return limits.Max
}

// grow opens as many connections as are wanted, by those who wait and by more who
// do not, and allowed. The lock is held.
func (p *pool) grow(more int) {
	limits := p.limits()
	for !p.retired && p.ctx != nil && p.paused == nil && !p.perClient() {
		total := len(p.all) + p.dialing
		if total >= p.room() || p.dialing >= p.line.Wanted()+more && total >= limits.Min {
			return
		}
		if p.outage != nil && (p.dialing > 0 || time.Now().Before(p.outage.again)) {
			return // one at a time finds out whether the server is back
		}
		if !p.occupy() {
			return // the sweep makes room
		}
		p.dialing++
		p.opening.Add(1)
		go p.open(limits.ConnectTimeout)
	}
}

// A pause is a time in which a pool gives no servers away.
type pause struct {
	since  time.Time
	rested chan struct{} // closed when every server has come back
}

// pause stops giving servers away and waits until all have come back, or until ctx
// ends; then the pause stays. Servers that have come back are closed.
func (p *pool) pause(ctx context.Context) error {
	rested := p.halt()
	select {
	case <-rested:
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		return fmt.Errorf("%d connections of database %q are still in use; it is paused, and they stay out when they come back: %w",
			len(p.all)-len(p.idle), p.name, context.Cause(ctx))
	}
	p.renew()
	return nil
}

// halt begins a pause, if there is none, and returns what is closed when all have come back.
func (p *pool) halt() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused == nil {
		p.pauseAs(&pause{since: time.Now()})
	}
	return p.paused.rested
}

// pauseAs begins a pause like another pool's, whose user's or whose place it takes; nil: that serves. The lock is held,
// or nobody else has the pool yet; it may be nil.
func (p *pool) pauseAs(o *pause) {
	if p != nil && o != nil {
		p.paused = &pause{since: o.since, rested: make(chan struct{})}
		p.rested()
	}
}

// rested notes that a server came back or was closed. The lock is held.
func (p *pool) rested() {
	if p.paused == nil || len(p.idle) < len(p.all) {
		return
	}
	select {
	case <-p.paused.rested:
	default:
		close(p.paused.rested)
	}
}

// resume ends a pause.
func (p *pool) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = nil
	p.distribute()
	p.grow(0)
}

// renew closes the idle servers now, and those that are lent when they come back: from now on, only new connections are given away.
func (p *pool) renew() {
	p.mu.Lock()
	p.renewed = time.Now()
	idle := p.idle
	p.idle = nil
	for _, b := range idle {
		delete(p.all, b)
		p.vacate()
	}
	p.grow(0)
	p.mu.Unlock()
	for _, b := range idle {
		b.close()
	}
	p.hub.Renew()
}
