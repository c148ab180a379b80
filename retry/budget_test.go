package retry

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestABudgetBoundsRetriesToItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(0.2, 0)
		spent := 0
		for range 10_000 {
			b.Earn()
			if b.Spend() {
				spent++
			}
		}
		if spent < 2000 || spent > 2010 {
			t.Errorf("%d retries for 10000 tries", spent)
		}
	})
}

func TestABudgetHasAFloorForThoseWhoDoLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(0.2, 2)
		for b.Spend() {
		}
		time.Sleep(time.Second)
		n := 0
		for b.Spend() {
			n++
		}
		if n != 2 {
			t.Errorf("%d retries a second", n)
		}
	})
}

func TestDecorrelatedWaitsStayWithinTheirBoundsAndComeOnTopOfAskedOnes(t *testing.T) {
	p := Policy{Max: 1 << 30, Base: time.Second, Cap: 20 * time.Second, AskedCap: time.Minute, Decorrelated: true}
	loop, last := p.Begin(), time.Second
	for range 1000 {
		d, ok := loop.Next(0)
		if !ok || d < time.Second || d > min(3*last, 20*time.Second) {
			t.Fatalf("%v after %v", d, last)
		}
		last = d
	}
	loop = p.Begin()
	if d := loop.decorrelated(time.Hour, 0.5); d != time.Minute+2*time.Second {
		t.Errorf("%v", d)
	}
	for _, p := range []Policy{{}, {Base: -1, Cap: -1}, {Base: forever, Cap: forever}, {Cap: time.Second}} {
		loop := p.Begin()
		for range 5 {
			if d := loop.decorrelated(forever, 0.999); d < 0 {
				t.Errorf("%+v: %v", p, d)
			}
		}
	}
}
