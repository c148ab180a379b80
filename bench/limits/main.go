// Command limits measures decisions of "this user AND this workspace" on one Redis,
// beside redis_rate (two keys, two round trips) and the way of Envoy's ratelimit
// service (INCRBY and EXPIRE in a pipeline: one trip, but not all or none).
//
// All rows of a run share its machine's mood: compare them with one another. The
// processor time is that of this process, client library included.
//
//	scripts/redis.sh go -C bench/limits run . -kill
//
// -kill ends with a kill -9 of that Redis; with -requests it is killed under whole
// requests through the built binary. With -flood it needs no Redis, and tells what one flooding caller costs the others.
//
//	go -C bench/limits run . -flood
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/ratelimit/redisstore"
)

const users = 20_000

// A way decides for one user and one workspace.
type way struct {
	name   string
	decide func(user, space string) error
}

func main() {
	addr := flag.String("addr", os.Getenv("REDIS_ADDR"), "address of a Redis whose data may go")
	clients := flag.Int("c", 64, "how many ask at once")
	span := flag.Duration("for", 3*time.Second, "how long each row takes in each round")
	rounds := flag.Int("rounds", 3, "how often; the best round of each row counts")
	kill := flag.Bool("kill", false, "kill -9 the Redis at the end, and tell how long decisions take")
	whole := flag.Bool("requests", false, "kill -9 the Redis, tell how long whole requests take, and nothing else")
	flooded := flag.Bool("flood", false, "measure a flood, and nothing else")
	only := flag.String("only", "", "of the ways to flood, those whose names have this in them")
	flag.Parse()
	if *flooded {
		if err := flood(*span, *rounds, *only); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if *whole {
		if err := killedRequests(*addr, min(*clients, 16)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	err := measure(*addr, *clients, *span, *rounds)
	if err == nil && *kill {
		err = killed(*addr, min(*clients, 16))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func measure(addr string, clients int, span time.Duration, rounds int) error {
	ctx := context.Background()
	old := redis.NewClient(&redis.Options{Addr: addr, PoolSize: clients})
	defer old.Close()
	ours, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, DisableRetry: true})
	if err != nil {
		return fmt.Errorf("connect to Redis at %q: %w", addr, err)
	}
	defer ours.Close()
	store, err := redisstore.New(ours, "bench:")
	if err != nil {
		return err
	}
	shield := ratelimit.NewShield(store, ratelimit.ShieldOptions{Timeout: time.Second})
	ways := []way{
		{"mainstay, window, 1 trip", mainstay(ctx, shield, "w:", ratelimit.Limit{Max: 10_000, Window: time.Hour})},
		{"mainstay, gcra, 1 trip", mainstay(ctx, shield, "g:", ratelimit.Limit{Algorithm: ratelimit.GCRA, Max: 10_000, Window: time.Hour, Burst: 10_000})},
		{"redis_rate, 2 trips", redisRate(ctx, old)},
		{"INCRBY pipeline, 1 trip", incrBy(ctx, old)},
		{"mainstay, over the limit", mainstay(ctx, shield, "d:", ratelimit.Limit{Max: 1, Window: time.Hour})},
	}
	best := make([]result, len(ways))
	for range rounds {
		for i, w := range ways {
			r, err := drive(w, clients, span)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			if r.perSecond > best[i].perSecond {
				best[i] = r
			}
		}
	}
	fmt.Printf("%-26s %12s %10s %10s %12s\n", "way", "decisions/s", "p50", "p99", "client CPU")
	for i, w := range ways {
		r := best[i]
		fmt.Printf("%-26s %12.0f %10s %10s %12s\n", w.name, r.perSecond, r.p50, r.p99, r.processor)
	}
	return nil
}

func mainstay(ctx context.Context, s ratelimit.Store, prefix string, l ratelimit.Limit) func(user, space string) error {
	return func(user, space string) error {
		checks := [2]ratelimit.Check{
			{Key: prefix + "{" + space + "}:u:" + user, Limit: l, Cost: 1},
			{Key: prefix + "{" + space + "}", Limit: l, Cost: 1},
		}
		var results [2]ratelimit.Result
		_, err := s.Take(ctx, checks[:], results[:])
		return err
	}
}

func redisRate(ctx context.Context, c *redis.Client) func(user, space string) error {
	limiter := redis_rate.NewLimiter(c)
	limit := redis_rate.Limit{Rate: 10_000, Burst: 10_000, Period: time.Hour}
	return func(user, space string) error {
		r, err := limiter.Allow(ctx, "{"+space+"}:u:"+user, limit)
		if err != nil || r.Allowed == 0 {
			return err
		}
		_, err = limiter.Allow(ctx, "{"+space+"}", limit)
		return err
	}
}

func incrBy(ctx context.Context, c *redis.Client) func(user, space string) error {
	return func(user, space string) error {
		p := c.Pipeline()
		for _, key := range [2]string{"e:{" + space + "}:u:" + user, "e:{" + space + "}"} {
			p.IncrBy(ctx, key, 1)
			p.Expire(ctx, key, time.Hour)
		}
		_, err := p.Exec(ctx)
		return err
	}
}

// A row is what one way came to in one round.
type result struct {
	perSecond float64
	p50, p99  time.Duration
	processor time.Duration // of this process, for one decision
}

func drive(w way, clients int, span time.Duration) (result, error) {
	took := make([][]time.Duration, clients)
	failed := make(chan error, clients)
	before, begin := processor(), time.Now()
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for time.Since(begin) < span {
				user := rand.IntN(users)
				at := time.Now()
				if err := w.decide(strconv.Itoa(user), strconv.Itoa(user/20)); err != nil {
					failed <- err
					return
				}
				took[i] = append(took[i], time.Since(at))
			}
		})
	}
	wg.Wait()
	elapsed, used := time.Since(begin), processor()-before
	select {
	case err := <-failed:
		return result{}, err
	default:
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	n := len(all)
	return result{
		perSecond: float64(n) / elapsed.Seconds(), processor: used / time.Duration(n),
		p50: all[n/2].Round(time.Microsecond), p99: all[n*99/100].Round(time.Microsecond),
	}, nil
}

func processor() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
