package claude

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/maphash"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/claude/internal/body"
	"mainstay.dev/mainstay/claude/internal/head"
	"mainstay.dev/mainstay/claude/internal/peek"
	"mainstay.dev/mainstay/claude/internal/price"
	"mainstay.dev/mainstay/claude/internal/routes"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/ratelimit"
)

// fingerprint names the caller by its key without telling the key: the first 48
// bits of the key's SHA-256. A key is long and random, so that the fingerprint
// can't be turned around.
func fingerprint(key string) string {
	if key == "" {
		return "none"
	}
	sum := sha256.Sum256([]byte(key))
	return "key:" + hex.EncodeToString(sum[:6])
}

// caller names who calls. Those who call by one connection mostly have one key: which it
// was last is remembered, by a hash that tells nobody the key.
func (d *desk) caller(said *head.Head) string {
	key := said.Secret()
	if d == nil {
		return fingerprint(key)
	}
	if hash := maphash.String(keySeed, key); d.name == "" || d.key != hash {
		d.key, d.name = hash, fingerprint(key)
	}
	return d.name
}

var keySeed = maphash.MakeSeed()

// identify notes in whose name the app calls, if it forwards what the edge told it.
func (c *call) identify(sealed string) {
	if sealed == "" || c.engine.who == nil {
		return
	}
	c.who, c.step = c.engine.who.Open(sealed)
	c.x.User, c.x.Workspace, c.x.Tier = c.who.Shown.User, c.who.Shown.Workspace, c.who.Tier
}

// admit takes in the request body. A refusal has been answered when it returns
// false.
func (c *call) admit(w http.ResponseWriter, r *http.Request) bool {
	p := c.policy
	largest := p.largest(c.x.Route)
	if r.ContentLength > largest {
		c.refuse(w, verdict{code: TooLarge})
		return false
	}
	c.upload = &c.own.upload
	c.upload.src, c.upload.patience = r.Body, c.patience
	if r.ContentLength < 0 { // else net/http sees to it that no more comes
		c.upload.src = http.MaxBytesReader(w, r.Body, largest)
	}
	kept := p.replay
	if c.x.Route == routeFiles || c.x.Route == routeBatches {
		kept = min(kept, mostFile)
	}
	b, err := body.TakeIn(c.upload, body.Intake{Memory: &c.engine.counts.replay, Most: p.memory, Keep: kept, Size: r.ContentLength})
	if err != nil {
		c.refuse(w, verdict{code: uploadCode(err), err: err})
		return false
	}
	c.body = b
	if v, ok := c.permit(); !ok {
		c.refuse(w, v)
		return false
	}
	return true
}

// mostFile is the size of a file or a batch up to which it is kept for another try:
// larger ones pass without being held in memory, whatever claude.limits.replay says.
const mostFile = 1 << 20

// Limits say whether the caller for whom the app calls may. limits.Gate is them.
type Limits interface {
	// Admit decides. An error means that nothing was decided.
	Admit(ctx context.Context, a limits.Ask) (limits.Verdict, error)
	// SettleTokens tells what an admitted call has taken: tokens where those are
	// counted.
	SettleTokens(v *limits.Verdict, tokens int64)
	// Release tells that it has ended.
	Release(v *limits.Verdict)
}

// permit asks the limits, once, about a call that Claude would charge for. A caller
// whom the app does not name was charged at the edge, and is not charged again.
func (c *call) permit() (verdict, bool) {
	if c.engine.limits == nil || c.who.User == "" && c.who.Workspace == "" || !c.shape.message && !c.makesBatch() {
		return verdict{}, true
	}
	v, err := c.engine.limits.Admit(c.ctx, limits.Ask{User: c.who.User, Workspace: c.who.Workspace, Tier: c.who.Tier, Claude: true, Cost: c.likely()})
	c.allowed = v
	switch {
	case err == nil && v.Allowed:
		return verdict{}, true
	case err == nil:
		code := Limited
		if v.Denied {
			code = Denied
		}
		return verdict{code: code, own: true, err: v.Why()}, false
	}
	if v, ended := c.ended(); ended {
		return v, false
	}
	return verdict{code: Internal, err: err}, false
}

// makesBatch reports whether the call asks for a new batch of messages.
func (c *call) makesBatch() bool {
	return c.x.Route == routeBatches && c.out.Method == http.MethodPost
}

// decode asks for no encoding of an answer that can't be read here, where it has to be.
func (c *call) decode() {
	h := c.out.Header
	switch batches := strings.HasPrefix(c.x.Route, routeBatches); {
	case batches && c.policy.here && c.x.Route != routeResults:
		h["Accept-Encoding"] = []string{"identity"} // results_url has to be changed
	case batches, c.shape.message:
		head.Readable(h)
	}
}

// bytesPerToken is fewer than the tokens of a request mostly have.
const bytesPerToken = 3

// likely is how many tokens the call is likely to take at most; a batch: 1.
func (c *call) likely() int64 {
	if !c.shape.message {
		return 1
	}
	c.readRequest()
	most := min(c.request.maxTokens, ratelimit.MaxUnits/2)
	return min(max(c.body.Size, 0)/bytesPerToken+c.engine.ledger.Answer(c.request.model, most), ratelimit.MaxUnits)
}

// patientSDK is the longest Retry-After that the official SDKs heed
// (retries in anthropic-sdk-typescript and -python): asked to wait longer, they come
// back after seconds, in vain.
const patientSDK = time.Minute

// tellLimits says in the head of a refusal when the caller may come again.
func (c *call) tellLimits(h http.Header) {
	c.allowed.Headers(time.Now(), h.Set)
	if wait, ok := c.allowed.RetryAfter(); !ok || wait > int64(patientSDK/time.Second) {
		h["X-Should-Retry"] = []string{"false"}
	}
}

// settleLimits tells the limits what the call has taken: reading from the prompt
// cache is free, as in the API's own limits.
func (c *call) settleLimits() {
	if len(c.allowed.Rules) == 0 || !c.allowed.Allowed {
		return
	}
	if g := &c.x.GenAI; c.shape.message {
		c.engine.limits.SettleTokens(&c.allowed, g.InputTokens+g.CacheWriteTokens+g.OutputTokens)
	}
	c.engine.limits.Release(&c.allowed)
}

// A request is what the body of a message's request says of itself.
type request struct {
	model     string
	stream    bool
	format    bool // its text must follow a schema: a part of it can't be continued
	fast      bool // it asks for fast mode
	maxTokens int64
	again     int  // how often the caller's SDK has tried before; below 0: it does not say
	recover   bool // the caller has nothing against it
	gather    bool // nor against its answer being gathered from a stream
}

// ask reads the request, and finds the gate that it has to pass.
func (c *call) ask() {
	if !c.shape.message && c.x.Route != routeCount || !c.rules.patient && c.engine.ceiling == nil {
		return
	}
	c.readRequest()
	c.askLess()
	c.x.GenAI.Asked, c.x.GenAI.MaxTokens = c.request.model, c.request.maxTokens
	if text := c.body.Text(); len(c.rules.routes) > 1 || len(c.rules.routes) == 1 && c.rules.routes[0].Len() > 1 {
		if c.way.prefix, c.way.filed = routes.Prefix(text); c.way.filed {
			c.way.prefix = 0 // as the calls by which the files came
		}
	}
	if c.rules.patient {
		c.findGate()
	}
}

// readRequest notes what the body says of itself.
func (c *call) readRequest() {
	if text := c.body.Text(); text != nil {
		peek.Members(text, func(key, value []byte) {
			switch string(key) {
			case "model":
				if len(value) <= body.MostName {
					c.request.model = peek.Text(value)
				}
			case "stream":
				c.request.stream = string(value) == "true"
			case "max_tokens", "max_tokens_to_sample":
				c.request.maxTokens, _ = peek.Count(value)
			case "temperature":
				c.x.GenAI.Temperature = figure(value)
			case "top_p":
				c.x.GenAI.TopP = figure(value)
			case "top_k":
				c.x.GenAI.TopK = figure(value)
			case "speed":
				c.request.fast = string(value) == `"fast"`
			case "output_format", "output_config":
				c.request.format = true
			}
		})
	}
}

// figure is a number as it is written, for the record; anything else is left out.
func figure(value []byte) string {
	const most = 24
	if len(value) > most || len(value) == 0 || (value[0] < '0' || value[0] > '9') && value[0] != '-' {
		return ""
	}
	return string(value)
}

// askLess makes the request one for less, if claude.degrade has a rule for the caller.
func (c *call) askLess() {
	rule := routes.Degrade(c.rules.degrade, c.x.Tier, c.step)
	text := c.body.Text()
	if rule == nil || len(text) == 0 || c.x.Route != routeMessages {
		return
	}
	model, ok := routes.Instead(rule.Models, c.request.model)
	if !ok {
		model = c.request.model
	} else if model != c.request.model {
		if lacks := c.rules.abilities.Lacks(model, c.needs(), rule.MaxTokens); lacks != "" {
			c.engine.unfit("degrade", model, lacks)
			model = c.request.model
		}
	}
	changed, tokens := routes.Change(text, model, rule.MaxTokens)
	if &changed[0] == &text[0] {
		return
	}
	c.body.Spare(int64(len(text)) + routes.Slack) // what the rule is for must not depend on memory
	c.body.Replace(changed)
	var less []string
	if model != c.request.model {
		c.request.model, less = model, append(less, model)
	}
	if tokens > 0 {
		c.request.maxTokens, less = tokens, append(less, "max_tokens "+strconv.FormatInt(tokens, 10))
	}
	c.x.GenAI.Degraded = strings.Join(less, ", ")
}

// findGate prepares what the policy deadline needs.
func (c *call) findGate() {
	if c.request.recover && c.x.Route == routeMessages && c.shape.message {
		c.makeWhole()
	}
	c.gate = c.engine.gates.at(c.out.URL.Host, c.request.model)
	if len(c.rules.routes) == 0 || c.rules.routes[0].Len() == 0 { // or it is the key's that will be used
		c.findLane(c.request.model)
	}
}

// afford reserves what the call may cost of the day's money.
func (c *call) afford() (verdict, bool) {
	if c.engine.ceiling == nil || !c.shape.message && !c.makesBatch() {
		return verdict{}, true
	}
	ctx := &until{Context: c.ctx, at: c.deadline, cause: errQueued}
	defer ctx.end()
	if c.shape.message { // of a batch nobody can tell: it is refused only when there is no money left
		c.most = c.mayCost()
	}
	stake, err := c.engine.ceiling.Reserve(ctx, c.most)
	c.x.Waited += ctx.waited()
	c.stake = stake
	if stake != nil && stake.First {
		c.engine.emit("spend_reached", slog.LevelWarn, "Calls to Claude have cost what claude.spend.daily allows for today.")
	}
	switch {
	case err == nil:
		return verdict{}, true
	case errors.Is(err, price.ErrReached):
		return verdict{code: OverBudget, err: err}, false
	}
	if v, ended := c.ended(); ended {
		return v, false
	}
	return verdict{code: Limited, cause: CauseRateLimited, err: err}, false
}

// until is a context that ends at a time, of a kind that costs nothing before somebody
// waits for its end. It belongs to one goroutine.
type until struct {
	context.Context
	at     time.Time // zero: never
	cause  error
	begun  time.Time          // when somebody began to wait
	cancel context.CancelFunc // nil: nobody has, or may for ever
}

func (u *until) Done() <-chan struct{} {
	if u.begun.IsZero() {
		u.begun = time.Now()
	}
	if u.cancel == nil && !u.at.IsZero() {
		u.Context, u.cancel = context.WithDeadlineCause(u.Context, u.at, u.cause)
	}
	return u.Context.Done()
}

// waited is for how long somebody has waited.
func (u *until) waited() time.Duration {
	if u.begun.IsZero() {
		return 0
	}
	return time.Since(u.begun)
}

func (u *until) end() {
	if u.cancel != nil {
		u.cancel()
	}
}

// mayCost is what one attempt of the call may cost, in billionths of a dollar: at most,
// or, where that will do, about.
func (c *call) mayCost() int64 {
	u := price.Usage{Model: c.request.model}
	limited, most := c.engine.ceiling.Asks()
	switch {
	case !limited:
		return 0
	case most:
		hour := false
		if u.CacheWrite, hour = price.Input(c.body.Text()); hour {
			u.CacheHour = u.CacheWrite
		}
		if u.Output = c.request.maxTokens; u.Output <= 0 {
			u.Output = longestAnswer
		}
	default:
		u.CacheWrite = max(c.body.Size, 0) / bytesPerToken
		u.Output = c.engine.ledger.Answer(c.request.model, c.request.maxTokens)
	}
	nano, _ := c.rules.prices.Cost(u)
	return nano
}

// longestAnswer is what an answer may come to whose request can't be read.
const longestAnswer = 128_000

// uploadCode tells what went wrong on the client's side of an upload.
func uploadCode(err error) Code {
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return TooLarge
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return UploadTimeout
	}
	if _, network := errors.AsType[net.Error](err); network || errors.Is(err, io.ErrUnexpectedEOF) {
		return ClientGone
	}
	return BadRequest // the framing of the body is wrong
}

// upload reads the client's body for as long as the client keeps sending.
type upload struct {
	src      io.Reader
	patience *patience
	taken    atomic.Int64
	ended    atomic.Bool
}

func (u *upload) Read(p []byte) (int, error) {
	u.patience.read()
	n, err := u.src.Read(p)
	u.taken.Add(int64(n))
	if errors.Is(err, io.EOF) { // after any other end the deadline still guards net/http's own reading of the rest
		u.patience.readAll()
		u.ended.Store(true)
	}
	return n, err
}

// patience keeps a client from holding a connection by doing nothing: while
// Mainstay waits for it, it must move something within limit. Nil waits for ever.
type patience struct {
	deadline interface {
		SetReadDeadline(time.Time) error
		SetWriteDeadline(time.Time) error
	}
	limit         time.Duration
	reads, writes time.Time // when the deadlines were set last
}

// often is the share of the limit after which a deadline is set anew: setting it
// for every piece would cost more than it tells.
const often = 16

func (p *patience) read() {
	if p == nil {
		return
	}
	if now := time.Now(); now.Sub(p.reads) > p.limit/often {
		p.reads = now
		_ = p.deadline.SetReadDeadline(now.Add(p.limit)) // a connection without deadlines is a test's
	}
}

// readAll ends the wait for the body; what is read after it is the next request.
func (p *patience) readAll() {
	if p == nil {
		return
	}
	if !p.reads.IsZero() {
		p.reads = time.Time{}
		_ = p.deadline.SetReadDeadline(time.Time{})
	}
}

func (p *patience) write() {
	if p == nil {
		return
	}
	if time.Since(p.writes) > p.limit/often { // cheaper than Now, and this is asked at each event
		now := time.Now()
		p.writes = now
		_ = p.deadline.SetWriteDeadline(now.Add(p.limit))
	}
}
