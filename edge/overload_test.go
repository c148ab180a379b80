package edge_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/edge/edgetest"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/internal/traffic"
)

// crowded is an edge in a bubble before an app of so many workers, who take a tenth
// of a second for a request. Everybody has an API key: paid and the numbers.
func crowded(t *testing.T, workers int, change func(*edge.Config), f func(t *testing.T, b *bubble)) {
	crowdedWith(t, workers, change, nil, f)
}

func crowdedWith(t *testing.T, workers int, change func(*edge.Config), deps func(*edge.Deps), f func(t *testing.T, b *bubble)) {
	synctest.Test(t, func(t *testing.T) {
		keys := map[string]identity.Key{}
		for _, name := range []string{"paid", "flood", "0", "1", "2", "3", "4"} {
			sum := sha256.Sum256([]byte(name + " of 32 characters and more"))
			k := identity.Key{SHA256: hex.EncodeToString(sum[:])}
			if name == "paid" {
				k.Tier = "pro"
			}
			keys[name] = k
		}
		b := &bubble{mem: edgetest.NewNetwork(), ledger: &ledger{}, done: make(chan error, 1)}
		d := edge.Deps{Listener: b.mem.Listen("edge:80"), Dial: b.mem.Dial, Sink: b.ledger,
			Identity: desk(t, func(c *identity.Config) { c.Keys = keys })}
		if deps != nil {
			deps(&d)
		}
		s, err := edge.New(defaults(change), d)
		if err != nil {
			t.Fatal(err)
		}
		b.Server = s
		ctx, cancel := context.WithCancel(t.Context())
		go func() { b.done <- s.Run(ctx) }()
		b.client = &http.Client{Transport: &http.Transport{DialContext: b.mem.Dial, MaxIdleConnsPerHost: 1000}}
		busy := make(chan struct{}, workers)
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			for _, name := range []string{"Mainstay-Degrade", "Mainstay-Identity"} {
				w.Header().Set("Told-"+name, r.Header.Get(name))
			}
			if r.URL.Path == "/stream" {
				w.Header().Set("Content-Type", "text/event-stream")
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return
			}
			busy <- struct{}{}
			time.Sleep(100 * time.Millisecond)
			<-busy
		})
		b.apply(t, one("blue-1", "blue:80"))
		f(t, b)
		b.client.CloseIdleConnections()
		cancel()
		if err := <-b.done; err != nil {
			t.Error(err)
		}
	})
}

// as asks in somebody's name.
func (b *bubble) as(ctx context.Context, name, path string) (status int, code, retry string) {
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://edge"+path, nil)
	req.Header.Set("X-Api-Key", name+" of 32 characters and more")
	resp, err := b.client.Do(req)
	if err != nil {
		return 0, "", err.Error()
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("Mainstay-Code"), resp.Header.Get("Retry-After")
}

// flow is what became of somebody's requests.
type flow struct {
	ok, shed, other atomic.Int64
	took            atomic.Int64
}

// stream of so many requests a second, for ten seconds.
func (b *bubble) flow(all *sync.WaitGroup, name string, rate int) *flow {
	f := new(flow)
	all.Go(func() {
		var each sync.WaitGroup
		for range 10 * rate {
			time.Sleep(time.Second / time.Duration(rate))
			each.Go(func() {
				began := time.Now()
				switch status, code, retry := b.as(context.Background(), name, "/"); {
				case status == 200:
					f.ok.Add(1)
				case status == 503 && code == "shed" && retry == "1":
					f.shed.Add(1)
				default:
					f.other.Add(1)
				}
				f.took.Add(int64(time.Since(began)))
			})
		}
		each.Wait()
	})
	return f
}

func TestInAFloodTheOthersLoseNothing(t *testing.T) {
	for _, concurrency := range []string{"auto", "fixed"} {
		crowded(t, 20, func(c *edge.Config) {
			c.Overload.Concurrency, c.Overload.Most, c.Overload.Queue.Requests = concurrency, 200, 50
			if concurrency == "fixed" {
				c.Overload.Most = 20
			}
		}, func(t *testing.T, b *bubble) {
			var all sync.WaitGroup
			flood := b.flow(&all, "flood", 500) // the app can do 200
			paid := b.flow(&all, "paid", 20)
			var victims []*flow
			for i := range 5 {
				victims = append(victims, b.flow(&all, fmt.Sprint(i), 4))
			}
			all.Wait()
			for i, v := range append(victims, paid) {
				if v.shed.Load() > 0 || v.other.Load() > 0 || v.ok.Load() == 0 {
					t.Errorf("%s: of victim %d %d answered, %d shed, %d something else", concurrency, i, v.ok.Load(), v.shed.Load(), v.other.Load())
				}
				if mean := time.Duration(v.took.Load() / max(v.ok.Load(), 1)); mean > 500*time.Millisecond {
					t.Errorf("%s: victim %d took %v on average", concurrency, i, mean)
				}
			}
			t.Logf("%s: of the flood %d answered", concurrency, flood.ok.Load())
			if flood.shed.Load() == 0 || flood.ok.Load() < 300 || flood.other.Load() > 0 {
				t.Errorf("%s: of the flood %d answered, %d shed, %d something else", concurrency, flood.ok.Load(), flood.shed.Load(), flood.other.Load())
			}
			if st := b.Stats().Overload; st == nil || st.InFlight != 0 || st.Waiting != 0 || st.Shed[1] != uint64(flood.shed.Load()) {
				t.Errorf("%s: %+v", concurrency, st)
			}
		})
	}
}

func TestAStreamKeepsNobodyOut(t *testing.T) {
	crowded(t, 10, func(c *edge.Config) {
		c.Overload.Concurrency, c.Overload.Most, c.Overload.Queue.Requests, c.Streams.Heartbeat = "fixed", 2, 0, 0
	}, func(t *testing.T, b *bubble) {
		ctx, hangUp := context.WithCancel(t.Context())
		var open sync.WaitGroup
		for range 5 {
			open.Go(func() { b.as(ctx, "0", "/stream") })
			synctest.Wait()
		}
		if status, code, _ := b.as(t.Context(), "1", "/"); status != 200 {
			t.Errorf("got %d %s", status, code)
		}
		hangUp()
		open.Wait()
		synctest.Wait()
		if st := b.Stats().Overload; st.InFlight != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestWhoeverHangsUpInTheQueueLeavesNoTrace(t *testing.T) {
	crowded(t, 1, func(c *edge.Config) { c.Overload.Concurrency, c.Overload.Most = "fixed", 1 }, func(t *testing.T, b *bubble) {
		var all sync.WaitGroup
		for i := range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(50+i)*time.Millisecond)
			all.Go(func() {
				defer cancel()
				b.as(ctx, "0", "/")
			})
		}
		all.Wait()
		time.Sleep(time.Second)
		if st := b.Stats(); st.Overload.InFlight != 0 || st.Overload.Waiting != 0 || st.Requests != 0 || st.Targets[0].InFlight != 0 {
			t.Errorf("%+v %+v", st, st.Overload)
		}
		if status, _, _ := b.as(t.Context(), "0", "/"); status != 200 {
			t.Errorf("got %d", status)
		}
	})
}

func TestACallerWhoNearsItsLimitIsWarnedThenDelayedThenServedForLess(t *testing.T) {
	g := gate(t, func(c *limits.Config) {
		c.Tiers["free"] = limits.Tier{Requests: 10, Window: time.Hour}
		d := &c.Degrade
		d.Warn, d.Slow, d.Delay, d.Waiting, d.Cheaper = 0.5, 0.7, 3*time.Second, 10, 0.9
	})
	var who *identity.Desk
	crowdedWith(t, 100, func(c *edge.Config) {}, func(d *edge.Deps) {
		d.Limits = g
		who = d.Identity.(*identity.Desk)
	}, func(t *testing.T, b *bubble) {
		var seen []string
		for range 11 {
			began := time.Now()
			req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://edge/", nil)
			req.Header.Set("X-Api-Key", "0 of 32 characters and more")
			req.Header.Set("Mainstay-Degrade", "cheaper")
			resp, err := b.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			step := ""
			if told := resp.Header.Get("Told-Mainstay-Identity"); told != "" {
				_, step = who.Open(told)
			}
			seen = append(seen, fmt.Sprintf("%d %v [%s] %s/%s", resp.StatusCode, (time.Since(began)-100*time.Millisecond).Round(100*time.Millisecond),
				resp.Header.Get("X-Ratelimit-Warning"), resp.Header.Get("Told-Mainstay-Degrade"), step))
		}
		want := []string{"200 0s [] /", "200 0s [] /", "200 0s [] /", "200 0s [] /", "200 0s [user;used=50] /", "200 0s [user;used=60] /", "200 0s [user;used=70] /",
			"200 1s [user;used=80] /", "200 2s [user;used=90] cheaper/cheaper", "200 3s [user;used=100] cheaper/cheaper", "429 -100ms [] /"}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Error(diff)
		}
		waited := time.Duration(0)
		for i := range 10 {
			waited += b.ledger.next(t, i).Waited
		}
		if waited.Round(time.Second) != 6*time.Second {
			t.Errorf("recorded %v of waiting", waited)
		}
	})
}

func TestADeployThatHoldsTheTrafficHasNobodyShed(t *testing.T) {
	crowded(t, 10, func(c *edge.Config) {
		c.Overload.Concurrency, c.Overload.Most, c.Overload.Queue.Requests = "fixed", 5, 5
	}, func(t *testing.T, b *bubble) {
		b.apply(t, traffic.Plan{Mode: traffic.Hold, Targets: one("blue-1", "blue:80").Targets})
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if status, code, _ := b.as(context.Background(), "0", "/"); status != 200 {
					t.Errorf("got %d %s", status, code)
				}
			})
		}
		synctest.Wait()
		b.apply(t, one("blue-1", "blue:80"))
		all.Wait()
	})
}

func TestAFloodBeyondItsLimitCostsTheOthersNo429AndNoWait(t *testing.T) {
	var mean [2]time.Duration
	for i, rate := range []int{0, 500} {
		g := gate(t, func(c *limits.Config) {
			c.Tiers["free"] = limits.Tier{Requests: 100, Window: time.Hour}
			c.Ceiling = limits.Tier{Requests: 100 + 5*40, Window: time.Hour} // what all of them may use
		})
		crowdedWith(t, 20, func(c *edge.Config) { c.Overload.Concurrency = "auto" }, func(d *edge.Deps) { d.Limits = g }, func(t *testing.T, b *bubble) {
			var all sync.WaitGroup
			flood := new(flow)
			if rate > 0 {
				flood = b.flow(&all, "flood", rate)
			}
			var victims []*flow
			for v := range 5 {
				victims = append(victims, b.flow(&all, fmt.Sprint(v), 4))
			}
			all.Wait()
			for v, f := range victims {
				if f.ok.Load() != 40 {
					t.Errorf("flood %d: of victim %d %d answered, %d shed, %d refused", rate, v, f.ok.Load(), f.shed.Load(), f.other.Load())
				}
				mean[i] += time.Duration(f.took.Load() / 40 / 5)
			}
			if rate > 0 && (flood.ok.Load() > 100 || flood.other.Load() < 4800) {
				t.Errorf("of the flood %d answered, %d shed, %d refused", flood.ok.Load(), flood.shed.Load(), flood.other.Load())
			}
		})
	}
	if mean[1] > mean[0]+10*time.Millisecond {
		t.Errorf("victims took %v on average, %v without the flood", mean[1], mean[0])
	}
}
