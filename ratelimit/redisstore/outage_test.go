package redisstore_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/ratelimit/redisstore"
	"mainstay.dev/mainstay/ratelimit/redistest"
)

// run starts something with a Run method and ends it with the test.
func run(t *testing.T, what func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- what(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A kill -9 of Redis in mid-window: four nodes go on by themselves, Redis comes
// back empty, and the window's total is still the limit, or at most 5% more.
func TestKillingRedisInMidWindowGivesNoSecondHelping(t *testing.T) {
	const limit = 2000
	server := redistest.Start(t)
	var shields [nodes]*ratelimit.Shield
	for i := range shields {
		shields[i] = ratelimit.NewShield(open(t, server.Client()), ratelimit.ShieldOptions{
			// A killed Redis refuses at once; the limit is wide so that a busy machine
			// is not taken for an outage of its own.
			Nodes: func() int { return nodes }, Timeout: 200 * time.Millisecond,
		})
		run(t, shields[i].Run)
	}
	var slowest atomic.Int64
	checks := []ratelimit.Check{{Key: "{ws}:user", Limit: ratelimit.Limit{Max: limit, Window: time.Hour}, Cost: 1}}
	ask := func(node int) (bool, error) {
		before := time.Now()
		d, err := shields[node].Take(context.Background(), checks, nil)
		for took := int64(time.Since(before)); ; {
			if most := slowest.Load(); took <= most || slowest.CompareAndSwap(most, took) {
				break
			}
		}
		return d.Allowed, err
	}
	before := storm(t, limit/clients/4, ask)

	var during int64
	var killed sync.WaitGroup
	killed.Go(server.Kill)
	during = storm(t, limit/clients/2, ask)
	killed.Wait()
	during += storm(t, 10, ask)
	for i, s := range shields {
		if !s.Down() {
			t.Errorf("node %d did not see that Redis is gone", i)
		}
	}
	local := shields[0].Decisions(ratelimit.ModeLocal)

	server.Restart()
	for i, s := range shields {
		redistest.Await(t, "the recovery", func() error {
			if s.Down() {
				return fmt.Errorf("node %d believes Redis to be down", i)
			}
			return nil
		})
	}
	after := storm(t, limit/clients+10, ask)
	total := before + during + after
	t.Logf("admitted %d: %d before, %d around the kill, %d after; %d local decisions on one node; slowest decision %s",
		total, before, during, after, local, time.Duration(slowest.Load()))
	if total > limit*105/100 {
		t.Errorf("%d were admitted, 5%% over the limit of %d", total, limit)
	}
	if total < limit/2 {
		t.Errorf("only %d of %d were admitted", total, limit)
	}
}

func TestNodesCountOneAnother(t *testing.T) {
	server := redistest.Start(t)
	first := redisstore.NewPresence(server.Client(), "test:")
	second := redisstore.NewPresence(server.Client(), "test:")
	if first.Nodes() != 1 {
		t.Errorf("%d nodes before anything was heard", first.Nodes())
	}
	run(t, first.Run)
	ctx, leave := context.WithCancel(context.Background())
	left := make(chan error, 1)
	go func() { left <- second.Run(ctx) }()
	count := func(want int) func() error {
		return func() error {
			if n := first.Nodes(); n != want {
				return fmt.Errorf("%d nodes, want %d", n, want)
			}
			return nil
		}
	}
	redistest.Await(t, "the second node", count(2))
	leave()
	if err := <-left; err != nil {
		t.Error(err)
	}
	redistest.Await(t, "the second node's leave", count(1))
}
