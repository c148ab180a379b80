package claude

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/claude/internal/body"
	"mainstay.dev/mainstay/claude/internal/keep"
	"mainstay.dev/mainstay/claude/internal/pace"
	"mainstay.dev/mainstay/claude/internal/price"
	"mainstay.dev/mainstay/claude/internal/routes"
	"mainstay.dev/mainstay/telemetry"
)

// counters are what an engine counts; all may change at any time.
type counters struct {
	inFlight, waiting, streams       atomic.Int64
	calls, attempts, retries, failed atomic.Int64
	replay, answers                  body.Reserve
	holding, resumed                 atomic.Int64
}

// Stats is how the plane stands now, and what it has done since it started.
type Stats struct {
	Upstream    string `json:"upstream"` // scheme and host
	Policy      string `json:"policy"`
	InFlight    int64  `json:"in_flight"`    // calls under way
	Waiting     int64  `json:"waiting"`      // of these, those in a wait before a retry, or held
	Holding     int64  `json:"holding"`      // of these, those that are held until Claude is back
	Shut        int64  `json:"shut"`         // models whose gate is not open
	Streams     int64  `json:"streams"`      // of these, those that stream
	ReplayBytes int64  `json:"replay_bytes"` // memory held for requests that may be sent again
	AnswerBytes int64  `json:"answer_bytes"` // memory held for answers under way, and for those who may attach
	Calls       int64  `json:"calls"`
	Attempts    int64  `json:"attempts"`
	Retries     int64  `json:"retries"`
	Resumed     int64  `json:"resumed"` // streams that another attempt went on with after the client had a part
	Failed      int64  `json:"failed"`  // calls that Claude or Mainstay failed, after all retries

	// Pacing is how Claude's rate limits stand, by key and class of models, the busiest
	// first; at most mostStandings.
	Pacing []pace.Standing `json:"pacing,omitempty"`

	// Routes are the ways that calls may go, in their order, and how they stand.
	Routes []RouteStanding `json:"routes"`

	// Cost is what the calls have cost.
	Cost       price.Books `json:"cost"`
	SpentToday float64     `json:"spent_today_usd"` // UTC; as far as it was kept, from before the start too
	Ceiling    float64     `json:"ceiling_usd"`     // of a day; 0: none
}

// A RouteStanding is how a way stands that calls may go.
type RouteStanding struct {
	Name  string            `json:"name"`
	Host  string            `json:"host"`
	Shut  int64             `json:"shut"`  // models that it fails
	Calls int64             `json:"calls"` // that ended well this way
	Keys  []routes.Standing `json:"keys,omitempty"`
}

// standings are those of the routes.
func (e *engine) standings(p *policy) []RouteStanding {
	all := make([]RouteStanding, 0, len(p.routes))
	for _, r := range p.routes {
		host := r.Host(p.upstream.host)
		shut := e.gates.shut(func(k gateKey) bool { return k.host == host && r.Asks(k.model) })
		all = append(all, RouteStanding{Name: r.Name, Host: host, Shut: shut, Calls: r.Calls(), Keys: r.Standings()})
	}
	return all
}

// routesSay says in a few words how routes and keys stand, where there are any.
func (st Stats) routesSay() (said []string) {
	for _, r := range st.Routes {
		if len(st.Routes) > 1 {
			stand := "fit"
			if r.Shut > 0 {
				stand = "failing"
			}
			said = append(said, fmt.Sprintf("route %s %s (%d calls)", r.Name, stand, r.Calls))
		}
		for _, k := range r.Keys {
			if len(r.Keys) > 1 || k.State != "fit" {
				said = append(said, fmt.Sprintf("key %s/%s %s", r.Name, k.Key, k.State))
			}
		}
	}
	return said
}

// mostStandings bounds what is shown.
const mostStandings = 20

// Summary says in a few words what is out of the ordinary, or worth knowing.
func (st Stats) Summary() string {
	var said []string
	if st.Shut > 0 {
		said = append(said, fmt.Sprintf("Claude is failing: %d calls are held", st.Holding))
	}
	said = append(said, st.routesSay()...)
	if waiting, _ := queued(st.Pacing); waiting > 0 {
		said = append(said, fmt.Sprintf("%d calls wait for a rate limit", waiting))
	}
	if name, used := busiest(st.Pacing); used > 0 {
		said = append(said, fmt.Sprintf("%.0f%% of %s used", 100*used, name))
	}
	switch {
	case st.Ceiling > 0:
		said = append(said, fmt.Sprintf("$%.2f of $%.2f spent today", st.SpentToday, st.Ceiling))
	case st.Cost.Dollars > 0:
		said = append(said, fmt.Sprintf("$%.2f since the start, $%.2f an hour", st.Cost.Dollars, st.Cost.PerHour))
	}
	if n := len(st.Cost.Unpriced); n > 0 {
		said = append(said, fmt.Sprintf("%d models have no price", n))
	}
	return strings.Join(said, "; ")
}

// queued is how many calls wait for a rate limit, and for how long the first of them
// has, in seconds.
func queued(all []pace.Standing) (n int, oldest float64) {
	for _, s := range all {
		n += s.Waiting
		oldest = max(oldest, s.Oldest)
	}
	return n, oldest
}

// busiest is the limit of which the most is used.
func busiest(all []pace.Standing) (name string, used float64) {
	for _, s := range all {
		for _, l := range s.Limits {
			if l.Used > used {
				name, used = s.Class+" "+l.Name, l.Used
			}
		}
	}
	return name, used
}

// Stats may be called at any time.
func (s *Server) Stats() Stats { return s.engine.stats(s.policy.Load()) }

func (e *engine) stats(p *policy) Stats {
	n := &e.counts
	standings := e.pacer.Standings()
	spent, ceiling, _ := e.ceiling.Stands()
	return Stats{
		Cost: e.ledger.Books(), SpentToday: spent, Ceiling: ceiling,
		Routes:   e.standings(p),
		Pacing:   standings[:min(len(standings), mostStandings)],
		Upstream: p.upstream.name, Policy: p.name,
		InFlight: n.inFlight.Load(), Waiting: n.waiting.Load(), Holding: n.holding.Load(), Shut: e.gates.shut(func(gateKey) bool { return true }),
		Streams: n.streams.Load(), ReplayBytes: n.replay.Used(), AnswerBytes: n.answers.Used(),
		Calls: n.calls.Load(), Attempts: n.attempts.Load(), Retries: n.retries.Load(), Failed: n.failed.Load(), Resumed: n.resumed.Load(),
	}
}

// Levels returns what stands at a height now, as metrics. It may be called at any
// time.
func (s *Server) Levels() []telemetry.Level {
	st := s.Stats()
	standings := s.engine.pacer.Standings()
	waiting, oldest := queued(standings)
	ls := []telemetry.Level{
		{Name: "mainstay_claude_in_flight", Help: "Claude calls under way.", Value: float64(st.InFlight)},
		{Name: "mainstay_claude_waiting", Help: "Claude calls that wait before a retry.", Value: float64(st.Waiting)},
		{Name: "mainstay_claude_holding", Help: "Claude calls held until Claude is back.", Value: float64(st.Holding)},
		{Name: "mainstay_claude_gates_shut", Help: "Models whose calls are held because Claude fails them.", Value: float64(st.Shut)},
		{Name: "mainstay_claude_streams", Help: "Claude calls whose answer is streaming.", Value: float64(st.Streams)},
		{Name: "mainstay_claude_replay_bytes", Help: "Memory held for Claude requests that may be sent again.", Value: float64(st.ReplayBytes)},
		{Name: "mainstay_claude_answer_bytes", Help: "Memory held for Claude answers under way: gathered, kept to be made whole, or for those who attach.", Value: float64(st.AnswerBytes)},
		{Name: "mainstay_claude_queue_depth", Help: "Claude calls that wait in line for a rate limit.", Value: float64(waiting)},
		{Name: "mainstay_claude_queue_oldest_seconds", Help: "How long the first of the Claude calls in line for a rate limit has waited.", Value: oldest},
	}
	spent, ceiling, failure := s.engine.ceiling.Stands()
	unkept := 0.0
	if failure != nil {
		unkept = 1
	}
	ls = append(ls,
		telemetry.Level{Name: "mainstay_claude_cost_usd_per_hour", Help: "What Claude calls cost an hour, over the last hour.", Value: st.Cost.PerHour},
		telemetry.Level{Name: "mainstay_claude_cache_read_ratio", Help: "Share of the input tokens of the last hour that was read from the prompt cache.", Value: st.Cost.Cached},
		telemetry.Level{Name: "mainstay_claude_spent_today_usd", Help: "What Claude calls have cost since 00:00 UTC.", Value: spent},
		telemetry.Level{Name: "mainstay_claude_spend_ceiling_usd", Help: "What they may cost in a day; 0: no ceiling.", Value: ceiling},
		telemetry.Level{Name: "mainstay_claude_spend_unkept", Help: "1 if what the day has cost could not be written down.", Value: unkept})
	for _, r := range st.Routes {
		route := telemetry.Label{Name: "via", Value: r.Name}
		ls = append(ls, telemetry.Level{Name: "mainstay_claude_route_calls_total", Help: "Claude calls that ended well, by the route that served them.", Labels: []telemetry.Label{route}, Value: float64(r.Calls), Counter: true})
		for _, k := range r.Keys {
			fit := 0.0
			if k.State == "fit" {
				fit = 1
			}
			labels := []telemetry.Label{route, {Name: "key", Value: k.Key}}
			ls = append(ls,
				telemetry.Level{Name: "mainstay_claude_key_fit", Help: "1 if a configured key for Claude may be used now.", Labels: labels, Value: fit},
				telemetry.Level{Name: "mainstay_claude_key_served_total", Help: "Attempts that were good, by the configured key that they used.", Labels: labels, Value: float64(k.Served), Counter: true})
		}
	}
	for _, name := range pace.Limits() {
		ls = append(ls, telemetry.Level{
			Name: "mainstay_claude_limit_used_ratio", Help: "Share that is used of one of Claude's rate limits: of the key and class of models that has used the most of it.",
			Labels: []telemetry.Label{{Name: "limit", Value: name}}, Value: pace.Used(standings, name),
		})
	}
	return ls
}

// keptHeaders are those that shape an answer and tell nothing of who asks.
var keptHeaders = [...]string{"Accept", "Anthropic-Beta", "Anthropic-Version", "Content-Type"}

// remember copies the request as the client sent it, if it may be kept.
func (c *call) remember(r *http.Request) {
	if c.x.Route != routeMessages && c.x.Route != routeCount || r.Method != http.MethodPost || !c.policy.keep.Wants() {
		return
	}
	text := c.body.Text()
	if text == nil || !c.engine.counts.replay.Take(int64(len(text)), c.policy.memory) {
		return
	}
	c.engine.counts.replay.Give(int64(len(text)))
	c.body.Spare(int64(len(text))) // given back with it
	q := keep.Request{ID: c.x.ID, At: c.x.Start, Method: r.Method, Path: c.x.HTTP.Path, Header: map[string]string{}, Body: bytes.Clone(text)}
	if c.x.Color != telemetry.ColorUnknown {
		q.Path = "/@" + url.PathEscape(c.x.Color) + q.Path
	}
	if beta := r.URL.Query().Get("beta"); beta != "" { // all else may be anything
		q.Path += "?beta=" + url.QueryEscape(beta)
	}
	for _, name := range keptHeaders {
		if v := r.Header.Values(name); len(v) > 0 {
			q.Header[name] = strings.Join(v, ",")
		}
	}
	c.asked = &q
}

// keepRequest keeps what was remembered.
func (c *call) keepRequest() {
	c.asked.Model = strings.Clone(c.x.GenAI.Model)
	q, err := c.store.Add(*c.asked, c.policy.keep)
	switch {
	case err != nil:
		c.engine.log.Info("a request to claude could not be kept", "id", c.asked.ID, "err", err)
	case c.policy.keep.Log:
		q.Log(c.engine.log)
	}
}

// A Kept tells of a request that can be sent again, but not what it says.
type Kept struct {
	ID      string    `json:"id"`
	At      time.Time `json:"at"`
	Path    string    `json:"path"`
	Model   string    `json:"model"`
	Bytes   int       `json:"bytes"`
	Removed int       `json:"removed"`   // places from which claude.keep.redact, or what looks like a secret, was taken out
	OwnKey  bool      `json:"needs_key"` // there is none in claude.keys: it must be given
}

// Why a call can't be sent again.
var (
	ErrNoneKept = keep.ErrOff     // claude.keep.requests is none
	ErrNotKept  = keep.ErrUnknown // not this one
	ErrNoKey    = errors.New("there are no claude.keys, and callers' keys are not kept")
)

// Kept tells of the latest request with that id. It may be called at any time.
func (s *Server) Kept(id string) (Kept, error) {
	q, err := s.kept.Find(id)
	if err != nil {
		return Kept{}, err
	}
	routes := s.policy.Load().routes
	own := len(routes) == 0 || routes[0].Len() == 0
	return Kept{ID: q.ID, At: q.At, Path: q.Path, Model: q.Model, Bytes: len(q.Body), Removed: q.Removed, OwnKey: own}, nil
}

// Replayed is what came of a call that was sent again.
type Replayed struct {
	Of       string        `json:"of"` // the call that it repeats
	ID       string        `json:"id"` // its own
	Status   int           `json:"status"`
	Code     Code          `json:"code"`
	Attempts int           `json:"attempts"`
	Took     time.Duration `json:"took"`
	Dollars  float64       `json:"cost_usd"`
	Body     string        `json:"body"`
}

// replaying is the key of a context's *Replayed.
type replaying struct{}

// mostReplayed is how much of an answer a replay takes.
const mostReplayed = 16 << 20

// Replay sends a request that is kept again, as a call like any other: it is paid for.
// key is used if there are no claude.keys. It lasts as long as the call does, and
// returns an error only if nothing was sent.
func (s *Server) Replay(ctx context.Context, id, key string) (Replayed, error) {
	q, err := s.kept.Find(id)
	if err != nil {
		return Replayed{}, err
	}
	if k, err := s.Kept(id); err == nil && k.OwnKey && key == "" {
		return Replayed{}, ErrNoKey
	}
	done := &Replayed{Of: strings.Clone(id)}
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, replaying{}, done))
	defer cancel(nil)
	stop := context.AfterFunc(s.base, func() { cancel(context.Cause(s.base)) })
	defer stop()
	r, err := http.NewRequestWithContext(ctx, q.Method, "http://replay"+q.Path, bytes.NewReader(q.Body))
	if err != nil {
		return Replayed{}, fmt.Errorf("make the request of call %s again: %w", id, err)
	}
	for name, value := range q.Header {
		r.Header[name] = []string{value}
	}
	if key != "" {
		r.Header["X-Api-Key"] = []string{key}
	}
	w := &paper{header: http.Header{}}
	began := time.Now()
	s.serveReplay(w, r)
	done.Took, done.Status, done.Body = time.Since(began), w.status, strings.ToValidUTF8(w.body.String(), "?")
	return *done, nil
}

// serveReplay serves a call that came by no connection.
func (s *Server) serveReplay(w *paper, r *http.Request) {
	defer func() {
		if v := recover(); v != nil && v != any(http.ErrAbortHandler) { // net/http panics with this very value, to break off a connection
			panic(v)
		}
	}()
	s.ServeHTTP(w, r)
}

// paper is what the answer to a replay is written on.
type paper struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (p *paper) Header() http.Header { return p.header }

func (p *paper) Flush() {}

func (p *paper) WriteHeader(status int) {
	if p.status == 0 {
		p.status = status
	}
}

func (p *paper) Write(b []byte) (int, error) {
	if p.body.Len()+len(b) > mostReplayed {
		return 0, fmt.Errorf("the answer to the replay is larger than %d MiB", mostReplayed>>20)
	}
	p.WriteHeader(http.StatusOK)
	return p.body.Write(b)
}
