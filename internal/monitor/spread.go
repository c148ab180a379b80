package monitor

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// A spread counts durations in buckets that are linear within each power of two:
// 16 to the octave, so that a bucket's middle is at most 3.2% off. It reaches
// from 1 µs to 71 minutes.
type spread [buckets]atomic.Uint32

const (
	steps   = 16 // buckets within an octave
	longest = 1<<32 - 1
	buckets = steps*27 + 2*steps
)

// bucket is where a duration is counted.
func bucket(d time.Duration) int {
	v := uint64(min(max(d.Microseconds(), 0), longest))
	shift := max(bits.Len64(v)-bits.Len64(2*steps-1), 0)
	return steps*shift + int(v>>shift)
}

// middle is the duration that stands for bucket i.
func middle(i int) time.Duration {
	if i < 2*steps {
		return time.Duration(i) * time.Microsecond
	}
	shift := i/steps - 1
	low := uint64(i-steps*shift) << shift
	return time.Duration(low+1<<shift/2) * time.Microsecond
}

// A sum is spreads added up, for reading quantiles.
type sum struct {
	counts [buckets]uint64
	total  uint64
}

func (s *sum) add(from *spread) {
	if from == nil {
		return
	}
	for i := range from {
		if n := uint64(from[i].Load()); n > 0 {
			s.counts[i] += n
			s.total += n
		}
	}
}

func (s *sum) merge(from *sum) {
	for i, n := range from.counts {
		s.counts[i] += n
	}
	s.total += from.total
}

// quantile is the duration that a share q of those counted did not exceed, in
// milliseconds; 0 if there are none.
func (s *sum) quantile(q float64) float64 {
	if s.total == 0 {
		return 0
	}
	rank := max(uint64(q*float64(s.total)+0.999999), 1)
	var seen uint64
	for i, n := range s.counts {
		if seen += n; seen >= rank {
			return milliseconds(middle(i))
		}
	}
	return milliseconds(middle(buckets - 1))
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
