package compare

import "time"

// A Spread is how sizes are distributed, from small to large. Two of them that are
// added up have the same scale.
type Spread []Bucket

// A Bucket counts what is about as large.
type Bucket struct {
	Size  int64 // what stands for all of them
	Count uint64
}

// Count is how many were measured.
func (s Spread) Count() uint64 { return s.Beyond(-1).Of }

// Beyond counts what is larger than limit.
func (s Spread) Beyond(limit int64) (r Ratio) {
	for _, b := range s {
		r.Of += b.Count
		if b.Size > limit {
			r.Hits += b.Count
		}
	}
	return r
}

// P95 is the 95th percentile; 0 of nothing.
func (s Spread) P95() int64 {
	all := s.Count()
	var seen uint64
	for _, b := range s {
		if seen += b.Count; seen*100 >= all*95 {
			return b.Size
		}
	}
	return 0
}

// Plus adds two spreads up.
func (s Spread) Plus(o Spread) (out Spread) {
	for len(s) > 0 && len(o) > 0 {
		switch {
		case s[0].Size < o[0].Size:
			out, s = append(out, s[0]), s[1:]
		case s[0].Size > o[0].Size:
			out, o = append(out, o[0]), o[1:]
		default:
			out = append(out, Bucket{s[0].Size, s[0].Count + o[0].Count})
			s, o = s[1:], o[1:]
		}
	}
	return append(append(out, s...), o...)
}

// Times is how often something happened to a color that had so many requests in so
// much time.
type Times struct {
	N, Requests uint64
	Span        time.Duration
}

// Per is how often it happened to a request; 0 if there was none.
func (t Times) Per() float64 {
	if t.Requests == 0 {
		return 0
	}
	return float64(t.N) / float64(t.Requests)
}

// Plus adds two up.
func (t Times) Plus(o Times) Times {
	return Times{t.N + o.N, t.Requests + o.Requests, t.Span + o.Span}
}

// More is how likely a would have so many, or more, if it happened to both as often
// by the request, or as often by the second, whichever is likelier. It takes what
// happens for independent of each other.
func More(a, b Times) float64 {
	if a.Requests == 0 || b.Requests == 0 || a.Span <= 0 || b.Span <= 0 {
		return 1
	}
	got := Ratio{a.N, a.N + b.N}
	byRequest := float64(a.Requests) / float64(a.Requests+b.Requests)
	byTime := float64(a.Span) / float64(a.Span+b.Span)
	return max(Exceeds(got, byRequest), Exceeds(got, byTime))
}
