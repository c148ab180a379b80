package test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// caller asks in the name of an API key.
type caller struct {
	client *http.Client
	url    string
	key    string
}

func (c *caller) ask(ctx context.Context) (status int, code string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		return 0, err.Error()
	}
	req.Header.Set("X-Api-Key", c.key)
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("Mainstay-Code")
}

// victims ask one after the other, and return how long each request took. Whatever
// is not answered by the app is an error.
func victims(t *testing.T, cs []*caller, each int) (took []time.Duration) {
	t.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, c := range cs {
		all.Go(func() {
			for range each {
				began := time.Now()
				if status, code := c.ask(t.Context()); status != 200 {
					t.Errorf("%s was answered %d %s", c.key, status, code)
				}
				mu.Lock()
				took = append(took, time.Since(began))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	slices.Sort(took)
	return took
}

func TestAFloodOfOneCallerCostsTheOthersNoAnswer(t *testing.T) {
	var keys strings.Builder
	for _, name := range []string{"flood", "ann", "bob", "eve"} {
		sum := sha256.Sum256([]byte("the key of " + name + " and no other"))
		fmt.Fprintf(&keys, "    %s: {sha256: %s, workspace: ws-%s}\n", name, hex.EncodeToString(sum[:]), name)
	}
	m := setup(t, "identity:\n  keys:\n"+keys.String()+"limits: {tiers: {free: {requests: 100000, window: 1h}}}\n")
	m.edit("drain: 5s}", "drain: 5s, overload: {concurrency: auto, queue: {requests: 50, for: 10s}}}")
	m.start(testapp())
	as := func(name string) *caller {
		return &caller{&http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}, m.edge + "/crowd", "the key of " + name + " and no other"}
	}
	quiet := []*caller{as("ann"), as("bob"), as("eve")}
	control := victims(t, quiet, 40)

	ctx, end := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	var served, shed, other atomic.Int64
	f := as("flood")
	for range 80 { // ten times what the app serves at once
		flood.Go(func() {
			for ctx.Err() == nil {
				switch status, code := f.ask(ctx); {
				case status == 200:
					served.Add(1)
				case status == 503 && code == "shed":
					shed.Add(1)
					time.Sleep(50 * time.Millisecond)
				case ctx.Err() == nil:
					other.Add(1)
				}
			}
		})
	}
	eventually(t, "the flood is shed", func() (bool, string) { return shed.Load() > 50, fmt.Sprint(shed.Load()) })
	flooded := victims(t, quiet, 40)
	end()
	flood.Wait()
	if served.Load() == 0 || other.Load() > 0 {
		t.Errorf("of the flood %d were served, %d shed, %d answered otherwise", served.Load(), shed.Load(), other.Load())
	}
	p95 := func(took []time.Duration) time.Duration {
		return took[len(took)*95/100].Round(time.Millisecond)
	}
	t.Logf("victims' p95: %v alone, %v in a flood of which %d were served and %d shed; limit %v", p95(control), p95(flooded), served.Load(), shed.Load(), m.metrics()["mainstay_edge_overload_limit"])
	if v := m.metrics()[`mainstay_edge_overload_shed_total{class="ordinary"}`]; int64(v) < shed.Load() {
		t.Errorf("%v counted as shed, %d seen", v, shed.Load())
	}
}
