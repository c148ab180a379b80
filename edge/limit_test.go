package edge_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/ratelimit"
)

// gate makes limits of two requests an hour for everybody, as change leaves them.
func gate(t *testing.T, change func(*limits.Config)) *limits.Gate {
	t.Helper()
	var c limits.Config
	c.SetDefaults()
	c.Tiers["free"] = limits.Tier{Requests: 2, Window: time.Hour}
	if change != nil {
		change(&c)
	}
	g, err := limits.NewGate(c, limits.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// limited is an edge with limits before an app that counts its requests.
func limited(t *testing.T, g *limits.Gate, answer http.HandlerFunc) (h *house, seen func() int) {
	t.Helper()
	n := make(chan int, 1)
	n <- 0
	addr := app(t, func(w http.ResponseWriter, r *http.Request) {
		n <- 1 + <-n
		if answer != nil {
			answer(w, r)
		}
	})
	h = startWith(t, defaults(), func(d *edge.Deps) { d.Limits = g })
	h.serve(t, addr)
	return h, func() int {
		v := <-n
		n <- v
		return v
	}
}

func TestACallerOverItsLimitIsToldSoAndTheAppSeesNothing(t *testing.T) {
	h, seen := limited(t, gate(t, func(c *limits.Config) { c.Upgrade = "https://shop.example/upgrade" }), nil)
	for i := range 2 {
		resp, _ := get(t, "http://"+h.addr+"/")
		want := fmt.Sprintf(`"address";r=%d;t=3600`, 1-i)
		if got := resp.Header.Get("RateLimit"); resp.StatusCode != 200 || got != want && !strings.HasPrefix(got, fmt.Sprintf(`"address";r=%d;t=3`, 1-i)) {
			t.Errorf("request %d: %s, RateLimit %q, want %q", i, resp.Status, got, want)
		}
		if resp.Header.Get("X-RateLimit-Limit") != "2" || resp.Header.Get("X-RateLimit-Remaining") != fmt.Sprint(1-i) || resp.Header.Get("RateLimit-Policy") != `"address";q=2;w=3600` {
			t.Errorf("request %d: %v", i, resp.Header)
		}
	}
	resp, body := get(t, "http://"+h.addr+"/")
	for name, want := range map[string]string{
		"Mainstay-Code": "limited", "Cache-Control": "no-store", "Content-Type": "application/problem+json", "X-RateLimit-Remaining": "0",
	} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	var p struct {
		Tier       string
		Limit      int
		Window     int
		RetryAfter int
		Upgrade    string
		Code       string
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil || resp.StatusCode != 429 {
		t.Fatalf("%s %s %v", resp.Status, body, err)
	}
	if p.Tier != "free" || p.Limit != 2 || p.Window != 3600 || p.Code != "limited" || p.Upgrade != "https://shop.example/upgrade" ||
		p.RetryAfter < 3500 || fmt.Sprint(p.RetryAfter) != resp.Header.Get("Retry-After") {
		t.Errorf("got %+v, Retry-After %s", p, resp.Header.Get("Retry-After"))
	}
	if n := seen(); n != 2 {
		t.Errorf("the app saw %d requests", n)
	}
	if x := h.ledger.next(t, 2); x.Code != "limited" || x.HTTP.Status != 429 || x.Err == nil || x.Err.Error() != "The limit address of 2 in 1h is used up." {
		t.Errorf("recorded as %s, %d, %v", x.Code, x.HTTP.Status, x.Err)
	}
	resp, body = get(t, "http://"+h.addr+"/", "Accept", "text/html")
	if !strings.Contains(body, "<h1>Too Many Requests</h1>") || resp.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("a browser got %s", body)
	}
}

func TestAClassHasItsOwnLimitAndTheDenyListIsAnswered403(t *testing.T) {
	h, seen := limited(t, gate(t, func(c *limits.Config) {
		c.Routes = []limits.Route{{Name: "login", Path: "/login", Methods: []string{"POST"}, Limit: limits.Tier{Requests: 1, Window: time.Minute}}}
		c.Deny = []string{"address:10.0.0.0/8"}
	}), nil)
	post := func() *http.Response {
		req, err := http.NewRequest("POST", "http://"+h.addr+"/login", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, _ := do(t, req)
		return resp
	}
	first, second := post(), post()
	if first.StatusCode != 200 || second.StatusCode != 429 || !strings.Contains(second.Header.Get("RateLimit"), `"login";r=0`) {
		t.Errorf("%s %s %v", first.Status, second.Status, second.Header)
	}
	for range 2 {
		if resp, _ := get(t, "http://"+h.addr+"/login"); resp.StatusCode != 200 {
			t.Errorf("a GET was counted with the class: %s", resp.Status)
		}
	}
	g := gate(t, func(c *limits.Config) { c.Deny = []string{"address:127.0.0.1"} })
	denied, unseen := limited(t, g, nil)
	if resp, body := get(t, "http://"+denied.addr+"/"); resp.StatusCode != 403 || resp.Header.Get("Mainstay-Code") != "denied" || !strings.Contains(body, "denied") {
		t.Errorf("%s %v %s", resp.Status, resp.Header, body)
	}
	if seen() != 3 || unseen() != 0 {
		t.Errorf("the apps saw %d and %d", seen(), unseen())
	}
}

// A cache that stores an answer gives it to others, to whom its figures would lie.
func TestAnswersForEverybodyCarryNoFiguresOfOneCaller(t *testing.T) {
	h, _ := limited(t, gate(t, func(c *limits.Config) { c.Tiers["free"] = limits.Tier{Requests: 100, Window: time.Hour} }), func(w http.ResponseWriter, r *http.Request) {
		if v := r.URL.Query().Get("cc"); v != "" {
			w.Header().Set("Cache-Control", v)
		}
		if v := r.URL.Query().Get("cdn"); v != "" {
			w.Header().Set("Cloudflare-CDN-Cache-Control", v)
		}
		if v := r.URL.Query().Get("lm"); v != "" {
			w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		}
	})
	for query, told := range map[string]bool{
		"": true, "cc=no-store": true, "cc=private,%20max-age=60": true, "cc=no-cache": true, "cc=public": false,
		"cc=max-age=60": false, "cc=s-maxage=60": false, "lm=1": false, "lm=1&cc=private": true,
		"cc=private&cdn=max-age=60": false, "cc=private&cdn=no-store": true,
	} {
		resp, _ := get(t, "http://"+h.addr+"/?"+query)
		for _, f := range limits.Fields {
			if f != "Retry-After" && (resp.Header.Get(f) != "") != told {
				t.Errorf("%q: %s is %q", query, f, resp.Header.Get(f))
			}
		}
	}
}

// An app may have limits of its own, and tell of them in the same words.
func TestAClientSeesOneFigureOfALimit(t *testing.T) {
	h, _ := limited(t, gate(t, nil), func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-RateLimit-Limit", "77")
		w.Header().Set("X-RateLimit-Remaining", "76")
		w.Header().Set("X-RateLimit-Reset", "1")
		w.Header().Set("RateLimit", `"app";r=76`)
	})
	resp, _ := get(t, "http://"+h.addr+"/")
	for name, want := range map[string]string{"X-Ratelimit-Limit": "2", "X-Ratelimit-Remaining": "1"} {
		if got := strings.Join(resp.Header[name], "!"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if len(resp.Header["X-Ratelimit-Reset"]) != 1 || len(resp.Header["Ratelimit"]) != 2 {
		t.Errorf("%v", resp.Header)
	}
}

func TestAReloadOfTheLimitsKeepsWhatIsCounted(t *testing.T) {
	g := gate(t, nil)
	h, _ := limited(t, g, nil)
	get(t, "http://"+h.addr+"/")
	var c limits.Config
	c.SetDefaults()
	c.Tiers["free"] = limits.Tier{Requests: 3, Window: time.Hour}
	commit, err := g.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	commit()
	for i, want := range []int{200, 200, 429} {
		if resp, _ := get(t, "http://"+h.addr+"/"); resp.StatusCode != want {
			t.Errorf("request %d after the reload: %s", i, resp.Status)
		}
	}
	c.StoreTimeout = time.Second
	if _, err := g.Prepare(c); err == nil || !strings.Contains(err.Error(), "store_timeout: cannot change while running") {
		t.Errorf("got %v", err)
	}
}

func TestTheAppsOwnCostIsChargedAndNotShown(t *testing.T) {
	g := gate(t, func(c *limits.Config) { c.Tiers["free"] = limits.Tier{Requests: 50, Window: time.Hour} })
	run(t, g.Run)
	h, _ := limited(t, g, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Mainstay-Cost", "30") })
	resp, _ := get(t, "http://"+h.addr+"/")
	if got := resp.Header.Get("Mainstay-Cost"); got != "" {
		t.Errorf("the client sees a cost of %s", got)
	}
	await(t, "the charge", func() bool {
		v, err := g.Admit(t.Context(), limits.Ask{Address: netip.MustParseAddr("127.0.0.1"), Cost: 20})
		return err == nil && !v.Allowed && v.Rules[0].Remaining <= 20
	})
}

func TestHowManyRequestsOfACallerRunAtOnce(t *testing.T) {
	g := gate(t, func(c *limits.Config) { c.Tiers["free"] = limits.Tier{Requests: 50, Window: time.Hour, AtOnce: 1} })
	run(t, g.Run)
	hold, running := make(chan struct{}), make(chan struct{}, 10)
	h, _ := limited(t, g, func(w http.ResponseWriter, r *http.Request) {
		running <- struct{}{}
		<-hold
	})
	first := make(chan int, 1)
	go func() {
		resp, err := http.Get("http://" + h.addr + "/")
		if err != nil {
			first <- 0
			return
		}
		resp.Body.Close()
		first <- resp.StatusCode
	}()
	<-running
	if resp, body := get(t, "http://"+h.addr+"/"); resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "1" || !strings.Contains(body, "at once") {
		t.Errorf("a second one: %s %s", resp.Status, body)
	}
	close(hold)
	if status := <-first; status != 200 {
		t.Errorf("the first one: %d", status)
	}
	await(t, "the release", func() bool {
		resp, _ := get(t, "http://"+h.addr+"/")
		return resp.StatusCode == 200
	})
}

// run runs what with the test.
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

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s did not come", what)
}

// hanging is a store that stops answering, without failing.
type hanging struct {
	ratelimit.Store
	hangs atomic.Bool
	takes atomic.Int64
}

func (h *hanging) Take(ctx context.Context, checks []ratelimit.Check, results []ratelimit.Result) (ratelimit.Decision, error) {
	h.takes.Add(1)
	if h.hangs.Load() {
		<-ctx.Done()
		return ratelimit.Decision{}, ctx.Err()
	}
	return h.Store.Take(ctx, checks, results)
}

// The times are virtual: what a request takes beyond the app's tenth of a second is
// what it has waited for the store, and nothing else.
func TestARedisThatStopsAnsweringCostsARequestTheTimeoutAtMostAndSoonNothing(t *testing.T) {
	store := &hanging{Store: ratelimit.NewMemory(0)}
	const callers, timeout, appTakes = 40, 5 * time.Millisecond, 100 * time.Millisecond
	crowdedWith(t, 1000, func(*edge.Config) {}, func(d *edge.Deps) {
		var c limits.Config
		c.SetDefaults()
		c.Tiers["free"] = limits.Tier{Requests: 50, Window: time.Hour}
		g, err := limits.NewGate(c, limits.Deps{Store: store})
		if err != nil {
			t.Fatal(err)
		}
		d.Limits = g
	}, func(t *testing.T, b *bubble) {
		var all sync.WaitGroup
		var mu sync.Mutex
		waited := map[time.Duration]int{}
		for i := range callers {
			all.Go(func() {
				for k := range 30 {
					time.Sleep(time.Duration(i) * 1100 * time.Microsecond)
					began := time.Now()
					status, code, _ := b.as(t.Context(), fmt.Sprint((i+k)%5), "/")
					more := time.Since(began)
					if status == http.StatusOK {
						more -= appTakes
					} else if code != "limited" {
						t.Errorf("got %d %s", status, code)
					}
					mu.Lock()
					waited[more]++
					mu.Unlock()
				}
			})
		}
		time.Sleep(200 * time.Millisecond)
		store.hangs.Store(true)
		all.Wait()
		most, late := time.Duration(0), 0
		for d, n := range waited {
			if most = max(most, d); d > 0 {
				late += n
			}
		}
		t.Logf("%v; the store was asked %d times", waited, store.takes.Load())
		if most != timeout || late == 0 {
			t.Errorf("a request waited %v for the store, and the timeout is %v; %d waited", most, timeout, late)
		}
		if late > callers { // those that were asking as it became known
			t.Errorf("%d of %d requests waited", late, callers*30)
		}
	})
}
