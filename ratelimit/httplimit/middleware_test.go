package httplimit_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/ratelimit/httplimit"
)

func Example() {
	store := ratelimit.NewMemory(0)
	limit := httplimit.Middleware(store, func(r *http.Request) []httplimit.Rule {
		user := r.Header.Get("X-User") // as your own authentication tells it
		return []httplimit.Rule{
			{Name: "user", Check: ratelimit.Check{Key: "user:" + user, Limit: ratelimit.Limit{Max: 2, Window: time.Minute}, Cost: 1}},
			{Name: "all", Check: ratelimit.Check{Key: "all", Limit: ratelimit.Limit{Max: 100, Window: time.Second}, Cost: 1}},
		}
	})
	app := limit(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }))
	for range 3 {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("X-User", "ann")
		app.ServeHTTP(w, r)
		fmt.Println(w.Code, w.Header().Get("X-RateLimit-Remaining"))
	}
	// Output:
	// 200 1
	// 200 0
	// 429 0
}

type broken struct{ ratelimit.Store }

func (broken) Take(context.Context, []ratelimit.Check, []ratelimit.Result) (ratelimit.Decision, error) {
	return ratelimit.Decision{}, errors.New("gone")
}

func TestTheMiddlewareSaysWhereACallerStands(t *testing.T) {
	rules := func(max int64) func(*http.Request) []httplimit.Rule {
		return func(r *http.Request) []httplimit.Rule {
			if r.URL.Path == "/free" {
				return nil
			}
			return []httplimit.Rule{{Name: "user", Check: ratelimit.Check{Key: "k", Limit: ratelimit.Limit{Max: max, Window: time.Hour}, Cost: 1}}}
		}
	}
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	ask := func(h http.Handler, path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w
	}
	h := httplimit.Middleware(ratelimit.NewMemory(0), rules(1))(next)
	if w := ask(h, "/"); w.Code != 204 || w.Header().Get("RateLimit-Policy") != `"user";q=1;w=3600` || w.Header().Get("Retry-After") != "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	w := ask(h, "/")
	if w.Code != 429 || w.Header().Get("Retry-After") == "" || w.Header().Get("Cache-Control") != "no-store" || !strings.Contains(w.Body.String(), "The limit user is used up") {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if w := ask(h, "/free"); w.Code != 204 || len(w.Header()) != 0 {
		t.Errorf("without rules: %d %v", w.Code, w.Header())
	}
	if w := ask(httplimit.Middleware(broken{}, rules(1))(next), "/"); w.Code != 503 {
		t.Errorf("a store that fails: %d", w.Code)
	}
}
