// Package claude is the Claude plane: a transparent proxy in front of the Claude
// API that tries again what failed before the app saw any of it, never shows half
// an answer as a whole one, and writes every call down. [Server] is the plane;
// [Transport] is the same engine for Go programs that use the official SDK without
// it, and [Do] for those that call in some other way.
//
// Every path, header, body field, stream event and beta passes unchanged, and so do 1xx
// answers and protocol upgrades; only of the encodings that a message may come in those
// are left out that can't be read on the way.
//
// The binary and Go programs may import it. It imports none of its sibling planes.
package claude

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/claude/internal/attach"
	"mainstay.dev/mainstay/claude/internal/batch"
	"mainstay.dev/mainstay/claude/internal/body"
	"mainstay.dev/mainstay/claude/internal/gather"
	"mainstay.dev/mainstay/claude/internal/head"
	"mainstay.dev/mainstay/claude/internal/keep"
	"mainstay.dev/mainstay/claude/internal/mend"
	"mainstay.dev/mainstay/claude/internal/observe"
	"mainstay.dev/mainstay/claude/internal/pace"
	"mainstay.dev/mainstay/claude/internal/price"
	"mainstay.dev/mainstay/claude/internal/routes"
	"mainstay.dev/mainstay/health"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/deadline"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/retry"
	"mainstay.dev/mainstay/telemetry"
)

// Dial opens a connection to the upstream.
type Dial func(ctx context.Context, network, addr string) (net.Conn, error)

// Deps are what a [Server] needs from outside.
type Deps struct {
	Listener net.Listener
	// Dial opens connections to the upstream and must bound its own time; nil: over
	// TCP, through the proxy that HTTPS_PROXY names if there is one.
	Dial Dial
	Log  *slog.Logger   // nil: none
	Sink telemetry.Sink // nil: none
	// Dir is where what the day has cost is kept; empty: nowhere, and a restart forgets it.
	Dir string
	// Identity reads the header Mainstay-Identity, in which the app tells in whose name
	// it calls; nil: nobody is believed. The header goes no further either way.
	Identity identity.Opener
	// Limits are asked about each call of a caller whom the app names; nil: nobody is
	// limited.
	Limits Limits
	// Colors are the colors that a path may begin with (/@blue).
	Colors []string
}

// A Server is the plane. Its methods may be called from many goroutines.
type Server struct {
	listen string
	ln     net.Listener
	colors map[string]bool
	policy atomic.Pointer[policy]
	engine engine
	wire   *http.Transport
	board  *attach.Board[landed]
	kept   keep.Store
	desks  desks

	base  context.Context // of every request
	stop  context.CancelCauseFunc
	calls sync.WaitGroup
}

// engine is what the doors to Claude share: [Server] and [Transport].
type engine struct {
	rt      http.RoundTripper
	who     identity.Opener // nil: nobody is believed
	limits  Limits          // nil: nobody is limited
	log     *slog.Logger
	sink    telemetry.Sink
	counts  counters
	gates   gates
	pacer   pace.Pacer
	ledger  price.Ledger
	ceiling *price.Ceiling  // nil: none
	batches *batch.Register // nil: results are not booked

	mu   sync.Mutex
	told map[[3]string]bool // which models lack what
}

// New checks cfg and wires the plane; it starts nothing.
func New(cfg Config, d Deps) (*Server, error) {
	p, err := Compile(cfg)
	if err != nil {
		return nil, err
	}
	if d.Listener == nil {
		return nil, errors.New("claude: a server needs a listener")
	}
	s := &Server{listen: cfg.Listen, ln: d.Listener, colors: map[string]bool{}, wire: newWire(d.Dial), board: attach.NewBoard[landed]()}
	for _, color := range d.Colors {
		s.colors[color] = true
	}
	s.engine.rt, s.engine.log, s.engine.sink, s.engine.who = s.wire, orDiscard(d.Log), d.Sink, d.Identity
	s.engine.limits = d.Limits
	if d.Sink == nil {
		s.engine.sink = telemetry.Discard
	}
	s.base, s.stop = context.WithCancelCause(context.Background())
	if s.engine.ceiling, err = price.Open(d.Dir); err != nil {
		return nil, fmt.Errorf("claude: %w", err)
	}
	if s.engine.batches, err = batch.Open(d.Dir, s.engine.batchTrouble); err != nil {
		return nil, fmt.Errorf("claude: %w", err)
	}
	s.obey(p)
	return s, nil
}

func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}

// newWire returns the connections to the upstream, tuned for a proxy: many of them
// to one host, nothing added and nothing decompressed on the way.
func newWire(dial Dial) *http.Transport {
	const most = 512
	t := &http.Transport{
		DialContext:            dial,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           most,
		MaxIdleConnsPerHost:    most,
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		ExpectContinueTimeout:  time.Second,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 256 << 10,
		// A connection that has died must not look like a model that thinks.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
	if dial == nil {
		t.Proxy = http.ProxyFromEnvironment
		t.DialContext = (&net.Dialer{Timeout: 10 * time.Second, KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 4,
		}}).DialContext
	}
	return t
}

// Prepare checks cfg for a reload. Nothing changes until commit is called, and
// commit cannot fail; calls under way end under the policy they began with.
func (s *Server) Prepare(cfg Config) (commit func(), err error) {
	p, err := Compile(cfg)
	ps := setting.Of(err)
	if cfg.Listen != s.listen {
		ps.Add("listen", "can't change while Mainstay runs", "restart it, or keep "+s.listen)
	}
	if err := ps.Err(); err != nil {
		return nil, err
	}
	return func() { s.obey(p) }, nil
}

// obey makes p the policy of the calls that come from now on.
func (s *Server) obey(p *policy) {
	if before := s.policy.Load(); before != nil {
		routes.Continue(p.routes, before.routes)
	}
	s.kept.Obey(p.keep)
	s.engine.pacer.Obey(p.pacing)
	s.engine.ceiling.Obey(p.spend)
	s.policy.Store(p)
}

// Run serves until ctx is done, gives calls under way the drain time to end, breaks
// off the rest, and returns when all has ended.
func (s *Server) Run(ctx context.Context) error {
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    1 << 20, // beyond mostHeader the refusal is ours, beyond this net/http's
		BaseContext:       func(net.Listener) context.Context { return s.base },
		ConnContext:       s.desks.open,
		ConnState:         s.desks.turn,
		ErrorLog:          slog.NewLogLogger(s.engine.log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(deadline.Listen(s.ln)) }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		s.drain(ctx, srv)
		if end := <-served; !errors.Is(end, http.ErrServerClosed) {
			err = end
		}
	}
	s.stop(errStopping)
	_ = srv.Close() // what is left is broken off; nobody is told of it
	s.calls.Wait()
	s.kept.Close()
	s.wire.CloseIdleConnections()
	return errors.Join(err, s.engine.ceiling.Close(), s.engine.batches.Close())
}

// drain waits for the calls under way, and breaks off those that take too long.
func (s *Server) drain(ctx context.Context, srv *http.Server) {
	ctx = context.WithoutCancel(ctx)
	limit, cancel := context.WithTimeout(ctx, s.policy.Load().drain)
	defer cancel()
	if srv.Shutdown(limit) == nil && s.ended(limit) {
		return
	}
	s.engine.log.Warn("breaking off claude calls that did not end in time", "in_flight", s.engine.counts.inFlight.Load())
	s.stop(errStopping)
	const farewell = 2 * time.Second // for the errors that tell the clients so
	limit, cancelFarewell := context.WithTimeout(ctx, farewell)
	defer cancelFarewell()
	_ = srv.Shutdown(limit) // Close follows
}

// A call is one exchange with Claude, whichever door it came in by.
type call struct {
	engine     *engine
	policy     *policy // of the plane; nil in a Transport
	rules      *rules
	x          *telemetry.Exchange
	desk       *desk           // of its connection; nil: it came by none
	done       func()          // is called when all has been written down; nil in a Transport
	asked      *keep.Request   // as the client sent it, to be kept; nil: it is not
	store      *keep.Store     // where it is kept; nil: nowhere
	replay     *Replayed       // the call is the replay of another; nil: it is none
	who        identity.Who    // in whose name the app calls; zero: it did not say
	allowed    limits.Verdict  // what the limits said of that caller; zero: they were not asked
	step       string          // the rung of the ladder of degradation on which that caller stands; empty: none
	ctx        context.Context // the client's
	patience   *patience
	controller *http.ResponseController // of the client's answer; nil in a Transport
	giveUp     context.CancelCauseFunc  // of ctx, in a Transport
	early      *early                   // nil: there is nobody to tell
	upload     *upload
	shape      shape
	said       head.Head     // by the request's header
	out        *http.Request // what goes upstream, but for the body
	body       *body.Body
	sends      *body.Body // the one that the attempt under way sends: body, or a continuation
	request    request
	mend       *mend.Message          // of a stream that is recovered; nil: it passes as it comes
	gather     *gather.Message        // of the stream of a call that does not stream; nil: it is none
	flight     *attach.Flight[landed] // that others may attach to; nil: none
	head0      *landed                // of a stream that others may attach to; nil: it has not begun, or is none
	tape       *tape                  // of what passes, for those who attach; nil: it is not kept
	roomy      int64                  // bytes of memory reserved for the answer
	shadow     bool                   // it was answered by another call, which paid
	leave      func() bool            // stops watching whether the client leaves
	stayed     bool                   // it had not when the handler returned
	resumes    int                    // attempts that went on with what the client had
	midway     bool                   // the client has the beginning of an answer
	loop       retry.Loop
	gate       *health.Gate // nil: none
	pass       health.Pass
	lane       *pace.Lane   // nil: not paced
	ticket     *pace.Ticket // of the attempt under way
	weight     float64      // of the caller, in the lane
	stake      *price.Stake // reserved of the day's money
	most       int64        // that an attempt may cost, in billionths of a dollar
	way        way
	refused    verdict           // why claim was in vain
	deadline   time.Time         // for the first byte; policy deadline only
	whole      time.Time         // for an answer under way, which an SDK's retry may find; not before deadline
	until      time.Time         // no wait may last longer; zero: nothing has gone wrong yet
	try        telemetry.Attempt // the one under way
	trying     bool
	watch      observe.Observer
	fetch      *batch.Fetch // of a batch's results; nil: it is none
	end        verdict
	settled    bool // what it has taken has been told
	ended0     bool // it has been concluded
	held       bool // at a gate that was not open
	attached   bool // as an SDK's retry, to the call that still ran

	own struct { // what it mostly needs, had with it
		patience patience
		early    early
		upload   upload
		answer   answer
	}
}

// ServeHTTP is the life of a call.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := s.begin(w, r)
	defer c.record()
	if !c.route(w, r, s.colors) || !c.admit(w, r) {
		return
	}
	c.remember(r)
	c.ask()
	if c.attach(w, r, s) {
		return
	}
	if v, ok := c.afford(); !ok {
		c.refuse(w, v)
		return
	}
	a, v := c.settle()
	c.land(a)
	if a == nil {
		c.refuse(w, v)
		return
	}
	defer a.close()
	c.takeOff(a)
	var broken bool
	if c.end, broken = c.relay(w, a); broken {
		panic(http.ErrAbortHandler) // net/http breaks the connection off
	}
}

// begin starts the exchange.
func (s *Server) begin(w http.ResponseWriter, r *http.Request) *call {
	d, _ := r.Context().Value(deskKey{}).(*desk)
	c := d.blank()
	x := c.x
	s.calls.Add(1)
	p := s.policy.Load()
	c.engine, c.policy, c.rules, c.done, c.store, c.ctx, c.desk = &s.engine, p, &p.rules, s.calls.Done, &s.kept, r.Context(), d
	c.controller = http.NewResponseController(w)
	c.own.patience = patience{deadline: c.controller, limit: p.client}
	if d != nil && r.ProtoMajor == 1 {
		c.own.patience.deadline = d.conn // which is what the controller comes to
	}
	c.patience = &c.own.patience
	c.own.early = early{w: w, patience: c.patience}
	c.early = &c.own.early
	if c.said = head.Read(r.Header); c.said.Expects {
		c.patience.write() // for what net/http itself writes, which asks for the body
	}
	c.engine.counts.inFlight.Add(1)
	c.engine.counts.calls.Add(1)
	c.describe(r)
	if c.replay, _ = r.Context().Value(replaying{}).(*Replayed); c.replay != nil {
		c.replay.ID, x.GenAI.ReplayOf = x.ID, c.replay.Of
	}
	return c
}

// describe notes who asks and for what.
func (c *call) describe(r *http.Request) {
	x := c.x
	if x.ID == "" || c.said.ID != "" {
		x.ID = requestID(c.said.ID)
	}
	x.Caller = c.desk.caller(&c.said)
	c.identify(c.said.Identity)
	x.Trace.Continue(c.said.Traceparent, c.said.Tracestate)
	x.HTTP.Method, x.HTTP.Scheme, x.HTTP.Host, x.HTTP.Proto = r.Method, "http", r.Host, r.Proto
}

// route finds out where the call goes.
func (c *call) route(w http.ResponseWriter, r *http.Request, colors map[string]bool) bool {
	color, path, escaped := uncolor(r.URL.Path, asWritten(r), colors)
	c.x.Color, c.x.HTTP.Path, c.x.Route = color, path, template(path)
	if !strings.HasPrefix(path, "/") {
		c.refuse(w, verdict{code: BadRequest, err: errors.New("the request names no path")})
		return false
	}
	if size := c.said.Size; size > mostHeader {
		c.refuse(w, verdict{code: HeadersTooLarge, err: fmt.Errorf("%d bytes of headers", size)})
		return false
	}
	c.shape = shapeOf(r.Method, c.x.Route)
	c.promise()
	c.out = aim(r, &c.said, c.policy.upstream, path, escaped)
	if c.said.Coded {
		c.decode()
	}
	c.x.HTTP.Target = c.out.URL.Host
	return true
}

// mostHeader is how many bytes of headers a request may have.
const mostHeader = 64 << 10

// settle claims and forwards, and again, until an answer stands: it is good, it is
// one that another attempt can't mend, or the attempts are used up, on every route that
// is fit. Then the last answer that Claude gave stands, however it reads; without one,
// the verdict on the last attempt.
func (c *call) settle() (*answer, verdict) {
	var kept *answer
	var last verdict
	wait := time.Duration(0)
	c.loop = c.rules.retry.Begin()
	for c.claim(wait) || c.moves(c.stopped(last)) && c.claim(0) {
		c.sends = c.chosen()
		a, v := c.forward()
		c.report(v)
		last = v
		if a != nil && kept != nil {
			kept.close()
			kept = nil
		}
		more := false
		if wait, more = c.another(v); !more {
			return c.stands(a, kept, v)
		}
		c.tried(v.cause)
		c.retrying(v, wait)
		if a != nil && a.keep() {
			kept = a
		} else if a != nil {
			a.close()
		}
	}
	if v, ended := c.ended(); ended {
		if kept != nil {
			kept.close()
		}
		return nil, v
	}
	if last.code == "" {
		last = c.refused
	}
	return c.stands(nil, kept, last)
}

// stopped is why a claim was in vain: the limits left no room, or the attempt before it.
func (c *call) stopped(last verdict) verdict {
	switch c.refused.code {
	case "":
		return last
	case Limited:
		return c.refused
	}
	return verdict{} // held: it has looked at the other routes all the time
}

// another claims another attempt after one that came to v: with another key, after a
// wait, or by another route.
func (c *call) another(v verdict) (wait time.Duration, more bool) {
	if v.code == OK || !c.body.Replayable() {
		return 0, false
	}
	if c.other(v) {
		return 0, true
	}
	if v.again {
		wait, more = c.next(v.after)
	}
	if !more {
		wait, more = 0, c.moves(v)
	}
	return wait, more
}

// stands picks the answer that the client gets.
func (c *call) stands(a, kept *answer, v verdict) (*answer, verdict) {
	if a == nil {
		c.tried(v.cause)
		if kept == nil {
			return nil, v
		}
		if _, ended := c.ended(); ended || v.cause == CauseClient {
			kept.close()
			return nil, v
		}
		a = kept
	}
	c.firstByte()
	if a.verdict.code != OK {
		a.keep() // if it can't be kept, it is relayed as far as it goes
		c.speak(a)
	}
	if a.events {
		c.x.HTTP.Stream = true
		c.engine.counts.streams.Add(1)
	}
	return a, a.verdict
}
