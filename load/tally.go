package load

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A Tally counts outcomes, for each kind by itself. It may be used from many
// goroutines at once. Latencies are kept in histograms of three significant
// digits from 1 µs to 5 minutes (longer ones count as 5 minutes), so that tallies
// of several runs can be merged without loss.
type Tally struct {
	mu    sync.Mutex
	kinds map[string]*counts
	lag   *hdrhistogram.Histogram // from due to sent: the generator's own lateness
}

type counts struct {
	verdicts [Saturated + 1]int64
	causes   map[string]int64
	latency  *hdrhistogram.Histogram // of those that were OK
}

const longest = 5 * time.Minute

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, longest.Microseconds(), 3)
}

func record(h *hdrhistogram.Histogram, d time.Duration) {
	// The value is within the histogram's range, so there is no error to be had.
	_ = h.RecordValue(min(max(d, time.Microsecond), longest).Microseconds())
}

// NewTally makes an empty tally.
func NewTally() *Tally {
	return &Tally{kinds: map[string]*counts{}, lag: newHistogram()}
}

func (t *Tally) of(kind string) *counts {
	c := t.kinds[kind]
	if c == nil {
		c = &counts{causes: map[string]int64{}, latency: newHistogram()}
		t.kinds[kind] = c
	}
	return c
}

// Add counts one outcome.
func (t *Tally) Add(o Outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.of(o.Kind)
	c.verdicts[min(o.Verdict, Saturated)]++
	if o.Verdict == OK {
		record(c.latency, o.Latency())
	} else {
		c.causes[o.Cause]++
	}
	if o.Verdict != Saturated {
		record(t.lag, o.Sent.Sub(o.Due))
	}
}

// Merge adds all that other holds; other must not be t.
func (t *Tally) Merge(other *Tally) {
	other.mu.Lock()
	defer other.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	for kind, from := range other.kinds {
		to := t.of(kind)
		for v, n := range from.verdicts {
			to.verdicts[v] += n
		}
		for cause, n := range from.causes {
			to.causes[cause] += n
		}
		to.latency.Merge(from.latency)
	}
	t.lag.Merge(other.lag)
}

// A Summary is what a tally holds, in figures.
type Summary struct {
	Requests  int64            `json:"requests"` // sent; those the generator could not send are not among them
	OK        int64            `json:"ok"`
	Failed    int64            `json:"failed"`    // of the requests
	Saturated int64            `json:"saturated"` // beside the requests
	Verdicts  map[string]int64 `json:"verdicts"`  // every verdict that occurred
	Causes    map[string]int64 `json:"causes"`    // of all that were not OK

	// Latencies of the requests that were OK, from when they were due; those that
	// failed are in Failed and would only flatter the figures ("refused" is fast).
	P50 time.Duration `json:"p50_ns"`
	P95 time.Duration `json:"p95_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`

	LagP99 time.Duration `json:"lag_p99_ns"` // the generator's own lateness, all kinds together
}

// ErrorRate is the share of requests that failed: 0 to 1; 0 when there were none.
func (s Summary) ErrorRate() float64 {
	if s.Requests == 0 {
		return 0
	}
	return float64(s.Failed) / float64(s.Requests)
}

// Summary sums up the kinds that pick accepts; nil accepts all.
func (t *Tally) Summary(pick func(kind string) bool) Summary {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Summary{Verdicts: map[string]int64{}, Causes: map[string]int64{}}
	latency := newHistogram()
	for kind, c := range t.kinds {
		if pick != nil && !pick(kind) {
			continue
		}
		for v, n := range c.verdicts {
			if n > 0 {
				s.Verdicts[Verdict(v).String()] += n
			}
		}
		for cause, n := range c.causes {
			s.Causes[cause] += n
		}
		s.OK += c.verdicts[OK]
		s.Saturated += c.verdicts[Saturated]
		s.Failed += c.verdicts[HTTPError] + c.verdicts[WrongBody] + c.verdicts[TransportError]
		latency.Merge(c.latency)
	}
	s.Requests = s.OK + s.Failed
	quantile := func(h *hdrhistogram.Histogram, q float64) time.Duration {
		return time.Duration(h.ValueAtQuantile(q)) * time.Microsecond
	}
	s.P50, s.P95, s.P99 = quantile(latency, 50), quantile(latency, 95), quantile(latency, 99)
	s.Max = time.Duration(latency.Max()) * time.Microsecond
	s.LagP99 = quantile(t.lag, 99)
	return s
}

// Kinds lists the kinds that have an outcome, sorted.
func (t *Tally) Kinds() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.kinds))
}
