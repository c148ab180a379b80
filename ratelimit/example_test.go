package ratelimit_test

import (
	"context"
	"fmt"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// A user and the workspace share a request: both are charged, or neither.
func Example() {
	store, ctx := ratelimit.NewMemory(0), context.Background()
	checks := []ratelimit.Check{
		{Key: "user:7", Limit: ratelimit.Limit{Max: 2, Window: time.Hour}, Cost: 1},
		{Key: "workspace:3", Limit: ratelimit.Limit{Max: 1000, Window: time.Hour}, Cost: 1},
	}
	results := make([]ratelimit.Result, len(checks))
	for range 3 {
		d, err := store.Take(ctx, checks, results)
		fmt.Println(d.Allowed, results[0].Remaining, results[1].Remaining, err)
	}
	// Output:
	// true 1 999 <nil>
	// true 0 998 <nil>
	// false 0 998 <nil>
}

// A lease bounds how much runs at once; it ends by itself if its holder dies.
func ExampleMemory_Refund() {
	store, ctx := ratelimit.NewMemory(0), context.Background()
	exports := []ratelimit.Check{{
		Key: "exports", Cost: 1,
		Limit: ratelimit.Limit{Algorithm: ratelimit.Concurrency, Max: 1, Window: time.Minute},
	}}
	first, _ := store.Take(ctx, exports, nil)
	second, _ := store.Take(ctx, exports, nil)
	_ = store.Refund(ctx, first, exports)
	third, _ := store.Take(ctx, exports, nil)
	fmt.Println(first.Allowed, second.Allowed, third.Allowed)
	// Output: true false true
}
