package limits

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/ratelimit"
)

// names of the rules that hold for a.
func names(t *testing.T, p *Policy, a Ask) (ns []string) {
	t.Helper()
	v := admit(t, p, memory(), a)
	for _, r := range v.Rules {
		ns = append(ns, fmt.Sprintf("%s %d", r.Name, r.Check.Limit.Max))
	}
	return ns
}

func TestTiersWindowsClassesAppsAndTheCeilingHoldTogether(t *testing.T) {
	p := compile(t, func(c *Config) {
		c.Tiers["pro"] = Tier{Requests: 100, Window: time.Minute, AtOnce: 9, Also: []Window{{1000, time.Hour}, {9000, 24 * time.Hour}}}
		c.Routes = []Route{
			{Name: "login", Paths: []string{"/login", "/api/auth/*"}, Methods: []string{"POST"}, Limit: Tier{Requests: 5, Window: time.Minute}},
			{Name: "ai", Path: "/api/ai/*", Cost: 10, Limit: Tier{Requests: 3, Window: time.Minute}, Tiers: map[string]Tier{"pro": {Requests: 30, Window: time.Minute}}},
			{Name: "webhooks", Path: "/hooks/*"},
			{Name: "reads", Path: "/*", Methods: []string{"GET", "HEAD"}, Cost: 1, Limit: Tier{Requests: 600, Window: time.Minute}},
		}
		c.Apps = map[string]Tier{"shop": {Requests: 5000, Window: time.Second}}
		c.Ceiling = Tier{Requests: 7000, Window: time.Second}
	})
	pro := Ask{User: "ann", Workspace: "w", Tier: "pro", App: "shop", Method: "POST"}
	tier := func(of string) []string {
		return []string{of + " 100", of + "-1h 1000", of + "-24h 9000", of + "-at-once 9"}
	}
	both := append(tier("user"), tier("workspace")...)
	rest := []string{"app-shop 5000", "ceiling 7000"}
	for path, want := range map[string][]string{
		"/other":    append(append([]string{}, both...), rest...),
		"/api/ai/x": append(append(append([]string{}, both...), "ai 30"), rest...),
		"/hooks/in": rest,
		"/login":    append([]string{"login 5"}, rest...),
	} {
		pro.Path = path
		if diff := cmp.Diff(want, names(t, p, pro)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	free := Ask{Address: netip.MustParseAddr("192.0.2.7"), Path: "/api/ai/x", Method: "POST"}
	if diff := cmp.Diff([]string{"address 100", "ai 3", "ceiling 7000"}, names(t, p, free)); diff != "" {
		t.Error(diff)
	}
	free.Method, free.Path = "GET", "/login"
	if diff := cmp.Diff([]string{"address 100", "reads 600", "ceiling 7000"}, names(t, p, free)); diff != "" {
		t.Error(diff)
	}
}

func TestATierInShadowCountsAndRefusesNobody(t *testing.T) {
	p, s := compile(t, func(c *Config) {
		c.Tiers["free"] = Tier{Requests: 3, Window: time.Hour, Shadow: true}
		c.Ceiling = Tier{Requests: 8, Window: time.Hour}
	}), memory()
	if n := count(t, p, s, Ask{User: "a"}, 20); n != 8 {
		t.Errorf("%d passed a shadow of 3 under a ceiling of 8", n)
	}
}

func TestWhatRunsAtOnceIsReleasedWhenItEnds(t *testing.T) {
	var c Config
	c.SetDefaults()
	c.Tiers["free"] = Tier{Requests: 100, Window: time.Hour, AtOnce: 2}
	g, err := NewGate(c, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ask := func() Verdict {
		t.Helper()
		v, err := g.Admit(context.Background(), Ask{User: "a"})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	first, second, third := ask(), ask(), ask()
	if !first.Allowed || !second.Allowed || third.Allowed {
		t.Fatalf("%v %v %v", first.Allowed, second.Allowed, third.Allowed)
	}
	h := fields(&third, time.Unix(0, 0))
	if retry, ok := third.RetryAfter(); !ok || retry != 1 || !strings.Contains(h["RateLimit-Policy"], `"user-at-once";q=2;qu="concurrent-requests"`) {
		t.Errorf("Retry-After %d, %v", retry, h)
	}
	if body, _ := third.Body("", ""); !strings.Contains(string(body), "user-at-once of 2 at once is reached") {
		t.Errorf("got %s", body)
	}
	g.Release(&first)
	g.settle(<-g.settling)
	g.Release(&third) // was never running
	if n := len(g.settling); n != 0 {
		t.Errorf("%d settlements wait", n)
	}
	fourth := ask()
	if !fourth.Allowed || fourth.Rules[0].Remaining != 97 {
		t.Errorf("after a release: %v, %d left", fourth.Allowed, fourth.Rules[0].Remaining)
	}
}

func TestTheAppTellsWhatARequestReallyTook(t *testing.T) {
	var c Config
	c.SetDefaults()
	c.Ceiling = Tier{Requests: 1000, Window: time.Hour}
	g, err := NewGate(c, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	used := func() (user, ceiling int64) {
		v, err := g.Admit(context.Background(), Ask{User: "a"})
		if err != nil {
			t.Fatal(err)
		}
		return 99 - v.Rules[0].Remaining, 999 - v.Rules[1].Remaining
	}
	v, err := g.Admit(context.Background(), Ask{User: "a"})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"-1", "NaN", "1e9", "", "9999999999999999999999", "1000000001", "3.5", "+Inf", "0x10"} {
		h := http.Header{"Mainstay-Cost": {bad}}
		if g.Charge(&v, h); len(h) != 0 || len(g.settling) != 0 {
			t.Errorf("%q: left %v, %d to settle", bad, h, len(g.settling))
		}
	}
	if n := g.invalid.Load(); n != 9 {
		t.Errorf("%d bad costs were counted, want 9", n)
	}
	g.Charge(&v, http.Header{"Mainstay-Cost": {"25"}})
	g.settle(<-g.settling)
	if user, ceiling := used(); user != 25 || ceiling != 1 {
		t.Errorf("25 units were told: the user has %d, the ceiling %d", user, ceiling)
	}
	g.Charge(&v, http.Header{"Mainstay-Cost": {"0"}})
	g.settle(<-g.settling)
	if user, _ := used(); user != 25 { // 26 less the one that was taken
		t.Errorf("0 units were told: the user has %d", user)
	}
}

// Of callers who come again at the moment that Retry-After named, at least 99 in
// 100 pass, whatever limits hold and however they come.
func TestARetryAtTheMomentThatWasToldPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := compile(t, func(c *Config) {
			c.Tiers["free"] = Tier{Requests: 10, Window: 10 * time.Second, Also: []Window{{150, 5 * time.Minute}, {1000, time.Hour}}}
			c.Tiers["pro"] = Tier{Requests: 120, Window: time.Minute, Burst: 20}
		})
		s, rnd := memory(), rand.New(rand.NewPCG(7, 7))
		const people = 50
		var due [people]time.Time
		for i := range due {
			due[i] = time.Now().Add(time.Duration(rnd.Int64N(int64(10 * time.Second))))
		}
		told := [people]bool{}
		retries, passed := 0, 0
		for range 60_000 {
			next := 0
			for i := range due {
				if due[i].Before(due[next]) {
					next = i
				}
			}
			time.Sleep(time.Until(due[next]))
			v := admit(t, p, s, Ask{User: fmt.Sprint(next), Tier: []string{"free", "pro"}[next%2]})
			if told[next] {
				retries++
				if v.Allowed {
					passed++
				}
			}
			told[next] = !v.Allowed
			if v.Allowed {
				due[next] = time.Now().Add(time.Duration(rnd.ExpFloat64() * 400 * float64(time.Millisecond)))
				continue
			}
			retry, ok := v.RetryAfter()
			if !ok {
				t.Fatal("a refusal without Retry-After")
			}
			due[next] = time.Now().Add(time.Duration(retry) * time.Second)
		}
		t.Logf("%d of %d retries passed", passed, retries)
		if retries < 1000 || passed*100 < retries*99 {
			t.Errorf("%d of %d retries passed", passed, retries)
		}
	})
}

func TestNonsenseIsRefusedAndCounted(t *testing.T) {
	var c Config
	c.SetDefaults()
	g, err := NewGate(c, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	for _, cost := range []int64{-1, -1 << 63, ratelimit.MaxUnits + 1, 1<<63 - 1} {
		if _, err := g.Admit(context.Background(), Ask{User: "a", Cost: cost}); err == nil {
			t.Errorf("a cost of %d was accepted", cost)
		}
	}
	if n := g.invalid.Load(); n != 4 {
		t.Errorf("%d were counted", n)
	}
	for _, s := range []string{"", "ann", "user:", "tier:pro", "address:nowhere", "address:", ":", "user", "workspace:" + strings.Repeat("x", 2000)} {
		if c, err := ParseCaller(s); err == nil {
			t.Errorf("%.40q was read as %v", s, c)
		}
	}
	six, err := ParseCaller("address:2001:db8::7:1")
	if err != nil || six.String() != "address:2001:db8::" {
		t.Errorf("got %v %v", six, err)
	}
}
