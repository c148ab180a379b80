package cache_test

import (
	"fmt"
	"time"

	"mainstay.dev/mainstay/cache"
)

// A page is fetched, kept for a minute, and given for another ten where a new one
// cannot be had.
func Example() {
	pages := cache.New[string, string](64e6, 1e6)

	key, now := "/products", time.Now()
	ticket := pages.Ticket(key) // before the fetch: an invalidation meanwhile counts
	page := "twelve products"
	life := cache.Life{Fresh: now.Add(time.Minute), Until: now.Add(11 * time.Minute)}
	pages.Set(key, ticket, cache.Item[string]{Value: page, Weight: int64(len(page)), Life: life}, now)

	found, state := pages.Get(key, now.Add(5*time.Minute))
	fmt.Println(found, state == cache.Stale)
	pages.Invalidate(key) // somebody changed the products
	_, state = pages.Get(key, now)
	fmt.Println(state == cache.Miss)
	// Output:
	// twelve products true
	// true
}
