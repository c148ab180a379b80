package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/ratelimit/ratelimittest"
	"mainstay.dev/mainstay/ratelimit/redisstore"
	"mainstay.dev/mainstay/ratelimit/redistest"
)

const start = 1 << 50 // microseconds; any time will do

func open(t testing.TB, client rueidis.Client) *redisstore.Store {
	t.Helper()
	s, err := redisstore.New(client, "test:")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// steps is how many calls the model is compared over; LIMITS_STEPS overrides it.
func steps() int {
	if n, err := strconv.Atoi(os.Getenv("LIMITS_STEPS")); err == nil {
		return n
	}
	return 30_000
}

// walk compares a store with the model on several walks at once, whose keys are
// apart, so that calls of one are pipelined with the others'.
func walk(t *testing.T, s *redisstore.Store, key string) {
	t.Helper()
	const walks = 10
	var wg sync.WaitGroup
	for i := range uint64(walks) {
		wg.Go(func() {
			w := ratelimittest.NewWalk(i, fmt.Sprintf(key, i), start)
			w.Run(t, redisstore.Virtual{Store: s}, ratelimittest.NewModel(), steps()/walks)
		})
	}
	wg.Wait()
}

func TestRedisDecidesAsTheModelDoes(t *testing.T) {
	walk(t, open(t, redistest.Start(t).Client()), "k%d:")
}

func TestAClusterDecidesAsTheModelDoesWhenKeysShareATag(t *testing.T) {
	nodes := redistest.StartCluster(t, 3)
	c := redistest.Connect(t, rueidis.ClientOption{InitAddress: []string{nodes[0].Addr}})
	walk(t, open(t, c), "{ws%d}:")
}

func TestLimitsOfOtherSlotsAreGivenBackWhenALaterOneRefuses(t *testing.T) {
	nodes := redistest.StartCluster(t, 3)
	c := redistest.Connect(t, rueidis.ClientOption{InitAddress: []string{nodes[1].Addr}})
	s, ctx := open(t, c), context.Background()
	const tags = 12 // so that some are on other nodes
	checks := make([]ratelimit.Check, tags)
	for i := range checks {
		checks[i] = ratelimit.Check{Key: fmt.Sprintf("{ws%d}", i), Limit: ratelimit.Limit{Max: 10, Window: time.Hour}, Cost: 1}
	}
	checks[tags-1].Limit.Max = 3
	results := make([]ratelimit.Result, tags)
	for i := range 8 {
		d, err := s.Take(ctx, checks, results)
		if err != nil || d.Allowed != (i < 3) {
			t.Fatalf("take %d: %+v %v", i, d, err)
		}
	}
	if results[0].Remaining != 7 || results[tags-1].Remaining != 0 || results[tags-1].Allowed {
		t.Errorf("got %+v", results)
	}
	for i := range checks {
		checks[i].Cost = 0
	}
	if _, err := s.Take(ctx, checks, results); err != nil || results[5].Remaining != 7 {
		t.Errorf("what was taken was not given back: %+v %v", results[5], err)
	}
}

// clients is how many ask at once, over how many nodes each with its own client.
const clients, nodes = 64, 4

// storm lets all clients ask each times and returns how many were admitted.
func storm(t *testing.T, each int, take func(node int) (bool, error)) int64 {
	t.Helper()
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for range each {
				ok, err := take(i % nodes)
				if err != nil {
					t.Error(err)
					return
				}
				if ok {
					admitted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return admitted.Load()
}

func TestSixtyFourClientsOnFourNodesAreAdmittedToTheUnit(t *testing.T) {
	server := redistest.Start(t)
	var stores [nodes]*redisstore.Store
	for i := range stores {
		stores[i] = open(t, server.Client())
	}
	user := ratelimit.Check{Key: "{ws}:user", Limit: ratelimit.Limit{Algorithm: ratelimit.Exact, Max: 1000, Window: time.Hour}, Cost: 1}
	space := ratelimit.Check{Key: "{ws}", Limit: ratelimit.Limit{Max: 5000, Window: time.Hour}, Cost: 1}
	n := storm(t, 50, func(node int) (bool, error) {
		d, err := stores[node].Take(context.Background(), []ratelimit.Check{user, space}, nil)
		return d.Allowed, err
	})
	if n != 1000 {
		t.Errorf("%d were admitted, want 1000", n)
	}
	var r [1]ratelimit.Result
	space.Cost = 0
	if _, err := stores[0].Take(context.Background(), []ratelimit.Check{space}, r[:]); err != nil || r[0].Remaining != 4000 {
		t.Errorf("the workspace has %d left, want 4000: %v", r[0].Remaining, err)
	}
}

func TestALimitSurvivesATurnOfTheServersClock(t *testing.T) {
	v := redisstore.Virtual{Store: open(t, redistest.Start(t).Client())}
	for _, l := range []ratelimit.Limit{
		{Algorithm: ratelimit.Exact, Max: 5, Window: time.Minute},
		{Algorithm: ratelimit.GCRA, Max: 5, Window: time.Minute, Burst: 5},
	} {
		c := []ratelimit.Check{{Key: "turn", Limit: l, Cost: 1}}
		for i := range int64(6) {
			if d, err := v.TakeAt(start+i, c, nil); err != nil || d.Allowed != (i < 5) {
				t.Fatalf("%+v %v", d, err)
			}
		}
		hourAgo := int64(start) - time.Hour.Microseconds()
		d, err := v.TakeAt(hourAgo, c, nil)
		if err != nil || d.Allowed || d.Retry > time.Minute {
			t.Errorf("%s: after a step back: %+v %v", l.Algorithm, d, err)
		}
		if d, err = v.TakeAt(hourAgo+time.Minute.Microseconds(), c, nil); err != nil || !d.Allowed {
			t.Errorf("%s: a window after a step back: %+v %v", l.Algorithm, d, err)
		}
	}
}

func TestTLSAndAUserWithNoMoreThanItNeeds(t *testing.T) {
	server := redistest.StartTLS(t, "--user", "limits", "on", ">secret", "~test:*", "-@all", "+evalsha", "+eval", "+mget", "+set", "+del", "+time", "+ping", "+hello", "+client")
	c := redistest.Connect(t, rueidis.ClientOption{
		InitAddress: []string{server.Addr}, TLSConfig: server.TLS, Username: "limits", Password: "secret",
	})
	checks := []ratelimit.Check{{Key: "k", Limit: ratelimit.Limit{Max: 1, Window: time.Hour}, Cost: 1}}
	s, ctx := open(t, c), context.Background()
	first, err := s.Take(ctx, checks, nil)
	second, err2 := s.Take(ctx, checks, nil)
	if err := errors.Join(err, err2, s.Reset(ctx, checks)); err != nil || !first.Allowed || second.Allowed {
		t.Errorf("got %+v %+v %v", first, second, err)
	}
	other, _ := redisstore.New(c, "elsewhere:")
	if _, err := other.Take(ctx, checks, nil); err == nil {
		t.Error("the user reached keys it may not touch")
	}
}

func TestALimitOutlivesAFailoverBySentinel(t *testing.T) {
	w := redistest.StartSentinel(t)
	c := redistest.Connect(t, rueidis.ClientOption{
		InitAddress: w.Sentinels, Sentinel: rueidis.SentinelOption{MasterSet: w.Name},
	})
	s, ctx := open(t, c), context.Background()
	checks := []ratelimit.Check{{Key: "k", Limit: ratelimit.Limit{Max: 10, Window: time.Hour}, Cost: 4}}
	if d, err := s.Take(ctx, checks, nil); err != nil || !d.Allowed {
		t.Fatalf("%+v %v", d, err)
	}
	if n, err := c.Do(ctx, c.B().Wait().Numreplicas(1).Timeout(5000).Build()).AsInt64(); err != nil || n != 1 {
		t.Fatalf("the replica does not follow: %d %v", n, err)
	}
	w.Master.Kill()
	var results [1]ratelimit.Result
	redistest.Await(t, "the new master", func() error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := s.Take(ctx, checks, results[:])
		return err
	})
	if results[0].Remaining != 2 {
		t.Errorf("%d are left after the failover, want 2", results[0].Remaining)
	}
}

func TestWhatMakesNoSenseNeverReachesRedis(t *testing.T) {
	c := redistest.Start(t).Client()
	if _, err := redisstore.New(c, "a{b}c:"); err == nil {
		t.Error("a prefix with a tag was accepted")
	}
	s, bad := open(t, c), []ratelimit.Check{{Key: "k", Cost: -1, Limit: ratelimit.Limit{Max: 1, Window: time.Hour}}}
	if _, err := s.Take(context.Background(), bad, nil); !errors.Is(err, ratelimit.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if err := s.Charge(context.Background(), bad); !errors.Is(err, ratelimit.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestAKeyThatIsNoCounterCountsAsNone(t *testing.T) {
	c := redistest.Start(t).Client()
	s, ctx := open(t, c), context.Background()
	checks := []ratelimit.Check{
		{Key: "k", Limit: ratelimit.Limit{Max: 3, Window: time.Hour}, Cost: 1},
		{Key: "k", Limit: ratelimit.Limit{Algorithm: ratelimit.GCRA, Max: 3, Window: time.Hour, Burst: 3}, Cost: 1},
		{Key: "k", Limit: ratelimit.Limit{Algorithm: ratelimit.Concurrency, Max: 3, Window: time.Hour}, Cost: 1},
	}
	for _, junk := range []string{"", "1", "junk", "12345678901", "1234567890123456789012345678"} {
		for _, kind := range []string{"w", "g", "c"} {
			if err := c.Do(ctx, c.B().Set().Key("test:k:"+kind+"3600000000").Value(junk).Build()).Error(); err != nil {
				t.Fatal(err)
			}
		}
		var r [3]ratelimit.Result
		if d, err := s.Take(ctx, checks, r[:]); err != nil || !d.Allowed || r[0].Remaining != 2 || r[1].Remaining != 2 || r[2].Remaining != 2 {
			t.Errorf("%q: %+v %+v %v", junk, d, r, err)
		}
	}
}

func TestARedisThatIsNotThereIsAnErrorWithinTheCallersTime(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, server.Client())
	checks := []ratelimit.Check{{Key: "k", Limit: ratelimit.Limit{Max: 1, Window: time.Hour}, Cost: 1}}
	server.Freeze()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Take(ctx, checks, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	server.Thaw()
	server.Kill()
	var refused *net.OpError
	redistest.Await(t, "the refusal", func() error {
		if _, err := s.Take(context.Background(), checks, nil); !errors.As(err, &refused) {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}
