package pooler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/prepared"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/socket"
	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// A backend is one connection to PostgreSQL. It belongs to the session that claimed
// it, or to its pool.
type backend struct {
	// What the event loops touch for every transaction comes first, in few cache lines.

	*upstream.Conn
	sock      *loop.Conn // the connection, below TLS, if the event loops have it; or nil
	pool      *pool
	out       []byte
	status    byte                  // as the last ReadyForQuery told
	tuned     bool                  // listens to what its client does
	broken    atomic.Bool           // must not be used again
	hurried   atomic.Bool           // has a deadline that must not outlive the lease
	left      scan.Effect           // what the client may have left there since it was looked at
	pins      scan.Effect           // what the client is known to have there
	earlier   scan.Effect           // left, but for the last message's
	cleared   cleared               // what is surely gone of all that
	replays   int                   // answers to settings that are still to come; of the session's lock
	settings  *state.Settings       // those that a client chose and it has now
	named     *state.Settings       // texts by which SQL's PREPARE made what it has, by name
	prepared  map[*statement]uint64 // statements that exist there, and when each was last used
	stains    prepared.Stains[*statement]
	uses      uint64
	brief     briefness      // whether it has those of the audit
	hashes    audit.Hashes   // what those have told
	unnamed   ticket         // whose unnamed statement is there
	canceling int            // cancel requests under way; of the holder's lock
	cancels   sync.WaitGroup // those; none may outlive the lease
	sequences uint32         // whose values currval and lastval know there: a session's id, or nobodys, or severals
	changes   uint32         // of what the catalog hides, as of when it was wiped last
	had       uint32         // by which session, last
	analysed  string         // what constants mean in functions: [state.Settings.Constants]
	mixed     bool           // or something else by now
	opaque    uint32         // who may have set there what nobody can name: a session's id, or nobodys

	// Guarded by the pool's lock.
	holder *session  // nil: idle
	since  time.Time // when it was claimed, or became idle
	before time.Time // what that was before it was claimed
	turn   uint64    // of the holder, when the pool last looked

	probe    socket.Prober // nil if the connection is no socket
	born     time.Time
	spread   float64         // of its lifetime: 0 to 1
	reports  *state.Settings // what it reported last (ParameterStatus)
	changing bool            // its client may be changing the schema
	due      bool            // the catalog is to be looked at since nobody has for long
	atLogin  *state.Settings // what it reported when it was new
	entered  *state.Settings // what the startup packet chose for its client, in session mode
	mentions scan.Mentions   // names that the client's statements gave
	executed *executions     // whose names they hold already
	stuck    []string        // names of what SQL prepared, and only this server has
	heard    []byte          // notifications of this lease, in transaction mode
}

// A ticket names one version of one session's unnamed statement.
type ticket struct {
	session uint32
	version uint64
}

func newBackend(p *pool, c *upstream.Conn) *backend {
	sock, _ := c.Raw.(*loop.Conn)
	if sock != nil {
		sock.Unblock() // the login is over
	}
	s := &backend{
		Conn: c, pool: p, sock: sock, probe: socket.Of(c.Raw), born: time.Now(), spread: rand.Float64(), status: pgwire.Idle,
		settings: state.None, named: state.None, entered: state.None, reports: p.settings.Intern(state.Of(c.Params)), prepared: map[*statement]uint64{},
	}
	s.atLogin, s.changes = s.reports, p.home().hidden.changes.Load()
	s.analysed = state.None.Constants(s.atLogin)
	return s
}

// carrier is what is below TLS; nil without.
func (s *backend) carrier() *loop.Carrier { return loop.CarrierOf(s.Conn.Conn) }

// disown lets no session's task run for what the server says.
func (s *backend) disown() {
	if s.sock != nil {
		s.sock.Own(nil)
	}
}

// unusedLook is how long a connection that is no socket is read from to learn whether it still lives.
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

// absorb reads what an idle server sent by itself. It returns false if that means the end, or is not understood.
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

// exec runs a statement of the pooler's own on a connection that is ready for one, whatever
// rows it gives. An error of PostgreSQL's is an *upstream.Refused.
func (s *backend) exec(sql string) (err error) { return s.execWithin(execLimit, sql, nil) }

// execWithin is exec within another limit; rows may be nil.
func (s *backend) execWithin(limit time.Duration, sql string, rows func(body []byte) error) (err error) {
	s.unnamed = ticket{} // PostgreSQL drops it with every simple query
	return s.talk(limit, pgwire.AppendQuery(nil, sql), rows)
}

// talk sends messages of which the last has the server say that it is ready.
func (s *backend) talk(limit time.Duration, messages []byte, rows func(body []byte) error) (err error) {
	if err := s.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := s.Write(messages); err != nil {
		return err
	}
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
			s.catch(body)
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

// errAstray means that a server cannot be led back from what others have left there.
var errAstray = errors.New("what another client has left cannot be led back")

// suit gives the server the client's settings. One that refuses them has none: a client must not cost the pool a connection by asking for what there is not.
func (s *backend) suit(want *state.Settings) error {
	defer s.unlessPanic()
	if s.settings != state.None && !s.settings.Equal(want) { // by itself: it is not asked for by the client
		queries, _ := s.settings.Change(state.None)
		if err := s.exec(queries[0]); err != nil || s.status != pgwire.Idle {
			s.broken.Store(true)
			return fmt.Errorf("%w: %w", errAstray, err)
		}
		s.settings = state.None
	}
	queries, _ := s.settings.Change(want)
	for i, sql := range queries {
		err := s.exec(sql)
		if err == nil {
			continue
		}
		refused, ok := errors.AsType[*upstream.Refused](err)
		if ok && i > 0 { // those before are in force
			err = s.exec(audit.Unset)
		}
		if !ok || i > 0 && err != nil || s.status != pgwire.Idle {
			s.broken.Store(true)
			return err
		}
		return refused
	}
	s.settings = want
	return nil
}

// catch keeps a notification that the client's own server sent. The hub hears it too,
// unless the client's LISTEN to its channel is of the same transaction.
func (s *backend) catch(body []byte) {
	if len(s.heard)+len(body) <= maxAnswer {
		s.heard = pgwire.Append(s.heard, pgwire.Notification, body)
	}
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
	if err := s.exec("ROLLBACK"); err != nil {
		s.broken.Store(true)
		return fmt.Errorf("roll back: %w", err)
	}
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

// An attempt is what is known of a cycle that may have to be sent to another server,
// since the one that had it was shut down, or could not be led back from what others had left there.
type attempt struct {
	tries int       // before this one
	began time.Time // the first; zero: this is it
	size  int       // of the cycle, if nothing went before it in its transaction and it was sent whole
	part  int       // of what a goroutine has sent of it
	cycle []byte    // a copy, once the client is read besides; of what the event loops have sent, until size is known
	told  bool      // the client has been told something of the answer
	anew  []byte    // the answer, if the cycle is to be sent again since a statement was out of date
	last  bool      // it has been, and is not again

	missing  *state.Settings // what could not be made again when the cycle began to drop some of it; nil: it does not
	vanished map[string][]byte
}

// maxTries bounds how often one query is sent again.
const maxTries = 3

// errRepeat means that the client's cycle is to be sent to another server.
var errRepeat = errors.New("the server was shut down before it answered")

// mayRepeat reports whether the server's error is of its shutdown (57P01), and the
// client's query may be carried out elsewhere without anybody's noticing: PostgreSQL has
// rolled it back, it only reads, it is alone in its transaction, and nothing of its answer
// is known to the client. A server that goes on to serve others has ended this query on
// purpose.
func (s *session) mayRepeat(body []byte) bool {
	a, b := &s.attempt, s.backend
	if string(pgwire.Field(body, 'C')) != "57P01" || string(pgwire.Field(body, 'V')) != "FATAL" || a.size == 0 || a.told || a.tries >= maxTries || s.mute || len(s.held) > 0 {
		return false
	}
	s.mu.Lock()
	if a.cycle == nil && s.uplink == nil {
		a.cycle = bytes.Clone(s.in.Behind(a.size))
	}
	alone := s.cycles.len() == 1 && !s.open && !s.midway && !s.copying && s.stage == running && s.lost == nil && s.readsOnly(a.cycle)
	s.mu.Unlock()
	if !alone || !b.pool.goingDown() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cycles.len() != 1 || s.open { // the client has sent more meanwhile
		return false
	}
	s.answering, s.closing = false, true
	b.In.Taken()
	return true
}

// readsOnly reports whether a cycle may be carried out again: it reads, and names nothing.
func (s *session) readsOnly(cycle []byte) bool {
	backslash := s.backend.backslash()
	for rest := cycle; len(rest) > 0; {
		typ, n, body := pgwire.Split(rest)
		rest = rest[n:]
		var text []byte
		var ok bool
		switch typ {
		case pgwire.Query:
			text, _, ok = pgwire.String(body)
		case pgwire.Parse:
			var name []byte
			name, text, _, ok = pgwire.Strings(body)
			ok = ok && len(name) == 0
		case pgwire.Bind:
			var name []byte
			_, name, _, ok = pgwire.Strings(body)
			if len(name) == 0 {
				ok = ok && s.unnamed.version != 0 && s.unnamed.kept
				text, _, _ = pgwire.String(s.unnamed.body)
			} else if st := s.names[string(name)]; st != nil {
				text, _, _ = pgwire.String(st.body)
			}
		case pgwire.Describe, pgwire.Execute, pgwire.Sync:
			continue
		default:
			return false
		}
		if !ok || !scan.Repeatable(text, backslash) {
			return false
		}
	}
	return len(cycle) > 0
}

// goingDown reports whether the server takes no connections.
func (p *pool) goingDown() bool {
	ctx, cancel := context.WithTimeout(p.context(), execLimit)
	defer cancel()
	conn, err := p.target.Connect(ctx, p.dial)
	if err == nil {
		conn.Close()
		return false
	}
	if refused, ok := errors.AsType[*upstream.Refused](err); ok {
		return refused.SQLState == "57P03"
	}
	return upstream.Passing(err)
}

// resendable is what has been sent of the client's cycle, as it came; false if that is not known any more. The lock is held.
func (s *session) resendable() (cycle []byte, ok bool) {
	a := &s.attempt
	switch {
	case a.size > 0 && a.cycle == nil:
		cycle = s.in.Behind(a.size)
		return cycle, cycle != nil
	case a.size > 0:
		return a.cycle, true
	case a.part > 0:
		rest := s.in.Behind(a.part)
		return slices.Concat(a.cycle, rest), rest != nil
	}
	return a.cycle, s.cycles.len() == 0 // the event loops have begun it, if anybody has
}

// takeBack makes the client's cycle the next that it sends.
func (s *session) takeBack() error {
	if err := s.join(false); err != nil {
		return err
	}
	s.mu.Lock()
	sent, _ := s.resendable()
	sent = bytes.Clone(sent)
	s.debts.asked, s.debts.answered, s.debts.uncounted = 0, 0, false
	for !s.debts.none() {
		s.forgive()
		s.debts.pop()
	}
	first, ok := s.cycles.pop()
	if !ok { // it has not been sent whole
		first.start = s.exchange.Start
	}
	s.next, s.withheld, s.open, s.midway = cycle{}, false, false, false
	s.passesOn = false // it would meet another replay, of a later cycle maybe
	if why := s.why; why != nil && why.name == namePrefix {
		s.setback = why // it was turned down
	}
	s.why = nil
	if a := &s.attempt; a.missing != nil {
		s.missing, s.vanished = a.missing, a.vanished
	}
	b, a := s.backend, s.attempt
	s.mu.Unlock()
	b.broken.Store(true)
	s.part()
	if b.left&scan.Catalog != 0 {
		b.pool.home().hidden.lookSoon(0) // it was to be looked at behind this cycle
	}
	b.pool.drop(b)
	s.attempt = attempt{tries: a.tries + 1, began: first.start, last: a.last}
	s.in.Room(len(sent)) // the uplink may have read much since
	s.in.Unread(sent)
	return nil
}

// confused ends a session whose server did not answer as the protocol says.
func (s *session) confused(err error) error {
	s.backend.broken.Store(true)
	return end(Internal, "lost track of the server's answers", "connect again").because(err)
}

var errMeaning = errors.New("a statement's name was pipelined behind an error with two meanings")

var errOutOfStep = errors.New("an answer that nobody asked for")
