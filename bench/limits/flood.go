package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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
	again    = 50 * time.Millisecond // after which a refused flooder comes again
	warm     = 4 * time.Second       // without and with the flood, before it counts
)

var victims = []string{"ann", "bob", "eve"}

// floods are the ways in which one may flood, with what stands against it.
var floods = []struct{ name, edge, limits string }{
	{"beyond 100 in any 1s, no overload", "", "{requests: 100, window: 1s}"},
	{"beyond 100 in any 1s, auto", auto, "{requests: 100, window: 1s}"},
	{"beyond 100/s, burst: 2, auto", auto, "{requests: 100, window: 1s, burst: 2}"},
	{"within its limit, auto", auto, "{requests: 100000000, window: 1h}"},
	{"within its limit, fixed 8", "  overload: {concurrency: fixed, most: 8, queue: {requests: 50, for: 10s}}\n", "{requests: 100000000, window: 1h}"},
}

const auto = "  overload: {concurrency: auto, queue: {requests: 50, for: 10s}}\n"

// flood tells what one flooding caller costs the others: slices without a flood, with
// the same flood at a second Mainstay with an app of its own, and with the flood at
// theirs take turns, for each way. The second kind is the control: it has the machine's
// work in it, but none of the queues and places that are shared. The flood is within its
// spread if the p95 of all requests is not above the highest of its slices; what the
// others waited in Mainstay's own queues stands beside it.
func flood(span time.Duration, rounds int, only string) error {
	dir, err := os.MkdirTemp("", "flood-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := build(dir); err != nil {
		return err
	}
	var apps [2]string // theirs, and the one beside it
	for i := range apps {
		app := busyApp()
		defer app.Close()
		apps[i] = app.Listener.Addr().String()
	}
	fmt.Printf("\n%-34s %26s %26s %26s %7s %8s %9s %10s %8s\n", "one caller floods", "others' p95 without", "beside", "with", "within", "waited", "served/s", "refused/s", "others refused")
	for i, f := range floods {
		if !strings.Contains(f.name, only) {
			continue
		}
		err := measureFlood(filepath.Join(dir, fmt.Sprint(i)), f.name, apps, f.edge, f.limits, span, rounds)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

// busyApp has some places, which a request takes for a while.
func busyApp() *httptest.Server {
	desks := make(chan struct{}, places)
	return httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/crowd") {
			desks <- struct{}{}
			time.Sleep(serves)
			<-desks
		}
	}))
}

func measureFlood(dir, name string, apps [2]string, edge, limit string, span time.Duration, rounds int) error {
	limits := "{tiers: {free: " + limit + "}}\n"
	url, stop, err := launch(dir, apps[0], edge, limits)
	if err != nil {
		return err
	}
	defer stop()
	beside, stopBeside, err := launch(dir+"-beside", apps[1], edge, limits)
	if err != nil {
		return err
	}
	defer stopBeside()
	var quiet, control, loud [][]time.Duration
	var served, refused, lost atomic.Int64
	flooding := func(url string, measure func()) {
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
						time.Sleep(again)
					}
				}
			})
		}
		time.Sleep(time.Second) // until it is there
		measure()
		end()
		all.Wait()
		client.CloseIdleConnections()
		time.Sleep(time.Second)
	}
	ask(url, warm, &lost)
	for _, at := range []string{beside, url} {
		flooding(at, func() { ask(url, warm, &lost) })
	}
	served.Store(0)
	refused.Store(0)
	var floods [][2]time.Time
	for range rounds {
		quiet = append(quiet, ask(url, span, &lost))
		wasServed, wasRefused := served.Load(), refused.Load()
		flooding(beside, func() { control = append(control, ask(url, span, &lost)) })
		served.Store(wasServed)
		refused.Store(wasRefused)
		flooding(url, func() {
			began := time.Now()
			loud = append(loud, ask(url, span, &lost))
			floods = append(floods, [2]time.Time{began, time.Now()})
		})
	}
	waited, err := waits(filepath.Join(dir, "log"), floods)
	if err != nil {
		return err
	}
	seconds := (span + time.Second).Seconds() * float64(rounds)
	without, with := spread(control), spread(loud)
	within := "yes"
	if with.all > without.highest {
		within = "no"
	}
	fmt.Printf("%-34s %26s %26s %26s %7s %5.1f ms %9.0f %10.0f %8d\n", name, spread(quiet), without, with, within, waited, float64(served.Load())/seconds, float64(refused.Load())/seconds, lost.Load())
	return nil
}

// spreads is the p95 of all requests, and the lowest and highest of single slices.
type spreads struct{ all, lowest, highest time.Duration }

func (s spreads) String() string {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%.1f ms (%.1f to %.1f)", ms(s.all), ms(s.lowest), ms(s.highest))
}

func spread(slicesOf [][]time.Duration) (s spreads) {
	s.lowest = time.Hour
	for _, took := range slicesOf {
		s.lowest, s.highest = min(s.lowest, p95(took)), max(s.highest, p95(took))
	}
	s.all = p95(slices.Concat(slicesOf...))
	return s
}

// waits reads from Mainstay's log how long the others waited in its queues during the
// floods: the p95, in milliseconds.
func waits(path string, floods [][2]time.Time) (float64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read Mainstay's log: %w", err)
	}
	var waited []float64
	for line := range strings.Lines(string(text)) {
		var r struct {
			Time   time.Time `json:"time"`
			User   string    `json:"user"`
			Waited float64   `json:"waited_ms"`
		}
		during := func(f [2]time.Time) bool { return r.Time.After(f[0]) && r.Time.Before(f[1]) }
		if json.Unmarshal([]byte(line), &r) == nil && r.User != "key:flood" && strings.HasPrefix(r.User, "key:") && slices.ContainsFunc(floods, during) {
			waited = append(waited, r.Waited)
		}
	}
	if len(waited) == 0 {
		return 0, errors.New("mainstay's log tells of nobody but the flood")
	}
	slices.Sort(waited)
	return waited[len(waited)*95/100], nil
}

func p95(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)*95/100]
}

// ask lets the victims ask for so long, and returns how long their requests took.
func ask(url string, span time.Duration, lost *atomic.Int64) (took []time.Duration) {
	var mu sync.Mutex
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
	return took
}

func secret(name string) string { return "the key of " + name + ", and of nobody else" }

// request returns the status; 0: there was none.
func request(ctx context.Context, client *http.Client, url, name string) int {
	return visit(ctx, client, url+"/crowd", name)
}

func visit(ctx context.Context, client *http.Client, url, name string) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
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

// build makes the program in dir.
func build(dir string) error {
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "mainstay"), "./cmd/mainstay")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build mainstay: %w\n%s", err, out)
	}
	return nil
}

// launch runs the Mainstay of the folder above dir before the app until it serves.
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
	text := fmt.Sprintf("service: flood\nenvironment: bench\ndata: %s\napp: {targets: [%q], health: {path: /}}\nedge:\n  listen: %s\n%sadmin: {listen: %s}\nidentity:\n  keys:\n%slimits: %s",
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
