package pooler

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/pooler/internal/credential"
	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/socket"
	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/telemetry"
)

// clientBuffer is a session's read buffer. A cycle of messages that fits is sent on
// with one write, by the session's only goroutine; it must hold a startup packet.
const clientBuffer = 10 << 10

// A session is one client's connection, from its first byte to its last.
//
// One goroutine tells its life (live), but for what needs none (lane.go). While an answer is awaited that takes long,
// and whenever client and server talk at the same time, a second one, the uplink,
// reads the client (watch, pump); it has always ended before the first reads the
// client again.
type session struct {
	// What the event loops touch for every transaction comes first, in few cache lines.

	lane      sync.Mutex // over a session without a goroutine; taken before all other locks
	task      loop.Task  // runs Step
	sock      *loop.Conn // the same as raw, if the event loops have it; or nil
	*errand              // nil: it has nothing to do; changed under mu
	mu        sync.Mutex // over what the uplink shares with serve, and others look at: what is marked with mu
	backend   *backend   // mu: claimed
	at        place
	busy      bool  // the exchange has begun and is not recorded
	mute      bool  // the client takes no more answers
	putOff    bool  // a write was left to the worker
	missed    bool  // something has come meanwhile
	stage     stage // mu
	block     byte  // mu: as the backend's status was after the last cycle
	answering bool  // mu: serve relays the server's answers
	in        pgwire.Reader
	closing   bool          // mu: the uplink must end before the next message
	open      bool          // mu: messages were sent after the last that ends a cycle
	copying   bool          // mu: the server takes COPY data
	behind    bool          // mu: the message that is being sent is not its cycle's first
	midway    bool          // mu: a message has been sent in part
	withheld  bool          // a ReadyForQuery has not been told to the client yet; serve's own
	fatal     bool          // the server's own last words have been passed on
	untold    bool          // has to be told what the server reports
	resets    bool          // may have led back a setting that was chosen at login, in an open transaction
	varied    bool          // names stand for statements that were prepared under settings of another meaning
	straddles bool          // asks for sequence values that an earlier transaction was given
	entered   bool          // mu: logged in
	counted   bool          // in the census; of the server's lock
	resting   bool          // mu: serve waits for the client's next cycle
	aged      bool          // may use statements whose columns were told before the schema changed last
	ending    atomic.Bool   // told to end: it is more than running
	moved     atomic.Uint32 // counts what was read from and written to the client
	turn      atomic.Uint64 // counts cycles, so that a slow one is seen from outside
	pool      *pool         // mu
	pooler    *Server
	routed    *policy         // that pool is of; nil: look for it each time
	conn      net.Conn        // the same as raw without TLS
	settings  *state.Settings // chosen, at login or since
	prepares  *state.Settings // what it made with SQL's PREPARE, by name: see state.Carried
	waiter    waiter
	id        uint32
	nameBytes int32                 // mu: of the statements that have names
	names     map[string]*statement // mu
	unnamed   unnamed               // mu
	schema    uint64                // the pool's, when aged was found out

	came   int64            // Unix time in nanoseconds
	secret []byte           // of the cancel key
	keys   *credential.Keys // of the login, where the server is entered with them
	raw    net.Conn         // below TLS
	probe  socket.Prober    // for those who look at the client while it waits; nil: no socket

	// Known after admit.
	user, database, application, color string
	login                              *state.Settings // chosen at login
	told                               *state.Settings // what the client believes of the server
	executes                           *executions     // what those of prepares may do; nil: nothing is known

	writing atomic.Bool            // serve waits for the client to take an answer
	wanting atomic.Bool            // the uplink waits for the rest of a message
	dead    atomic.Bool            // killed: must not queue for a server
	verdict atomic.Pointer[ending] // why it is killed, if not because Mainstay stops

	pinned string // mu: why the backend stays between transactions, for people; "": it does not
	ear    *ear   // nil until the client has listened; assigned by serve
}

// A stage is how near its end a session is.
type stage uint8

const (
	running  stage = iota
	draining       // must end as soon as it holds no transaction
	killed         // must end
)

// newSession is a connection's; sock is the same as conn, or nil.
func newSession(p *Server, conn net.Conn, sock *loop.Conn) *session {
	s := &session{
		pooler: p, came: time.Now().UnixNano(), color: telemetry.ColorUnknown,
		settings: state.None, prepares: state.None, errand: errands.Get().(*errand),
		raw: conn, conn: conn, sock: sock, in: pgwire.MakeReader(conn, clientBuffer), probe: socket.Of(conn),
	}
	s.waiter.owner, s.task.Stepper = s, s
	return s
}

// errGone is the end of a client that hung up; errLeft that of one that said
// goodbye, or never spoke.
var (
	errGone = end(ClientGone, "the client hung up", "")
	errLeft = errors.New("the client left")
)

// goOn is a goroutine that has a session, until it ends or needs no goroutine.
func (s *session) goOn(from entry) {
	if s.serve(from) {
		return
	}
	s.raw.Close()
	s.pooler.leave(s)
	s.pooler.ended.Done()
}

// serve goes on with a session's life. It reports whether the session is parked, and
// not over.
func (s *session) serve(from entry) (parked bool) {
	defer func() {
		if v := recover(); v != nil { // one session's bug must not end the others
			s.depart(s.panicked(v))
		}
	}()
	err := s.live(from)
	if errors.Is(err, errParked) {
		return true
	}
	s.depart(err)
	return false
}

// live tells a session's whole life, from somewhere in it.
func (s *session) live(from entry) error {
	s.catchUp()
	switch from {
	case atEnd:
		return s.failure
	case atLogin:
		if err := s.admit(); err != nil {
			return err
		}
	case atProof:
		if err := s.admitProven(); err != nil {
			return err
		}
	case atWelcome:
		if err := s.letIn(); err != nil {
			return err
		}
	}
	for ; ; from = atTurn {
		if from <= atTurn && s.park() {
			return errParked
		}
		extent := pgwire.Whole
		if from <= atRest {
			var err error
			if extent, err = s.await(); err != nil {
				return err
			}
			s.begin()
		}
		if err := s.enterAt(from, extent); errors.Is(err, errRepeat) {
			if err := s.takeBack(); err != nil {
				return err
			}
			continue
		} else if err != nil {
			return err
		}
		if err := s.release(); err != nil {
			return err
		}
	}
}

// enterAt serves a cycle, from where it stands to the end of its answer.
func (s *session) enterAt(from entry, extent pgwire.Extent) error {
	if from <= atClaim && s.backend == nil {
		if err := s.claim(); err != nil {
			return err
		}
	}
	switch from {
	case atRelease:
		return nil
	case atPass:
		s.pass()
		return s.join(false)
	case atFlush, atAnswer:
		// The uplink sends what is left, and sees a client that hangs up.
		if err := s.startUplink(); err != nil {
			return err
		}
		return s.answer()
	case atForward:
		s.equip()
	}
	s.mu.Lock()
	s.next.start = s.exchange.Start // query_timeout counts what comes before the cycle, too
	s.mu.Unlock()
	if err := s.tune(extent); err != nil {
		return err
	}
	if err := s.teach(); err != nil {
		return err
	}
	if err := s.forward(extent); err != nil {
		return err
	}
	err := s.answer()
	if err == nil && s.severed > 0 { // the first of two texts failed: nothing of the second is carried out
		s.excess, s.severed = s.severed, 0
	}
	return err
}

// begin starts the next exchange.
func (s *session) begin() { s.beginAt(time.Now()) }

func (s *session) beginAt(now time.Time) {
	s.attach()
	s.exchange.Again(plane, now)
	s.busy = true
	s.turn.Add(1)
	if !s.attempt.began.IsZero() {
		s.exchange.Start = s.attempt.began
	}
}

// park lets the session go on without its goroutine, if it can.
func (s *session) park() bool {
	if s.sock == nil || s.backend != nil || s.excess > 0 || s.mute || s.ear != nil || s.errand != nil && s.setback != nil || !s.pool.laned() {
		return false
	}
	s.lane.Lock()
	defer s.lane.Unlock()
	if s.ending.Load() {
		return false
	}
	s.sock.Unblock()
	s.sock.Stir()
	loop.CarrierOf(s.conn).Hurry()
	s.sock.Own(&s.task)
	s.in.Shrink()
	s.spare()
	s.at = resting
	s.pooler.loops.Post(&s.task) // looks for what has come meanwhile
	return true
}

// escalate gives the session to a goroutine. The lane is locked.
func (s *session) escalate(from entry) {
	s.at = aside
	s.sock.Own(nil)
	s.in.Own()
	loop.CarrierOf(s.conn).Rest()
	if s.backend != nil {
		s.backend.carrier().Rest()
	}
	if s.errand == nil {
		s.attach()
		s.exchange.Again(plane, time.Now())
	}
	if from == atAnswer || from == atPass {
		s.mu.Lock()
		s.answering = true
		s.mu.Unlock()
	}
	go s.goOn(from)
}

// fail gives the session to a goroutine that ends it.
func (s *session) fail(err error) {
	s.attach()
	s.failure = err
	s.escalate(atEnd)
}

// await waits for the client's next cycle of messages: until it is whole, or as much
// of it as fits.
func (s *session) await() (pgwire.Extent, error) {
	for {
		s.deliver()
		dropped := s.dropExcess()
		typ, n, ok, err := s.in.Header()
		switch {
		case !dropped:
		case err != nil:
			return 0, protocolError(err.Error())
		case !ok:
		case typ == pgwire.Terminate:
			return 0, errLeft
		case !clientType(typ):
			return 0, protocolError(fmt.Sprintf("invalid frontend message type %d", typ))
		case straggler(typ):
			s.excess = pgwire.HeaderSize + n
			continue
		default:
			if extent := s.in.Cycle(); extent != pgwire.Open || s.in.Full() {
				return extent, nil
			}
		}
		if err := s.rest(); err != nil {
			return 0, err
		}
	}
}

// rest reads from a client that holds everybody up for nothing: it may take its time.
func (s *session) rest() error {
	s.mu.Lock()
	if s.stage == killed || s.stage == draining && s.between() {
		s.mu.Unlock()
		return s.sentence()
	}
	if s.ear != nil && len(s.ear.mail) > 0 && s.between() {
		s.mu.Unlock()
		return nil
	}
	s.resting = true
	s.mu.Unlock()
	err := s.in.Fill()
	s.mu.Lock()
	s.resting = false
	woken := s.calmed()
	stage := s.stage
	s.mu.Unlock()
	switch {
	case err == nil, woken && stage == running && errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded) && stage != running:
		return s.sentence()
	case s.between() && (errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)):
		return errLeft // without a goodbye, but nothing is lost
	}
	return errGone
}

// sentence is why a session that is told to end must.
func (s *session) sentence() error {
	if e := s.verdict.Load(); e != nil {
		return e
	}
	return errStopping()
}

// between reports whether a session that rests is between two transactions. The lock
// is held, or serve asks.
func (s *session) between() bool { return s.backend == nil || s.backend.status == pgwire.Idle }

func errStopping() error {
	return end(Stopping, "terminating connection: Mainstay is stopping", "connect again")
}

func protocolError(message string) error { return end(ProtocolError, message, "") }

// clientType reports whether a client may send messages of this type after login.
func clientType(typ byte) bool {
	switch typ {
	case pgwire.Query, pgwire.Parse, pgwire.Bind, pgwire.Describe, pgwire.Execute, pgwire.Close, pgwire.Sync,
		pgwire.Flush, pgwire.FunctionCall, pgwire.CopyData, pgwire.CopyDone, pgwire.CopyFail, pgwire.Terminate:
		return true
	}
	return false
}

// straggler reports whether a message means nothing between two cycles: a Flush, or
// what is left of a COPY that failed on the server, which PostgreSQL ignores too.
func straggler(typ byte) bool {
	switch typ {
	case pgwire.Flush, pgwire.CopyData, pgwire.CopyDone, pgwire.CopyFail:
		return true
	}
	return false
}

// tell makes a session end: now if it is idle, or told that it is killed.
func (s *session) tell(what stage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stage = what
	s.ending.Store(true)
	defer s.pooler.loops.Post(&s.task) // if it has no goroutine
	switch {
	case what == killed:
		s.dead.Store(true)
		_ = s.conn.SetReadDeadline(longAgo) // a closed connection is as good, here and below
		// What is being written may end: a client that is cut in the middle of an
		// answer cannot be told why.
		_ = s.conn.SetWriteDeadline(time.Now().Add(grace))
		if s.backend != nil {
			s.backend.interrupt(0)
		}
		if s.pool != nil {
			s.pool.withdraw(&s.waiter, s.sentence())
		}
	case s.resting && s.between():
		_ = s.conn.SetReadDeadline(longAgo)
	case s.backend != nil && s.answering && s.quiet() && s.backend.status == pgwire.Idle:
		s.backend.interrupt(0) // a session that has its server to itself
	}
}

// left reports whether a client that waits has hung up. Only the sweep asks.
func (s *session) left() bool {
	switch {
	case s.sock != nil:
		return s.sock.HungUp()
	case s.probe == nil:
		return false
	}
	_, ended := s.probe.Look()
	return ended
}

// depart ends the session: the client learns why, the server goes back, and what
// was under way is recorded.
func (s *session) depart(err error) {
	_ = s.join(true) // the session ends for err, whatever the uplink says
	e := endingOf(err)
	if errors.Is(err, errLeft) {
		e = errGone
	}
	if !s.busy {
		s.beginNext() // sent, and not answered at all
	}
	if !s.busy && (e.code == IdleInTx || e.code == ListenLost || e.code == ListenBehind) {
		s.begin() // the wait for nothing is worth a record of its own
	}
	if s.busy {
		s.recordEnd(e)
	}
	s.recordWhole()
	told := s.farewell(err, e)
	s.surrender()
	if told {
		s.linger()
	}
}

// farewell sends the client the reason for the end, unless it is gone or knows.
func (s *session) farewell(err error, e *ending) bool {
	if errors.Is(err, errLeft) || e.code == ClientGone || s.mute || s.fatal {
		return s.fatal && !s.mute
	}
	if s.backend != nil && s.backend.In.Partial() {
		return false // in the middle of a message, an error would be taken for data
	}
	if s.conn.SetDeadline(time.Now().Add(time.Second)) != nil {
		return false
	}
	_, werr := s.conn.Write(e.fault.AppendFatal(nil))
	return werr == nil
}

// lingerFor bounds how long a client's last words are listened to.
const lingerFor = time.Second

// linger reads what the client still sends, so that closing does not make its
// kernel throw away the reason that it has not read yet.
func (s *session) linger() {
	if c, ok := s.raw.(interface{ CloseWrite() error }); ok && c.CloseWrite() != nil {
		return
	}
	if s.raw.SetReadDeadline(time.Now().Add(lingerFor)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, s.raw, 1<<20)
}
