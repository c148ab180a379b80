package turns

import (
	"math/rand/v2"
	"slices"
	"time"
)

// A schedule says when the transactions of a slice are due, from its beginning on. The
// same round has the same times for all subjects.
type schedule struct {
	rate   float64 // a second; 0: one is due whenever a connection is free
	length time.Duration
	random *rand.Rand
	next   time.Duration
}

func newSchedule(rate float64, length time.Duration, round int) *schedule {
	s := &schedule{rate: rate, length: length, random: rand.New(rand.NewPCG(uint64(round), 1))}
	if rate > 0 {
		s.next = s.gap()
	}
	return s
}

// gap is the time between two that come independently of one another, as pgbench's do.
func (s *schedule) gap() time.Duration {
	return time.Duration(s.random.ExpFloat64() / s.rate * float64(time.Second))
}

// take returns when the next one was due, if that is not later than now.
func (s *schedule) take(now time.Duration) (due time.Duration, ok bool) {
	if s.rate == 0 {
		return now, now < s.length
	}
	if s.next > now || s.over(now) {
		return 0, false
	}
	due = s.next
	s.next += s.gap()
	return due, true
}

// over reports whether no more will be due. One that was due within the slice and found
// no connection free is owed for as long as it takes.
func (s *schedule) over(now time.Duration) bool {
	if s.rate == 0 {
		return now >= s.length
	}
	return s.next >= s.length
}

// wait is how long there is nothing to begin: limit if that is for answers to tell.
func (s *schedule) wait(now, limit time.Duration) time.Duration {
	if s.rate == 0 || s.over(now) {
		return limit
	}
	return min(max(s.next-now, 0), limit)
}

// percentile returns the value below which the part p (0 to 1) of the sorted values is.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]
}

// percentiles sorts took.
func percentiles(took []time.Duration) (p50, p95, p99 time.Duration) {
	slices.Sort(took)
	return percentile(took, .50), percentile(took, .95), percentile(took, .99)
}
