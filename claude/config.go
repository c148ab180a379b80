package claude

import (
	"net"
	"net/url"
	"strings"
	"time"

	"mainstay.dev/mainstay/claude/internal/keep"
	"mainstay.dev/mainstay/claude/internal/pace"
	"mainstay.dev/mainstay/claude/internal/price"
	"mainstay.dev/mainstay/claude/internal/routes"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/retry"
)

// Config is the claude section of the file.
type Config struct {
	Listen   string                 `yaml:"listen" doc:"Address on which the app finds Claude; its ANTHROPIC_BASE_URL leads here."`
	Upstream string                 `yaml:"upstream" doc:"Base URL of the Claude API, or of what stands in front of it."`
	Keys     []routes.Key           `yaml:"keys" doc:"Keys to use with claude.upstream instead of the callers' own; absent: each caller's own."`
	Retry    RetryConfig            `yaml:"retry" doc:"When and how often a call that failed is tried again."`
	Recovery RecoveryConfig         `yaml:"recovery" doc:"Policy deadline: how answers that break are made whole."`
	Pacing   pace.Config            `yaml:"pacing" doc:"How calls are kept within Claude's rate limits."`
	Spend    price.Config           `yaml:"spend" doc:"What calls may cost."`
	Prices   map[string]price.Price `yaml:"prices" doc:"What models cost, by the beginning of their names, beside and instead of the shipped table (of 2026-10-10): the longest that fits counts."`
	Batches  BatchConfig            `yaml:"batches" doc:"How the results of batches of messages are fetched."`
	Routes   []routes.Config        `yaml:"routes" doc:"Policy deadline: where messages go while claude.upstream is failing, in order: the first that is fit and takes the call."`
	Degrade  []routes.Rule          `yaml:"degrade" doc:"Callers whose messages ask for less, by tier and by the step of limits.degrade: the first rule that fits counts."`
	Cannot   map[string][]string    `yaml:"cannot" doc:"What models can't take, by the beginning of their names (the longest that fits counts), instead of what this version knows of them (of 2026-10-10): calls that ask for it are not sent to them by routes and degrade. Words: thinking:TYPE, effort:LEVEL, speed:fast, schema, sampling, prefill, max_tokens>N, prompt>N (tokens), types of tools, betas; * at the end stands for any rest. An empty list: it takes all."`
	Timeouts TimeoutConfig          `yaml:"timeouts" doc:"How long each side may keep the other waiting."`
	Limits   LimitConfig            `yaml:"limits" doc:"How large requests may be, and how much of them is kept for a retry."`
	Calls    int                    `yaml:"calls" doc:"How many of the latest calls mainstay claude calls can show. They hold nothing of what was said."`
	Keep     keep.Config            `yaml:"keep" doc:"Whether requests are kept, so that mainstay claude replay can send them again."`
	Drain    time.Duration          `yaml:"drain" doc:"How long calls that are under way get to end when Mainstay stops."`
}

// RetryConfig says when and how often a call is tried again.
type RetryConfig struct {
	Policy        string          `yaml:"policy" doc:"deadline: try again until the caller's deadline, hold calls while Claude is down, and recover broken streams. compatible: a few retries with doubling waits, until the first byte was relayed. Both on 408, 409, 429, 5xx and broken connections."`
	Deadline      time.Duration   `yaml:"deadline" doc:"Policy deadline: how long a call may take to begin its answer; x-stainless-timeout and mainstay-deadline of the request can shorten it."`
	Hold          time.Duration   `yaml:"hold" doc:"Policy deadline: how long a call may wait for Claude to come back, retries and all; also for each break of a stream."`
	Budget        setting.Percent `yaml:"budget" doc:"Policy deadline: retries of all calls together, as a share of the calls; a retry beyond it waits."`
	Attach        time.Duration   `yaml:"attach" doc:"Policy deadline: how long a message, a count of tokens or the making of a batch goes on after its client has left, so that the SDK's retry of it can attach to it instead of paying twice; 0: it ends at once. What passes as it comes (recovery off) goes on only for clients that count their tries, as the SDKs do."`
	Join          bool            `yaml:"join" doc:"Policy deadline: identical messages of the same key, at the same time, share one answer, streamed or not."`
	MaxRetries    int             `yaml:"max_retries" doc:"Policy compatible: retries after the first try; 0 turns them off."`
	Base          time.Duration   `yaml:"base" doc:"Policy compatible: wait before the first retry; each further one is twice as long."`
	Jitter        setting.Percent `yaml:"jitter" doc:"Policy compatible: by how much of itself a wait is spread, up or down; on top of a wait that Claude asked for, only up."`
	MaxRetryAfter time.Duration   `yaml:"max_retry_after" doc:"compatible: the longest wait that Claude's Retry-After can ask for; longer ones are cut to it. Both policies: the longest Retry-After that a final 429 passes on."`
}

// RecoveryConfig says how answers that break are made whole.
type RecoveryConfig struct {
	Streams   bool          `yaml:"streams" doc:"Hold the beginning of a stream until it has content, and thinking and tool use until they are whole; replay or continue a stream that breaks. The request header mainstay-recovery: off turns it off for one call."`
	Aggregate bool          `yaml:"aggregate" doc:"Ask for the answer of a call that does not stream as a stream, and gather it into the JSON that the app waits for: so that a hang is seen within recovery.stall, and a break made whole. The request header mainstay-aggregate: off turns it off for one call."`
	MaxAnswer setting.Bytes `yaml:"max_answer" doc:"Largest answer that is gathered, as the stream tells it; a larger one is answered 502."`
	Memory    setting.Bytes `yaml:"memory" doc:"Memory for all answers under way together: gathered, kept so that they can be made whole, or for those who attach. Beyond it calls that do not stream go as they are, streams can't be made whole any more, and what is half gathered is answered 529 (answers_full)."`
	Except    []string      `yaml:"except" doc:"Callers whose calls pass as they come: fingerprints of their keys, as the log shows them (key:1a2b3c4d5e6f)."`
	Stall     time.Duration `yaml:"stall" doc:"How long a stream may say nothing, not even a ping, before its rest is asked for anew; its head may take twice as long."`
}

// BatchConfig says how the results of batches are fetched.
type BatchConfig struct {
	Results string `yaml:"results" doc:"Where the SDKs fetch results. here: results_url in what Claude tells of batches leads to the address by which the app has asked, so that the results come through Mainstay, by claude.keys if there are any, and their cost is booked. direct: it stays as Claude has written it."`
}

// TimeoutConfig says how long each side may keep the other waiting.
type TimeoutConfig struct {
	FirstByte time.Duration `yaml:"first_byte" doc:"How long one try waits for the first byte of Claude's answer; a call without streaming waits for the whole message."`
	Idle      time.Duration `yaml:"idle" doc:"How long a message that has begun to arrive may pause (Claude sends pings) before it counts as dead."`
	Client    time.Duration `yaml:"client" doc:"How long the app may pause in sending its request or in reading its answer."`
}

// LimitConfig bounds sizes.
type LimitConfig struct {
	Body         setting.Bytes `yaml:"body" doc:"Largest request body; a larger one is answered 413."`
	Message      setting.Bytes `yaml:"message" doc:"The same for messages and token counts, checked before anything is sent; the API's own limit. 0: body alone counts."`
	Batch        setting.Bytes `yaml:"batch" doc:"The same for a batch of messages. 0: body alone counts."`
	File         setting.Bytes `yaml:"file" doc:"The same for a file. 0: body alone counts."`
	Replay       setting.Bytes `yaml:"replay" doc:"Largest request body that is kept so that it can be sent again (of files and batches, at most 1MiB); a larger one streams through and has one try."`
	ReplayMemory setting.Bytes `yaml:"replay_memory" doc:"How much memory all kept request bodies may take together; beyond it bodies stream through and have one try."`
}

// SetDefaults fills in what an absent key means.
func (c *Config) SetDefaults() {
	*c = Config{
		Listen:   "127.0.0.1:8700",
		Upstream: "https://api.anthropic.com",
		Retry:    RetryConfig{Policy: "deadline", Deadline: 10 * time.Minute, Hold: 2 * time.Minute, Attach: 3 * time.Second, Budget: 0.2, MaxRetries: 3, Base: time.Second, Jitter: 0.25, MaxRetryAfter: time.Minute},
		Recovery: RecoveryConfig{Streams: true, Aggregate: true, MaxAnswer: 32e6, Memory: 256e6, Stall: 30 * time.Second},
		Timeouts: TimeoutConfig{FirstByte: 10 * time.Minute, Idle: 3 * time.Minute, Client: 30 * time.Second},
		// The API's limits are 32, 256 and 500 MB, which may be MiB.
		Limits:  LimitConfig{Body: 600e6, Message: 32 << 20, Batch: 256 << 20, File: 500 << 20, Replay: 34e6, ReplayMemory: 512e6},
		Batches: BatchConfig{Results: resultsHere},
		Calls:   1000,
		Drain:   30 * time.Second,
	}
	c.Pacing.SetDefaults()
	c.Keep.SetDefaults()
	c.Spend.OnReach, c.Spend.Reserve = "refuse", "most"
}

// Validate notes every mistake.
func (c Config) Validate(ps *setting.Problems) {
	if _, port, err := net.SplitHostPort(c.Listen); err != nil || port == "" {
		ps.Add("listen", "must be host:port", "try 127.0.0.1:8700")
	}
	routes.CheckUpstream(c.Upstream, "upstream", c.Listen, ps)
	routes.Validate(c.Routes, c.Keys, c.Listen, ps)
	routes.ValidateRules(c.Degrade, ps)
	routes.ValidateCannot(c.Cannot, ps)
	var part setting.Problems
	c.Retry.validate(&part)
	ps.Below("retry", part)
	if c.Recovery.MaxAnswer <= 0 || c.Recovery.MaxAnswer > 1e9 {
		ps.Add("recovery.max_answer", "must be positive, and at most 1GB", "try 32MB")
	}
	if c.Recovery.Memory < c.Recovery.MaxAnswer {
		ps.Add("recovery.memory", "must not be less than recovery.max_answer", "try 256MB")
	}
	if c.Recovery.Stall <= 0 {
		ps.Add("recovery.stall", "must be positive", "try 30s")
	}
	part = nil
	c.Pacing.Validate(&part)
	ps.Below("pacing", part)
	part = nil
	c.Spend.Validate(&part)
	ps.Below("spend", part)
	part = nil
	c.Keep.Validate(&part)
	ps.Below("keep", part)
	if c.Calls < 0 || c.Calls > 10_000 {
		ps.Add("calls", "must be from 0 to 10000", "try 1000")
	}
	if c.Batches.Results != resultsHere && c.Batches.Results != "direct" {
		ps.Add("batches.results", "must be here or direct", "use here")
	}
	for name, p := range c.Prices {
		p.Validate("prices."+name, ps)
	}
	part = nil
	c.Timeouts.validate(&part)
	ps.Below("timeouts", part)
	part = nil
	c.Limits.validate(&part)
	ps.Below("limits", part)
	if c.Drain < 0 {
		ps.Add("drain", "must not be negative", "try 30s")
	}
}

const resultsHere = "here"

func (c RetryConfig) validate(ps *setting.Problems) {
	switch c.Policy {
	case "compatible", "deadline":
	default:
		ps.Add("policy", "must be deadline or compatible", "use deadline")
	}
	if c.Deadline <= 0 {
		ps.Add("deadline", "must be positive", "try 10m")
	}
	if c.Hold < 0 {
		ps.Add("hold", "must not be negative", "try 2m")
	}
	if c.Attach < 0 || c.Attach > time.Minute {
		ps.Add("attach", "must be from 0s to 1m", "try 3s")
	}
	if c.Budget < 0 || c.Budget > 1 {
		ps.Add("budget", "must be from 0% to 100%", "try 20%")
	}
	if c.MaxRetries < 0 || c.MaxRetries > 10 {
		ps.Add("max_retries", "must be from 0 to 10", "try 3")
	}
	if c.Base <= 0 {
		ps.Add("base", "must be positive", "try 1s")
	}
	if c.Jitter < 0 || c.Jitter > 1 {
		ps.Add("jitter", "must be from 0% to 100%", "try 25%")
	}
	if c.MaxRetryAfter <= 0 {
		ps.Add("max_retry_after", "must be positive", "try 1m")
	}
}

// policy is the schedule of the retries.
func (c RetryConfig) policy() retry.Policy {
	if c.Policy == "deadline" {
		return retry.Policy{Max: mostRetries, Base: firstWait, Cap: longestWait, Decorrelated: true}
	}
	return retry.Policy{Max: c.MaxRetries, Base: c.Base, Jitter: float64(c.Jitter), AskedCap: c.MaxRetryAfter}
}

// Under the policy deadline time ends a call's retries; mostRetries bounds what a
// request that can never succeed may cost all the same. A wait is drawn from between
// firstWait and three times the one before it. They may be short, since it is the
// budget and the gate that keep a crowd of calls from hammering.
const (
	mostRetries = 15
	firstWait   = 250 * time.Millisecond
	longestWait = 8 * time.Second
)

// rules compiles what attempts obey.
func (c Config) rules() rules {
	r := rules{prices: price.Compile(c.Prices), retry: c.Retry.policy(), firstByte: c.Timeouts.FirstByte, idle: c.Timeouts.Idle, retryAfter: c.Retry.MaxRetryAfter}
	if c.Retry.Policy == "deadline" {
		const floor = 1 // retries a second, for plants with little traffic
		r.patient, r.deadline, r.hold = true, c.Retry.Deadline, c.Retry.Hold
		r.recovers, r.stall, r.except = c.Recovery.Streams || c.Recovery.Aggregate, c.Recovery.Stall, map[string]bool{}
		r.attach, r.joins = c.Retry.Attach, c.Retry.Join
		r.streams, r.gathers, r.answer = c.Recovery.Streams, c.Recovery.Aggregate, int(c.Recovery.MaxAnswer)
		r.memory = int64(c.Recovery.Memory)
		for _, caller := range c.Recovery.Except {
			r.except[caller] = true
		}
		r.pacing = c.Pacing
		r.budget = retry.NewBudget(float64(c.Retry.Budget), floor)
	}
	return r
}

func (c TimeoutConfig) validate(ps *setting.Problems) {
	if c.FirstByte <= 0 {
		ps.Add("first_byte", "must be positive", "try 10m")
	}
	if c.Idle <= 0 {
		ps.Add("idle", "must be positive", "try 3m")
	}
	if c.Client <= 0 {
		ps.Add("client", "must be positive", "try 30s")
	}
}

func (c LimitConfig) validate(ps *setting.Problems) {
	if c.Body <= 0 {
		ps.Add("body", "must be positive", "try 600MB")
	}
	if c.Replay < 0 {
		ps.Add("replay", "must not be negative", "try 34MB")
	}
	for _, l := range []struct {
		key  string
		size setting.Bytes
	}{{"message", c.Message}, {"batch", c.Batch}, {"file", c.File}} {
		if l.size < 0 {
			ps.Add(l.key, "must not be negative", "leave it out for the API's own limit")
		}
	}
	if c.ReplayMemory < c.Replay {
		ps.Add("replay_memory", "must not be less than replay", "try 512MB")
	}
}

// policy is a Config, compiled: immutable, shared by all calls that began under it.
type policy struct {
	rules
	upstream target
	spend    price.Config
	client   time.Duration // patience with the app
	body     int64
	bodies   map[string]int64 // limits of routes that have one of their own
	replay   int64
	memory   int64
	keep     keep.Rules
	here     bool // results of batches are fetched
	drain    time.Duration
	name     string // of the retry policy
}

// rules are the part of a policy that an attempt obeys, whichever door its call
// came through.
type rules struct {
	retry     retry.Policy
	firstByte time.Duration
	idle      time.Duration
	prices    *price.Table

	retryAfter time.Duration // the longest that a final 429 passes on

	patient   bool // the policy deadline; what follows is its own
	deadline  time.Duration
	hold      time.Duration
	budget    *retry.Budget
	pacing    pace.Config
	routes    []*routes.Route // the first one is claude.upstream's; nil: the call goes as it is
	degrade   []routes.Rule
	abilities *routes.Abilities
	basePath  string // of the upstream
	recovers  bool   // one of the next two
	streams   bool   // are made whole
	attach    time.Duration
	joins     bool
	gathers   bool  // what does not stream, from a stream
	answer    int   // the largest that is gathered
	memory    int64 // for answers
	stall     time.Duration
	except    map[string]bool // callers whose streams are left alone
}

// target is where calls go.
type target struct {
	scheme string
	host   string
	path   string // before every call's own path; no slash at its end
	base   string // the same, escaped
	name   string // scheme and host, for people
}

// byRoute are the limits of the routes that have one of their own.
func (c LimitConfig) byRoute() map[string]int64 {
	of := map[string]int64{}
	for route, size := range map[string]setting.Bytes{routeMessages: c.Message, routeCount: c.Message, routeBatches: c.Batch, routeFiles: c.File} {
		if size > 0 {
			of[route] = int64(min(size, c.Body))
		}
	}
	return of
}

// largest is the largest body that a route takes.
func (p *policy) largest(route string) int64 {
	if n, ok := p.bodies[route]; ok {
		return n
	}
	return p.body
}

// Compile checks cfg and makes of it what calls obey. It changes nothing and can be
// called at any time; its error holds every mistake ([setting.Problems]).
func Compile(cfg Config) (*policy, error) {
	var ps setting.Problems
	if cfg.Validate(&ps); len(ps) > 0 {
		return nil, ps
	}
	u, err := url.Parse(cfg.Upstream)
	if err != nil {
		return nil, err
	}
	r := cfg.rules()
	if !r.patient {
		cfg.Routes = nil
	}
	if r.routes, err = routes.Compile(cfg.Routes, cfg.Keys); err != nil {
		return nil, err
	}
	r.basePath, r.degrade, r.abilities = strings.TrimRight(u.Path, "/"), cfg.Degrade, routes.Able(cfg.Cannot)
	return &policy{
		rules: r,
		upstream: target{
			scheme: u.Scheme, host: u.Host, path: strings.TrimRight(u.Path, "/"), base: strings.TrimRight(u.EscapedPath(), "/"), name: u.Scheme + "://" + u.Host,
		},
		spend:  cfg.Spend,
		client: cfg.Timeouts.Client,
		body:   int64(cfg.Limits.Body),
		bodies: cfg.Limits.byRoute(),
		replay: int64(cfg.Limits.Replay),
		memory: int64(cfg.Limits.ReplayMemory),
		keep:   keep.Compile(cfg.Keep),
		here:   cfg.Batches.Results == resultsHere,
		drain:  cfg.Drain,
		name:   cfg.Retry.Policy,
	}, nil
}

// RouteConfig is one of claude.routes, KeyConfig one of the keys, DegradeConfig one of
// claude.degrade.
type (
	RouteConfig   = routes.Config
	KeyConfig     = routes.Key
	DegradeConfig = routes.Rule
)
