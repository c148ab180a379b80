package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
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

// killedRequests measures whole requests through the built binary around a kill -9 of
// the Redis. Each caller asks in turn for a path that no limit counts and for one that
// Redis counts, so that both meet the machine in the same mood; what the kill adds is
// what the difference between them grows by.
func killedRequests(addr string, clients int) error {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, DisableRetry: true})
	if err != nil {
		return fmt.Errorf("connect to Redis at %q: %w", addr, err)
	}
	defer client.Close()
	pid, err := processOf(client)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "kill-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := build(dir); err != nil {
		return err
	}
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer app.Close()
	limit := "{tiers: {free: {requests: 1000000, window: 1h}}, routes: [{name: free, path: /free, cost: 0}]}\nredis: redis://" + addr + "\n"
	url, stop, err := launch(filepath.Join(dir, "node"), app.Listener.Addr().String(), "", limit)
	if err != nil {
		return err
	}
	defer stop()
	const before, after = 4 * time.Second, 4 * time.Second
	paths := [2]string{"/free", "/counted"}
	took := make(taken, clients)
	var phase atomic.Int32
	var lost atomic.Int64
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			c := &http.Client{Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			for k := 0; ; k++ {
				p := phase.Load()
				if p > 1 {
					return
				}
				at := time.Now()
				if visit(context.Background(), c, url+paths[k%2], victims[i%len(victims)]) != http.StatusOK {
					lost.Add(1)
				}
				took[i][p][k%2] = append(took[i][p][k%2], time.Since(at))
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	time.Sleep(before)
	phase.Store(1)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill Redis, process %d: %w", pid, err)
	}
	time.Sleep(after)
	phase.Store(2)
	all.Wait()
	reportKill(took, paths)
	fmt.Printf("answered by anything but 200: %d\n", lost.Load())
	return nil
}

// taken is how long requests took, by caller, phase and path.
type taken [][2][2][]time.Duration

// reportKill prints both phases, and what the second path takes longer than the first.
func reportKill(took taken, paths [2]string) {
	fmt.Printf("\n%-40s %9s %10s %10s %10s %10s\n", "one request, "+strconv.Itoa(len(took))+" callers", "requests", "p50", "p99", "p99.9", "slowest")
	for p, when := range []string{"before the kill", "after kill -9 of Redis"} {
		var q [2][4]time.Duration
		for k, path := range paths {
			var sorted []time.Duration
			for i := range took {
				sorted = append(sorted, took[i][p][k]...)
			}
			slices.Sort(sorted)
			n := len(sorted)
			q[k] = [4]time.Duration{sorted[n/2], sorted[n*99/100], sorted[n*999/1000], sorted[n-1]}
			row(when+", "+strings.TrimPrefix(path, "/"), strconv.Itoa(n), q[k])
		}
		row("  what counting adds", "", [4]time.Duration{q[1][0] - q[0][0], q[1][1] - q[0][1], q[1][2] - q[0][2], q[1][3] - q[0][3]})
	}
}

func row(name, n string, q [4]time.Duration) {
	fmt.Printf("%-40s %9s", name, n)
	for _, d := range q {
		fmt.Printf(" %10s", d.Round(10*time.Microsecond))
	}
	fmt.Println()
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
