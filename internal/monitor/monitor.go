// Package monitor remembers the last five minutes of every plane, second by
// second, for the dashboard and for `mainstay status`: rates, errors, quantiles,
// waits, attempts and tokens, in all and by color, and the latest events. Of what
// the watch of a deploy compares it knows ten minutes, of the edge's errors a day.
// Its memory is bounded, and its hot path takes a lock once a second at most.
//
// Only app and admin import it.
package monitor

import (
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// Retention is how far back windows reach.
const Retention = 5 * time.Minute

const (
	seconds   = int64(Retention/time.Second) + 2 // the current one, and one to spare
	maxColors = 6                                // by plane; more are counted as other
	maxWords  = 48                               // codes, and causes, by plane; likewise
	other     = "other"
)

// A Monitor is a telemetry sink. All methods may be called from many goroutines
// at once. It runs no goroutine and needs no end.
type Monitor struct {
	start  time.Time
	planes map[string]*plane // never changes
	events log
	lines  lines
	budget budget
}

// New makes a monitor; its clock starts now.
func New() *Monitor {
	m := &Monitor{start: time.Now(), planes: map[string]*plane{}}
	for _, name := range []string{"edge", "pooler", "claude"} {
		m.planes[name] = newPlane(name)
	}
	return m
}

// Record counts x in the current second. An exchange of an unknown plane is
// ignored.
func (m *Monitor) Record(x *telemetry.Exchange) {
	if p := m.planes[x.Plane]; p != nil {
		p.lane(x.Color).cell(m.now()).record(p, x)
	}
	if x.Plane == "edge" {
		m.budget.count(m.now()/60, x.Blame == telemetry.BlameMainstay || x.Blame == telemetry.BlameUpstream)
	}
}

// Emit keeps e among the latest events.
func (m *Monitor) Emit(e telemetry.Event) { m.events.add(e) }

// Events returns the latest events, newest first, at most 200.
func (m *Monitor) Events() []Event { return m.events.latest() }

// now is the number of the current second. It counts on the monotonic clock, so
// that a step of the wall clock leaves no hole.
func (m *Monitor) now() int64 { return int64(time.Since(m.start) / time.Second) }

// plane is what one plane did.
type plane struct {
	firstByte bool // whether the first byte is of interest: it is where answers are long
	codes     words
	causes    words
	mu        sync.Mutex                       // guards additions to lanes
	lanes     atomic.Pointer[map[string]*lane] // by color
}

func newPlane(name string) *plane {
	p := &plane{firstByte: name == "claude"}
	p.codes.init()
	p.causes.init()
	p.lanes.Store(&map[string]*lane{})
	return p
}

// lane finds the cells of a color.
func (p *plane) lane(color string) *lane {
	if l := (*p.lanes.Load())[color]; l != nil {
		return l
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	lanes := *p.lanes.Load()
	if len(lanes) >= maxColors && lanes[color] == nil {
		color = other
	}
	if l := lanes[color]; l != nil {
		return l
	}
	lanes = maps.Clone(lanes)
	l := &lane{}
	lanes[strings.Clone(color)] = l
	p.lanes.Store(&lanes)
	return l
}

// A lane is a ring of seconds. A cell that is too old is replaced by a new one,
// never emptied, so readers and writers of it cannot meet; what it held goes into
// the past.
type lane struct {
	ring [seconds]atomic.Pointer[cell]
	mu   sync.Mutex // guards past, and the replacement of a cell
	past past
}

// cell is the one of a second, made if there is none yet.
func (l *lane) cell(second int64) *cell {
	at := &l.ring[second%seconds]
	if c := at.Load(); c != nil && c.second >= second {
		return c
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c := at.Load()
	if c != nil && c.second >= second {
		return c
	}
	fresh := &cell{second: second}
	at.Store(fresh)
	if c != nil {
		l.past.take(c)
	}
	return fresh
}

// each visits the cells of the seconds from first up to but not including end.
func (l *lane) each(first, end int64, visit func(*cell)) {
	for s := max(first, 0); s < end; s++ {
		if c := l.ring[s%seconds].Load(); c != nil && c.second == s {
			visit(c)
		}
	}
}

// cell is what happened in one second.
type cell struct {
	second   int64
	count    atomic.Uint64
	lasting  atomic.Uint64
	attempts atomic.Uint64
	retries  atomic.Uint64
	bytesIn  atomic.Uint64
	bytesOut atomic.Uint64
	nanos    atomic.Uint64 // billionths of a dollar
	tokens   [4]atomic.Uint64
	blames   [4]atomic.Uint32
	codes    [maxWords]atomic.Uint32
	causes   [maxWords]atomic.Uint32

	latency, wait, firstByte, cost atomic.Pointer[spread] // made when first needed
}

func (c *cell) record(p *plane, x *telemetry.Exchange) {
	c.count.Add(1)
	c.blames[x.Blame&3].Add(1)
	c.codes[p.codes.number(x.Code)].Add(1)
	if x.Lasting() {
		c.lasting.Add(1)
	} else {
		count(&c.latency, x.Took)
	}
	if x.Waited > 0 {
		count(&c.wait, x.Waited)
	}
	if x.FirstByte > 0 && p.firstByte {
		count(&c.firstByte, x.FirstByte)
	}
	add(&c.bytesIn, x.BytesIn)
	add(&c.bytesOut, x.BytesOut)
	add(&c.attempts, int64(x.Tries))
	add(&c.retries, int64(x.Tries)-1)
	for i := range x.Attempts {
		if cause := x.Attempts[i].Cause; cause != "" {
			c.causes[p.causes.number(cause)].Add(1)
		}
	}
	if w := weight(&x.GenAI); w > 0 {
		count(&c.cost, time.Duration(w)*time.Microsecond) // a spread counts in microseconds
	}
	g := &x.GenAI
	add(&c.nanos, g.CostNanoUSD)
	for i, n := range [...]int64{g.InputTokens, g.CacheReadTokens, g.CacheWriteTokens, g.OutputTokens} {
		add(&c.tokens[i], n)
	}
}

func add(to *atomic.Uint64, n int64) {
	if n > 0 {
		to.Add(uint64(n))
	}
}

func count(in *atomic.Pointer[spread], d time.Duration) {
	s := in.Load()
	for s == nil {
		in.CompareAndSwap(nil, new(spread))
		s = in.Load()
	}
	s[bucket(d)].Add(1)
}

// words numbers the codes or causes that a plane has used; 0 is other.
type words struct {
	mu      sync.Mutex // guards additions
	numbers atomic.Pointer[map[string]int]
}

func (w *words) init() { w.numbers.Store(&map[string]int{other: 0}) }

func (w *words) number(s string) int {
	if n, ok := (*w.numbers.Load())[s]; ok {
		return n
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	numbers := *w.numbers.Load()
	if n, ok := numbers[s]; ok || len(numbers) >= maxWords {
		return n
	}
	numbers = maps.Clone(numbers)
	n := len(numbers)
	numbers[strings.Clone(s)] = n
	w.numbers.Store(&numbers)
	return n
}

// named turns counts by number into counts by word, without zeros.
func (w *words) named(counts *[maxWords]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for word, n := range *w.numbers.Load() {
		if counts[n] > 0 {
			out[word] = counts[n]
		}
	}
	return out
}

// An Event is a telemetry.Event made fit to be kept and shown.
type Event struct {
	Number uint64            `json:"number"` // counts up from 1
	Time   time.Time         `json:"time"`
	Part   string            `json:"part"`
	Name   string            `json:"name"`
	Color  string            `json:"color,omitempty"`
	Level  slog.Level        `json:"level"`
	Text   string            `json:"text"`
	Attrs  map[string]string `json:"attrs,omitempty"`
}

const (
	maxEvents = 200
	maxAttrs  = 32
	maxText   = 1000 // bytes, of a text and of an attribute
)

// log is the ring of the latest events.
type log struct {
	mu     sync.Mutex
	ring   [maxEvents]Event
	number uint64
}

func (l *log) add(e telemetry.Event) {
	kept := Event{Time: e.Time, Part: e.Part, Name: e.Name, Color: e.Color, Level: e.Level, Text: clip(e.Text)}
	if kept.Time.IsZero() {
		kept.Time = time.Now()
	}
	if len(e.Attrs) > 0 {
		kept.Attrs = map[string]string{}
		flatten(kept.Attrs, "", e.Attrs)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	kept.Number = l.number + 1
	l.ring[l.number%maxEvents] = kept
	l.number++
}

func (l *log) latest() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Event, 0, min(l.number, maxEvents))
	for n := l.number; n > 0 && len(out) < maxEvents; n-- {
		out = append(out, l.ring[(n-1)%maxEvents])
	}
	return out
}

// flatten writes attributes as text. Resolving a value is what masks a secret.
func flatten(out map[string]string, prefix string, attrs []slog.Attr) {
	for _, a := range attrs {
		v := a.Value.Resolve()
		switch {
		case len(out) >= maxAttrs:
			return
		case v.Kind() == slog.KindGroup:
			flatten(out, prefix+a.Key+".", v.Group())
		case a.Key != "":
			out[prefix+a.Key] = clip(v.String())
		}
	}
}

func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
