package main

import (
	"math"
	"testing"
)

func near(a, b, within float64) bool { return math.Abs(a-b) <= within }

func TestAnIntervalIsThatOfTheLogarithms(t *testing.T) {
	// Logarithms 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, standard error 0.0577; Student's
	// quantile for two degrees of freedom is 4.303.
	peer := []float64{10, 20, 40}
	own := []float64{10 * math.Exp(.1), 20 * math.Exp(.2), 40 * math.Exp(.3)}
	i := compare(own, peer)
	want := math.Exp(.2) * math.Sinh(4.303*.1/math.Sqrt(3))
	if i.pairs != 3 || !near(i.mean, math.Exp(.2), 1e-9) || !near(i.within, want, .04*want) {
		t.Errorf("%+v, want a mean of %.4f and ±%.4f", i, math.Exp(.2), want)
	}
	back := compare(peer, own)
	if !near(back.mean*i.mean, 1, 1e-9) {
		t.Errorf("%v one way and %v the other", i, back)
	}
}

func TestAPairWithoutAFigureDoesNotCount(t *testing.T) {
	if i := compare([]float64{0, 2, 2, 2}, []float64{1, 1, 0, 1}); i.pairs != 2 || !near(i.mean, 2, 1e-9) || !near(i.within, 0, 1e-9) {
		t.Errorf("%+v", i)
	}
	if s := compare(nil, []float64{1}).String(); s != "–" {
		t.Errorf("nothing is %q", s)
	}
}

func TestStudentsQuantiles(t *testing.T) {
	for freedom, want := range map[float64]float64{4: 2.776, 9: 2.262, 29: 2.045, 59: 2.001, 1e6: 1.960} {
		if got := student(freedom); !near(got, want, .01) {
			t.Errorf("%v degrees of freedom: %.3f, want %.3f", freedom, got, want)
		}
	}
}
