package prom

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mainstay.dev/mainstay/telemetry"
)

// Bounds on label values: what comes after them is counted as other.
const (
	other     = "other"
	maxRoutes = 200
	maxNames  = 100 // codes, colors, models, commands, methods, causes, parts, event names
	maxSeries = 2000
	maxValue  = 120 // bytes
)

// key is one combination of labels of a plane's main counter.
type key struct {
	route, detail, code, color string
	blame                      telemetry.Blame
	status                     uint8 // hundreds; 0: none
}

// series are what an exchange with one key moves, found once.
type series struct {
	key            key
	tokens         [4]prometheus.Counter
	cost, unpriced prometheus.Counter // claude
	streamKinds    *prometheus.CounterVec
	tally          tally
}

// plane counts the exchanges of one plane. Known keys are read from an immutable
// map without a lock; a new one is added to a copy of it.
type plane struct {
	name  string
	known atomic.Pointer[map[key]*series]
	last  atomic.Pointer[series] // those that were asked for last, which most often are asked for next
	mu    sync.Mutex             // guards additions to known

	routes, details, codes, colors *vocabulary

	descs           descs
	tokens, streams *prometheus.CounterVec
	cost, unpriced  *prometheus.CounterVec
	attempts        *causes
}

func newPlane(s *Sink, name, thing string) *plane {
	p := &plane{
		name:   name,
		routes: newVocabulary(maxRoutes), details: newVocabulary(maxNames), codes: newVocabulary(maxNames), colors: newVocabulary(maxNames),

		descs: newDescs(name, thing),
	}
	if name != "pooler" {
		p.streams = s.counter("mainstay_" + name + "_streams_total")
		p.attempts = newCauses(s.counter("mainstay_" + name + "_attempts_total"))
	}
	if name == "claude" {
		p.tokens = s.counter("mainstay_claude_tokens_total")
		p.cost = s.counter("mainstay_claude_cost_usd_total")
		p.unpriced = s.counter("mainstay_claude_unpriced_calls_total")
	}
	p.known.Store(&map[key]*series{})
	s.registry.MustRegister(p)
	return p
}

func plural(thing string) string {
	if thing == "query" {
		return "queries"
	}
	return thing + "s"
}

func (p *plane) record(x *telemetry.Exchange) {
	s := p.series(x)
	lasting := x.Lasting()
	s.tally.add(x, &p.descs, lasting)
	if lasting && s.streamKinds != nil {
		s.streamKinds.WithLabelValues(p.routes.fold(x.Route), streamKind(x)).Inc()
	}
	if p.tokens != nil {
		p.paid(s, x)
	}
	if p.attempts != nil {
		p.attempts.count(x)
	}
}

// paid counts what a Claude call has used and cost, by model.
func (p *plane) paid(s *series, x *telemetry.Exchange) {
	g := &x.GenAI
	if g.Shares == nil {
		unpriced := 0
		if g.Unpriced {
			unpriced = 1
		}
		s.paid(telemetry.Share{InputTokens: g.InputTokens, CacheReadTokens: g.CacheReadTokens, CacheWriteTokens: g.CacheWriteTokens, OutputTokens: g.OutputTokens, CostNanoUSD: g.CostNanoUSD, Unpriced: unpriced})
		return
	}
	for _, share := range g.Shares {
		of := *x
		of.GenAI.Model = share.Model
		p.series(&of).paid(share)
	}
}

func (s *series) paid(of telemetry.Share) {
	for i, n := range [...]int64{of.InputTokens, of.CacheReadTokens, of.CacheWriteTokens, of.OutputTokens} {
		add(s.tokens[i], n)
	}
	if of.CostNanoUSD > 0 {
		s.cost.Add(float64(of.CostNanoUSD) / 1e9)
	}
	add(s.unpriced, int64(of.Unpriced))
}

// add adds n to c, if there is one. A negative n would be a bug of a plane; it
// must not become a panic of the counter.
func add(c prometheus.Counter, n int64) {
	if c != nil && n > 0 {
		c.Add(float64(n))
	}
}

// streamKind is what a lasting exchange was: sse, or the upgrade's protocol, of
// which clients may invent any.
func streamKind(x *telemetry.Exchange) string {
	switch {
	case x.HTTP.Upgraded == "":
		return "sse"
	case strings.EqualFold(x.HTTP.Upgraded, "websocket"):
		return "websocket"
	}
	return other
}

// detail is the label that only this plane has.
func (p *plane) detail(x *telemetry.Exchange) string {
	switch p.name {
	case "pooler":
		return x.DB.Command
	case "claude":
		return x.GenAI.Model
	}
	return x.HTTP.Method
}

func (p *plane) series(x *telemetry.Exchange) *series {
	k := key{route: x.Route, detail: p.detail(x), code: x.Code, color: x.Color, blame: x.Blame, status: class(x.HTTP.Status)}
	if s := p.last.Load(); s != nil && s.key == k {
		return s
	}
	if s := (*p.known.Load())[k]; s != nil {
		p.last.Store(s)
		return s
	}
	k.route, k.detail, k.code, k.color = p.routes.fold(k.route), p.details.fold(k.detail), p.codes.fold(k.code), p.colors.fold(k.color)
	p.mu.Lock()
	defer p.mu.Unlock()
	known := *p.known.Load()
	if s := known[k]; s != nil {
		return s
	}
	if len(known) >= maxSeries {
		k = key{route: other, detail: other, code: other, color: other, blame: k.blame}
		if s := known[k]; s != nil {
			return s
		}
	}
	s := p.make(k)
	known = maps.Clone(known)
	known[k] = s
	p.known.Store(&known)
	return s
}

func (p *plane) make(k key) *series {
	s := &series{key: k}
	s.tally.created = time.Now().UnixNano()
	s.streamKinds = p.streams
	if p.tokens != nil {
		s.cost = p.cost.WithLabelValues(k.detail, k.color)
		s.unpriced = p.unpriced.WithLabelValues(k.detail)
		for i, kind := range [...]string{"input", "cache_read", "cache_write", "output"} {
			s.tokens[i] = p.tokens.WithLabelValues(k.detail, kind)
		}
	}
	return s
}

var classes = [...]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

// class is a status's hundreds, or 0 for what is no status.
func class(status int) uint8 {
	if status < 100 || status > 599 {
		return 0
	}
	return uint8(status / 100)
}

// causes counts attempts by why they failed.
type causes struct {
	total *prometheus.CounterVec
	names *vocabulary
}

func newCauses(v *prometheus.CounterVec) *causes {
	return &causes{total: v, names: newVocabulary(maxNames)}
}

// count counts the attempts of x. An attempt that did not fail has the cause
// none; those beyond the ones an exchange keeps are counted as other.
func (c *causes) count(x *telemetry.Exchange) {
	for i := range x.Attempts {
		cause := x.Attempts[i].Cause
		if cause == "" {
			cause = "none"
		}
		c.total.WithLabelValues(c.names.fold(cause)).Inc()
	}
	if more := x.Tries - len(x.Attempts); more > 0 {
		c.total.WithLabelValues(other).Add(float64(more))
	}
}

// A vocabulary is the bounded set of values that a label has taken so far. Known
// words are read without a lock.
type vocabulary struct {
	known atomic.Pointer[map[string]string]
	mu    sync.Mutex
	max   int
}

func newVocabulary(max int) *vocabulary {
	v := &vocabulary{max: max}
	v.known.Store(&map[string]string{other: other})
	return v
}

// fold returns s, or a copy of it that is safe to keep, while there is room for
// new words, and other when there is none.
func (v *vocabulary) fold(s string) string {
	if word, ok := (*v.known.Load())[s]; ok {
		return word
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	known := *v.known.Load()
	word := clean(s)
	if have, ok := known[word]; ok {
		return have
	}
	if len(known) >= v.max {
		return other
	}
	known = maps.Clone(known)
	word = strings.Clone(word)
	known[word] = word
	v.known.Store(&known)
	return word
}
