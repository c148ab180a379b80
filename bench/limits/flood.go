package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The flood is measured through the built binary: an app of eight places in which a
// request takes 20 ms, three callers who ask 20 times a second each, and one who
// floods from 64 connections.
const (
	places   = 8
	serves   = 20 * time.Millisecond
	pause    = 50 * time.Millisecond
	flooders = 64
)

var victims = []string{"ann", "bob", "eve"}

// floods are the ways in which one may flood, with what stands against it.
var floods = []struct{ name, edge, limits string }{
	{"beyond 100 in any 1s", "", "{requests: 100, window: 1s}"},
	{"beyond 100/s, burst: 2", "", "{requests: 100, window: 1s, burst: 2}"},
	{"within it, overload: auto", "  overload: {concurrency: auto, queue: {requests: 50, for: 10s}}\n", "{requests: 100000000, window: 1h}"},
	{"within it, overload: fixed 8", "  overload: {concurrency: fixed, most: 8, queue: {requests: 50, for: 10s}}\n", "{requests: 100000000, window: 1h}"},
}

// flood tells what one flooding caller costs the others: slices without and with the
// flood take turns, for each way.
func flood(span time.Duration, rounds int) error {
	dir, err := os.MkdirTemp("", "flood-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "mainstay"), "./cmd/mainstay")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build mainstay: %w\n%s", err, out)
	}
	desks := make(chan struct{}, places)
	app := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/crowd") {
			desks <- struct{}{}
			time.Sleep(serves)
			<-desks
		}
	}))
	defer app.Close()
	fmt.Printf("\n%-30s %22s %22s %10s %10s %8s\n", "one caller floods", "victims' p95 without", "with", "served/s", "refused/s", "victims refused")
	for i, f := range floods {
		err := measureFlood(filepath.Join(dir, fmt.Sprint(i)), f.name, app.Listener.Addr().String(), f.edge, f.limits, span, rounds)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

func measureFlood(dir, name, app, edge, limit string, span time.Duration, rounds int) error {
	url, stop, err := launch(dir, app, edge, limit)
	if err != nil {
		return err
	}
	defer stop()
	var quiet, loud []time.Duration
	var served, refused, lost atomic.Int64
	for range rounds {
		quiet = append(quiet, ask(url, span, &lost))
		ctx, end := context.WithCancel(context.Background())
		var all sync.WaitGroup
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: flooders}}
		for range flooders {
			all.Go(func() {
				for ctx.Err() == nil {
					switch status := request(ctx, client, url, "flood"); {
					case status == http.StatusOK:
						served.Add(1)
					case status > 0:
						refused.Add(1)
						time.Sleep(20 * time.Millisecond)
					}
				}
			})
		}
		time.Sleep(time.Second) // until it is there
		loud = append(loud, ask(url, span, &lost))
		end()
		all.Wait()
		client.CloseIdleConnections()
		time.Sleep(time.Second)
	}
	seconds := (span + time.Second).Seconds() * float64(rounds)
	spread := func(all []time.Duration) string {
		return fmt.Sprintf("%.1f to %.1f ms", float64(slices.Min(all).Microseconds())/1000, float64(slices.Max(all).Microseconds())/1000)
	}
	fmt.Printf("%-30s %22s %22s %10.0f %10.0f %8d\n", name, spread(quiet), spread(loud), float64(served.Load())/seconds, float64(refused.Load())/seconds, lost.Load())
	return nil
}

// ask lets the victims ask for so long, and returns the p95 of their requests.
func ask(url string, span time.Duration, lost *atomic.Int64) time.Duration {
	var mu sync.Mutex
	var took []time.Duration
	var all sync.WaitGroup
	for _, name := range victims {
		all.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(pause) {
				began := time.Now()
				if request(context.Background(), client, url, name) != http.StatusOK {
					lost.Add(1)
				}
				mu.Lock()
				took = append(took, time.Since(began))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	slices.Sort(took)
	return took[len(took)*95/100]
}

func secret(name string) string { return "the key of " + name + ", and of nobody else" }

// request returns the status; 0: there was none.
func request(ctx context.Context, client *http.Client, url, name string) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/crowd", nil)
	if err != nil {
		return 0
	}
	req.Header.Set("X-Api-Key", secret(name))
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// launch runs a Mainstay before the app until it serves.
func launch(dir, app, edge, limit string) (url string, stop func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	var free [2]string
	for i := range free {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", nil, err
		}
		defer ln.Close()
		free[i] = ln.Addr().String()
		ln.Close()
	}
	var keys strings.Builder
	for _, name := range append([]string{"flood"}, victims...) {
		sum := sha256.Sum256([]byte(secret(name)))
		fmt.Fprintf(&keys, "    %s: {sha256: %s, workspace: ws-%s}\n", name, hex.EncodeToString(sum[:]), name)
	}
	text := fmt.Sprintf("service: flood\nenvironment: bench\ndata: %s\napp: {targets: [%q], health: {path: /}}\nedge:\n  listen: %s\n%sadmin: {listen: %s}\nidentity:\n  keys:\n%slimits: {tiers: {free: %s}}\n",
		filepath.Join(dir, "data"), app, free[0], edge, free[1], keys.String(), limit)
	file := filepath.Join(dir, "mainstay.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return "", nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return "", nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(filepath.Dir(dir), "mainstay"), "run", "-c", file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() }
	url = "http://" + free[0]
	for end := time.Now().Add(20 * time.Second); request(context.Background(), http.DefaultClient, url, "ann") != http.StatusOK; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			stop()
			said, _ := os.ReadFile(log.Name())
			return "", nil, errors.New("mainstay does not serve:\n" + string(said))
		}
	}
	return url, stop, nil
}
