package compare

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The wanted values are those of R's fisher.test(alternative="greater") and
// binom.test(alternative="greater"), and of the definitions by hand.
func TestKnownValues(t *testing.T) {
	for _, tc := range []struct {
		name      string
		got, want float64
	}{
		{"Fisher's tea", Above(Ratio{3, 4}, Ratio{1, 4}), 17.0 / 70},
		{"all against none", Above(Ratio{3, 3}, Ratio{0, 3}), 1.0 / 20},
		{"no more than expected", Above(Ratio{1, 10}, Ratio{1, 10}), 1},
		{"nothing to compare with", Above(Ratio{5, 10}, Ratio{}), 1},
		{"3 of 3 coins", Exceeds(Ratio{3, 3}, 0.5), 0.125},
		{"2 of 3 coins", Exceeds(Ratio{2, 3}, 0.5), 0.5},
		{"none", Exceeds(Ratio{0, 100}, 0.01), 1},
		{"impossible", Exceeds(Ratio{1, 100}, 0), 0},
	} {
		if math.Abs(tc.got-tc.want) > 1e-9 {
			t.Errorf("%s: %v, want %v", tc.name, tc.got, tc.want)
		}
	}
}

func TestLargeNumbersAreNoTrouble(t *testing.T) {
	if p := Above(Ratio{5_000, 1e6}, Ratio{40_000, 10e6}); p > 1e-30 || p < 0 {
		t.Errorf("0.5%% against 0.4%% of millions: %v", p)
	}
	if p := Above(Ratio{4_010, 1e6}, Ratio{40_000, 10e6}); p < 0.1 || p > 0.9 {
		t.Errorf("alike: %v", p)
	}
	if p := Exceeds(Ratio{10_100, 1e6}, 0.01); p < 0.05 || p > 0.5 {
		t.Errorf("just above: %v", p)
	}
}

// Under the null hypothesis a p below x must not come more often than x.
func TestEqualSourcesAreSeldomToldApart(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	draw := func(n uint64, p float64) (k Ratio) {
		k.Of = n
		for range n {
			if r.Float64() < p {
				k.Hits++
			}
		}
		return k
	}
	const rounds = 4000
	above, exceeds := 0, 0
	for range rounds {
		if Above(draw(300, 0.05), draw(100, 0.05)) < 0.01 {
			above++
		}
		if Exceeds(draw(300, 0.05), 0.05) < 0.01 {
			exceeds++
		}
	}
	if above > rounds/100*2 || exceeds > rounds/100*2 {
		t.Errorf("of %d: %d and %d below 0.01", rounds, above, exceeds)
	}
}

func FuzzNoNumbersBreakTheTests(f *testing.F) {
	f.Add(uint64(1), uint64(2), uint64(3), uint64(4), 0.5)
	f.Add(uint64(0), uint64(0), uint64(1), uint64(1), 1.0)
	f.Fuzz(func(t *testing.T, a, b, c, d uint64, p float64) {
		a, b, c, d = a%100_000, b%100_000, c%100_000, d%100_000
		x, y := Ratio{min(a, b), b}, Ratio{min(c, d), d}
		for _, got := range []float64{Above(x, y), Exceeds(x, math.Abs(p))} {
			if !math.IsNaN(p) && (math.IsNaN(got) || got < 0 || got > 1) {
				t.Errorf("%+v %+v %v: %v", x, y, p, got)
			}
		}
	})
}
