package capacity

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// desks is an app of so many places, in each of which work takes a while.
func desks(places int, takes func() time.Duration) func() time.Duration {
	free := make(chan struct{}, places)
	return func() time.Duration {
		began := time.Now()
		free <- struct{}{}
		time.Sleep(takes())
		<-free
		return time.Since(began)
	}
}

// cores is an app that shares so many processors among all its works: more of them
// at once take longer, each.
func cores(n int, takes func() time.Duration) func() time.Duration {
	var mu sync.Mutex
	inside := 0
	return func() time.Duration {
		began, left := time.Now(), takes()
		mu.Lock()
		inside++
		mu.Unlock()
		for left > 0 {
			mu.Lock()
			slow := max(float64(inside)/float64(n), 1)
			mu.Unlock()
			part := min(left, time.Millisecond)
			time.Sleep(time.Duration(float64(part) * slow))
			left -= part
		}
		mu.Lock()
		inside--
		mu.Unlock()
		return time.Since(began)
	}
}

// visits are the works of one tenant at a rate: how long each took with its wait, and
// how many were shed. They begin after warm, when they count.
func visits(all *sync.WaitGroup, v *Valve, w Work, rate float64, warm, long time.Duration, do func() time.Duration) *visited {
	r := new(visited)
	all.Go(func() {
		var works sync.WaitGroup
		begin := time.Now()
		for time.Since(begin) < warm+long {
			time.Sleep(time.Duration(rand.ExpFloat64() / rate * float64(time.Second)))
			works.Go(func() {
				came := time.Now()
				p, err := v.Enter(context.Background(), w)
				waited := time.Since(came)
				if err == nil {
					p.Leave(do(), true)
				}
				r.mu.Lock()
				defer r.mu.Unlock()
				switch {
				case came.Sub(begin) < warm:
				case err != nil:
					r.shed++
				default:
					r.took, r.waited = append(r.took, time.Since(came)), append(r.waited, waited)
				}
			})
		}
		works.Wait()
	})
	return r
}

type visited struct {
	mu     sync.Mutex
	took   []time.Duration
	waited []time.Duration
	shed   int
}

func p95(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)*95/100]
}

func TestInAFloodTheOthersFindTheAppAsFastAsWithoutIt(t *testing.T) {
	steady := func(d time.Duration) func() time.Duration { // a tenth more or less
		return func() time.Duration { return time.Duration(float64(d) * (0.9 + rand.Float64()/5)) }
	}
	varied := func(d time.Duration) func() time.Duration {
		return func() time.Duration { return time.Duration(float64(d) * (0.5 + rand.ExpFloat64()/2)) }
	}
	for _, app := range []struct {
		name  string
		can   float64 // works a second
		flood Class
		make  func() func() time.Duration
	}{
		{"8 places of 20ms", 400, Ordinary, func() func() time.Duration { return desks(8, steady(20*time.Millisecond)) }},
		{"20 places of some 100ms", 200, Ordinary, func() func() time.Duration { return desks(20, varied(100*time.Millisecond)) }},
		{"100 places of some 50ms", 2000, Ordinary, func() func() time.Duration { return desks(100, varied(50*time.Millisecond)) }},
		{"16 processors, some 25ms", 640, Ordinary, func() func() time.Duration { return cores(16, varied(25*time.Millisecond)) }},
		{"a flood of a paying tenant", 400, Critical, func() func() time.Duration { return desks(8, steady(20*time.Millisecond)) }},
	} {
		t.Run(app.name, func(t *testing.T) {
			var took [2]time.Duration
			for i, times := range []float64{0, 3} {
				synctest.Test(t, func(t *testing.T) {
					var all sync.WaitGroup
					const quiet, warm, long = 10 * time.Second, 20 * time.Second, 40 * time.Second
					r := adaptive()
					v, do := New(r), app.make()
					var victims []*visited
					for n := range 10 { // a fifth of what it can, together
						victims = append(victims, visits(&all, v, Work{Class: Ordinary, Tenant: fmt.Sprint(n)}, app.can/50, quiet+warm, long, do))
					}
					flood := new(visited)
					if times > 0 {
						time.Sleep(quiet)
						flood = visits(&all, v, Work{Class: app.flood, Tenant: "flood"}, times*app.can, warm, long, do)
					}
					all.Wait()
					var sum, waited []time.Duration
					for n, x := range victims {
						if x.shed > 0 {
							t.Errorf("victim %d: %d shed of %d", n, x.shed, len(x.took)+x.shed)
						}
						sum, waited = append(sum, x.took...), append(waited, x.waited...)
					}
					took[i] = p95(sum)
					t.Logf("the others' p95 %v, of which p95 of waiting %v; of the flood %.0f a second served; limit %d", took[i], p95(waited), float64(len(flood.took))/long.Seconds(), v.Stats().Limit)
					if times > 0 && float64(len(flood.took)) < 0.1*app.can*long.Seconds() {
						t.Errorf("of the flood only %d were served: the app could do more", len(flood.took))
					}
				})
			}
			if took[1] > took[0]*125/100 {
				t.Errorf("the others' p95 is %v in the flood, %v without", took[1], took[0])
			}
		})
	}
}

func TestBurstsOfOneTenantDoNotReachTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all sync.WaitGroup
		const long = time.Minute
		v := New(adaptive())
		do := desks(8, func() time.Duration { return time.Duration(float64(20*time.Millisecond) * (0.9 + rand.Float64()/5)) })
		var victims []*visited
		for n := range 3 {
			victims = append(victims, visits(&all, v, Work{Class: Ordinary, Tenant: fmt.Sprint(n)}, 15, 10*time.Second, long, do))
		}
		for range int(long / time.Second) { // what a limit of 100 a second lets through at once
			for range 100 {
				all.Go(func() {
					p, err := v.Enter(context.Background(), Work{Class: Ordinary, Tenant: "flood"})
					if err == nil {
						p.Leave(do(), true)
					}
				})
			}
			time.Sleep(time.Second)
		}
		all.Wait()
		var took []time.Duration
		for n, x := range victims {
			if x.shed > 0 {
				t.Errorf("victim %d: %d shed of %d", n, x.shed, len(x.took)+x.shed)
			}
			took = append(took, x.took...)
		}
		t.Logf("p95 %v, slowest %v, limit %d", p95(took), slices.Max(took), v.Stats().Limit)
		if got := p95(took); got > 30*time.Millisecond {
			t.Errorf("the others' p95 is %v, and 22ms without bursts", got)
		}
	})
}
