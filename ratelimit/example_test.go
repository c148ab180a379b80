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

// A Shield keeps deciding when the shared store does not. The store would be one of
// redisstore; Run watches over it in the background.
func ExampleShield() {
	shared := ratelimit.NewMemory(0)
	shield := ratelimit.NewShield(shared, ratelimit.ShieldOptions{
		Changed: func(cause error) { fmt.Println("store changed:", cause) },
	})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- shield.Run(ctx) }()

	login := []ratelimit.Check{{Key: "login:ann", Limit: ratelimit.Limit{Max: 1, Window: time.Minute}, Cost: 1}}
	for range 3 {
		// A login that cannot be counted is refused; other routes may go on locally.
		d, err := shield.On(ratelimit.FailDeny).Take(ctx, login, nil)
		fmt.Println(d.Allowed, d.Mode, err)
	}
	stop()
	<-done
	// Output:
	// true exact <nil>
	// false exact <nil>
	// false deny <nil>
}
