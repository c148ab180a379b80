// Package httplimit tells HTTP clients where they stand with limits of package
// ratelimit: the header fields, and a middleware for Go programs that want them
// without Mainstay around them.
//
// Anyone may import it.
package httplimit

import (
	"math"
	"strconv"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// Fields are the header fields that [Headers] sets. They speak of one caller at
// one moment: a cache must not store them.
var Fields = [...]string{"RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After"}

// A Rule is one limit that was checked, with what it said.
type Rule struct {
	Name  string // in answers, metrics and logs: a-z, 0-9, - and _
	Units bool   // it counts what a request really takes, which may be told later
	Check ratelimit.Check
	ratelimit.Result
}

// Headers tells the caller where it stands: RateLimit and RateLimit-Policy
// (draft-ietf-httpapi-ratelimit-headers-11, structured fields of RFC 9651), the
// older X-RateLimit fields for the rule that is nearest to its end, and, with a
// refusal, Retry-After: rounded up, so that a retry at that moment passes if nobody
// else takes the units. Rules in shadow are not shown. While the shared store is
// down, RateLimit carries the parameter mode.
func Headers(rules []Rule, d ratelimit.Decision, now time.Time, set func(name, value string)) {
	if len(rules) == 0 {
		return
	}
	var limit, policy []byte
	for i := range rules {
		r := &rules[i]
		if r.Check.Shadow {
			continue
		}
		atOnce := r.Check.Limit.Algorithm == ratelimit.Concurrency
		limit, policy = separate(limit), separate(policy)
		limit = append(append(append(limit, '"'), r.Name...), `";r=`...)
		limit = strconv.AppendInt(limit, r.Remaining, 10)
		if r.Next > 0 && !atOnce { // nobody knows when one of them ends
			limit = strconv.AppendInt(append(limit, ";t="...), seconds(r.Next), 10)
		}
		if d.Mode >= ratelimit.ModeLocal {
			limit = append(append(limit, ";mode="...), d.Mode.String()...)
		}
		policy = append(append(append(policy, '"'), r.Name...), `";q=`...)
		policy = strconv.AppendInt(policy, r.Check.Limit.Max, 10)
		if atOnce {
			policy = append(policy, `;qu="concurrent-requests"`...)
		} else {
			policy = strconv.AppendInt(append(policy, ";w="...), seconds(r.Check.Limit.Window), 10)
		}
	}
	if r := Nearest(rules); r != nil {
		set("RateLimit", string(limit))
		set("RateLimit-Policy", string(policy))
		set("X-RateLimit-Limit", strconv.FormatInt(r.Check.Limit.Max, 10))
		set("X-RateLimit-Remaining", strconv.FormatInt(r.Remaining, 10))
		reset := seconds(r.Reset)
		if r.Check.Limit.Algorithm == ratelimit.Concurrency {
			reset = 1
		}
		set("X-RateLimit-Reset", strconv.FormatInt(now.Unix()+reset, 10))
	}
	if retry, ok := RetryAfter(rules, d); ok {
		set("Retry-After", strconv.FormatInt(retry, 10))
	}
}

// RetryAfter is after how many whole seconds a refused request may come again;
// false if it was not refused for now but for good. Where too many run at once it
// is 1: when one of them ends nobody knows.
func RetryAfter(rules []Rule, d ratelimit.Decision) (int64, bool) {
	if d.Allowed || d.Retry == ratelimit.Never {
		return 0, false
	}
	if d.Mode == ratelimit.ModeShut {
		return 1, true
	}
	wait := int64(1)
	for i := range rules {
		if r := &rules[i]; !r.Allowed && !r.Check.Shadow && r.Check.Limit.Algorithm != ratelimit.Concurrency {
			wait = max(wait, seconds(r.Retry))
		}
	}
	return wait, true
}

func separate(b []byte) []byte {
	if len(b) > 0 {
		b = append(b, ", "...)
	}
	return b
}

// seconds rounds up.
func seconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }

// nearer orders rules by how soon they refuse: a refusal first, the longer one
// before the shorter, then the smaller share left.
func (r *Rule) nearer(o *Rule) bool {
	if r.Allowed != o.Allowed {
		return !r.Allowed
	}
	if r.Retry != o.Retry {
		return r.Retry > o.Retry
	}
	return r.Remaining*o.Check.Limit.Max < o.Remaining*r.Check.Limit.Max
}

// Nearest is the rule that refuses first, or has refused; nil if there is none that
// is not in shadow.
func Nearest(rules []Rule) (nearest *Rule) {
	for i := range rules {
		r := &rules[i]
		if r.Check.Shadow {
			continue
		}
		if nearest == nil || r.nearer(nearest) && (!r.Allowed || r.Check.Limit.Algorithm != ratelimit.Concurrency) {
			nearest = r
		}
	}
	return nearest
}

// Refused is the rule that refused, the one with the longest wait if there are
// several; nil if none did.
func Refused(rules []Rule, d ratelimit.Decision) *Rule {
	var refused *Rule
	for i := range rules {
		if r := &rules[i]; !d.Allowed && !r.Allowed && !r.Check.Shadow && (refused == nil || r.nearer(refused)) {
			refused = r
		}
	}
	return refused
}
