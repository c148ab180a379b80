package redisstore_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/ratelimit/redistest"
)

// A flood of identities is bounded in Redis by time: every key, however it came to
// be, is to vanish by itself when its window is over.
func TestEveryKeyInRedisExpires(t *testing.T) {
	client := redistest.Start(t).Client()
	s, ctx := open(t, client), context.Background()
	limits := []ratelimit.Limit{
		{Max: 100, Window: time.Minute}, {Max: 1000, Window: time.Minute},
		{Algorithm: ratelimit.GCRA, Max: 60, Window: time.Minute, Burst: 5}, {Algorithm: ratelimit.Concurrency, Max: 10, Window: time.Minute},
	}
	const identities = 500
	for i := range identities {
		for k, l := range limits {
			check := []ratelimit.Check{{Key: fmt.Sprintf("{u%d}:%d", i, k), Limit: l, Cost: 1}}
			d, err := s.Take(ctx, check, nil)
			if err != nil || !d.Allowed {
				t.Fatal(d, err)
			}
			switch { // what else writes
			case i%5 == 1:
				err = s.Refund(ctx, d, check)
			case i%5 == 2 && l.Algorithm != ratelimit.Concurrency:
				err = s.Charge(ctx, check)
			case i%5 == 3 && l.Algorithm != ratelimit.Concurrency:
				err = s.Restore(ctx, check, []ratelimit.Debt{{Used: 3, Reset: 30 * time.Second, Add: 2}})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	keys, err := client.Do(ctx, client.B().Keys().Pattern("*").Build()).AsStrSlice()
	if err != nil || len(keys) < identities {
		t.Fatal(len(keys), err)
	}
	for _, key := range keys {
		ms, err := client.Do(ctx, client.B().Pttl().Key(key).Build()).AsInt64()
		if err != nil || ms <= 0 && ms != -2 || ms > 2*time.Minute.Milliseconds() { // -2: gone meanwhile
			t.Errorf("%s expires in %d ms, %v", key, ms, err)
		}
	}
	info, err := client.Do(ctx, client.B().Info().Section("memory").Build()).ToString()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(info, "used_memory_dataset:")
	digits, _, _ := strings.Cut(rest, "\r")
	n, _ := strconv.Atoi(digits)
	t.Logf("%d keys, some %d bytes each with all that Redis needs for itself", len(keys), n/len(keys))
}
