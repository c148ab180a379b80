package cache

import (
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

func filled(b *testing.B) (*Cache[string, int], []string) {
	b.Helper()
	c := New[string, int](100e6, 1e5)
	keys := make([]string, 1<<14)
	for i := range keys {
		keys[i] = "/products/" + strconv.Itoa(i)
		c.Set(keys[i], c.Ticket(keys[i]), Item[int]{Value: i, Weight: 1000, Life: Life{Fresh: t0.Add(time.Hour)}}, t0)
	}
	b.ReportAllocs()
	b.ResetTimer()
	return c, keys
}

func BenchmarkHit(b *testing.B) {
	c, keys := filled(b)
	i := 0
	for b.Loop() {
		if _, state := c.Get(keys[i&(len(keys)-1)], t0); state == Miss {
			b.Fatal("not there")
		}
		i++
	}
}

func BenchmarkHitParallel(b *testing.B) {
	c, keys := filled(b)
	var from atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		i := int(from.Add(5000))
		for pb.Next() {
			c.Get(keys[i&(len(keys)-1)], t0)
			i++
		}
	})
}

func BenchmarkMiss(b *testing.B) {
	c, _ := filled(b)
	for b.Loop() {
		c.Get("/nothing", t0)
	}
}

// BenchmarkSetFull replaces what is kept by new keys, so that each set evicts.
func BenchmarkSetFull(b *testing.B) {
	c := New[int, int](1e6, 1e4)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		c.Set(i, c.Ticket(i), Item[int]{Value: i, Weight: 1000, Life: Life{Fresh: t0.Add(time.Hour)}}, t0)
		i++
	}
}
