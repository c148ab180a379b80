// Package compare holds the tests by which deploy tells a color that is worse
// from one that had bad luck. It is deploy's own.
package compare

import "math"

// A Ratio is Hits of Of, such as errors of requests.
type Ratio struct{ Hits, Of uint64 }

// Rate is the share of hits; 0 of nothing.
func (r Ratio) Rate() float64 {
	if r.Of == 0 {
		return 0
	}
	return float64(r.Hits) / float64(r.Of)
}

// Plus adds two ratios up.
func (r Ratio) Plus(o Ratio) Ratio { return Ratio{r.Hits + o.Hits, r.Of + o.Of} }

// Above is Fisher's exact test, one-sided: how likely a would have its share of
// hits, or a greater one, if both came from the same source. Small means that a
// has truly more.
func Above(a, b Ratio) float64 {
	if a.Of == 0 || b.Of == 0 {
		return 1
	}
	hits, all := a.Hits+b.Hits, a.Of+b.Of
	most := min(hits, a.Of)
	// The hypergeometric chance of k hits among a's, from what was seen upwards.
	chance := func(k uint64) float64 {
		return math.Exp(choose(a.Of, k) + choose(b.Of, hits-k) - choose(all, hits))
	}
	return tail(a.Hits, most, float64(a.Of)*float64(hits)/float64(all), chance)
}

// Exceeds is the exact binomial test, one-sided: how likely r is if every one is a
// hit with the chance p.
func Exceeds(r Ratio, p float64) float64 {
	switch {
	case r.Of == 0 || r.Hits == 0 || p >= 1:
		return 1
	case p <= 0:
		return 0
	}
	chance := func(k uint64) float64 {
		return math.Exp(choose(r.Of, k) + float64(k)*math.Log(p) + float64(r.Of-k)*math.Log1p(-p))
	}
	return tail(r.Hits, r.Of, float64(r.Of)*p, chance)
}

// tail adds up the chances from k to most. They fall from the mean on, so what
// no longer counts is left out; below the mean the answer is that it may well be.
func tail(k, most uint64, mean float64, chance func(uint64) float64) float64 {
	if float64(k) <= mean {
		return 1
	}
	sum := 0.0
	for ; k <= most; k++ {
		c := chance(k)
		if sum += c; c < sum*1e-12 {
			break
		}
	}
	return min(sum, 1)
}

// choose is the logarithm of n over k; of an impossible choice it is -Inf.
func choose(n, k uint64) float64 {
	if k > n {
		return math.Inf(-1)
	}
	a, _ := math.Lgamma(float64(n) + 1)
	b, _ := math.Lgamma(float64(k) + 1)
	c, _ := math.Lgamma(float64(n-k) + 1)
	return a - b - c
}
