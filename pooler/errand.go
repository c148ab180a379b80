package pooler

import (
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// An errand is what a session needs only while it does something: one that rests on the
// event loops has none. A session that has a server has one.
type errand struct {
	exchange *telemetry.Exchange
	whole    *telemetry.Exchange // the transaction, where spans are of those; nil: none is open
	offered  *backend            // leased already, for the next claim
	failure  error               // why the session is over, at atEnd

	// Guarded by the session's lock.
	debts  debts // what the server owes
	cycles queue[cycle]
	next   cycle // being sent

	refused error          // why the message that is being sent cannot be
	held    []byte         // a CommandComplete that has not been told to the client yet
	portals map[string]use // those whose execution deallocates
	attempt attempt
	asSent  []byte // the cycle, as the client sent it to the event loops; reused

	// What the sweep knows; only it uses these, with the session's lock.
	lastTurn, lastMoved uint64
	lastMove            time.Time
	quietTurn           uint64
	quietSince          time.Time // the transaction has had no query in this turn
	overdueSince        time.Time // start of the query that was canceled last
	overdue             atomic.Pointer[overdue]
}

var errands = sync.Pool{New: func() any { return &errand{exchange: new(telemetry.Exchange)} }}

// attach gives a session what it needs to do something. Only who has the session calls
// it, as spare.
func (s *session) attach() {
	if s.errand != nil {
		return
	}
	e := errands.Get().(*errand)
	s.mu.Lock()
	s.errand = e
	s.mu.Unlock()
}

// spare gives it back, if it holds nothing.
func (s *session) spare() {
	e := s.errand
	if e == nil || s.busy || s.backend != nil || e.whole != nil || e.offered != nil || len(e.held) > 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !e.debts.none() || e.cycles.len() > 0 || e.next.bytes > 0 {
		return
	}
	s.errand = nil
	e.exchange.Err, e.failure, e.refused, e.next = nil, nil, nil, cycle{}
	e.lastTurn, e.lastMoved, e.quietTurn = 0, 0, 0
	e.lastMove, e.quietSince, e.overdueSince = time.Time{}, time.Time{}, time.Time{}
	e.overdue.Store(nil)
	e.attempt = attempt{}
	clear(e.portals)
	errands.Put(e)
}
