package pooler

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/explain"
	"mainstay.dev/mainstay/pooler/internal/fair"
	"mainstay.dev/mainstay/pooler/internal/hub"
	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/memo"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/pooler/internal/upstream"
	"mainstay.dev/mainstay/telemetry"
)

// A pool is the server connections of one database, and the queue for them. A
// reload keeps it as long as the server that it leads to stays the same, and
// retires it otherwise.
type pool struct {
	name   string
	config atomic.Pointer[Database] // limits may change with a reload
	target *upstream.Target
	dial   upstream.Dial
	loops  *loop.Group
	log    *slog.Logger
	sink   telemetry.Sink

	statements registry
	strange    atomic.Bool // its connections are nothing for the event loops
	hub        *hub.Hub
	settings   state.Table
	sequences  atomic.Bool   // some client asks for sequences' last values
	opaque     atomic.Bool   // some client may have set what nobody can name
	wiped      atomic.Uint64 // servers that were led back for that, before another client got them
	brief      audit.Brief   // hashes of what its servers have set
	hidden     hidden
	texts      *memo.Table[harmless] // those that were read

	opening sync.WaitGroup // dials under way, and closings
	asking  chan struct{}  // who is in there asks PostgreSQL on a connection beside the pool's

	mu        sync.Mutex
	ctx       context.Context // nil before Run: nothing is opened yet; its end interrupts dials
	all       map[*backend]struct{}
	idle      []*backend // used last at the end
	dialing   int
	line      *fair.Line[*waiter] // who waits, and who may have how many
	stretched bool                // the reserve is in use
	outage    *outage             // nil: the last attempt to connect went well
	paused    *pause              // nil: it serves
	renewed   time.Time           // servers that are older are not used again
	retired   bool
	parent    *pool              // of a member
	occupied  atomic.Int64       // connections of all members
	members   map[string][]*pool // by user, one for each login's keys, where each client logs in as itself

	base    string            // what a new connection reports, rendered
	welcome map[string][]byte // what clients are told at login, by the key of their settings
}

// An outage is a time in which PostgreSQL accepts no connection.
type outage struct {
	began   time.Time
	err     error // of the last attempt
	tries   int
	again   time.Time // no attempt before
	clear   bool      // the reason is one that waiting does not mend
	patient time.Duration
}

// told reports whether clients are to be told at once.
func (o *outage) told() bool { return o.clear || time.Since(o.began) >= o.patient }

func newPool(name string, d *Database, target *upstream.Target, deps Deps) *pool {
	p := &pool{
		name: name, target: target, dial: deps.Dial, loops: deps.loops, log: deps.Log, sink: deps.Sink,
		all: map[*backend]struct{}{}, welcome: map[string][]byte{}, texts: memo.New[harmless](), asking: make(chan struct{}, 1),
	}
	p.hidden.looks = audit.NewLooks()
	p.hub = hub.New(hub.Deps{
		Dial: p.dialListener, Go: p.opening.Go, Paused: p.waits, Report: p.report,
	})
	p.config.Store(d)
	p.line = fair.New[*waiter](d.Pool.Max, d.Pool.share, d.Pool.named())
	return p
}

// configure changes the limits. Nothing is taken away from anybody.
func (p *pool) configure(d *Database) {
	p.mu.Lock()
	p.config.Store(d)
	p.line.Allot(p.room(), d.Pool.share, d.Pool.named())
	p.distribute()
	p.grow(0)
	p.mu.Unlock()
	for _, m := range p.family() { // those that come from now on are made after it
		m.configure(ofMember(d))
	}
}

func (p *pool) limits() *Pool       { return &p.config.Load().Pool }
func (p *pool) resetAlways() bool   { return p.config.Load().Reset == resetAlways }
func (p *pool) sessions() bool      { return p.config.Load().Mode == modeSession }
func (p *pool) statementMode() bool { return p.config.Load().Mode == modeStatement }
func (p *pool) laned() bool         { return !p.sessions() && !p.strange.Load() }

// start lets the pool open connections, from now until ctx ends.
func (p *pool) start(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx == nil {
		p.ctx = ctx
		p.grow(0)
	}
}

// open connects to the server and hands the connection out.
func (p *pool) open(limit time.Duration) {
	defer p.opening.Done()
	if own := p.target.ConnectTimeout; own > 0 {
		limit = own
	}
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	began := time.Now()
	conn, err := p.target.Connect(ctx, p.dialLoop)
	var b *backend
	if err == nil {
		b = newBackend(p, conn)
		if err = b.learnHidden(); err != nil {
			b.close()
		}
	}
	if !p.opened(b, err, began) {
		b.close()
	}
}

// dialLoop opens a connection for the event loops.
func (p *pool) dialLoop(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := p.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if sock := p.loops.Adopt(conn); sock != nil {
		return sock, nil
	}
	return conn, nil
}

// opened notes how an attempt to connect went; false means that the server is not
// wanted any more.
func (p *pool) opened(b *backend, err error, began time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dialing--
	if err != nil {
		p.vacate()
		p.fail(err)
		return true
	}
	p.recover()
	if p.retired || began.Before(p.renewed) {
		p.vacate()
		p.grow(0)
		return false
	}
	p.learn(b.Params)
	p.strange.Store(b.sock == nil)
	p.all[b] = struct{}{}
	p.hand(b, time.Now(), nil)
	p.grow(0)
	return true
}

// Waits between attempts to connect during an outage. They grow with the attempts,
// and slowly with the outage's age.
const (
	firstAgain = 20 * time.Millisecond
	soonAgain  = 500 * time.Millisecond
	lastAgain  = 5 * time.Second
)

// wait is how long to leave the server alone after an attempt.
func (o *outage) wait() time.Duration {
	longest := min(max(soonAgain, time.Since(o.began)/20), lastAgain)
	return min(firstAgain<<min(o.tries, 10), longest)
}

// fail notes that PostgreSQL accepted no connection, and tells those who wait if
// there is no hope for them. The lock is held.
func (p *pool) fail(err error) {
	if p.retired || p.ctx.Err() != nil {
		return
	}
	if p.outage == nil {
		p.outage = &outage{began: time.Now(), patient: p.limits().OutageWait}
		p.report(slog.LevelWarn, "upstream_unreachable", "PostgreSQL accepts no connection", err)
	}
	o := p.outage
	o.err, o.clear = err, !upstream.Passing(err)
	o.again = time.Now().Add(o.wait())
	o.tries++
	if len(p.all) > 0 || !o.told() {
		return // a connection in use may come back, or the server
	}
	p.dismiss(p.unreachable(err))
}

// recover notes that PostgreSQL accepts connections. The lock is held.
func (p *pool) recover() {
	if p.outage != nil {
		p.outage = nil
		p.report(slog.LevelInfo, "upstream_back", "PostgreSQL accepts connections again", nil)
	}
}

func (p *pool) report(level slog.Level, name, text string, err error) {
	attrs := []slog.Attr{slog.String("database", p.name), slog.String("upstream", p.target.String())}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	p.sink.Emit(telemetry.Event{Time: time.Now(), Part: "pooler", Name: name, Level: level, Text: text, Attrs: attrs})
}

// learn notes what a new connection reports. If that differs from earlier ones, the
// server has changed, and what clients are told is made anew. The lock is held.
func (p *pool) learn(params []pgwire.Param) {
	var text []byte
	for _, param := range params {
		text = pgwire.AppendParameter(text, param.Name, param.Value)
	}
	if base := string(text); base != p.base {
		p.base = base
		clear(p.welcome)
		p.welcome[""] = text
	}
}

// maxWelcomes bounds how many sets of settings the pool remembers the answer for.
const maxWelcomes = 256

// greet returns the parameters that a client with these settings is told at login.
// If they are not known yet, it claims a server and asks.
func (p *pool) greet(s *session) ([]byte, error) {
	p.mu.Lock()
	known := p.welcome[s.settings.Key()]
	p.mu.Unlock()
	if known != nil {
		return known, nil
	}
	b, err := p.claim(s)
	for tries := 0; err == nil; tries++ {
		if err = b.suit(s.settings); err == nil {
			break
		}
		p.release(b) // which drops one that has gone astray
		if !errors.Is(err, errAstray) || tries == maxAstray {
			return nil, unsuited(err)
		}
		b, err = p.claim(s)
	}
	if err != nil {
		return nil, err
	}
	defer p.release(b)
	var text []byte
	for _, param := range b.reports.All() {
		text = pgwire.AppendParameter(text, param.Name, param.Value)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.welcome) >= maxWelcomes {
		clear(p.welcome)
	}
	p.welcome[s.settings.Key()] = text
	return text, nil
}

// unlearn forgets what clients with these settings are told at login: the server, which
// has refused settings, is to be asked at the next login, before a server is lost again.
func (p *pool) unlearn(login *state.Settings) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if login != state.None {
		delete(p.welcome, login.Key())
	}
}

// retire ends the pool: idle servers close now, lent ones when they come back, and
// whoever waits is sent to look for the database again.
func (p *pool) retire() {
	p.mu.Lock()
	p.retired = true
	idle := p.idle
	p.idle = nil
	for _, b := range idle {
		delete(p.all, b)
		p.vacate()
	}
	p.dismiss(errRetired)
	p.mu.Unlock()
	for _, m := range p.family() { // those that come from now on are retired
		m.retire()
	}
	for _, b := range idle {
		b.close()
	}
	for _, c := range p.hub.Clients() {
		c.(listener).expel(errLost(p.name)) // they have to listen again, where the database is now
	}
}

// dialListener opens the connection that listens for all clients.
func (p *pool) dialListener(ctx context.Context) (*upstream.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.limits().ConnectTimeout)
	defer cancel()
	return p.target.Only("application_name=mainstay listen", "client_encoding=UTF8").Connect(ctx, p.dial)
}

// waits reports whether no connection is to be opened now.
func (p *pool) waits() bool { return p.pausedNow() != nil }

// pausedNow is the pause that there is, if there is one.
func (p *pool) pausedNow() *pause {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused
}

// context ends with the pooler; what is open longer delays its end.
func (p *pool) context() context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ctx
}

// gone reports whether a retired pool holds nothing any more.
func (p *pool) gone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, of := range p.members {
		for _, m := range of {
			if !m.gone() {
				return false
			}
		}
	}
	return p.retired && len(p.all) == 0 && p.dialing == 0 && p.hub.Idle()
}

// sweepEvery is how often a pool is looked over. It is also how long a session is
// trusted to do one thing at a time: what takes longer is watched from both sides.
const sweepEvery = 100 * time.Millisecond

// sweep looks a pool over: idle servers that died or grew old go, those below the
// minimum come, and sessions that are busy for long are watched.
func (p *pool) sweep(stall time.Duration) {
	p.prune()
	p.mu.Lock()
	now := time.Now()
	dead := p.sweepIdle(now)
	var slow []*session
	held := p.held()
	for _, l := range held {
		if turn := l.holder.turn.Load(); l.server.turn == turn {
			slow = append(slow, l.holder)
		} else {
			l.server.turn = turn
		}
	}
	var left, late []*waiter
	limit := p.limits().AcquireTimeout
	p.line.Each(func(place *fair.Place[*waiter]) bool {
		switch w := place.Value; {
		case w.owner.left():
			left = append(left, w)
		case w.parked && now.Sub(place.Since) >= limit: // others have a timer
			late = append(late, w)
		}
		return true
	})
	p.stretch(now)
	p.distribute()
	p.grow(0)
	p.mu.Unlock()
	for _, b := range dead {
		p.dropIdle(b)
	}
	for _, w := range left {
		p.withdraw(w, errGone)
	}
	for _, w := range late {
		p.withdraw(w, p.exhausted(w))
	}
	for _, s := range slow {
		s.watch(stall)
	}
	for _, l := range held {
		p.enforce(l, now)
	}
}

// stretch opens the reserve when somebody has waited for long, and closes it when
// nobody waits any more. The lock is held.
func (p *pool) stretch(now time.Time) {
	limits := p.limits()
	switch oldest := p.line.Oldest(); {
	case oldest == nil:
		p.stretched = false
	case limits.Reserve > 0 && now.Sub(oldest.Since) >= limits.ReserveAfter:
		p.stretched = true
	}
	p.line.Resize(p.room())
}

// sweepIdle takes idle servers out that must not be used again, or need not be
// kept. The lock is held.
func (p *pool) sweepIdle(now time.Time) (out []*backend) {
	limits := p.limits()
	keep := p.idle[:0]
	total := len(p.all)
	for _, b := range p.idle { // those that were used longest ago come first
		unused := total > limits.Min && now.Sub(b.since) > limits.IdleTimeout
		talks := false
		if b.probe != nil {
			talks, _ = b.probe.Look()
		}
		if unused || talks || p.stale(b, now) || total > p.room() {
			total--
			out = append(out, b)
			continue
		}
		keep = append(keep, b)
	}
	clear(p.idle[len(keep):])
	p.idle = keep
	return out
}

// dropIdle closes a server that the sweep took out, unless it only said something
// that means no harm.
func (p *pool) dropIdle(b *backend) {
	limits := p.limits()
	p.mu.Lock()
	now := time.Now()
	unneeded := p.retired || p.stale(b, now) || len(p.all) > p.room() ||
		len(p.all) > limits.Min && now.Sub(b.since) > limits.IdleTimeout
	p.mu.Unlock()
	if unneeded || !b.fresh() {
		p.drop(b)
		return
	}
	p.release(b)
}

// unlessPanic is deferred where no session has the server, and none waits for it yet: a bug met there must not keep a place in
// the pool for good.
func (s *backend) unlessPanic() {
	if v := recover(); v != nil {
		s.pool.drop(s)
		panic(v) // where it was met is still on the stack
	}
}

// age is how old this server may become: up to a tenth less than the limit, so that
// those that were opened together are not replaced together.
func (s *backend) age(limit time.Duration) time.Duration {
	return limit - time.Duration(s.spread*float64(limit)/10)
}

// typesOf asks for the types of a statement's parameters, one session at a time: a database's limit is passed by one
// connection at most.
func (p *pool) typesOf(settings string, body []byte) ([]uint32, error) {
	ctx, cancel := context.WithTimeout(p.context(), p.limits().ConnectTimeout)
	defer cancel()
	select {
	case p.home().asking <- struct{}{}:
		defer func() { <-p.home().asking }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return explain.Types(ctx, p.target, p.dial, settings, body)
}
