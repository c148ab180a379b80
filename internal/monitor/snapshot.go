package monitor

import (
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// A Snapshot is what the planes did in a window of time that ends now.
type Snapshot struct {
	Window float64          `json:"window_s"` // seconds that were counted; shorter just after the start
	Planes map[string]Plane `json:"planes"`   // edge, pooler and claude, each always there
}

// A Plane is what one plane did, in all and by color.
type Plane struct {
	Figures
	Colors map[string]Figures `json:"colors"` // of those that did something
}

// Figures sum up a number of exchanges. Durations are in milliseconds, 0 if there
// was none to measure, and at most 3.2% off. Tunnels and event streams are
// counted, and are in no quantile of latency.
type Figures struct {
	Count        uint64            `json:"count"`
	Rate         float64           `json:"rate"`          // a second
	Errors       uint64            `json:"errors"`        // Mainstay or an upstream is to blame
	ErrorRate    float64           `json:"error_rate"`    // share of Count, 0 to 1
	ClientErrors uint64            `json:"client_errors"` // the caller is to blame
	P50          float64           `json:"p50_ms"`
	P95          float64           `json:"p95_ms"`
	P99          float64           `json:"p99_ms"`
	FirstByteP50 float64           `json:"first_byte_p50_ms"` // claude only
	FirstByteP95 float64           `json:"first_byte_p95_ms"`
	Waited       uint64            `json:"waited"` // those that had to wait in a queue
	WaitP95      float64           `json:"wait_p95_ms"`
	Lasting      uint64            `json:"lasting"` // tunnels and event streams
	Attempts     uint64            `json:"attempts"`
	Retries      uint64            `json:"retries"`          // attempts after the first
	Causes       map[string]uint64 `json:"causes,omitempty"` // why attempts failed
	Codes        map[string]uint64 `json:"codes"`
	BytesIn      uint64            `json:"bytes_in"`
	BytesOut     uint64            `json:"bytes_out"`
	Tokens       *Tokens           `json:"tokens,omitempty"`
	Cost         float64           `json:"cost_usd,omitempty"` // claude only
}

// Tokens are what the Claude API counted.
type Tokens struct {
	Input      uint64 `json:"input"` // uncached
	CacheRead  uint64 `json:"cache_read"`
	CacheWrite uint64 `json:"cache_write"`
	Output     uint64 `json:"output"`
}

// A Point is one step of a series.
type Point struct {
	Time         time.Time `json:"t"` // when the step began
	Count        uint64    `json:"count"`
	Rate         float64   `json:"rate"` // a second
	Errors       uint64    `json:"errors"`
	P50          float64   `json:"p50_ms"`
	P95          float64   `json:"p95_ms"`
	P99          float64   `json:"p99_ms"`
	FirstByteP95 float64   `json:"first_byte_p95_ms"` // claude only
}

// Snapshot sums up the window that ends now, the second under way included. A
// window is between one second and Retention.
func (m *Monitor) Snapshot(window time.Duration) Snapshot {
	elapsed := time.Since(m.start)
	window = min(max(window, time.Second), Retention)
	now := int64(elapsed / time.Second)
	first := now - int64(window/time.Second) + 1
	span := max(elapsed.Seconds()-float64(max(first, 0)), 1)
	s := Snapshot{Window: span, Planes: map[string]Plane{}}
	for name, p := range m.planes {
		var all tally
		out := Plane{Colors: map[string]Figures{}}
		for color, l := range *p.lanes.Load() {
			var one tally
			l.each(first, now+1, one.add)
			if one.count > 0 {
				out.Colors[color] = one.figures(p, span)
				all.merge(&one)
			}
		}
		out.Figures = all.figures(p, span)
		s.Planes[name] = out
	}
	return s
}

// Series returns one point for each whole step within the window, oldest first,
// from the first whole step of the monitor's life on. Steps are whole seconds;
// the one under way is left out. An unknown plane has no points.
func (m *Monitor) Series(planeName string, window, step time.Duration) []Point {
	p := m.planes[planeName]
	if p == nil {
		return nil
	}
	window = min(max(window, time.Second), Retention)
	size := int64(min(max(step, time.Second), window) / time.Second)
	end := m.now() / size * size
	first := max(end-int64(window/time.Second)/size*size, 0)
	points := make([]Point, 0, (end-first)/size)
	lanes := *p.lanes.Load()
	for s := first; s < end; s += size {
		var t tally
		for _, l := range lanes {
			l.each(s, s+size, t.addBasics)
		}
		points = append(points, Point{
			Time: m.start.Add(time.Duration(s) * time.Second), Count: t.count, Rate: float64(t.count) / float64(size), Errors: t.errors(),
			P50: t.latency.quantile(0.50), P95: t.latency.quantile(0.95), P99: t.latency.quantile(0.99),
			FirstByteP95: t.firstByte.quantile(0.95),
		})
	}
	return points
}

// A tally is cells added up.
type tally struct {
	count, lasting, attempts, retries, bytesIn, bytesOut, nanos uint64

	tokens                   [4]uint64
	blames                   [4]uint64
	codes, causes            [maxWords]uint64
	latency, wait, firstByte sum
}

func (t *tally) addBasics(c *cell) {
	t.count += c.count.Load()
	for i := range c.blames {
		t.blames[i] += uint64(c.blames[i].Load())
	}
	t.latency.add(c.latency.Load())
	t.firstByte.add(c.firstByte.Load())
}

func (t *tally) add(c *cell) {
	t.addBasics(c)
	t.lasting += c.lasting.Load()
	t.attempts += c.attempts.Load()
	t.retries += c.retries.Load()
	t.bytesIn += c.bytesIn.Load()
	t.bytesOut += c.bytesOut.Load()
	t.nanos += c.nanos.Load()
	for i := range c.tokens {
		t.tokens[i] += c.tokens[i].Load()
	}
	for i := range c.codes {
		t.codes[i] += uint64(c.codes[i].Load())
		t.causes[i] += uint64(c.causes[i].Load())
	}
	t.wait.add(c.wait.Load())
}

func (t *tally) merge(o *tally) {
	t.count += o.count
	t.lasting += o.lasting
	t.attempts += o.attempts
	t.retries += o.retries
	t.bytesIn += o.bytesIn
	t.bytesOut += o.bytesOut
	t.nanos += o.nanos
	for i := range o.tokens {
		t.tokens[i] += o.tokens[i]
		t.blames[i] += o.blames[i]
	}
	for i := range o.codes {
		t.codes[i] += o.codes[i]
		t.causes[i] += o.causes[i]
	}
	t.latency.merge(&o.latency)
	t.wait.merge(&o.wait)
	t.firstByte.merge(&o.firstByte)
}

func (t *tally) errors() uint64 {
	return t.blames[telemetry.BlameMainstay] + t.blames[telemetry.BlameUpstream]
}

func (t *tally) figures(p *plane, span float64) Figures {
	f := Figures{
		Count: t.count, Rate: float64(t.count) / span,
		Errors: t.errors(), ClientErrors: t.blames[telemetry.BlameClient],
		P50: t.latency.quantile(0.50), P95: t.latency.quantile(0.95), P99: t.latency.quantile(0.99),
		FirstByteP50: t.firstByte.quantile(0.50), FirstByteP95: t.firstByte.quantile(0.95),
		Waited: t.wait.total, WaitP95: t.wait.quantile(0.95),
		Lasting: t.lasting, Attempts: t.attempts, Retries: t.retries,
		Causes: p.causes.named(&t.causes), Codes: p.codes.named(&t.codes),
		BytesIn: t.bytesIn, BytesOut: t.bytesOut, Cost: float64(t.nanos) / 1e9,
	}
	if t.count > 0 {
		f.ErrorRate = float64(f.Errors) / float64(t.count)
	}
	if k := t.tokens; k != [4]uint64{} {
		f.Tokens = &Tokens{Input: k[0], CacheRead: k[1], CacheWrite: k[2], Output: k[3]}
	}
	return f
}
