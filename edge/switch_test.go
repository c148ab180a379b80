package edge_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/traffic"
)

// A request that is in flight when the target is swapped is still answered by the
// old target, and drain ends exactly when it does.
func TestASwitchKeepsRequestsInFlight(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(40 * time.Second)
			io.WriteString(w, "blue")
		})
		b.app(t, "green:80", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "green") })
		b.apply(t, one("blue-1", "blue:80"))
		slow := make(chan string, 1)
		go func() { _, _, body := b.get(t.Context()); slow <- body }()
		synctest.Wait()
		began := time.Now()
		drain := b.apply(t, one("green-2", "green:80"))
		if _, _, body := b.get(t.Context()); body != "green" {
			t.Fatalf("a new request: got %q", body)
		}
		if err := drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if body, took := <-slow, time.Since(began); body != "blue" || took != 40*time.Second {
			t.Fatalf("the old request: got %q after %v", body, took)
		}
	})
}

func TestADrainThatIsCutShortSaysWhatIsOpen(t *testing.T) {
	inBubble(t, func(c *edge.Config) { c.Drain = time.Second }, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		b.apply(t, one("blue-1", "blue:80"))
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan struct{})
		go func() { b.get(ctx); close(gone) }()
		synctest.Wait()
		drain := b.apply(t, traffic.Plan{Mode: traffic.Hold})
		dctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
		defer stop()
		if err := drain(dctx); err == nil || !strings.Contains(err.Error(), "blue-1: 1 requests still open") {
			t.Errorf("got %v", err)
		}
		cancel()
		<-gone
	})
}

func TestAPlanThatMakesNoSenseIsRefusedAndChangesNothing(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "blue") })
		b.apply(t, one("blue-1", "blue:80"))
		other := one("blue-1", "elsewhere:80")
		for _, p := range []traffic.Plan{{Mode: "dance"}, {Mode: traffic.Serve}, other,
			{Mode: traffic.Serve, Targets: append(one("x-1", "x:80").Targets, one("x-1", "x:80").Targets...)}} {
			if _, err := b.Apply(p); err == nil {
				t.Errorf("%+v was accepted", p)
			}
		}
		if _, _, body := b.get(t.Context()); body != "blue" {
			t.Errorf("got %q", body)
		}
	})
}

func TestATargetThatStaysKeepsItsRequestsAndConnections(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		release := make(chan struct{})
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) { <-release; io.WriteString(w, "blue") })
		b.app(t, "green:80", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "green") })
		b.apply(t, one("blue-1", "blue:80"))
		answer := make(chan string, 1)
		go func() { _, _, body := b.get(t.Context()); answer <- body }()
		synctest.Wait()
		kept := one("green-2", "green:80")
		kept.Targets = append(kept.Targets, traffic.Target{ID: "blue-1", Address: "blue:80", Color: "blue", Weight: 0})
		if err := b.apply(t, kept)(t.Context()); err != nil { // nothing was retired: no wait
			t.Fatal(err)
		}
		for range 5 {
			if _, _, body := b.get(t.Context()); body != "green" {
				t.Fatalf("weight 0 was given %q", body)
			}
		}
		close(release)
		if got := <-answer; got != "blue" {
			t.Errorf("got %q", got)
		}
	})
}

// The promise of the product: 100 switches under load with keep-alive clients,
// slow answers and uploads, and not one request fails. Every version stops for
// good as soon as it has drained, as a real deploy's does.
func TestAHundredSwitchesUnderLoadFailNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	h := start(t, defaults())
	var version atomic.Int64
	launch := func() (*httptest.Server, int64) {
		v := version.Add(1)
		return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/slow":
				for range 4 {
					fmt.Fprint(w, "part ")
					w.(http.Flusher).Flush()
					time.Sleep(5 * time.Millisecond)
				}
			case "/upload":
				if n, err := io.Copy(io.Discard, r.Body); n != 200_000 || err != nil {
					http.Error(w, "short upload", 500)
					return
				}
			}
			fmt.Fprint(w, v)
		})), v
	}
	color := func(v int64) string { return []string{"blue", "green"}[v%2] }
	plan := func(s *httptest.Server, v int64) traffic.Plan {
		return one(fmt.Sprintf("%s-%d", color(v), v), strings.TrimPrefix(s.URL, "http://"))
	}
	live, v := launch()
	if _, err := h.Apply(plan(live, v)); err != nil {
		t.Fatal(err)
	}
	var load sync.WaitGroup
	var requests, failed atomic.Int64
	var floor atomic.Int64 // the version that every request begun by now must reach
	floor.Store(v)
	done := make(chan struct{})
	payload := bytes.Repeat([]byte("x"), 200_000)
	for i := range 12 {
		load.Go(func() {
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			client := &http.Client{Transport: tr, Timeout: 30 * time.Second}
			for {
				select {
				case <-done:
					return
				default:
				}
				least := floor.Load()
				var resp *http.Response
				var err error
				switch i % 3 {
				case 0:
					resp, err = client.Get("http://" + h.addr + "/")
				case 1:
					resp, err = client.Get("http://" + h.addr + "/slow")
				case 2:
					resp, err = client.Post("http://"+h.addr+"/upload", "application/octet-stream", bytes.NewReader(payload))
				}
				requests.Add(1)
				if err != nil {
					failed.Add(1)
					t.Error(err)
					continue
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				var got int64
				fmt.Sscan(strings.ReplaceAll(string(b), "part ", ""), &got)
				if err != nil || resp.StatusCode != 200 {
					failed.Add(1)
					t.Errorf("%s %v %s %q", resp.Status, err, resp.Header.Get("Mainstay-Code"), b)
				} else if got < least {
					t.Errorf("a request begun after the switch to %d was answered by %d", least, got)
				}
			}
		})
	}
	for range 100 {
		at := requests.Load()
		for requests.Load() < at+5 {
			runtime.Gosched()
		}
		next, v := launch()
		drain, err := h.Apply(plan(next, v))
		if err != nil {
			t.Fatal(err)
		}
		floor.Store(v)
		if err := drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		live.Close()
		live = next
	}
	close(done)
	load.Wait()
	h.stop()
	if err := <-h.done; err != nil {
		t.Error(err)
	}
	h.done <- nil
	live.Close()
	t.Logf("%d requests, %d failed", requests.Load(), failed.Load())
	for range 200 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines before, %d after", before, runtime.NumGoroutine())
}

func TestStoppingLetsRequestsFinishAndThenCuts(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			wait := 10 * time.Second
			if r.URL.Path == "/forever" {
				wait = time.Hour
			}
			select {
			case <-time.After(wait):
			case <-r.Context().Done():
			}
			io.WriteString(w, "done")
		})
		b.apply(t, one("blue-1", "blue:80"))
		ask := func(path string) chan string {
			answer := make(chan string, 1)
			go func() {
				resp, err := b.client.Get("http://edge" + path)
				if err != nil {
					answer <- "cut"
					return
				}
				defer resp.Body.Close()
				body, _ := io.ReadAll(resp.Body)
				answer <- string(body)
			}()
			return answer
		}
		slow, forever := ask("/slow"), ask("/forever")
		synctest.Wait()
		began := time.Now()
		b.stop()
		if got := <-slow; got != "done" || time.Since(began) != 10*time.Second {
			t.Errorf("slow: %q after %v", got, time.Since(began))
		}
		got := <-forever
		if took := time.Since(began); got == "done" || took < 30*time.Second || took > 31*time.Second {
			t.Errorf("forever: %q after %v", got, took)
		}
	})
}
