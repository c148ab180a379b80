// Package edge is the HTTP plane: it says who is asking, whether they may enter
// and where they go, carries the request to a live copy of the app and the answer
// back, and swaps the copies without dropping a request.
//
// A Go program may import it to have the plane without the binary. A request's
// life is told in [Server.ServeHTTP]; the file of a step is named after it.
package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/capacity"
	"mainstay.dev/mainstay/edge/internal/farewell"
	"mainstay.dev/mainstay/edge/internal/overload"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/deadline"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

// Deps is what the edge needs from outside.
type Deps struct {
	Listener net.Listener // plain HTTP; nil: none
	TLS      net.Listener // the bare listener of tls.listen; nil: none
	// Dial connects to targets; nil means the network. Tests pass an in-memory one.
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	Identity identity.Resolver // says who asks; nil: only addresses are known, and no proxy is trusted
	Limits   *limits.Gate      // nil: nobody is limited
	Log      *slog.Logger
	Sink     telemetry.Sink
}

// dialWithin bounds the time a connection may take to come about, and then how
// long the target may take nothing of what is sent.
func (d Deps) dialWithin(limits Timeouts) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, limits.Dial)
		defer cancel()
		c, err := d.Dial(ctx, network, addr)
		if err != nil {
			return nil, &dialError{addr, err}
		}
		return &patient{Conn: c, limit: limits.Response}, nil
	}
}

// dialError marks that not a byte of the request has left.
type dialError struct {
	addr string
	err  error
}

func (e *dialError) Error() string { return "dial target " + e.addr + ": " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// Server is the edge. Until the first Apply it has no targets and answers 503.
type Server struct {
	deps     Deps
	policy   atomic.Pointer[policy]
	plan     atomic.Pointer[plan]
	applying sync.Mutex
	lastTerm uint64 // of a release; applying guards it
	holding  atomic.Int64
	valve    *capacity.Valve
	slowed   overload.Waits // of callers who have nearly used up a limit
	requests atomic.Int64   // in flight, tunnels and streams included
	cutting  atomic.Bool    // the drain limit was reached
	lanes    sync.Pool
	streams  farewell.List // of all targets, also of those that were retired
	kept     *keeper       // answers for the ladder's last step; nil: nobody is limited

	mirrors sync.WaitGroup
	life    context.Context // of the mirrors
	end     context.CancelFunc
}

// New checks cfg and wires the edge; it starts nothing.
func New(cfg Config, d Deps) (*Server, error) {
	p, err := Compile(cfg)
	if err != nil {
		return nil, err
	}
	if d.Dial == nil {
		d.Dial = new(net.Dialer).DialContext
	}
	if d.Identity == nil {
		d.Identity = new(identity.Proxies)
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Sink == nil {
		d.Sink = telemetry.Discard
	}
	s := &Server{deps: d}
	s.life, s.end = context.WithCancel(context.Background())
	s.lanes.New = func() any { return newLane(s) }
	s.policy.Store(p)
	s.valve = capacity.New(p.overload.Rule)
	if d.Limits != nil {
		s.kept = newKeeper(d.Limits.Ladder().Stale)
	}
	s.plan.Store(&plan{replaced: make(chan struct{}), mode: "serve"})
	return s, nil
}

// Prepare compiles a new configuration. Nothing changes until commit is called,
// and commit cannot fail. Targets keep the timeouts they were planned with.
func (s *Server) Prepare(cfg Config) (commit func(), err error) {
	p, err := Compile(cfg)
	ps := setting.Of(err)
	old := s.policy.Load().cfg
	if cfg.Listen != old.Listen {
		ps.Add("listen", "cannot change while running", "restart Mainstay")
	}
	if cfg.TLS.Listen != old.TLS.Listen {
		ps.Add("tls.listen", "cannot change while running", "restart Mainstay")
	}
	if cfg.Header != old.Header { // net/http has its limit from it
		ps.Add("max_header", "cannot change while running", "restart Mainstay")
	}
	if cfg.Timeouts != old.Timeouts {
		ps.Add("timeouts", "cannot change while running", "restart Mainstay")
	}
	if len(ps) > 0 {
		return nil, ps
	}
	return func() {
		s.policy.Store(p)
		s.valve.Change(p.overload.Rule)
	}, nil
}

// maxTries bounds how many targets one request may be tried on.
const maxTries = 3

// ServeHTTP is a request's whole life.
func (s *Server) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	x := telemetry.Begin("edge")
	s.requests.Add(1)
	l := s.adapt(w, hr, x)
	defer s.record(l)

	p := s.policy.Load()
	p.route(&l.Request)
	s.identify(hr.Context(), &l.Request)
	code := p.admit(&l.Request)
	if code == OK {
		code = s.limit(hr.Context(), &l.Request)
	}
	if code == OK {
		code = l.gather()
	}
	if code != OK {
		l.decline(code, nil)
		return
	}
	var tried []*target
	for {
		t, code := s.claim(hr.Context(), &l.Request, tried)
		if code == OK {
			code = l.enter(hr.Context(), t)
		}
		if code != OK {
			l.decline(lastCause(code, l), nil)
			return
		}
		code, err := l.forward(t)
		if len(tried) < maxTries-1 && l.again(code, err) {
			l.cause, l.why, tried = err, code, append(tried, t)
			continue
		}
		if code != OK {
			l.decline(code, err)
		}
		return
	}
}

// decline ends a request that the app does not answer: by an answer that is kept, if
// the ladder has that step and there is one, or else by a refusal.
func (l *lane) decline(code Code, err error) {
	if !l.instead(code, err) {
		l.refuse(code, err)
	}
}

// lastCause keeps "the app does not accept connections" from turning into "no
// target" when all targets were tried in vain.
func lastCause(code Code, l *lane) Code {
	if code == NoTarget && l.why != "" {
		return l.why
	}
	return code
}

// gone is the code of a request whose context has ended: its client hung up, or
// the edge cut it.
func (s *Server) gone() Code {
	if s.cutting.Load() {
		return Stopping
	}
	return ClientGone
}

// Run serves until ctx ends, then stops accepting, lets requests in flight finish
// within edge.drain, and cuts what is left. It returns when all has ended.
func (s *Server) Run(ctx context.Context) error {
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var servers []*http.Server
	served := make(chan error, 2)
	serve := func(ln net.Listener, secure bool) {
		srv := s.server(base, secure)
		servers = append(servers, srv)
		go func() {
			if secure {
				served <- srv.ServeTLS(deadline.Listen(ln), "", "")
			} else {
				served <- srv.Serve(deadline.Listen(ln))
			}
		}()
	}
	if s.deps.Listener != nil {
		serve(s.deps.Listener, false)
	}
	if s.deps.TLS != nil {
		serve(s.deps.TLS, true)
	}
	var err error
	running := len(servers)
	select {
	case err = <-served:
		running--
	case <-ctx.Done():
	}
	err = errors.Join(err, s.drain(ctx, servers, cut))
	for range running {
		if e := <-served; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}
	s.end()
	s.mirrors.Wait()
	for _, sh := range s.plan.Load().shares {
		sh.transport.CloseIdleConnections()
	}
	return err
}

// drain ends the servers: first kindly, then, when the limit is reached, by
// cutting. http.Server does not wait for tunnels, so the count of requests does.
func (s *Server) drain(ctx context.Context, servers []*http.Server, cut func()) error {
	limit := s.policy.Load().cfg.Drain
	if n := s.requests.Load(); n > 0 {
		s.deps.Log.Info("draining", "requests", n, "limit", limit)
	}
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	s.streams.End(limit / 2)
	done := make(chan error, len(servers))
	for _, srv := range servers {
		go func() { done <- srv.Shutdown(dctx) }()
	}
	var late error
	for range servers {
		late = errors.Join(late, <-done)
	}
	s.awaitIdle(dctx)
	if s.streams.Last() > 0 {
		told, cancel := context.WithTimeout(context.WithoutCancel(ctx), parting)
		s.awaitIdle(told)
		cancel()
	}
	if open := s.requests.Load(); open > 0 || late != nil {
		s.deps.Log.Warn("drain limit reached; cutting what is left", "requests", open, "limit", limit)
		s.cutting.Store(true)
		cut()
		for _, srv := range servers {
			srv.Close()
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		s.awaitIdle(last)
	}
	return nil
}

// awaitIdle returns when no request is in flight or ctx ends.
func (s *Server) awaitIdle(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.requests.Load() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// server builds the http.Server of one listener. Its own WriteTimeout and
// ReadTimeout stay off, since they would end streams; lane.go sets deadlines that
// move with progress instead.
func (s *Server) server(base context.Context, secure bool) *http.Server {
	c := s.policy.Load().cfg
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	if secure {
		protocols.SetHTTP2(true)
	} else {
		protocols.SetUnencryptedHTTP2(true)
	}
	srv := &http.Server{
		Handler:   s,
		Protocols: protocols,
		// OPTIONS * is the app's to answer, as every request is.
		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return base },
		ReadHeaderTimeout:            c.Timeouts.Header,
		IdleTimeout:                  c.Timeouts.Idle,
		// net/http answers beyond this on its own, without our code and id; twice
		// the limit leaves admit to answer what is only somewhat too large.
		MaxHeaderBytes: 2 * int(c.Header),
		// A failed handshake or a client that speaks no HTTP is the clients' noise.
		ErrorLog: slog.NewLogLogger(s.deps.Log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250,
			SendPingTimeout:      c.Timeouts.Idle / 2,
			WriteByteTimeout:     c.Timeouts.Write,
		},
	}
	if secure {
		srv.TLSConfig = &tls.Config{
			MinVersion: tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return s.policy.Load().cert, nil // a reload brings a new one
			},
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				return s.policy.Load().mutual, nil // nil: this one stands
			},
		}
	}
	return srv
}
