package pooler

import (
	"errors"
	"fmt"
	"time"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// errRetired means that a reload has replaced the pool: look for the database again.
var errRetired = errors.New("pool retired")

// A waiter is a session's place in the queue. The session owns it and reuses it.
type waiter struct {
	next   *waiter
	owner  *session
	since  time.Time
	queued bool
	given  chan grant // holds at most the one grant that ends the wait
	alarm  *time.Timer
}

// A grant ends a wait: with a server, or with the reason why there is none.
type grant struct {
	backend *backend
	err     error
}

// claim takes a live server connection for the session, or a place in the queue
// until there is one. The queue is first come, first served: nobody who comes later
// is served earlier. What it returns is an ending, or errRetired.
func (p *pool) claim(s *session) (*backend, error) {
	w := &s.waiter
	w.since = s.exchange.Start
	for {
		b, err := p.take(w)
		if err != nil {
			return nil, err
		}
		if b == nil {
			if b, err = p.wait(w); err != nil {
				return nil, err
			}
			s.exchange.Waited += time.Since(w.since)
			return b, nil
		}
		if b.fresh() {
			return b, nil
		}
		p.drop(b) // it died while it was idle
	}
}

// take returns an idle server, or nil when the session has been queued.
func (p *pool) take(w *waiter) (*backend, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.retired:
		return nil, errRetired
	case w.owner.dead.Load():
		return nil, w.owner.sentence()
	case p.head == nil && len(p.idle) > 0:
		b := p.popIdle(w.owner.settings)
		p.lend(b, w.owner)
		return b, nil
	case p.outage != nil && len(p.all) == 0 && p.outage.told():
		p.grow(1) // so that the next one fares better
		return nil, p.unreachable(p.outage.err)
	}
	p.enqueue(w)
	p.grow(0)
	return nil, nil
}

// popIdle takes the idle server that was used last, so that the others can grow
// old; one that suits the settings before others.
func (p *pool) popIdle(want *state.Settings) *backend {
	at := len(p.idle) - 1
	for i := at; i >= 0; i-- {
		if p.idle[i].settings.Equal(want) {
			at = i
			break
		}
	}
	b := p.idle[at]
	p.idle = append(p.idle[:at], p.idle[at+1:]...)
	return b
}

// lend notes who has the server.
func (p *pool) lend(b *backend, to *session) {
	b.holder, b.since, b.turn = to, time.Now(), 0
}

func (p *pool) enqueue(w *waiter) {
	if w.given == nil {
		w.given = make(chan grant, 1)
	}
	w.next, w.queued = nil, true
	if p.tail == nil {
		p.head = w
	} else {
		p.tail.next = w
	}
	p.tail = w
	p.waiting++
}

// dequeue takes the longest waiter out of the queue; nil if there is none.
func (p *pool) dequeue() *waiter {
	w := p.head
	if w == nil {
		return nil
	}
	if p.head = w.next; p.head == nil {
		p.tail = nil
	}
	w.next, w.queued = nil, false
	p.waiting--
	return w
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
	p.withdraw(w, nil)
	g := <-w.given
	return g.backend, g.err
}

// withdraw ends a wait with an error; nil stands for the timeout. A waiter who is
// no longer queued has got its grant already, and keeps it.
func (p *pool) withdraw(w *waiter, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !w.queued {
		return
	}
	if err == nil {
		err = p.exhausted(w)
	}
	var before *waiter
	for at := p.head; at != w; at = at.next {
		before = at
	}
	if before == nil {
		p.dequeue()
	} else {
		before.next = w.next
		if p.tail == w {
			p.tail = before
		}
		w.next, w.queued = nil, false
		p.waiting--
	}
	w.given <- grant{err: err}
}

// exhausted explains a wait that was in vain: who has what the client waited for,
// and what to do.
func (p *pool) exhausted(w *waiter) error {
	limits := p.limits()
	waited := time.Since(w.since).Round(time.Millisecond)
	message := fmt.Sprintf("pool %q gave no server connection within %v: %d of %d are open, %d in use, %d waiting",
		p.name, waited, len(p.all), limits.Max, len(p.all)-len(p.idle), p.waiting)
	var longest *backend
	for b := range p.all {
		if b.holder != nil && (longest == nil || b.since.Before(longest.since)) {
			longest = b
		}
	}
	hint := fmt.Sprintf("raise pooler.databases.%s.pool.max, or give connections back sooner", p.name)
	if longest != nil {
		h := longest.holder
		message += fmt.Sprintf("; the longest use is %v by user %q (application %q, color %s)",
			time.Since(longest.since).Round(time.Millisecond), h.user, h.application, h.color)
		hint = fmt.Sprintf("shorten that transaction, or raise pooler.databases.%s.pool.max", p.name)
	}
	e := end(QueueTimeout, message, hint)
	if p.outage != nil {
		e.cause = p.outage.err
	}
	return e
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
func (p *pool) release(b *backend) {
	if b.broken.Load() || b.status != pgwire.Idle || b.In.Buffered() > 0 {
		p.drop(b)
		return
	}
	p.mu.Lock()
	limits := p.limits()
	if p.retired || len(p.all) > limits.Max || limits.Lifetime > 0 && time.Since(b.born) > b.age(limits.Lifetime) {
		p.mu.Unlock()
		p.drop(b)
		return
	}
	p.hand(b)
	p.mu.Unlock()
}

// hand gives a server to whoever waits longest, or to the idle ones. The lock is
// held.
func (p *pool) hand(b *backend) {
	w := p.dequeue()
	if w == nil {
		b.holder, b.since = nil, time.Now()
		p.idle = append(p.idle, b)
		return
	}
	p.lend(b, w.owner)
	w.given <- grant{backend: b}
}

// drop closes a server and lets the pool open another, if somebody needs it.
func (p *pool) drop(b *backend) {
	p.mu.Lock()
	if _, ours := p.all[b]; ours {
		delete(p.all, b)
		b.holder = nil
		p.grow(0)
	}
	p.mu.Unlock()
	b.close()
}

// grow opens as many connections as are wanted, by those who wait and by more who
// do not, and allowed. The lock is held.
func (p *pool) grow(more int) {
	limits := p.limits()
	for !p.retired && p.ctx != nil {
		total := len(p.all) + p.dialing
		if total >= limits.Max || p.dialing >= p.waiting+more && total >= limits.Min {
			return
		}
		if p.outage != nil && (p.dialing > 0 || time.Now().Before(p.outage.again)) {
			return // one at a time finds out whether the server is back
		}
		p.dialing++
		p.opening.Add(1)
		go p.open(limits.ConnectTimeout)
	}
}
