package httplimit

import (
	"encoding/json"
	"net/http"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// Middleware lets a request through if all of its rules have room, and answers 429
// with problem+json (RFC 9457) if one has not; either way it says where the caller
// stands. of names the rules of a request: Name and Check; a request without any is
// not limited. A store that fails answers 503: put a [ratelimit.Shield] before one
// that can.
func Middleware(store ratelimit.Store, of func(*http.Request) []Rule) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rules := of(r)
			if len(rules) == 0 {
				next.ServeHTTP(w, r)
				return
			}
			d, err := Take(r, store, rules)
			if err != nil {
				refuse(w, problem{Title: "Service Unavailable", Status: http.StatusServiceUnavailable, Detail: "The limits cannot be counted at this moment."})
				return
			}
			Headers(rules, d, time.Now(), w.Header().Set)
			if !d.Allowed {
				p := problem{Title: "Too Many Requests", Status: http.StatusTooManyRequests, Detail: "A limit is used up."}
				if refused := Refused(rules, d); refused != nil {
					p.Detail = "The limit " + refused.Name + " is used up."
				}
				p.RetryAfter, _ = RetryAfter(rules, d)
				refuse(w, p)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// Take asks the store for all rules and fills in what it said.
func Take(r *http.Request, store ratelimit.Store, rules []Rule) (ratelimit.Decision, error) {
	checks, results := make([]ratelimit.Check, len(rules)), make([]ratelimit.Result, len(rules))
	for i := range rules {
		checks[i] = rules[i].Check
	}
	d, err := store.Take(r.Context(), checks, results)
	for i := range rules {
		rules[i].Result = results[i]
	}
	return d, err
}

type problem struct {
	Title      string `json:"title"`
	Status     int    `json:"status"`
	Detail     string `json:"detail"`
	RetryAfter int64  `json:"retryAfter,omitempty"`
}

func refuse(w http.ResponseWriter, p problem) {
	b, _ := json.Marshal(p) // strings and integers: cannot fail
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(b, '\n')) // a client that is gone has lost nothing
}
