package ratelimit_test

import (
	"context"
	"strconv"
	"syscall"
	"testing"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// decide measures one decision over the limits given, for one of 1,000 keys. The
// processor time stands beside the elapsed one, which other programs lengthen.
func decide(b *testing.B, limits ...ratelimit.Limit) {
	m, ctx := ratelimit.NewMemory(256<<20), context.Background()
	const users = 1000
	sets := make([][]ratelimit.Check, users)
	for i := range sets {
		for k, l := range limits {
			sets[i] = append(sets[i], ratelimit.Check{Key: strconv.Itoa(k) + ":user:" + strconv.Itoa(i), Limit: l, Cost: 1})
		}
	}
	results := make([]ratelimit.Result, len(limits))
	step := func(i int) {
		if _, err := m.Take(ctx, sets[i*379%users], results); err != nil {
			b.Fatal(err)
		}
	}
	for i := range users * 12 { // until the counters have their size
		step(i)
	}
	b.ReportAllocs()
	before := processor()
	for i := 0; b.Loop(); i++ {
		step(i)
	}
	b.ReportMetric(float64(processor()-before)/float64(b.N), "cpu-ns/op")
}

func processor() int64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

func BenchmarkDecision(b *testing.B) {
	hour := time.Hour
	log := ratelimit.Limit{Max: 10, Window: hour}
	sliced := ratelimit.Limit{Max: 1_000_000, Window: hour}
	gcra := ratelimit.Limit{Algorithm: ratelimit.GCRA, Max: 1000, Window: hour, Burst: 1_000_000}
	b.Run("refused", func(b *testing.B) { decide(b, log) })
	b.Run("sliced", func(b *testing.B) { decide(b, sliced) })
	b.Run("gcra", func(b *testing.B) { decide(b, gcra) })
	b.Run("user-and-workspace", func(b *testing.B) { decide(b, sliced, sliced) })
}

func TestADecisionAllocatesNothing(t *testing.T) {
	m, ctx := ratelimit.NewMemory(0), context.Background()
	checks := []ratelimit.Check{
		{Key: "a", Limit: ratelimit.Limit{Max: 1e6, Window: time.Hour}, Cost: 1},
		{Key: "b", Limit: ratelimit.Limit{Algorithm: ratelimit.GCRA, Max: 1e6, Window: time.Hour, Burst: 1e6}, Cost: 1},
	}
	results := make([]ratelimit.Result, 2)
	if n := testing.AllocsPerRun(1000, func() { _, _ = m.Take(ctx, checks, results) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
