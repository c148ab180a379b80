package capacity

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func fixed(most int, change ...func(*Rule)) Rule {
	r := Rule{Max: most, Reserve: 0.2, Queue: 100, Wait: time.Second, Tolerance: 2}
	for _, f := range change {
		f(&r)
	}
	return r
}

func adaptive() Rule {
	return Rule{Max: 1000, Min: 5, Start: 20, Adapt: true, Reserve: 0.2, Queue: 50, Wait: 250 * time.Millisecond, Tolerance: 2}
}

// an upstream of so many workers, each busy with one work at a time.
type upstream struct {
	mu      sync.Mutex
	workers chan struct{}
	takes   time.Duration
}

func newUpstream(workers int, takes time.Duration) *upstream {
	u := &upstream{}
	u.become(workers, takes)
	return u
}

func (u *upstream) become(workers int, takes time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.workers, u.takes = make(chan struct{}, workers), takes
}

// do works, times as long as usual, and returns how long it took with the wait.
func (u *upstream) do(times float64) time.Duration {
	u.mu.Lock()
	workers, takes := u.workers, u.takes
	u.mu.Unlock()
	began := time.Now()
	workers <- struct{}{}
	time.Sleep(time.Duration(times * float64(takes) * (0.5 + rand.ExpFloat64()/2)))
	<-workers
	return time.Since(began)
}

// tally is what became of the work of one source.
type tally struct {
	done, shed atomic.Int64
	took       atomic.Int64 // of what was done, waits included, in nanoseconds
}

func (t *tally) mean() time.Duration {
	return time.Duration(t.took.Load() / max(t.done.Load(), 1))
}

// source sends work at a rate a second, for so long.
func source(all *sync.WaitGroup, v *Valve, u *upstream, w Work, rate float64, long time.Duration) *tally {
	t := new(tally)
	all.Go(func() {
		var works sync.WaitGroup
		for end := time.Now().Add(long); time.Now().Before(end); {
			time.Sleep(time.Duration(rand.ExpFloat64() / rate * float64(time.Second)))
			works.Go(func() {
				began := time.Now()
				p, err := v.Enter(context.Background(), w)
				if err != nil {
					t.shed.Add(1)
					return
				}
				p.Leave(u.do(float64(max(w.Kind, 1))), true)
				t.done.Add(1)
				t.took.Add(int64(time.Since(began)))
			})
		}
		works.Wait()
	})
	return t
}

func TestTheLimitFindsWhatAnUpstreamCanTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all sync.WaitGroup
		v, u := New(adaptive()), newUpstream(40, 100*time.Millisecond) // 400 a second
		warm := source(&all, v, u, Work{Class: Ordinary}, 100, 10*time.Second)
		all.Wait()
		if n := warm.shed.Load(); n > 0 {
			t.Errorf("a quarter of what it can take: %d shed", n)
		}
		over := source(&all, v, u, Work{Class: Ordinary}, 1200, 30*time.Second) // three times what it can take
		time.Sleep(20 * time.Second)
		if s := v.Stats(); s.Limit < 40 || s.Limit > 200 {
			t.Errorf("40 workers, and the limit is %d", s.Limit)
		}
		all.Wait()
		if n := over.done.Load(); n < 400*30*85/100 {
			t.Errorf("%d done in 30s, of 12000 that it could have done", n)
		}
		if mean := over.mean(); mean > time.Second {
			t.Errorf("what was let in took %v on average, 100ms at ease", mean)
		}
		// It loses half its workers.
		u.become(20, 100*time.Millisecond)
		over = source(&all, v, u, Work{Class: Ordinary}, 1200, 30*time.Second)
		time.Sleep(20 * time.Second)
		if s := v.Stats(); s.Limit < 18 || s.Limit > 120 {
			t.Errorf("20 workers, and the limit is %d", s.Limit)
		}
		all.Wait()
		if n := over.done.Load(); n < 200*30*80/100 {
			t.Errorf("%d done in 30s, of 6000 that it could have done", n)
		}
		// And gets many more.
		u.become(200, 100*time.Millisecond)
		over = source(&all, v, u, Work{Class: Ordinary}, 1200, 60*time.Second)
		all.Wait()
		if n := over.done.Load(); n < 1200*60*85/100 {
			t.Errorf("%d done in 60s, of 72000 that it could have done", n)
		}
	})
}

func TestAChangeOfTheMixOrASlowerAppIsNoPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all sync.WaitGroup
		v, u := New(adaptive()), newUpstream(100, 10*time.Millisecond)
		reads := source(&all, v, u, Work{Class: Ordinary, Kind: 1}, 500, 10*time.Second)
		all.Wait()
		limit := v.Stats().Limit
		reports := source(&all, v, u, Work{Class: Ordinary, Kind: 50}, 60, 30*time.Second) // half a second each
		more := source(&all, v, u, Work{Class: Ordinary, Kind: 1}, 100, 30*time.Second)
		all.Wait()
		if s := v.Stats(); s.Limit < limit || reads.shed.Load()+reports.shed.Load()+more.shed.Load() > 200 {
			t.Errorf("reports beside reads: limit %d, was %d; shed %d, %d, %d", s.Limit, limit, reads.shed.Load(), reports.shed.Load(), more.shed.Load())
		}
		// A release that takes five times as long, and still can do all of it.
		u.become(400, 50*time.Millisecond)
		source(&all, v, u, Work{Class: Ordinary, Kind: 1}, 500, 45*time.Second) // while it finds out
		all.Wait()
		after := source(&all, v, u, Work{Class: Ordinary, Kind: 1}, 500, 30*time.Second)
		all.Wait()
		if shed, done := after.shed.Load(), after.done.Load(); shed > done/20 {
			t.Errorf("a slower release: %d shed, %d done; %+v", shed, done, v.Stats())
		}
	})
}

func TestWithoutPressureNothingWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all sync.WaitGroup
		v, u := New(adaptive()), newUpstream(1000, 20*time.Millisecond)
		s := source(&all, v, u, Work{Class: Ordinary}, 300, time.Minute)
		all.Wait()
		if st := v.Stats(); s.shed.Load() > 0 || st.Queued > 20 {
			t.Errorf("shed %d, queued %d", s.shed.Load(), st.Queued)
		}
	})
}

func TestUnderPressureTheReserveIsForCriticalWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := New(fixed(10, func(r *Rule) { r.Queue = 0 }))
		var inside [classes]int
		for range 20 { // the least urgent come first, and in numbers
			for c := Background; ; c-- {
				if _, err := v.Enter(t.Context(), Work{Class: c}); err == nil {
					inside[c]++
				} else if !errors.Is(err, ErrFull) {
					t.Error(err)
				}
				if c == Background {
					continue
				}
				break
			}
		}
		if inside[Background] > 6 || inside[Background]+inside[Ordinary] != 8 {
			t.Errorf("inside %v", inside)
		}
		for i := range 3 {
			if _, err := v.Enter(t.Context(), Work{Class: Critical}); (err == nil) != (i < 2) {
				t.Errorf("critical work %d: %v", i, err)
			}
		}
	})
}

func TestTheFloodOfOneTenantCostsTheOthersNothing(t *testing.T) {
	var shares [2]time.Duration
	for i, flood := range []float64{0, 5000} {
		synctest.Test(t, func(t *testing.T) {
			var all sync.WaitGroup
			v, u := New(fixed(20)), newUpstream(20, 50*time.Millisecond) // 400 a second, of which ordinary work has 320
			if flood > 0 {
				source(&all, v, u, Work{Class: Ordinary, Tenant: "flood"}, flood, 30*time.Second)
			}
			var victims []*tally
			for n := range 10 {
				victims = append(victims, source(&all, v, u, Work{Class: Ordinary, Tenant: fmt.Sprint("victim ", n)}, 10, 30*time.Second))
			}
			all.Wait()
			for n, s := range victims {
				if s.shed.Load() > 0 {
					t.Errorf("victim %d: %d shed of %d", n, s.shed.Load(), s.done.Load()+s.shed.Load())
				}
				shares[i] += s.mean() / 10
			}
		})
	}
	// A victim waits for its turn: one work of the flood's, not hundreds.
	if shares[1] > shares[0]+50*time.Millisecond {
		t.Errorf("victims took %v in the flood, %v without", shares[1], shares[0])
	}
}

func TestTenantsTakeTurnsAndTheOrderOfOneIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := New(fixed(1, func(r *Rule) { r.Reserve = 0 }))
		first, err := v.Enter(t.Context(), Work{Class: Ordinary})
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		for _, w := range []Work{{Ordinary, "a", 1}, {Ordinary, "a", 2}, {Ordinary, "a", 3}, {Ordinary, "b", 1}, {Background, "c", 1}, {Critical, "d", 1}, {Ordinary, "b", 2}} {
			go func() {
				p, err := v.Enter(context.Background(), w)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, fmt.Sprint(w.Tenant, w.Kind))
				mu.Unlock()
				p.Free()
			}()
			synctest.Wait()
		}
		first.Free()
		synctest.Wait()
		if got, want := fmt.Sprint(order), "[d1 a1 b1 a2 b2 a3 c1]"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if s := v.Stats(); s.InFlight != 0 || s.Waiting != 0 || s.Queued != 7 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAPlaceInTheQueueIsBoundedInTimeAndNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := New(fixed(1, func(r *Rule) { r.Queue = 3 }))
		inside, err := v.Enter(t.Context(), Work{Class: Critical})
		if err != nil {
			t.Fatal(err)
		}
		results := make(chan error, 20)
		enter := func(w Work) {
			go func() {
				p, err := v.Enter(context.Background(), w)
				p.Free()
				results <- err
			}()
			synctest.Wait()
		}
		for range 5 { // two more than there are places
			enter(Work{Class: Ordinary, Tenant: "flood"})
		}
		if n := len(results); n != 2 {
			t.Errorf("%d of 5 were shed at once", n)
		}
		enter(Work{Class: Ordinary, Tenant: "victim"})  // gets the place of the flood's last
		enter(Work{Class: Background, Tenant: "other"}) // gets none
		enter(Work{Class: Critical, Tenant: "flood"})   // gets one
		if n := len(results); n != 5 {
			t.Errorf("%d were shed, want 5", n)
		}
		for range 5 {
			if err := <-results; !errors.Is(err, ErrFull) {
				t.Error(err)
			}
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		gone := errors.New("the client hung up")
		cancel(gone)
		began := time.Now()
		if _, err := v.Enter(ctx, Work{Class: Critical}); !errors.Is(err, gone) {
			t.Errorf("got %v", err)
		}
		for range 3 {
			if err := <-results; !errors.Is(err, ErrLate) {
				t.Error(err)
			}
		}
		if waited := time.Since(began); waited != time.Second {
			t.Errorf("waited %v", waited)
		}
		inside.Free()
		inside.Free() // once is enough
		if s := v.Stats(); s.InFlight != 0 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestARuleMayChangeWhileWorkWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := New(fixed(1))
		if _, err := v.Enter(t.Context(), Work{}); err != nil {
			t.Fatal(err)
		}
		entered := make(chan error, 1)
		go func() {
			_, err := v.Enter(context.Background(), Work{})
			entered <- err
		}()
		synctest.Wait()
		v.Change(fixed(2))
		if err := <-entered; err != nil {
			t.Error(err)
		}
		v.Change(adaptive())
		if s := v.Stats(); s.Limit < 2 || s.InFlight != 2 {
			t.Errorf("%+v", s)
		}
	})
}

func TestNothingIsLostWhenPlacesAreGivenUpAsTheirTurnComes(t *testing.T) {
	v := New(fixed(4, func(r *Rule) { r.Queue, r.Wait = 8, 50*time.Microsecond }))
	var all sync.WaitGroup
	var entered, shed atomic.Int64
	for i := range 16 {
		all.Go(func() {
			for range 500 {
				p, err := v.Enter(context.Background(), Work{Class: Class(i % 3), Tenant: fmt.Sprint(i % 5)})
				if err != nil {
					shed.Add(1)
					continue
				}
				entered.Add(1)
				p.Leave(time.Microsecond, true)
			}
		})
	}
	all.Wait()
	s := v.Stats()
	if s.InFlight != 0 || s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
	if in, out := s.Entered[0]+s.Entered[1]+s.Entered[2], s.Shed[0]+s.Shed[1]+s.Shed[2]; in != uint64(entered.Load()) || out != uint64(shed.Load()) {
		t.Errorf("entered %d, counted %d; shed %d, counted %d", entered.Load(), in, shed.Load(), out)
	}
	for c, l := range v.lines {
		if l.waiting != 0 || len(l.tenants) != 0 || l.turns.Len() != 0 || l.most != 0 {
			t.Errorf("class %d: %+v", c, l)
		}
	}
}

func BenchmarkEnterAndLeave(b *testing.B) {
	v := New(adaptive())
	b.ReportAllocs()
	for b.Loop() {
		p, err := v.Enter(b.Context(), Work{Class: Ordinary, Tenant: "a"})
		if err != nil {
			b.Fatal(err)
		}
		p.Leave(time.Millisecond, true)
	}
}
