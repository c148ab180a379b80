package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/rueidis"

	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/ratelimit/redisstore"
)

// killed measures how long single decisions take around a kill -9 of the Redis,
// with the timeout that Mainstay has by default. Callers pause between decisions,
// so that it is Redis that is waited for and not the processor.
func killed(addr string, clients int) error {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, DisableRetry: true})
	if err != nil {
		return fmt.Errorf("connect to Redis at %q: %w", addr, err)
	}
	defer client.Close()
	pid, err := processOf(client)
	if err != nil {
		return err
	}
	store, err := redisstore.New(client, "kill:")
	if err != nil {
		return err
	}
	shield := ratelimit.NewShield(store, ratelimit.ShieldOptions{})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = shield.Run(ctx) })
	defer running.Wait()
	defer stop()
	took := make([][2][]time.Duration, clients)
	var phase atomic.Int32
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			checks := []ratelimit.Check{{Key: "{ws}:" + strconv.Itoa(i), Limit: ratelimit.Limit{Max: 1_000_000, Window: time.Hour}, Cost: 1}}
			var results [1]ratelimit.Result
			for {
				p := phase.Load()
				if p > 1 {
					return
				}
				at := time.Now()
				if _, err := shield.Take(context.Background(), checks, results[:]); err != nil {
					fmt.Fprintln(os.Stderr, "a decision failed:", err)
					return
				}
				took[i][p] = append(took[i][p], time.Since(at))
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	time.Sleep(2 * time.Second)
	alone := shield.Decisions(ratelimit.ModeLocal)
	phase.Store(1)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill Redis, process %d: %w", pid, err)
	}
	time.Sleep(2 * time.Second)
	phase.Store(2)
	wg.Wait()
	fmt.Printf("\n%-34s %10s %10s %10s %10s %10s\n", "one decision, "+strconv.Itoa(clients)+" callers", "decisions", "p50", "p99", "p99.9", "slowest")
	for p, name := range []string{"2 s before the kill", "2 s after kill -9 of Redis"} {
		var all []time.Duration
		for i := range took {
			all = append(all, took[i][p]...)
		}
		slices.Sort(all)
		n := len(all)
		fmt.Printf("%-34s %10d %10s %10s %10s %10s\n", name, n, all[n/2].Round(time.Microsecond), all[n*99/100].Round(time.Microsecond),
			all[n*999/1000].Round(time.Microsecond), all[n-1].Round(time.Microsecond))
	}
	fmt.Printf("decided without Redis: %d before, %d after\n", alone, shield.Decisions(ratelimit.ModeLocal)-alone)
	return nil
}

// processOf asks a Redis on this machine for its process id.
func processOf(client rueidis.Client) (int, error) {
	text, err := client.Do(context.Background(), client.B().Info().Section("server").Build()).ToString()
	if err != nil {
		return 0, fmt.Errorf("ask Redis for its process: %w", err)
	}
	_, rest, _ := strings.Cut(text, "process_id:")
	line, _, _ := strings.Cut(rest, "\r\n")
	pid, err := strconv.Atoi(line)
	if err != nil || pid < 2 {
		return 0, fmt.Errorf("redis names no process: %q", line)
	}
	return pid, nil
}
