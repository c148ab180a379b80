// Package pooler is the PostgreSQL plane: clients connect to it as to PostgreSQL,
// and it lets many of them share few server connections.
//
// A query lives the life that all planes share, and the files are named for its
// steps: serve.go tells it whole, admit.go, route.go, claim.go, forward.go and
// record.go hold the steps. Message bodies are relayed unparsed. A client's text is
// looked at for two things only: the trace context in its last comment, and a few
// words that betray what a statement leaves behind on its connection.
//
// Programs may import it to run the pooler by themselves; in the binary,
// internal/app does. It knows neither the other planes nor Prometheus or
// OpenTelemetry: what happens is told to a telemetry.Sink.
package pooler

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/pooler/internal/census"
	"mainstay.dev/mainstay/pooler/internal/credential"
	"mainstay.dev/mainstay/pooler/internal/directory"
	"mainstay.dev/mainstay/pooler/internal/fingerprint"
	"mainstay.dev/mainstay/pooler/internal/hba"
	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/throttle"
	"mainstay.dev/mainstay/pooler/internal/upstream"
	"mainstay.dev/mainstay/telemetry"
)

// plane is the word for the pooler in an exchange.
const plane = "pooler"

// A Grant is a credential that Mainstay made for one color of the app, so that
// queries are known by color.
type Grant struct {
	User     string
	Secret   setting.Secret // generated, 128 random bits or more
	Database string         // the only one it opens; "": any
	Color    string
}

// Deps is what a pooler needs from outside.
type Deps struct {
	Listener net.Listener
	// Dial opens connections to PostgreSQL; nil: net.Dialer's.
	Dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	Log    *slog.Logger   // nil: nothing is logged
	Sink   telemetry.Sink // nil: telemetry.Discard
	Grants []Grant
	loops  *loop.Group
}

func (d *Deps) setDefaults() {
	if d.Dial == nil {
		d.Dial = (&net.Dialer{}).DialContext
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Sink == nil {
		d.Sink = telemetry.Discard
	}
}

// A Server serves PostgreSQL clients on one listener.
type Server struct {
	deps    Deps
	listen  string
	policy  atomic.Pointer[policy]
	guesses throttle.Throttle
	shapes  *fingerprint.Table
	slow    slowness
	loops   *loop.Group
	doom    []byte // makes the answers to unknown users look like others

	away     atomic.Int32   // clients that are turned away at leisure
	ended    sync.WaitGroup // sessions
	orders   sync.Mutex     // over an order to pools, and over their replacement; before mu
	mu       sync.Mutex
	ctx      context.Context // of the pools; nil before Run
	sessions map[uint32]*session
	inside   population // of those that are logged in
	lastID   uint32

	came, cameBefore, trimmed uint64 // connections so far, when trim looked last, and when it trimmed last
	stopping                  bool
	retired                   []*pool // replaced, but not empty yet
}

// A policy is a configuration in the form in which it is obeyed. It is immutable.
type policy struct {
	config         Config
	accounts       map[string]account
	rules          *hba.Rules
	tls            *tls.Config // nil: not offered
	binding        []byte      // of logins to our certificate; nil: not offered
	targets        map[string]*upstream.Target
	hosts, tenants map[string]string    // to databases
	directory      *directory.Directory // nil: nobody needs it
	verifiers      bool                 // some secrets are known by their SCRAM verifier alone
	pools          map[string]*pool     // of a running pooler, by the database's name
}

// An account is somebody who may log in.
type account struct {
	credential *credential.Credential
	quick      *credential.Credential // the same secret with a cheaper check; nil: none
	database   string                 // the only one; "": any
	color      string
}

// admitGrants adds the credentials of the app's colors.
func (p *policy) admitGrants(grants []Grant) error {
	for _, g := range grants {
		if _, taken := p.accounts[g.User]; taken {
			return fmt.Errorf("grant: two credentials for user %q", g.User)
		}
		full, err1 := credential.New(g.User, g.Secret.Reveal(), credential.Human)
		quick, err2 := credential.New(g.User, g.Secret.Reveal(), credential.Generated)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("grant for user %q: %w", g.User, err)
		}
		p.accounts[g.User] = account{full, quick, g.Database, g.Color}
	}
	return nil
}

// New validates and wires; it starts nothing. An error is a setting.Problems if the
// configuration is at fault.
func New(cfg Config, deps Deps) (*Server, error) {
	deps.setDefaults()
	var err error
	if deps.loops, err = loop.New(); err != nil {
		return nil, fmt.Errorf("pooler: %w", err)
	}
	if deps.Listener == nil {
		return nil, errors.New("pooler: needs a listener")
	}
	p := &Server{deps: deps, loops: deps.loops, listen: cfg.Listen, doom: make([]byte, 32), shapes: fingerprint.NewTable(), sessions: map[uint32]*session{}}
	if _, err := rand.Read(p.doom); err != nil {
		return nil, err
	}
	commit, err := p.Prepare(cfg)
	if err != nil {
		return nil, err
	}
	commit()
	return p, nil
}

// Prepare compiles another configuration. Nothing changes until commit is called,
// which cannot fail: from then on new logins and claims obey it. A pool whose
// upstream stays the same stays, with its connections; others are replaced, and
// their sessions move on at the end of their transactions. One call at a time.
func (p *Server) Prepare(cfg Config) (commit func(), err error) {
	next, err := Compile(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Listen != p.listen {
		var ps setting.Problems
		ps.Add("listen", "cannot change while Mainstay runs", "restart it")
		return nil, ps
	}
	if err := next.admitGrants(p.deps.Grants); err != nil {
		return nil, err
	}
	old := p.policy.Load()
	kept := map[*pool]*Database{}
	for name, d := range cfg.Databases {
		if old != nil && old.pools[name] != nil && samePool(old.config.Databases[name], d) && old.targets[name].SameFiles(next.targets[name]) {
			next.pools[name] = old.pools[name]
			kept[old.pools[name]] = &d
			continue
		}
		next.pools[name] = newPool(name, &d, next.targets[name], p.deps)
	}
	return func() { p.commit(old, next, kept) }, nil
}

// samePool reports whether a pool can go on with another configuration.
func samePool(a, b Database) bool {
	return a.Upstream == b.Upstream && a.Mode == b.Mode && a.Login == b.Login && a.StatementTimeout == b.StatementTimeout
}

func (p *Server) commit(old, next *policy, kept map[*pool]*Database) {
	for pool, d := range kept {
		pool.configure(d)
	}
	var gone []*pool
	p.orders.Lock()
	if old != nil {
		for name, pool := range old.pools {
			if kept[pool] == nil {
				gone = append(gone, pool)
				next.pools[name].pauseAs(pool.pausedNow())
			}
		}
	}
	p.mu.Lock()
	ctx := p.ctx
	p.policy.Store(next)
	p.slow.plans.Store(next.config.Slow.Over > 0 && next.config.Slow.Plan)
	p.retired = append(p.retired, gone...)
	p.mu.Unlock()
	p.orders.Unlock()
	for _, pool := range gone {
		pool.retire()
	}
	if ctx != nil {
		for _, pool := range next.pools {
			pool.start(ctx)
		}
	}
	if old != nil {
		old.directory.Close() // last, and without the lock, which every client needs: it may take a while
	}
}

// Run serves until ctx ends. Then idle clients are told SQLSTATE 57P01, open
// transactions may finish for as long as the configuration's drain says, and Run
// returns when every connection is closed and everything it started has ended.
func (p *Server) Run(ctx context.Context) error {
	// The pools outlive ctx: open transactions may need them.
	poolCtx, endPools := context.WithCancel(context.WithoutCancel(ctx))
	defer endPools()
	p.mu.Lock()
	p.ctx = poolCtx
	pools := p.policy.Load().pools
	p.mu.Unlock()
	for _, pool := range pools {
		pool.start(poolCtx)
	}
	loopCtx, endLoops := context.WithCancel(context.WithoutCancel(ctx))
	var background sync.WaitGroup
	background.Go(func() { p.sweep(poolCtx) })
	background.Go(func() { p.loops.Run(loopCtx) })

	stopAccepting := context.AfterFunc(ctx, func() { p.deps.Listener.Close() })
	p.accept(ctx)
	stopAccepting()
	p.deps.Listener.Close()
	p.drain()

	endPools()
	p.policy.Load().directory.Close()
	for _, pool := range p.allPools() {
		pool.retire()
		pool.opening.Wait()
	}
	endLoops()
	background.Wait()
	return nil
}

// allPools lists the pools of the policy and those that it replaced.
func (p *Server) allPools() []*pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := append([]*pool(nil), p.retired...)
	for _, pool := range p.policy.Load().pools {
		all = append(all, pool)
	}
	for _, pool := range all {
		all = append(all, pool.family()...)
	}
	return all
}

// sweep looks every pool over, until ctx ends.
func (p *Server) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	turn := time.NewTicker(seenFor)
	defer turn.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-turn.C:
			p.shapes.Turn()
			continue
		case <-tick.C:
		}
		p.trim()
		stall := p.policy.Load().config.StallTimeout
		for _, pool := range p.allPools() {
			pool.sweep(stall)
		}
		p.mu.Lock()
		keep := p.retired[:0]
		for _, pool := range p.retired {
			if !pool.gone() {
				keep = append(keep, pool)
			}
		}
		clear(p.retired[len(keep):])
		p.retired = keep
		p.mu.Unlock()
	}
}

// multitude is how many clients have to come before memory is given back.
const multitude = 500

// trim gives memory that many logins have used back to the system, once no more come:
// clients that rest may do so for long. The sweep calls it.
func (p *Server) trim() {
	p.mu.Lock()
	came := p.came
	more := came != p.cameBefore
	p.cameBefore = came
	due := !more && came-p.trimmed >= multitude
	if due {
		p.trimmed = came
	}
	p.mu.Unlock()
	if due {
		debug.FreeOSMemory()
	}
}

// spare is how many connections beyond max_clients may be logging in, so that they
// can be told why they are refused, and so that cancel requests get through.
const spare = 64

// A population counts the clients that are logged in.
type population struct {
	all              int
	users, databases census.Names
}

// count lets a client in, if there is room for it.
func (p *Server) count(s *session, policy *policy) error {
	cfg := &policy.config
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.inside
	switch most := cfg.Databases[s.database].MaxClients; {
	case c.all >= cfg.MaxClients:
		return end(TooManyClients, fmt.Sprintf("%d clients are connected already", c.all), "raise pooler.max_clients")
	case cfg.UserClients > 0 && c.users.Count(s.user) >= cfg.UserClients:
		return end(TooManyClients, fmt.Sprintf("%d clients of user %q are connected already", c.users.Count(s.user), s.user), "raise pooler.user_clients")
	case most > 0 && c.databases.Count(s.database) >= most:
		return end(TooManyClients, fmt.Sprintf("%d clients of database %q are connected already", most, s.database),
			fmt.Sprintf("raise pooler.databases.%s.max_clients", s.database))
	}
	c.all++
	s.user, s.database = c.users.Enter(s.user), c.databases.Enter(s.database)
	s.counted = true
	return nil
}

// drop forgets a client that was let in.
func (c *population) drop(s *session) {
	c.all--
	c.users.Leave(s.user)
	c.databases.Leave(s.database)
}

// accept starts a session for each connection, until ctx ends or the listener is closed.
func (p *Server) accept(ctx context.Context) {
	if ln := p.loops.Listen(p.deps.Listener, p.arrived, p.unaccepted); ln != nil {
		<-ctx.Done()
		ln.Close()
		return
	}
	pause := time.Duration(0)
	for {
		conn, err := p.deps.Listener.Accept()
		switch {
		case err == nil:
			pause = 0
			sock := p.loops.Adopt(conn)
			if sock != nil {
				conn = sock
			}
			if s := newSession(p, conn, sock); p.enter(s) {
				go s.goOn(atLogin)
			} else {
				go p.turnAway(conn)
			}
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default: // out of file descriptors, most likely: it passes
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			p.unaccepted(err, pause)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}

// unaccepted tells that the system gives no more connections, for now.
func (p *Server) unaccepted(err error, pause time.Duration) {
	p.deps.Log.Error("accept a client", "err", err, "pause", pause)
}

// arrived starts a session that the event loops serve.
func (p *Server) arrived(w *loop.Worker, sock *loop.Conn) {
	s := newSession(p, sock, sock)
	if !p.enter(s) {
		go p.turnAway(sock)
		return
	}
	s.arrive(w)
}

// firstID is the least id of a session. Clients take it for their server's process
// id, so it must be none that a process may have: Linux's end at 1<<22.
const firstID = 1<<22 + 1

// enter registers a session under a key of its own; false if there are too many.
func (p *Server) enter(s *session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Those that are not logged in yet have a limit of their own, so that they can't
	// shut others out.
	if p.stopping || len(p.sessions)-p.inside.all >= p.policy.Load().config.MaxClients+spare {
		return false
	}
	for {
		p.lastID++
		if p.lastID < firstID || p.lastID > math.MaxInt32 {
			p.lastID = firstID
		}
		if _, taken := p.sessions[p.lastID]; !taken {
			break
		}
	}
	s.id = p.lastID
	p.came++
	p.sessions[s.id] = s
	p.ended.Add(1)
	return true
}

func (p *Server) leave(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, s.id)
	if s.counted {
		p.inside.drop(s)
	}
}

// drain ends the sessions: the idle ones now, the others when their transaction
// ends or the configuration's patience does.
func (p *Server) drain() {
	p.tell(draining)
	limit := time.AfterFunc(p.policy.Load().config.Drain, func() { p.tell(killed) })
	defer limit.Stop()
	p.ended.Wait()
}

func (p *Server) tell(what stage) {
	p.mu.Lock()
	p.stopping = true
	all := make([]*session, 0, len(p.sessions))
	for _, s := range p.sessions {
		all = append(all, s)
	}
	p.mu.Unlock()
	for _, s := range all {
		s.tell(what)
	}
}

// panicked is called where a session has met a bug, with or without its lock, which must not end the others: they wait for that
// lock, to list the sessions or to watch over them. It returns how the session ends.
func (s *session) panicked(v any) error {
	s.pooler.deps.Log.Error("panic in a session", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	free := false
	for tries := 0; tries < 100 && !free; tries++ {
		if free = s.mu.TryLock(); !free {
			time.Sleep(10 * time.Millisecond) // others have it for an instant
		}
	}
	if b := s.backend; b != nil {
		b.broken.Store(true) // nobody knows how far it came
	}
	s.mu.Unlock()
	return end(Internal, "internal error of Mainstay", "see Mainstay's log")
}
