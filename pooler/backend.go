package pooler

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/socket"
	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// A backend is one connection to PostgreSQL. It belongs to the session that claimed
// it, or to its pool.
type backend struct {
	*upstream.Conn
	pool   *pool
	probe  *socket.Probe // nil if the connection is no socket
	born   time.Time
	spread float64 // of its lifetime: 0 to 1

	status   byte // as the last ReadyForQuery told
	out      []byte
	settings *state.Settings // of the client that it was last made ready for
	left     state.Traces    // what must be wiped before another client may have it
	broken   atomic.Bool     // must not be used again
	params   map[string]string

	prepared map[*statement]uint64 // statements that exist there, and when each was last used
	uses     uint64
	unnamed  ticket // whose unnamed statement is there

	hurried atomic.Bool    // has a deadline that must not outlive the lease
	cancels sync.WaitGroup // cancel requests under way; none may outlive the lease

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
	s := &backend{
		Conn: c, pool: p, probe: socket.NewProbe(c.Raw), born: time.Now(), spread: rand.Float64(), status: pgwire.Idle,
		settings: state.None, params: make(map[string]string, len(c.Params)), prepared: map[*statement]uint64{},
	}
	for _, param := range c.Params {
		s.params[param.Name] = param.Value
	}
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
		s.params[string(name)] = string(value)
	}
}

// execLimit is how long a statement of the pooler's own may take.
const execLimit = 5 * time.Second

// exec runs a statement of the pooler's own on a connection that is ready for one.
// Settings that change thereby are told to the client, if there is one, as
// PostgreSQL would have. An error of PostgreSQL's is an *upstream.Refused.
func (s *backend) exec(sql string, client io.Writer) (err error) {
	if err := s.SetDeadline(time.Now().Add(execLimit)); err != nil {
		return err
	}
	if _, err := s.Write(pgwire.AppendQuery(nil, sql)); err != nil {
		return err
	}
	s.unnamed = ticket{} // PostgreSQL drops it with every simple query
	var refused error
	var reports []byte
	for {
		typ, body, err := s.In.Next()
		if err != nil {
			return err
		}
		switch typ {
		case pgwire.ErrorResponse:
			refused = &upstream.Refused{SQLState: string(pgwire.Field(body, 'C')), Message: string(pgwire.Field(body, 'M'))}
		case pgwire.ParameterStatus:
			s.note(body)
			reports = pgwire.Append(reports, typ, body)
		case pgwire.ReadyForQuery:
			if len(body) != 1 {
				return errors.New("malformed ReadyForQuery")
			}
			s.status = body[0]
			if client != nil && len(reports) > 0 {
				_, _ = client.Write(reports) // a client that is gone is noticed where it is served
			}
			if err := s.SetDeadline(time.Time{}); err != nil {
				return err
			}
			return refused
		}
	}
}

// suit makes the server as the client asked at login.
func (s *backend) suit(want *state.Settings, client io.Writer) error {
	if s.settings.Equal(want) {
		s.settings = want
		return nil
	}
	if err := s.exec(s.settings.Change(want), client); err != nil {
		s.broken.Store(true) // some of the settings may be applied
		return err
	}
	s.settings = want
	return nil
}

// clean makes the server fit for another client: no transaction, nothing left
// behind. client hears of settings that change thereby; it may be nil. A server
// that cannot be cleaned is broken.
func (s *backend) clean(client io.Writer) error {
	if s.broken.Load() {
		return errors.New("the connection is broken")
	}
	if s.left&state.Wreck != 0 {
		s.broken.Store(true)
		return errors.New("LOAD cannot be undone")
	}
	if s.status != pgwire.Idle {
		// By itself: what wipes must run outside of the transaction.
		if err := s.exec("ROLLBACK", nil); err != nil {
			s.broken.Store(true)
			return fmt.Errorf("roll back: %w", err)
		}
	}
	if s.pool.resetAlways() {
		s.left |= state.Any
	}
	if s.left == 0 {
		return nil
	}
	sql := s.left.Wipe()
	if s.left&state.Set != 0 {
		sql += state.None.Change(s.settings)
	}
	if s.left&state.Prepared != 0 {
		clear(s.prepared)
	}
	if err := s.exec(sql, client); err != nil || s.status != pgwire.Idle {
		s.broken.Store(true)
		return fmt.Errorf("reset: %w", err)
	}
	s.left = 0
	return nil
}

// discard wipes everything at the end of a session that had the server to itself.
func (s *backend) discard() error {
	if s.broken.Load() {
		return errors.New("the connection is broken")
	}
	if s.status != pgwire.Idle {
		if err := s.exec("ROLLBACK", nil); err != nil {
			s.broken.Store(true)
			return err
		}
	}
	if err := s.exec("DISCARD ALL", nil); err != nil {
		s.broken.Store(true)
		return err
	}
	s.settings, s.left = state.None, 0
	clear(s.prepared)
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
