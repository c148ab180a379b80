package ratelimit_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/ratelimit/ratelimittest"
)

const start = 1 << 50 // microseconds; any time will do

func TestMemoryDecidesAsTheModelDoesAMillionTimes(t *testing.T) {
	steps := 1_000_000
	if testing.Short() {
		steps /= 10
	}
	model := ratelimittest.NewModel()
	ratelimittest.NewWalk(1, "k", start).Run(t, ratelimit.Virtual{Memory: ratelimit.NewMemory(0)}, model, steps)
}

// walkOne drives one limit with random arrivals and returns when units were
// admitted and what was refused.
func walkOne(t *testing.T, l ratelimit.Limit, steps int) (times, refused []int64) {
	v := ratelimit.Virtual{Memory: ratelimit.NewMemory(0)}
	rnd := rand.New(rand.NewPCG(7, uint64(l.Max)))
	now := int64(start)
	gap := max(l.Window.Microseconds()/l.Max, 1) // offered: about twice what the limit allows
	for range steps {
		now += rnd.Int64N(gap)
		if rnd.IntN(500) == 0 {
			now += rnd.Int64N(2 * l.Window.Microseconds())
		}
		d, err := v.TakeAt(now, []ratelimit.Check{{Key: "k", Limit: l, Cost: 1}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if d.Allowed {
			times = append(times, now)
		} else {
			refused = append(refused, now)
		}
	}
	return times, refused
}

// most is the largest number of times in a half-open interval of length w.
func most(times []int64, w int64) (n int) {
	for i, j := 0, 0; j < len(times); j++ {
		for times[j]-times[i] >= w {
			i++
		}
		n = max(n, j-i+1)
	}
	return n
}

func TestEachAlgorithmKeepsItsWorstCase(t *testing.T) {
	for _, tc := range []struct {
		name  string
		limit ratelimit.Limit
		most  int
	}{
		{"exact", ratelimit.Limit{Algorithm: ratelimit.Exact, Max: 50, Window: time.Second}, 50},
		{"sliced", ratelimit.Limit{Algorithm: ratelimit.Sliced, Max: 50, Window: time.Second}, 50},
		{"window, small", ratelimit.Limit{Max: 100, Window: time.Hour}, 100},
		{"window, large", ratelimit.Limit{Max: 1000, Window: time.Hour}, 1000},
		{"gcra", ratelimit.Limit{Algorithm: ratelimit.GCRA, Max: 50, Window: time.Second, Burst: 10}, 60},
	} {
		t.Run(tc.name, func(t *testing.T) {
			times, refused := walkOne(t, tc.limit, 100_000)
			w := tc.limit.Window.Microseconds()
			if got := most(times, w); got > tc.most {
				t.Errorf("%d were admitted in one window, at most %d may", got, tc.most)
			}
			if len(refused) == 0 {
				t.Error("nobody was refused")
			}
			if tc.limit.Algorithm != ratelimit.GCRA {
				neverTooStrict(t, times, refused, w+tc.limit.Grain().Microseconds(), int(tc.limit.Max))
			}
		})
	}
}

// neverTooStrict asserts that every refusal had its reason: Max units in the
// window, lengthened by the grain.
func neverTooStrict(t *testing.T, times, refused []int64, w int64, limit int) {
	t.Helper()
	from, to := 0, 0
	for _, at := range refused {
		for to < len(times) && times[to] <= at {
			to++
		}
		for from < to && at-times[from] >= w {
			from++
		}
		if to-from < limit {
			t.Fatalf("refused at %d with %d of %d in the window", at, to-from, limit)
		}
	}
}

func TestARetryAtTheToldMomentPassesAndNotBefore(t *testing.T) {
	for _, limits := range ratelimittest.Limits {
		l := limits[0]
		v := ratelimit.Virtual{Memory: ratelimit.NewMemory(0)}
		now, checks := int64(start), []ratelimit.Check{{Key: "k", Limit: l, Cost: 1}}
		waited := 0
		for range 2000 {
			now += 1000
			d, _ := v.TakeAt(now, checks, nil)
			if d.Allowed {
				continue
			}
			waited++
			if early, _ := v.TakeAt(now+d.Retry.Microseconds()-1, checks, nil); early.Allowed {
				t.Fatalf("%s: passed before Retry", l.Algorithm)
			}
			if now += d.Retry.Microseconds(); d.Retry <= 0 {
				t.Fatalf("%s: Retry is %s", l.Algorithm, d.Retry)
			}
			if late, _ := v.TakeAt(now, checks, nil); !late.Allowed {
				t.Fatalf("%s: refused at the told moment", l.Algorithm)
			}
		}
		if waited == 0 {
			t.Errorf("%s: nobody had to wait", l.Algorithm)
		}
	}
}

func TestAllChecksAreChargedOrNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, ctx := ratelimit.NewMemory(0), context.Background()
		user := ratelimit.Check{Key: "user", Limit: ratelimit.Limit{Max: 10, Window: time.Hour}, Cost: 1}
		space := ratelimit.Check{Key: "space", Limit: ratelimit.Limit{Max: 3, Window: time.Hour}, Cost: 1}
		var r [2]ratelimit.Result
		for range 5 {
			if _, err := m.Take(ctx, []ratelimit.Check{user, space}, r[:]); err != nil {
				t.Fatal(err)
			}
		}
		if r[0].Remaining != 7 || r[1].Remaining != 0 || !r[0].Allowed || r[1].Allowed || r[1].Retry != time.Hour {
			t.Errorf("got %+v", r)
		}
		space.Shadow = true
		d, _ := m.Take(ctx, []ratelimit.Check{user, space}, r[:])
		if !d.Allowed || r[0].Remaining != 6 || r[1].Allowed {
			t.Errorf("a shadow refused, or passed: %+v %+v", d, r)
		}
		time.Sleep(time.Hour)
		space.Shadow = false
		if d, _ = m.Take(ctx, []ratelimit.Check{user, space}, r[:]); !d.Allowed || r[1].Remaining != 2 {
			t.Errorf("after the window: %+v %+v", d, r)
		}
	})
}

func TestALeaseThatIsNeverGivenBackEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, ctx := ratelimit.NewMemory(0), context.Background()
		c := []ratelimit.Check{{Key: "k", Limit: ratelimit.Limit{Algorithm: ratelimit.Concurrency, Max: 2, Window: time.Minute}, Cost: 1}}
		first, _ := m.Take(ctx, c, nil)
		time.Sleep(10 * time.Second)
		second, _ := m.Take(ctx, c, nil)
		if third, _ := m.Take(ctx, c, nil); third.Allowed || third.Retry != 50*time.Second || third.Lease != 0 {
			t.Fatalf("got %+v", third)
		}
		_ = m.Refund(ctx, second, c)
		_ = m.Refund(ctx, second, c) // once is enough
		third, _ := m.Take(ctx, c, nil)
		if fourth, _ := m.Take(ctx, c, nil); !third.Allowed || fourth.Allowed {
			t.Fatalf("a lease given back twice counted twice")
		}
		time.Sleep(50 * time.Second) // the first holder died
		if fourth, _ := m.Take(ctx, c, nil); !first.Allowed || !fourth.Allowed {
			t.Fatal("the dead holder's lease did not end")
		}
	})
}

func TestManyAtOnceAreAdmittedToTheUnit(t *testing.T) {
	m := ratelimit.NewMemory(0)
	limits := []ratelimit.Check{
		{Key: "user", Limit: ratelimit.Limit{Max: 1000, Window: time.Hour}, Cost: 1},
		{Key: "space", Limit: ratelimit.Limit{Max: 700, Window: time.Hour}, Cost: 1},
	}
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			checks := []ratelimit.Check{limits[i%2], limits[1-i%2]}
			for range 500 {
				if d, _ := m.Take(context.Background(), checks, nil); d.Allowed {
					admitted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := admitted.Load(); n != 700 {
		t.Errorf("%d were admitted, want 700", n)
	}
}

func TestAFloodOfIdentitiesStaysInTheMemoryBoundAndSparesTheRegulars(t *testing.T) {
	identities := 2_000_000
	if n, err := strconv.Atoi(os.Getenv("LIMITS_FLOOD")); err == nil { // 10000000 is the long form
		identities = n
	} else if testing.Short() || raceEnabled {
		identities = 500_000
	}
	const bound = 16 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	m := ratelimit.NewMemory(bound)
	ctx, limit := context.Background(), ratelimit.Limit{Max: 100, Window: time.Hour}
	regular := []ratelimit.Check{{Key: "regular", Limit: limit, Cost: 1}}
	admitted := 0
	check := make([]ratelimit.Check, 1)
	for i := range identities {
		check[0] = ratelimit.Check{Key: "flood:" + strconv.Itoa(i), Limit: limit, Cost: 1}
		if _, err := m.Take(ctx, check, nil); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 {
			if d, _ := m.Take(ctx, regular, nil); d.Allowed {
				admitted++
			}
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > bound*11/10 {
		t.Errorf("the heap grew by %d bytes, the bound is %d", grown, bound)
	}
	if s := m.Stats(); s.Bytes > bound || s.Evicted == 0 {
		t.Errorf("got %+v", s)
	}
	if admitted != 100 {
		t.Errorf("the regular had %d of 100: the flood reset its limit", admitted)
	}
	runtime.KeepAlive(m)
}

func TestDeadKeysMakeRoomBeforeTheBoundIsReached(t *testing.T) {
	v := ratelimit.Virtual{Memory: ratelimit.NewMemory(0)}
	for i := range 200_000 { // each lives a second, a hundred come in one
		checks := []ratelimit.Check{{Key: strconv.Itoa(i), Limit: ratelimit.Limit{Max: 3, Window: time.Second}, Cost: 1}}
		if _, err := v.TakeAt(start+int64(i)*10_000, checks, nil); err != nil {
			t.Fatal(err)
		}
	}
	if s := v.Stats(); s.Keys > 64*30 || s.Evicted != 0 {
		t.Errorf("100 keys are alive, %d are held, %d were evicted", s.Keys, s.Evicted)
	}
}

func TestWhatMakesNoSenseIsRefusedAsAnError(t *testing.T) {
	m, ok := ratelimit.NewMemory(0), ratelimit.Limit{Max: 1, Window: time.Second}
	for name, checks := range map[string][]ratelimit.Check{
		"a negative cost":        {{Key: "k", Limit: ok, Cost: -1}},
		"an absurd cost":         {{Key: "k", Limit: ok, Cost: math.MaxInt64}},
		"no key":                 {{Limit: ok, Cost: 1}},
		"a huge key":             {{Key: string(make([]byte, 2000)), Limit: ok, Cost: 1}},
		"no limit":               {{Key: "k", Cost: 1}},
		"an endless window":      {{Key: "k", Limit: ratelimit.Limit{Max: 1, Window: math.MaxInt64}, Cost: 1}},
		"no window":              {{Key: "k", Limit: ratelimit.Limit{Max: 1}, Cost: 1}},
		"a negative window":      {{Key: "k", Limit: ratelimit.Limit{Max: 1, Window: -time.Hour}, Cost: 1}},
		"an absurd maximum":      {{Key: "k", Limit: ratelimit.Limit{Max: math.MaxInt64, Window: time.Hour}, Cost: 1}},
		"a log without end":      {{Key: "k", Limit: ratelimit.Limit{Algorithm: ratelimit.Exact, Max: 1e6, Window: time.Hour}, Cost: 1}},
		"gcra without burst":     {{Key: "k", Limit: ratelimit.Limit{Algorithm: ratelimit.GCRA, Max: 1, Window: time.Hour}, Cost: 1}},
		"gcra of a lifetime":     {{Key: "k", Limit: ratelimit.Limit{Algorithm: ratelimit.GCRA, Max: 1, Window: time.Hour, Burst: 1e9}, Cost: 1}},
		"gcra below microsecond": {{Key: "k", Limit: ratelimit.Limit{Algorithm: ratelimit.GCRA, Max: 1e9, Window: time.Second, Burst: 1}, Cost: 1}},
		"an unknown algorithm":   {{Key: "k", Limit: ratelimit.Limit{Algorithm: 99, Max: 1, Window: time.Hour}, Cost: 1}},
		"one counter twice":      {{Key: "k", Limit: ok, Cost: 1}, {Key: "k", Limit: ok, Cost: 1}},
		"too many":               make([]ratelimit.Check, ratelimit.MaxChecks+1),
	} {
		if d, err := m.Take(context.Background(), checks, nil); !errors.Is(err, ratelimit.ErrInvalid) || d.Allowed {
			t.Errorf("%s: got %+v, %v", name, d, err)
		}
	}
	if s := m.Stats(); s.Keys != 0 {
		t.Errorf("%d keys were made", s.Keys)
	}
}

func FuzzTake(f *testing.F) {
	f.Add("k", uint8(3), int64(10), int64(time.Second), int64(3), int64(1), int64(100))
	f.Add("k", uint8(0), int64(1e9), int64(ratelimit.MaxWindow), int64(0), int64(1e9), int64(0))
	f.Add("k", uint8(3), int64(1), int64(ratelimit.MaxWindow), int64(10), int64(10), int64(1<<40))
	f.Fuzz(func(t *testing.T, key string, algorithm uint8, limit, window, burst, cost, later int64) {
		v := ratelimit.Virtual{Memory: ratelimit.NewMemory(0)}
		checks := []ratelimit.Check{{Key: key, Cost: cost, Limit: ratelimit.Limit{
			Algorithm: ratelimit.Algorithm(algorithm), Max: limit, Window: time.Duration(window), Burst: burst,
		}}}
		var r [1]ratelimit.Result
		for i := range int64(4) {
			d, err := v.TakeAt(start+i*(later&(1<<41-1)), checks, r[:])
			if err != nil {
				return
			}
			if r[0].Remaining < 0 || d.Retry < 0 || r[0].Next < 0 || r[0].Reset < r[0].Next {
				t.Fatalf("got %+v %+v", d, r[0])
			}
		}
	})
}
