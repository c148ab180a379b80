package pooler

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"mainstay.dev/mainstay/pooler/internal/again"
	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/explain"
	"mainstay.dev/mainstay/pooler/internal/fingerprint"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/prepared"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/telemetry"
)

// record finishes the exchange of a cycle that the server has answered.
func (s *session) record(c *cycle) {
	x := s.exchange
	code := OK
	if x.DB.SQLState != "" {
		code = codeOf(x.DB.SQLState)
	}
	if s.mute {
		code = ClientGone
	}
	s.finish(c, code)
}

// recordEnd finishes the exchange that a session's end cut short.
func (s *session) recordEnd(e *ending) {
	s.mu.Lock()
	c, ok := s.cycles.pop()
	if !ok {
		c = s.next
	}
	s.mu.Unlock()
	x := s.exchange
	if e.code != ClientGone && e.code != Stopping {
		x.Err = e
	}
	if x.DB.SQLState == "" && e.code != ClientGone {
		x.DB.SQLState = e.fault.SQLState
	}
	s.finish(&c, e.code)
}

func (s *session) finish(c *cycle, code Code) {
	x := s.exchange
	x.Route, x.Color, x.Caller = s.database, s.color, s.user
	if x.Code = string(code); code != OK {
		x.Blame = meaning[code].Blame
	}
	x.BytesIn = c.bytes
	if !c.start.IsZero() {
		x.Start = c.start
	}
	x.DB.Database, x.DB.User = s.database, s.user
	if c.traced { // one that belongs to no trace is not worth one of its own
		// Continue reads the text and keeps nothing of it.
		if x.Trace.Continue(unsafe.String(&c.trace[0], len(c.trace)), ""); x.Trace.Parent == [8]byte{} { // it is none
			x.Trace = telemetry.Trace{}
		}
	}
	if c.shape != nil {
		x.DB.Fingerprint, x.DB.Text = c.shape.ID, c.shape.Text
	}
	if s.at == asking { // the event loops look at the clock once for what they do without waiting
		x.Took = s.readAt.Sub(x.Start)
	} else {
		x.Took = time.Since(x.Start)
	}
	if s.counted { // a login that is refused is no query, and its user may be anybody
		s.pooler.shapes.Record(c.shape, s.user, fingerprint.Sample{
			Took: x.Took, Waited: x.Waited, Client: x.DB.Client, Rows: x.DB.Rows, Failed: x.Blame != telemetry.BlameNone,
		})
	}
	cfg := &s.pooler.policy.Load().config
	if cfg.Slow.Over > 0 && x.Took > cfg.Slow.Over && s.counted {
		s.tellSlow(c, cfg.Slow.Plan)
	}
	s.busy = false
	if cfg.Span == spanTransaction || s.whole != nil {
		s.addToWhole()
		return
	}
	s.pooler.deps.Sink.Record(x)
}

// text returns the SQL text of a Query or Parse, as far as it is buffered, nil for other messages. whole reports whether the message is buffered to its end.
func (s *session) text(typ byte, n int) (text []byte, whole bool) {
	whole = s.in.Buffered() >= pgwire.HeaderSize+n
	s.harmless = false
	body := s.in.Peek(min(pgwire.HeaderSize+n, s.in.Buffered()))[pgwire.HeaderSize:]
	if !s.backend.pool.sessions() {
		prepared.DisownName(typ, body)
	}
	switch typ {
	case pgwire.Query:
		text = body
	case pgwire.Parse:
		_, text, _ = pgwire.String(body)
	default:
		return nil, whole
	}
	if end := bytes.IndexByte(text, 0); end >= 0 {
		text = text[:end]
	}
	if whole && text != nil && s.remember(text) {
		return text, whole
	}
	if prepared.Borrows(text) && !s.backend.pool.sessions() {
		prepared.Disown(text, s.backend.backslash())
	}
	if s.backend.pool.sessions() && s.pooler.slow.plans.Load() && !s.strays {
		hints := s.backend.pool.home().hidden.hints()
		s.strays = !whole || eachWay(scan.Modes(text, false, false), func(backslash bool) scan.Effect {
			return scan.Effects(text, backslash) | hints.Find(text, backslash, nil)
		})&sways != 0
	}
	if whole {
		s.seekTraceparent(text)
		s.see(nil, text)
	}
	if text == nil {
		text = body[:0]
	}
	return text, whole
}

// see notes what the cycle is about: its first statement.
func (s *session) see(st *statement, text []byte) {
	if s.next.shape != nil {
		return
	}
	switch {
	case st != nil:
		s.next.shape = st.shape
		if s.pooler.slow.plans.Load() {
			s.next.sql, _, _ = pgwire.String(st.body)
		}
	case len(text) > 0:
		s.next.shape = s.shapeOf(text)
		s.keepForPlan(text)
	}
}

// keepForPlan keeps a text whose plan may be asked for.
func (s *session) keepForPlan(text []byte) {
	if s.pooler.slow.plans.Load() {
		s.next.sql = bytes.Clone(text)
	}
}

// addToWhole adds the exchange of a query to that of its transaction, and records the
// latter when it is over.
func (s *session) addToWhole() {
	x := s.exchange
	open := s.backend != nil && s.backend.status != pgwire.Idle
	w := s.whole
	switch {
	case w == nil && !open:
		s.pooler.deps.Sink.Record(x)
		return
	case w == nil:
		s.whole = x.Clone()
		return
	}
	between := x.Start.Sub(w.Start) - w.Took
	w.Took = x.Start.Sub(w.Start) + x.Took
	w.Waited += x.Waited
	w.BytesIn += x.BytesIn
	w.BytesOut += x.BytesOut
	w.DB.Client += x.DB.Client + max(0, between)
	w.DB.Rows += x.DB.Rows
	w.DB.Queries += x.DB.Queries
	if w.Trace.Parent == [8]byte{} { // hardly any driver says it with BEGIN
		w.Trace = x.Trace
	}
	if w.DB.Command == "BEGIN" || w.DB.Command == "START TRANSACTION" { // the first that says something
		w.DB.Command = strings.Clone(x.DB.Command)
		w.DB.Fingerprint, w.DB.Text = x.DB.Fingerprint, x.DB.Text
	}
	if x.Blame != telemetry.BlameNone && w.Blame == telemetry.BlameNone {
		w.Code, w.Blame, w.Err, w.DB.SQLState = x.Code, x.Blame, x.Err, strings.Clone(x.DB.SQLState)
	}
	if !open {
		s.recordWhole()
	}
}

// recordWhole records the transaction that is open, if there is one.
func (s *session) recordWhole() {
	if w := s.whole; w != nil {
		s.whole = nil
		w.Finish(s.pooler.deps.Sink)
	}
}

// A slowness keeps the log of slow queries within bounds.
type slowness struct {
	plans  atomic.Bool // plans are asked for
	asking atomic.Bool // one is
	second atomic.Int64
	lines  atomic.Int64 // in that second
}

// maxSlowLines bounds the lines of a second.
const maxSlowLines = 20

// tellSlow logs a slow query.
func (s *session) tellSlow(c *cycle, plan bool) {
	x, slow := s.exchange, &s.pooler.slow
	if now := time.Now().Unix(); slow.second.Swap(now) != now {
		slow.lines.Store(0)
	}
	if slow.lines.Add(1) > maxSlowLines {
		return
	}
	s.pooler.deps.Log.Warn("slow query", "database", s.database, "user", s.user, "application", s.application, "fingerprint", x.DB.Fingerprint,
		"query", x.DB.Text, "took", x.Took, "queue", x.Waited, "postgres", max(0, x.Took-x.Waited-x.DB.Client), "client", x.DB.Client,
		"rows", x.DB.Rows, "code", x.Code)
	s.mu.Lock()
	p, settings := s.pool, s.settings
	if s.backend != nil {
		settings = s.present()
	}
	s.mu.Unlock()
	switch {
	case !plan || p == nil || !explain.Possible(c.sql):
	case settings == nil || s.strays: // nothing is to be planned, with what that calls, by another role or for other tables
		s.pooler.deps.Log.Warn("the plan of a slow query cannot be had", "database", p.name, "fingerprint", x.DB.Fingerprint,
			"err", "its transaction, or its session in session mode, may have changed its settings")
	case slow.asking.CompareAndSwap(false, true):
		sql, id := bytes.Clone(c.sql), x.DB.Fingerprint
		p.opening.Go(func() {
			defer slow.asking.Store(false)
			lines, err := explain.Plan(p.context(), p.target, p.dial, explain.Query{SQL: string(sql), Settings: settings.SQL()})
			if err != nil {
				s.pooler.deps.Log.Warn("the plan of a slow query cannot be had", "database", p.name, "fingerprint", id, "err", err)
				return
			}
			s.pooler.deps.Log.Warn("plan of a slow query", "database", p.name, "fingerprint", id, "plan", lines)
		})
	}
}

// An errand is what a session needs only while it does something: one that rests on the
// event loops has none. A session that has a server has one.
type errand struct {
	exchange *telemetry.Exchange
	whole    *telemetry.Exchange // the transaction, where spans are of those; nil: none is open
	offered  *backend            // leased already, for the next claim
	failure  error               // why the session is over, at atEnd
	proof    *proof              // that it is asked for at login; nil: none
	late     *time.Timer         // ends its arrival

	// Guarded by the session's lock.
	debts  debts // what the server owes
	cycles queue[cycle]
	next   cycle // being sent
	uplink chan struct{}
	lost   error // why the uplink ended by itself

	harmless bool            // so is the text of the message that is being sent; of whoever sends
	excess   int             // bytes from the client that go nowhere; of whoever reads the client
	refused  error           // why the message that is being sent cannot be
	strays   bool            // in session mode, if plans are asked for: the client may have changed its settings
	rows     int64           // that have come since a command was over; of whoever reads the answers
	held     []byte          // a CommandComplete that has not been told to the client yet
	stuck    []byte          // what the event loops could not write to the client; of whoever has the session
	synced   <-chan struct{} // closed when the hub has caught up; nil: not waited for
	portals  map[string]portal
	does     scan.Effect    // of the message that is being sent, and of what it binds
	bound    *statement     // of which nobody was told the columns, by the Bind before; nil: none
	portal   []byte         // the name of what that Bind makes
	outgrown []string       // names on the servers that these do not know, since the columns have changed
	renamed  *scan.Renaming // the text of the simple query that was sent last; nil: as the client has sent it
	back     leadBack
	why      *unmade      // the server could not prepare what that executes
	setback  *unmade      // nor, for the moment, what the cycle uses that is sent next
	added    *again.Added // statements of ours in that text
	attempt  attempt
	asSent   []byte    // the cycle, as the client sent it to the event loops; reused
	readAt   time.Time // when they read the answer last
	sound    bool      // PostgreSQL has found no fault with a text that is to be sent in two
	severed  int       // bytes of the second, until the first has been answered; mu
	mum      bool      // it has been, and the ReadyForQuery is not for the client

	// What few sessions have, and keep their errand for while they rest.
	sensed    *state.Settings   // in force where the open transaction may have changed them, as far as they decide what a text means; nil: not known
	unsure    bool              // the unnamed statement was prepared under the settings in force, which are not known
	sensing   *audit.Findings   // what the server says to the question for those
	caught    chan struct{}     // it has answered what [session.inquire] has sent
	untried   map[string]bool   // names of statements that others may have prepared before, and whether the cycle uses it
	made      prepared.Made     // what the open transaction has done to what SQL prepared
	missing   *state.Settings   // what of that could not be made again
	missingAt uint64            // the pool's schema then
	vanished  map[string][]byte // why, by name: an ErrorResponse's body

	// What the sweep knows; only it uses these, with the session's lock.
	lastTurn     uint64
	lastMoved    uint32
	lastMove     time.Time
	quietTurn    uint64
	quietSince   time.Time // the transaction has had no query in this turn
	overdueSince time.Time // start of the query that was canceled last
	overdue      atomic.Pointer[overdue]

	canceled  uint64      // the turn in which a cancel request came that may meet a replay; mu
	replaying atomic.Bool // serve waits for a replay, and nobody reads the client
	passesOn  bool        // it has, and is passed on once more; mu
}

var errands = sync.Pool{New: func() any { return &errand{exchange: new(telemetry.Exchange), missing: state.None} }}

// attach gives a session what it needs to do something. Only who has the session calls
// it, as spare.
func (s *session) attach() {
	if s.errand != nil {
		return
	}
	s.carry(errands.Get().(*errand))
}

func (s *session) carry(e *errand) {
	s.mu.Lock()
	s.errand = e
	s.mu.Unlock()
}

// spare gives it back, if it holds nothing.
func (s *session) spare() {
	if e := s.shed(); e != nil {
		errands.Put(e)
	}
}

// shed takes it from the session, if it holds nothing.
func (s *session) shed() *errand {
	if s.errand == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shedLocked()
}

// shedLocked is shed while the lock is held.
func (s *session) shedLocked() *errand {
	e := s.errand
	if e == nil || s.busy || s.backend != nil || e.whole != nil || e.offered != nil || len(e.held)+len(e.stuck) > 0 || e.excess > 0 ||
		len(e.untried) > 0 || e.made.Len() > 0 || e.missing != state.None || !e.debts.none() || e.cycles.len() > 0 || e.next.bytes > 0 || e.uplink != nil || e.lost != nil {
		return nil
	}
	s.errand = nil
	e.exchange.Err, e.failure, e.refused, e.next = nil, nil, nil, cycle{}
	e.debts.asked, e.debts.answered, e.debts.failed, e.debts.inquired = 0, 0, false, false
	e.lastTurn, e.lastMoved, e.quietTurn, e.canceled, e.passesOn = 0, 0, 0, 0, false
	e.lastMove, e.quietSince, e.overdueSince = time.Time{}, time.Time{}, time.Time{}
	if e.overdue.Load() != nil {
		e.overdue.Store(nil)
	}
	e.attempt = attempt{}
	e.sensed, e.sensing, e.missingAt, e.unsure = nil, nil, 0, false
	if len(e.vanished)+len(e.portals) > 0 { // mostly there is none, and to call the runtime is dearer
		clear(e.vanished)
		clear(e.portals)
	}
	e.renamed, e.why, e.setback, e.added, e.back, e.strays, e.rows = nil, nil, nil, nil, leadBack{}, false, 0
	return e
}

// A Code says how a query, or a login that failed, ended. The set is closed; the
// same word stands in the metric label, the log and the docs, and the SQLSTATE
// that belongs to it in the error that the client gets.
type Code string

// The codes, by the side that broke.
const (
	OK Code = "ok"

	SQLError      Code = "sql_error"
	Canceled      Code = "canceled"
	ClientGone    Code = "client_gone"
	ClientStalled Code = "client_stalled"
	ProtocolError Code = "protocol_error"
	Denied        Code = "denied"
	NoDatabase    Code = "no_database"
	Unsupported   Code = "unsupported"
	IdleInTx      Code = "idle_in_transaction"
	Killed        Code = "killed"
	ListenBehind  Code = "listen_behind"

	TooManyClients Code = "too_many_clients"
	QueueTimeout   Code = "queue_timeout"
	Stopping       Code = "stopping"
	Internal       Code = "internal"

	ServerError Code = "server_error"
	Unreachable Code = "upstream_unreachable"
	Lost        Code = "upstream_lost"
	ListenLost  Code = "listen_lost"
)

// A Meaning explains a code.
type Meaning struct {
	Code     Code
	SQLState string // of the error that Mainstay sends; "" where PostgreSQL's own error was passed on, or none
	Blame    telemetry.Blame
	Text     string // for the log's reader and the docs
}

// Meanings lists every code, in the order of the docs.
var Meanings = []Meaning{
	{OK, "", telemetry.BlameNone, "PostgreSQL carried it out."},
	{SQLError, "", telemetry.BlameClient, "PostgreSQL refused the statement: a constraint, a syntax error, a deadlock; its error was passed on."},
	{Canceled, "57014", telemetry.BlameClient, "The query was canceled: by its client, by a timeout that is set in PostgreSQL, or by the database's query_timeout."},
	{ClientGone, "", telemetry.BlameClient, "The client hung up before the answer was complete."},
	{ClientStalled, "57P05", telemetry.BlameClient, "The client left an answer unread or a message unfinished for longer than pooler.stall_timeout."},
	{ProtocolError, "08P01", telemetry.BlameClient, "The client sent something that the PostgreSQL protocol does not allow."},
	{Denied, "28P01", telemetry.BlameClient, "The login was refused: unknown user, wrong password, or not from this address."},
	{NoDatabase, "3D000", telemetry.BlameClient, "The client named a database that pooler.databases does not hold."},
	{Unsupported, "0A000", telemetry.BlameClient, "The client asked for something that does not go through a pooler."},
	{IdleInTx, "25P03", telemetry.BlameClient, "The client left a transaction open without a query for longer than the database's idle_in_transaction_timeout."},
	{Killed, "57P01", telemetry.BlameClient, "An administrator ended the session, by mainstay db kill or the admin API."},
	{ListenBehind, "53400", telemetry.BlameClient, "A client that listens left more notifications unread than the database's listen.buffer holds."},

	{TooManyClients, "53300", telemetry.BlameMainstay, "As many clients are logged in as pooler.max_clients, pooler.user_clients or the database's max_clients allows."},
	{QueueTimeout, "53300", telemetry.BlameMainstay, "No server connection became free within the pool's acquire_timeout."},
	{Stopping, "57P01", telemetry.BlameMainstay, "Mainstay is stopping."},
	{Internal, "XX000", telemetry.BlameMainstay, "Mainstay itself failed; this is a bug."},
	{ServerError, "", telemetry.BlameUpstream, "PostgreSQL itself is in trouble (SQLSTATE class 53, 57P, 58 or XX); its error was passed on."},
	{Unreachable, "08001", telemetry.BlameUpstream, "No connection to PostgreSQL could be opened."},
	{Lost, "08006", telemetry.BlameUpstream, "PostgreSQL closed the connection in the middle of the work."},
	{ListenLost, "57P01", telemetry.BlameUpstream, "The connection that listens for all clients was lost or replaced, and notifications may be lost with it; clients that listen are ended if listen.on_loss says so."},
}

var meaning = func() map[Code]Meaning {
	m := make(map[Code]Meaning, len(Meanings))
	for _, v := range Meanings {
		m[v.Code] = v
	}
	return m
}()

// An ending is why a session ends: the code for us, the fault for the client. All
// errors that a session's steps return are endings or become one.
type ending struct {
	code  Code
	fault pgwire.Fault
	cause error // for the log; may be nil
}

func (e *ending) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %v", e.fault.Message, e.cause)
	}
	return e.fault.Message
}

func (e *ending) Unwrap() error { return e.cause }

// end makes an ending with the code's own SQLSTATE.
func end(code Code, message, hint string) *ending {
	return &ending{code: code, fault: pgwire.Fault{SQLState: meaning[code].SQLState, Message: message, Hint: hint}}
}

// endingOf returns err as an ending; an error that nobody expected is Internal.
func endingOf(err error) *ending {
	if e, ok := errors.AsType[*ending](err); ok {
		return e
	}
	e := end(Internal, "internal error of Mainstay", "see Mainstay's log")
	e.cause = err
	return e
}

// because notes what is behind an ending.
func (e *ending) because(err error) *ending {
	e.cause = err
	return e
}

// serverLost ends a session whose server has gone: nobody knows how far it came, so
// that the client has to find out on a new connection.
func (s *session) serverLost(err error) error {
	s.backend.broken.Store(true)
	return end(Lost, "the server closed the connection unexpectedly",
		"connect again; look into PostgreSQL's log for the reason").because(err)
}
