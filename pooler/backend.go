package pooler

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// A backend is one connection to PostgreSQL. It belongs to the session that claimed
// it, or to its pool.
type backend struct {
	*upstream.Conn
	pool   *pool
	sock   *loop.Conn // the connection, if the event loops have it and it is not encrypted; or nil
	probe  probe      // nil if the connection is no socket
	born   time.Time
	spread float64 // of its lifetime: 0 to 1

	status   byte // as the last ReadyForQuery told
	out      []byte
	settings *state.Settings // those that a client chose and it has now
	named    *state.Settings // texts by which SQL's PREPARE made what it has, by name
	reports  *state.Settings // what it reported last (ParameterStatus)
	atLogin  *state.Settings // what it reported when it was new
	broken   atomic.Bool     // must not be used again

	sequences uint32 // whose values currval and lastval know there: a session's id, or nobodys, or severals

	left     scan.Effect   // what the client may have left there since it was looked at
	pins     scan.Effect   // what the client is known to have there
	mentions scan.Mentions // names that the client's statements gave
	heard    []byte        // notifications that came while the pooler itself asked something

	prepared map[*statement]uint64 // statements that exist there, and when each was last used
	uses     uint64
	unnamed  ticket // whose unnamed statement is there
	replays  int    // answers to settings that are still to come; of the session's lock

	hurried atomic.Bool    // has a deadline that must not outlive the lease
	cancels sync.WaitGroup // cancel requests under way; none may outlive the lease

	canceling int // how many those are; of the holder's lock

	// Guarded by the pool's lock.
	holder *session  // nil: idle
	since  time.Time // when it was claimed, or became idle
	turn   uint64    // of the holder, when the pool last looked
}

// A ticket names one version of one session's unnamed statement.
type ticket struct {
	session uint32
	version uint64
}

func newBackend(p *pool, c *upstream.Conn) *backend {
	var sock *loop.Conn
	if !c.Encrypted() {
		if sock = p.loops.Adopt(c.Raw); sock != nil {
			c.Conn, c.Raw = sock, sock
			c.In.Redirect(sock)
		}
	}
	s := &backend{
		Conn: c, pool: p, sock: sock, probe: probeOf(c.Raw), born: time.Now(), spread: rand.Float64(), status: pgwire.Idle,
		settings: state.None, named: state.None, reports: p.settings.Intern(state.Of(c.Params)), prepared: map[*statement]uint64{},
	}
	s.atLogin = s.reports
	return s
}

// close ends the connection, politely if that does not take long.
func (s *backend) close() {
	_ = s.SetDeadline(time.Now().Add(time.Second))
	_, _ = s.Write(pgwire.Append(nil, pgwire.Terminate))
	_ = s.Conn.Close() // nothing is lost with it
}

// unusedLook is how long a connection that is no socket is read from to learn
// whether it still lives.
const unusedLook = time.Millisecond

// quiet reports whether an idle connection has certainly said nothing, and not ended,
// as far as the event loops know.
func (s *backend) quiet() bool {
	if s.sock == nil || s.sock.Quiet() {
		return true // without the event loops, who takes it asks
	}
	readable, _ := s.sock.Look()
	return !readable
}

// sent forgets what has been sent of what was ready.
func (s *backend) sent(n int) {
	s.out = append(s.out[:0], s.out[n:]...)
	if cap(s.out) > 8*outLimit && len(s.out) == 0 {
		s.out = nil
	}
}

// fresh reports whether an idle connection may be used: it is alive and the server
// has said nothing but what it may say at any time.
func (s *backend) fresh() bool {
	if s.probe == nil {
		return s.absorb(unusedLook)
	}
	if readable, _ := s.probe.Look(); !readable {
		return true
	}
	return s.absorb(100 * time.Millisecond)
}

// absorb reads what an idle server sent by itself. It returns false if that means
// the end, or is not understood.
func (s *backend) absorb(limit time.Duration) bool {
	if err := s.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return false
	}
	for {
		if err := s.In.Fill(); err != nil {
			quiet := errors.Is(err, os.ErrDeadlineExceeded) && s.In.Buffered() == 0
			return quiet && s.SetReadDeadline(time.Time{}) == nil
		}
		if !s.readAside() {
			return false
		}
		if s.In.Buffered() > 0 || s.probe == nil {
			continue
		}
		if readable, _ := s.probe.Look(); !readable {
			return s.SetReadDeadline(time.Time{}) == nil
		}
	}
}

// readAside consumes the whole messages that are buffered, as far as they belong to
// no query.
func (s *backend) readAside() bool {
	for {
		typ, n, ok, err := s.In.Header()
		if err != nil || ok && pgwire.HeaderSize+n > s.In.Size() {
			return false
		}
		if !ok || s.In.Buffered() < pgwire.HeaderSize+n {
			return true
		}
		switch typ {
		case pgwire.ParameterStatus:
			s.note(s.In.Peek(pgwire.HeaderSize + n)[pgwire.HeaderSize:])
		case pgwire.NoticeResponse, pgwire.Notification:
		default:
			return false
		}
		s.In.Skip(pgwire.HeaderSize + n)
	}
}

func (s *backend) note(body []byte) {
	if name, value, _, ok := pgwire.Strings(body); ok {
		s.reports = s.pool.settings.Intern(s.reports.With(string(name), string(value)))
	}
}

// execLimit is how long a statement of the pooler's own may take.
const execLimit = 5 * time.Second

// maxAnswer bounds a row of the answer to a statement of the pooler's own.
const maxAnswer = 4 << 20

// exec runs a statement of the pooler's own on a connection that is ready for one.
// rows may be nil. An error of PostgreSQL's is an *upstream.Refused.
func (s *backend) exec(sql string, rows func(body []byte) error) (err error) {
	if err := s.SetDeadline(time.Now().Add(execLimit)); err != nil {
		return err
	}
	if _, err := s.Write(pgwire.AppendQuery(nil, sql)); err != nil {
		return err
	}
	s.unnamed = ticket{} // PostgreSQL drops it with every simple query
	var refused error
	for {
		typ, body, err := s.In.NextLarge(maxAnswer)
		if err != nil {
			return err
		}
		switch typ {
		case pgwire.ErrorResponse:
			refused = &upstream.Refused{SQLState: string(pgwire.Field(body, 'C')), Message: string(pgwire.Field(body, 'M'))}
		case pgwire.ParameterStatus:
			s.note(body)
		case pgwire.Notification:
			if len(s.heard)+len(body) <= maxAnswer {
				s.heard = pgwire.Append(s.heard, typ, body)
			}
		case pgwire.DataRow:
			if rows != nil {
				if err := rows(body); err != nil {
					return err
				}
			}
		case pgwire.ReadyForQuery:
			if len(body) != 1 {
				return errors.New("malformed ReadyForQuery")
			}
			s.status = body[0]
			if err := s.SetDeadline(time.Time{}); err != nil {
				return err
			}
			return refused
		}
	}
}

// suit gives the server the client's settings.
func (s *backend) suit(want *state.Settings) error {
	for _, sql := range s.settings.Change(want) {
		if err := s.exec(sql, nil); err != nil {
			s.broken.Store(true) // some of the settings may be applied
			return err
		}
	}
	s.settings = want
	return nil
}

// rollBack ends a transaction that its client left open.
func (s *backend) rollBack() error {
	if s.broken.Load() {
		return errors.New("the connection is broken")
	}
	if s.status == pgwire.Idle {
		return nil
	}
	// By itself: what wipes must run outside of the transaction.
	if err := s.exec("ROLLBACK", nil); err != nil {
		s.broken.Store(true)
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

// clean makes the server fit for another client: no transaction, nothing left
// behind. A server that cannot be cleaned is broken.
func (s *backend) clean() error {
	if err := s.rollBack(); err != nil {
		return err
	}
	left := s.left | s.pins
	if left&audit.Wreck != 0 {
		s.broken.Store(true)
		return errors.New("what the client left cannot be undone")
	}
	if s.pool.resetAlways() {
		left |= scan.Lasting | scan.Sequence
	}
	sql := audit.Wipe(left)
	if sql == "" {
		s.forgive()
		return nil
	}
	if err := s.exec(sql, nil); err != nil || s.status != pgwire.Idle {
		s.broken.Store(true)
		return fmt.Errorf("reset: %w", err)
	}
	if strings.Contains(sql, "RESET ALL") {
		s.settings = state.None
	}
	if strings.Contains(sql, "DEALLOCATE") {
		clear(s.prepared)
		s.named = state.None
	}
	if strings.Contains(sql, forgetSequences) {
		s.sequences = nobodys
	}
	s.forgive()
	return nil
}

// forgive forgets what may have been left: it is not there, or it has been wiped.
func (s *backend) forgive() {
	s.left, s.pins, s.heard = 0, 0, nil
	s.mentions.Settings = s.mentions.Settings[:0]
}

// discard wipes everything at the end of a session that had the server to itself.
func (s *backend) discard() error {
	if err := s.rollBack(); err != nil {
		return err
	}
	if (s.left|s.pins)&audit.Wreck != 0 {
		s.broken.Store(true)
		return errors.New("what the client left cannot be undone")
	}
	if err := s.exec("DISCARD ALL", nil); err != nil {
		s.broken.Store(true)
		return err
	}
	s.settings, s.named, s.sequences = state.None, state.None, nobodys
	clear(s.prepared)
	s.forgive()
	return nil
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// interrupt ends a read that is under way, or to come, within limit. Any goroutine
// may call it as long as the lease lasts.
func (s *backend) interrupt(limit time.Duration) {
	s.hurried.Store(true)
	at := longAgo
	if limit > 0 {
		at = time.Now().Add(limit)
	}
	_ = s.SetReadDeadline(at) // a closed connection is as good
}

// interruptWrite ends a write that is under way.
func (s *backend) interruptWrite() {
	s.hurried.Store(true)
	_ = s.SetWriteDeadline(longAgo) // a closed connection is as good
}

// calm undoes interrupts.
func (s *backend) calm() {
	if s.hurried.Swap(false) && s.SetDeadline(time.Time{}) != nil {
		s.broken.Store(true)
	}
}
