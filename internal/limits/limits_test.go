package limits

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/ratelimit"
)

// compile returns a policy of the defaults as change leaves them.
func compile(t *testing.T, change func(*Config)) *Policy {
	t.Helper()
	var c Config
	c.SetDefaults()
	if change != nil {
		change(&c)
	}
	p, err := Compile(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func memory() Stores {
	m := ratelimit.NewMemory(0)
	return func(ratelimit.Failure) ratelimit.Store { return m }
}

func admit(t *testing.T, p *Policy, s Stores, a Ask) Verdict {
	t.Helper()
	v, err := p.Admit(context.Background(), s, a)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// count asks n times and returns how many were admitted.
func count(t *testing.T, p *Policy, s Stores, a Ask, n int) (admitted int) {
	t.Helper()
	for range n {
		if admit(t, p, s, a).Allowed {
			admitted++
		}
	}
	return admitted
}

func TestUserAndWorkspaceHaveTheTiersNumberEach(t *testing.T) {
	p, s := compile(t, nil), memory()
	ann, bob := Ask{User: "ann", Workspace: "w", Tier: "pro"}, Ask{User: "bob", Workspace: "w", Tier: "pro"}
	if n := count(t, p, s, ann, 700); n != 700 {
		t.Errorf("ann had %d", n)
	}
	if n := count(t, p, s, bob, 700); n != 300 {
		t.Errorf("bob had %d of what the workspace had left, 300", n)
	}
	v := admit(t, p, s, bob)
	if r := v.Refused(); r == nil || r.Name != "workspace" || v.Rules[0].Remaining != 700 {
		t.Errorf("a refusal of the workspace charged the user: %+v", v.Rules)
	}
	if n := count(t, p, s, Ask{User: "ann", Workspace: "other", Tier: "pro"}, 10); n != 10 {
		t.Errorf("another workspace had %d of 10", n)
	}
}

func TestACallerWithoutAKnownTierHasTheDefaultOne(t *testing.T) {
	p, s := compile(t, nil), memory()
	for i, tier := range []string{"", "root", "PRO"} {
		if n := count(t, p, s, Ask{User: fmt.Sprint(i), Tier: tier}, 150); n != 100 {
			t.Errorf("tier %q: %d were admitted, want 100", tier, n)
		}
	}
}

func TestAnonymousCallersAreCountedByAddress(t *testing.T) {
	p, s := compile(t, nil), memory()
	for i := range 120 { // one customer's /64
		v := admit(t, p, s, Ask{Address: netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1))})
		if v.Allowed != (i < 100) || v.Rules[0].Name != "address" {
			t.Fatalf("request %d: %+v", i, v)
		}
	}
	if n := count(t, p, s, Ask{Address: netip.MustParseAddr("::ffff:10.0.0.1")}, 60); n != 60 {
		t.Errorf("%d of 60", n)
	}
	if n := count(t, p, s, Ask{Address: netip.MustParseAddr("10.0.0.1")}, 60); n != 40 {
		t.Errorf("the same address had %d, want 40", n)
	}
	if v := admit(t, p, s, Ask{}); !v.Allowed {
		t.Error("a caller without an address was refused")
	}
}

func TestARouteHasItsOwnCostAndLimit(t *testing.T) {
	p, s := compile(t, func(c *Config) {
		c.Routes = []Route{
			{Name: "login", Path: "/login", Methods: []string{"POST"}, Cost: 1, Limit: Tier{Requests: 5, Window: time.Minute}, OnStoreFailure: "deny"},
			{Name: "ai", Path: "/api/ai/*", Cost: 10},
			{Name: "webhooks", Path: "/hooks/*", Cost: 0},
			{Name: "watched", Path: "/watched", Cost: 0, Limit: Tier{Requests: 1, Window: time.Minute}, Shadow: true},
		}
	}), memory()
	if n := count(t, p, s, Ask{User: "a", Method: "POST", Path: "/login"}, 10); n != 5 {
		t.Errorf("%d logins, want 5", n)
	}
	v := admit(t, p, s, Ask{User: "a", Method: "POST", Path: "/login"})
	if v.Route != "login" || v.Refused().Name != "login" || v.failure != ratelimit.FailDeny {
		t.Errorf("got %+v", v)
	}
	if n := count(t, p, s, Ask{User: "a", Method: "GET", Path: "/login"}, 10); n != 10 {
		t.Errorf("%d of 10 by another method", n)
	}
	if n := count(t, p, s, Ask{User: "b", Path: "/api/ai/chat"}, 20); n != 10 {
		t.Errorf("%d calls at 10 units each, want 10", n)
	}
	if n := count(t, p, s, Ask{User: "b", Path: "/hooks/x"}, 200); n != 200 {
		t.Errorf("%d of 200 webhooks", n)
	}
	if n := count(t, p, s, Ask{User: "b", Path: "/watched"}, 5); n != 5 {
		t.Errorf("a shadow refused: %d of 5", n)
	}
	if v := admit(t, p, s, Ask{User: "b", Path: "/watched"}); v.Rules[0].Allowed {
		t.Error("a shadow does not say whom it would refuse")
	}
}

func TestListsAndOverridesNameSingleCallers(t *testing.T) {
	p, s := compile(t, func(c *Config) {
		c.Allow = []string{"workspace:ours", "address:10.0.0.0/8"}
		c.Deny = []string{"user:mallory"}
		c.Overrides = map[string]Tier{"user:vip": {Requests: 120, Window: time.Hour, Also: []Window{{Requests: 110, Window: time.Minute}}}}
	}), memory()
	if n := count(t, p, s, Ask{User: "a", Workspace: "ours"}, 500); n != 500 {
		t.Errorf("%d of 500 for an exempt workspace", n)
	}
	if n := count(t, p, s, Ask{Address: netip.MustParseAddr("10.9.9.9")}, 500); n != 500 {
		t.Errorf("%d of 500 for an exempt range", n)
	}
	if v := admit(t, p, s, Ask{User: "mallory"}); v.Allowed || v.Status() != 403 {
		t.Errorf("got %+v", v)
	}
	if n := count(t, p, s, Ask{User: "vip"}, 500); n != 110 {
		t.Errorf("%d for an override of 110 a minute", n)
	}
}

func TestShadowAndCeilingHoldForAll(t *testing.T) {
	p, s := compile(t, func(c *Config) { c.Shadow = true }), memory()
	if n := count(t, p, s, Ask{User: "a"}, 300); n != 300 {
		t.Errorf("%d of 300 in shadow", n)
	}
	p, s = compile(t, func(c *Config) { c.Ceiling = Tier{Requests: 10, Window: time.Second} }), memory()
	total := 0
	for i := range 20 {
		total += count(t, p, s, Ask{User: fmt.Sprint(i)}, 1)
	}
	if total != 10 {
		t.Errorf("%d under a ceiling of 10", total)
	}
}

func TestSettleMakesTheCostWhatItReallyWas(t *testing.T) {
	p, s := compile(t, nil), memory()
	ctx, a := context.Background(), Ask{User: "a", Cost: 10}
	left := func() int64 { return admit(t, p, s, Ask{User: "a", Cost: 1}).Rules[0].Remaining + 1 }
	v := admit(t, p, s, a)
	if err := v.Settle(ctx, s, 2); err != nil || left() != 98 {
		t.Errorf("after a refund of 8: %v", err)
	}
	v = admit(t, p, s, a)
	if err := v.Settle(ctx, s, 30); err != nil || left() != 67 {
		t.Errorf("after a charge of 20: %v", err)
	}
	v = admit(t, p, s, a)
	if err := v.Settle(ctx, s, 1_000_000); err != nil || admit(t, p, s, Ask{User: "a"}).Allowed {
		t.Errorf("a cost beyond all that is left: %v", err)
	}
	if _, err := p.Admit(ctx, s, Ask{User: "a", Cost: -5}); err == nil {
		t.Error("a negative cost was accepted")
	}
}

// fields collects headers.
func fields(v *Verdict, now time.Time) map[string]string {
	h := map[string]string{}
	v.Headers(now, func(name, value string) { h[name] = value })
	return h
}

func TestTheAnswerSaysWhereACallerStandsAndTheRetryIsTrue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := compile(t, func(c *Config) { c.Upgrade = "https://app.example.com/upgrade" }), memory()
		a := Ask{User: "ann", Workspace: "w", Tier: "pro"}
		v := admit(t, p, s, a)
		reset := time.Now().Unix() + 3600 + 60
		want := map[string]string{
			"RateLimit":             `"user";r=999;t=3660, "workspace";r=999;t=3660`,
			"RateLimit-Policy":      `"user";q=1000;w=3600, "workspace";q=1000;w=3600`,
			"X-RateLimit-Limit":     "1000",
			"X-RateLimit-Reset":     fmt.Sprint(reset),
			"X-RateLimit-Remaining": "999",
		}
		if diff := cmp.Diff(want, fields(&v, time.Now())); diff != "" {
			t.Error(diff)
		}
		free := Ask{User: "bob"}
		count(t, p, s, free, 100)
		time.Sleep(10*time.Minute + 300*time.Millisecond)
		v = admit(t, p, s, free)
		h := fields(&v, time.Now())
		if h["RateLimit"] != `"user";r=0;t=3000` || h["Retry-After"] != "3000" || h["X-RateLimit-Remaining"] != "0" {
			t.Errorf("got %v", h)
		}
		body, kind := v.Body("*/*", "req-1")
		var got problem
		if err := json.Unmarshal(body, &got); err != nil || kind != "application/problem+json" {
			t.Fatalf("%s: %v", kind, err)
		}
		if diff := cmp.Diff(problem{
			Type: quotaExceeded, Title: "Too Many Requests", Status: 429, Code: "limited", Request: "req-1",
			Detail: "The limit user of 100 in 1h is used up.", Violated: []string{"user"},
			Tier: "free", Limit: 100, Window: 3600, RetryAfter: 3000, Upgrade: "https://app.example.com/upgrade",
		}, got); diff != "" {
			t.Error(diff)
		}
		if page, kind := v.Body("text/html,*/*", "x"); !strings.Contains(string(page), "Try again in 50m0s") || kind != "text/html; charset=utf-8" {
			t.Errorf("got %s %s", kind, page)
		}
		time.Sleep(3000 * time.Second)
		if !admit(t, p, s, free).Allowed {
			t.Error("a retry at the told moment was refused")
		}
	})
}

func TestWhileTheStoreIsDownTheAnswerSaysSo(t *testing.T) {
	v := Verdict{Allowed: true, Decision: ratelimit.Decision{Mode: ratelimit.ModeLocal}, Rules: []Rule{{
		Name: "user", Check: ratelimit.Check{Limit: ratelimit.Limit{Max: 10, Window: time.Minute}}, Result: ratelimit.Result{Allowed: true, Remaining: 4},
	}}}
	if h := fields(&v, time.Now()); h["RateLimit"] != `"user";r=4;mode=local` {
		t.Errorf("got %v", h)
	}
	v.Allowed, v.Decision = false, ratelimit.Decision{Mode: ratelimit.ModeShut, Retry: time.Second}
	v.Rules[0].Result = ratelimit.Result{Retry: time.Second}
	body, _ := v.Body("", "")
	if h := fields(&v, time.Now()); h["Retry-After"] != "1" || !strings.Contains(string(body), "cannot be counted") {
		t.Errorf("got %v %s", h, body)
	}
}

func TestNoIDEscapesItsKey(t *testing.T) {
	p, s := compile(t, nil), memory()
	for _, id := range []string{"}{workspace:victim}", "a:user:b", strings.Repeat("x", 100_000), "a b", "{", "\r\nSET"} {
		v := admit(t, p, s, Ask{User: id, Workspace: id})
		for _, r := range v.Rules {
			if k := r.Check.Key; strings.Count(k, "{") != 1 || strings.Count(k, "}") != 1 || len(k) > 300 || strings.ContainsAny(k, " \r\n") {
				t.Errorf("key %q", k)
			}
		}
	}
	if clean("a:b") == clean("a:c") || clean("plain") != "plain" {
		t.Error("ids are mixed up")
	}
}

func TestCompileReportsEveryMistake(t *testing.T) {
	var c Config
	c.SetDefaults()
	c.Tiers["Bad Name"] = Tier{Requests: 1, Window: time.Hour}
	c.Tiers["none"] = Tier{}
	c.Tiers["twice"] = Tier{Requests: 1, Window: time.Hour, Also: []Window{{Requests: 2, Window: time.Hour}}}
	c.Tiers["many"] = Tier{Requests: 1, Window: time.Hour, Also: make([]Window, 9)}
	c.DefaultTier, c.Per, c.OnStoreFailure, c.StoreTimeout = "gold", []string{"user", "user"}, "panic", 0
	c.Allow, c.Deny = []string{"everybody"}, []string{"address:nowhere"}
	c.Overrides = map[string]Tier{"ann": {Requests: 1, Window: time.Hour}}
	c.Ceiling = Tier{Requests: 5}
	c.Routes = []Route{{Name: "user", Path: "x", Cost: -1, OnStoreFailure: "?", Limit: Tier{Requests: -1, Window: time.Second}}}
	_, err := Compile(c)
	var paths []string
	for _, p := range setting.Of(err) {
		if p.Mend == "" || p.What == "" {
			t.Errorf("%+v does not say enough", p)
		}
		paths = append(paths, p.Path)
	}
	want := 17
	if len(paths) != want {
		t.Errorf("%d mistakes, want %d:\n%v", len(paths), want, err)
	}
}

func FuzzHeaders(f *testing.F) {
	f.Add("ann", "w", "pro", "/x", int64(3))
	f.Add("", "}{", "free", "*", int64(0))
	var c Config
	c.SetDefaults()
	p, err := Compile(c)
	if err != nil {
		f.Fatal(err)
	}
	s := memory()
	f.Fuzz(func(t *testing.T, user, workspace, tier, path string, cost int64) {
		v, err := p.Admit(context.Background(), s, Ask{User: user, Workspace: workspace, Tier: tier, Path: path, Cost: cost})
		if err != nil {
			return
		}
		v.Headers(time.Unix(0, 0), func(name, value string) {
			if value == "" || strings.ContainsAny(value, "\r\n{}") {
				t.Errorf("%s: %q", name, value)
			}
		})
	})
}

func BenchmarkAdmit(b *testing.B) {
	var c Config
	c.SetDefaults()
	p, err := Compile(c)
	if err != nil {
		b.Fatal(err)
	}
	s, ctx := memory(), context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Admit(ctx, s, Ask{User: "ann", Workspace: "w", Tier: "enterprise"}); err != nil {
			b.Fatal(err)
		}
	}
}
