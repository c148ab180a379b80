package local

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/limits"
)

// door is a Server with limits as change leaves them, and its gate running.
func door(t *testing.T, change func(*limits.Config)) *Server {
	t.Helper()
	var c limits.Config
	c.SetDefaults()
	if change != nil {
		change(&c)
	}
	g, err := limits.NewGate(c, limits.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	s, err := New(Config{Listen: ln.Addr().String()}, Deps{Listener: ln, Limits: g, Open: func(text string) (identity.Who, string) {
		if text == "sealed" {
			return identity.Who{User: "ann", Workspace: "w", Tier: "pro"}, ""
		}
		return identity.Who{Refused: "forged"}, ""
	}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func send(s *Server, path, body string, change func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", path, strings.NewReader(body))
	r.Host = "127.0.0.1:9901"
	r.Header.Set("Content-Type", "application/json")
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	s.http.Handler.ServeHTTP(w, r)
	return w
}

// check asks and expects an answer.
func check(t *testing.T, s *Server, body string) (a Answer) {
	t.Helper()
	w := send(s, "/v1/limits/check", body, nil)
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || w.Code != 200 {
		t.Fatalf("%s: %d %s %v", body, w.Code, w.Body, err)
	}
	return a
}

func TestACheckDecidesOnAllLimitsOrNone(t *testing.T) {
	s := door(t, nil)
	ask := func(own int) Answer {
		return check(t, s, fmt.Sprintf(`{"user": "ann", "cost": 10, "limits": [{"name": "exports", "key": "ann", "requests": %d, "window": "1h"}]}`, own))
	}
	for i := range 3 {
		if a := ask(3); !a.Allowed || a.Remaining != int64(2-i) || a.Status != 200 || a.Receipt == "" || a.Tier != "free" || a.Mode != "exact" {
			t.Errorf("ask %d: %+v", i, a)
		}
	}
	a := ask(3)
	if a.Allowed || a.RetryAfter < 3500 || a.Status != 429 || a.Receipt != "" || !strings.Contains(a.Body, "The limit exports of 3 in 1h is used up") ||
		a.Headers["Retry-After"] == "" || a.Headers["RateLimit"] == "" || a.Headers["Content-Type"] != "application/problem+json" || a.Headers["Cache-Control"] != "no-store" {
		t.Errorf("the fourth: %+v", a)
	}
	if p := check(t, s, `{"user": "ann", "peek": true}`); p.Remaining != 70 || p.Receipt != "" {
		t.Errorf("what was refused was charged: %+v", p)
	}
	if w := send(s, "/v1/limits/check", `{"identity": "forged"}`, nil); w.Code != 400 {
		t.Errorf("a forged identity: %d %s", w.Code, w.Body)
	}
	if a := check(t, s, `{"identity": "sealed"}`); a.Tier != "pro" || len(a.Rules) != 2 || a.Limit != 1000 {
		t.Errorf("a sealed identity: %+v", a)
	}
}

func TestAReceiptSettlesOnce(t *testing.T) {
	s := door(t, func(c *limits.Config) { c.Tiers["free"] = limits.Tier{Requests: 100, Window: time.Hour, AtOnce: 1} })
	left := func() int64 {
		a := check(t, s, `{"user": "ann", "peek": true}`)
		for _, r := range a.Rules {
			if r.Name == "user" {
				return r.Remaining
			}
		}
		return -1
	}
	a := check(t, s, `{"user": "ann", "cost": 40}`)
	if b := check(t, s, `{"user": "ann"}`); b.Allowed || b.RetryAfter != 1 {
		t.Errorf("two at once: %+v", b)
	}
	settle := func(receipt string, cost int) int {
		return send(s, "/v1/limits/settle", fmt.Sprintf(`{"receipt": %q, "cost": %d}`, receipt, cost), nil).Code
	}
	if code := settle(a.Receipt, 5); code != 204 {
		t.Errorf("settled with %d", code)
	}
	for range 2000 {
		if left() == 95 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if n := left(); n != 95 {
		t.Errorf("%d are left, want 95", n)
	}
	for range 2000 {
		if check(t, s, `{"user": "ann"}`).Allowed {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if code := settle(a.Receipt, 0); code != 410 {
		t.Errorf("settled twice: %d", code)
	}
	if code := settle("FORGED", 0); code != 410 {
		t.Errorf("a forged receipt: %d", code)
	}
	if code := settle(a.Receipt, -1); code != 400 {
		t.Errorf("a negative cost: %d", code)
	}
}

func TestARefundGivesBackAllThatWasTaken(t *testing.T) {
	s := door(t, nil)
	ask := `{"user": "ann", "cost": 40, "limits": [{"name": "x", "key": "k", "requests": 9, "window": "1h", "cost": 9}]}`
	a := check(t, s, ask)
	if check(t, s, ask).Allowed {
		t.Error("the own limit is not used up")
	}
	if w := send(s, "/v1/limits/settle", `{"receipt": "`+a.Receipt+`"}`, nil); w.Code != 204 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for range 2000 {
		if a = check(t, s, ask); a.Allowed {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if !a.Allowed || a.Rules[0].Remaining != 60 {
		t.Errorf("after the refund: %+v", a)
	}
}

func TestReceiptsAreForgottenOldestFirst(t *testing.T) {
	var r receipts
	first := r.give(limits.Verdict{})
	for range maxReceipts {
		r.give(limits.Verdict{})
	}
	if _, ok := r.take(first); ok || len(r.given) != maxReceipts {
		t.Errorf("%d are kept, the oldest: %v", len(r.given), ok)
	}
}

func TestWhatMakesNoSenseIsRefusedAndCounted(t *testing.T) {
	s := door(t, func(c *limits.Config) { c.Routes = []limits.Route{{Name: "ai", Path: "/ai", Cost: 2}} })
	bad := []string{
		``, `[]`, `{"user": "a"} x`, `{"usr": "a"}`, `{}`, `{"user": "a", "cost": -1}`, `{"user": "a", "cost": 0}`, `{"user": "a", "cost": NaN}`,
		`{"user": "a", "cost": 1.5}`, `{"user": "a", "cost": 1e300}`, `{"user": "a", "cost": 1000000001}`, `{"user": "a", "class": "none"}`,
		`{"address": "nowhere"}`, `{"limits": [{"name": "x", "requests": 0, "window": "1h"}]}`, `{"limits": [{"name": "x", "requests": 1, "window": "-1h"}]}`,
		`{"limits": [{"name": "x", "requests": 1, "window": "90000h"}]}`, `{"limits": [{"name": "x", "requests": 1, "window": "soon"}]}`,
		`{"limits": [{"name": "x", "requests": 1, "window": "1ns"}]}`, `{"limits": [{"name": "X y", "requests": 1, "window": "1h"}]}`,
		`{"limits": [{"name": "user", "requests": 1, "window": "1h"}]}`, `{"limits": [{"name": "x", "requests": 1, "window": "1h", "cost": -5}]}`,
		`{"limits": [{"name": "x", "requests": 1, "window": "1h"}, {"name": "x", "requests": 1, "window": "1h"}]}`,
		`{"limits": [` + strings.Repeat(`{"name": "x", "requests": 1, "window": "1h"},`, 9)[:9*44-1] + `]}`,
		strings.Repeat("[", 100_000),
	}
	for _, body := range bad {
		if w := send(s, "/v1/limits/check", body, nil); w.Code < 400 || w.Code > 413 || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%.60q: %d %s", body, w.Code, w.Body)
		}
	}
	if n := s.refused.Load(); n != uint64(len(bad)) {
		t.Errorf("%d were counted, want %d", n, len(bad))
	}
	if w := send(s, "/v1/limits/check", `{"user": "`+strings.Repeat("x", maxBody)+`"}`, nil); w.Code != 413 {
		t.Errorf("a body that is too large: %d", w.Code)
	}
	if a := check(t, s, `{"user": "a", "class": "ai"}`); a.Remaining != 98 {
		t.Errorf("a class of cost 2 left %d", a.Remaining)
	}
}

func TestBrowsersStayOut(t *testing.T) {
	s := door(t, nil)
	for name, change := range map[string]func(*http.Request){
		"another host": func(r *http.Request) { r.Host = "evil.example:9901" },
		"a page":       func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") },
		"a form":       func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") },
		"a fetch":      func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
	} {
		if w := send(s, "/v1/limits/check", `{"user": "a"}`, change); w.Code < 400 {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	for _, addr := range []string{"0.0.0.0:9901", ":9901", "10.0.0.1:9901", "9901", "example.com:1"} {
		if _, err := New(Config{Listen: addr}, Deps{}); err == nil || !strings.Contains(err.Error(), "listen") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestADoorWithoutLimitsSaysSo(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Listen: "127.0.0.1:0"}, Deps{Listener: ln})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	resp, err := http.Post("http://"+ln.Addr().String()+"/v1/limits/check", "application/json", strings.NewReader(`{"user": "a"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 404 {
		t.Errorf("got %s", resp.Status)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(`{"user": "ann", "cost": 3, "limits": [{"name": "x", "key": "k", "requests": 1, "window": "1h", "burst": 2, "at_once": 1}]}`)
	f.Add(`{"identity": "sealed", "peek": true, "accept": "text/html"}`)
	f.Add(`{"address": "::1%eth0", "class": "\u0000"}`)
	var c limits.Config
	c.SetDefaults()
	g, err := limits.NewGate(c, limits.Deps{})
	if err != nil {
		f.Fatal(err)
	}
	s := &Server{deps: Deps{Limits: g}}
	f.Fuzz(func(t *testing.T, body string) {
		w := httptest.NewRecorder()
		s.check(w, httptest.NewRequest("POST", "/", strings.NewReader(body)))
		if !json.Valid(w.Body.Bytes()) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}
