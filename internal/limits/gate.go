package limits

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/telemetry"
)

// Deps is what a Gate works with. The zero value is a gate that counts in this
// process and tells nobody.
type Deps struct {
	Store ratelimit.Store // shared by several nodes; nil: this process counts alone
	Nodes func() int      // live nodes that share the limits; nil: one
	Board Board           // shares grants with other nodes; nil: this node has its own
	Dir   string          // where grants and the audit log are kept; "": nowhere
	Log   *slog.Logger
	Sink  telemetry.Sink
}

// A Gate is the policy in force with the counters behind it: the one place that
// edge, claude and limits/check ask. Its methods may be called from several
// goroutines.
type Gate struct {
	deps   Deps
	policy atomic.Pointer[Policy]
	shield *ratelimit.Shield                       // nil: in process
	memory *ratelimit.Memory                       // nil: shared
	stores [ratelimit.FailDeny + 1]ratelimit.Store // by what to do when the shared one fails
	tallies
	seen     seen
	lines    lines
	granting granting
	audit    audit
	granted  atomic.Pointer[grants]
	settling chan settlement
	fellows  fellows
	moved    atomic.Bool // something was counted since it was written down
}

// NewGate checks cfg and wires; it starts nothing.
func NewGate(cfg Config, d Deps) (*Gate, error) {
	p, err := Compile(cfg)
	if err != nil {
		return nil, err
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Sink == nil {
		d.Sink = telemetry.Discard
	}
	g := &Gate{deps: d, settling: make(chan settlement, maxSettling)}
	g.policy.Store(p)
	g.counts.Store(tally{"none", cfg.DefaultTier, allowed}, new(atomic.Uint64)) // so that the metric is there from the start
	g.granted.Store(&grants{})
	g.seen.seed, g.lines.seed, g.audit.dir = maphash.MakeSeed(), maphash.MakeSeed(), d.Dir
	if err := g.loadGrants(); err != nil {
		return nil, err
	}
	if d.Store == nil {
		g.memory = ratelimit.NewMemory(int64(cfg.Memory))
		g.loadCounters(g.memory)
		for f := range g.stores {
			g.stores[f] = g.memory
		}
		return g, nil
	}
	g.shield = ratelimit.NewShield(d.Store, ratelimit.ShieldOptions{
		Timeout: cfg.StoreTimeout, Memory: int64(cfg.Memory), Nodes: d.Nodes, Changed: g.storeChanged,
	})
	for f := range g.stores {
		g.stores[f] = g.shield.On(ratelimit.Failure(f))
	}
	return g, nil
}

// Prepare compiles a new configuration. Nothing changes until commit is called,
// and commit cannot fail. Counters stay.
func (g *Gate) Prepare(cfg Config) (commit func(), err error) {
	p, err := Compile(cfg)
	ps := setting.Of(err)
	old := g.policy.Load().cfg
	if cfg.StoreTimeout != old.StoreTimeout {
		ps.Add("store_timeout", "cannot change while running", "restart Mainstay")
	}
	if cfg.Memory != old.Memory {
		ps.Add("memory", "cannot change while running", "restart Mainstay")
	}
	if was, is := old.Degrade.Stale, cfg.Degrade.Stale; was.Memory != is.Memory || was.Largest != is.Largest {
		ps.Add("degrade.stale", "memory and largest cannot change while running", "restart Mainstay")
	}
	if len(ps) > 0 {
		return nil, ps
	}
	return func() {
		g.policy.Store(p)
		g.compared(old.Overrides, cfg.Overrides)
	}, nil
}

// settlers is how many corrections of costs are told to the store at once, and
// maxSettling how many may wait; more are told by whoever has them.
const (
	settlers    = 4
	maxSettling = 1024
	settleLimit = time.Second
)

// Run tries a shared store that is down until it is back, and tells it what
// requests really cost. It returns when ctx ends and all is told.
func (g *Gate) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for range settlers {
		running.Go(func() {
			for {
				select {
				case s := <-g.settling:
					g.settle(s)
				case <-ctx.Done():
					for len(g.settling) > 0 {
						select {
						case s := <-g.settling:
							g.settle(s)
						default:
						}
					}
					return
				}
			}
		})
	}
	running.Go(func() { g.tend(ctx) })
	running.Go(func() { g.saveCounters(ctx) })
	var err error
	if g.shield != nil {
		err = g.shield.Run(ctx)
	}
	running.Wait()
	return err
}

func (g *Gate) store(f ratelimit.Failure) ratelimit.Store {
	return g.stores[min(f, ratelimit.FailDeny)]
}

// Admit decides on a. An error means that nothing was decided: ctx ended, or the
// cost makes no sense.
func (g *Gate) Admit(ctx context.Context, a Ask) (Verdict, error) {
	v, err := g.policy.Load().admit(ctx, g.store, a, *g.granted.Load())
	g.move()
	if err != nil {
		if ctx.Err() == nil {
			g.invalid.Add(1)
		}
		return v, err
	}
	if !a.Peek {
		g.queue(ctx, &a, &v)
		g.count(&v)
		g.seen.note(&a, &v)
	}
	return v, nil
}

// A settlement is what is to be told of a request that was admitted.
type settlement struct {
	verdict Verdict
	cost    int64
	what    func(*Verdict, context.Context, Stores) error // nil: cost is what it really took
}

// Charge reads from the app's answer what a request really took, takes the field
// out of it, and has the counters corrected, soon and without making anybody wait.
func (g *Gate) Charge(v *Verdict, h http.Header) {
	name := g.policy.Load().costHeader
	if name == "" || len(h[name]) == 0 {
		return
	}
	value := h[name][0]
	delete(h, name)
	cost, err := strconv.ParseInt(value, 10, 64)
	if err != nil || cost < 0 || cost > ratelimit.MaxUnits {
		g.invalid.Add(1)
		return
	}
	g.Settle(v, cost)
}

// Settle has the counters corrected to what an admitted request really took, soon
// and without making anybody wait.
func (g *Gate) Settle(v *Verdict, cost int64) {
	if v.Allowed && len(v.Rules) > 0 {
		g.later(settlement{verdict: *v, cost: cost})
	}
}

// Refund has all given back that an admitted request took. It makes nobody wait.
func (g *Gate) Refund(v *Verdict) {
	if v.Allowed && len(v.Rules) > 0 {
		g.later(settlement{verdict: *v, what: (*Verdict).Refund})
	}
}

// HasClass reports whether there is a route of that name.
func (g *Gate) HasClass(name string) bool {
	return slices.ContainsFunc(g.policy.Load().routes, func(r route) bool { return r.Name == name })
}

// Release tells that an admitted request has ended. It makes nobody wait.
func (g *Gate) Release(v *Verdict) {
	if v.Allowed && v.leased {
		g.later(settlement{verdict: *v, what: (*Verdict).Release})
	}
}

func (g *Gate) later(s settlement) {
	select {
	case g.settling <- s:
	default:
		g.settle(s)
	}
}

func (g *Gate) move() {
	if !g.moved.Load() {
		g.moved.Store(true)
	}
}

func (g *Gate) settle(s settlement) {
	defer g.move()
	ctx, cancel := context.WithTimeout(context.Background(), settleLimit)
	defer cancel()
	var err error
	if s.what != nil {
		err = s.what(&s.verdict, ctx, g.store)
	} else {
		err = s.verdict.Settle(ctx, g.store, s.cost)
	}
	if err != nil && !errors.Is(err, ratelimit.ErrDown) {
		g.unsettled.Add(1)
	}
}

// storeChanged tells that the shared store went down, or is back.
func (g *Gate) storeChanged(cause error) {
	e := telemetry.Event{Time: time.Now(), Part: "limits", Name: "store_back", Level: slog.LevelInfo,
		Text: "Redis answers again; limits are shared by all nodes."}
	if cause != nil {
		e.Name, e.Level = "store_down", slog.LevelError
		e.Text = "Redis does not answer; limits go on as on_store_failure says."
		e.Attrs = []slog.Attr{slog.String("on_store_failure", g.policy.Load().cfg.OnStoreFailure), slog.Any("err", cause)}
		g.deps.Log.Error("the shared store is down", "err", cause)
	} else {
		g.deps.Log.Info("the shared store is back")
	}
	g.deps.Sink.Emit(e)
}
