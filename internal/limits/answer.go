package limits

import (
	"encoding/json"
	"html"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// Fields are the header fields that [Verdict.Headers] sets. They speak of one
// caller at one moment: a cache must not store them.
var Fields = [...]string{"RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After"}

// Status is the answer's: 200 stands for any of the app's own.
func (v *Verdict) Status() int {
	switch {
	case v.Allowed:
		return http.StatusOK
	case v.Denied:
		return http.StatusForbidden
	}
	return http.StatusTooManyRequests
}

// Headers tells the caller where it stands: RateLimit and RateLimit-Policy
// (draft-ietf-httpapi-ratelimit-headers-11, structured fields of RFC 9651), the
// older X-RateLimit fields for the rule that is nearest to its end, and, with a
// refusal, Retry-After: rounded up, so that a retry at that moment passes if nobody
// else takes the units. Rules in shadow are not shown. While the shared store is
// down, RateLimit carries the parameter mode.
func (v *Verdict) Headers(now time.Time, set func(name, value string)) {
	var limit, policy []byte
	nearest := -1
	for i := range v.Rules {
		r := &v.Rules[i]
		if r.Check.Shadow {
			continue
		}
		atOnce := r.Check.Limit.Algorithm == ratelimit.Concurrency
		if nearest < 0 || r.nearer(&v.Rules[nearest]) && (!atOnce || !r.Allowed) {
			nearest = i
		}
		limit, policy = separate(limit), separate(policy)
		limit = append(append(append(limit, '"'), r.Name...), `";r=`...)
		limit = strconv.AppendInt(limit, r.Remaining, 10)
		if r.Next > 0 && !atOnce { // nobody knows when one of them ends
			limit = strconv.AppendInt(append(limit, ";t="...), seconds(r.Next), 10)
		}
		if v.Decision.Mode >= ratelimit.ModeLocal {
			limit = append(append(limit, ";mode="...), v.Decision.Mode.String()...)
		}
		policy = append(append(append(policy, '"'), r.Name...), `";q=`...)
		policy = strconv.AppendInt(policy, r.Check.Limit.Max, 10)
		if atOnce {
			policy = append(policy, `;qu="concurrent-requests"`...)
		} else {
			policy = strconv.AppendInt(append(policy, ";w="...), seconds(r.Check.Limit.Window), 10)
		}
	}
	if nearest >= 0 {
		r := &v.Rules[nearest]
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
	if retry, ok := v.RetryAfter(); ok {
		set("Retry-After", strconv.FormatInt(retry, 10))
	}
}

// RetryAfter is after how many whole seconds a refused request may come again;
// false if it was not refused for now but for good. Where too many run at once it
// is 1: when one of them ends nobody knows.
func (v *Verdict) RetryAfter() (int64, bool) {
	if v.Allowed || v.Denied || v.Decision.Retry == ratelimit.Never {
		return 0, false
	}
	if v.Decision.Mode == ratelimit.ModeShut {
		return 1, true
	}
	wait := int64(1)
	for i := range v.Rules {
		if r := &v.Rules[i]; !r.Allowed && !r.Check.Shadow && r.Check.Limit.Algorithm != ratelimit.Concurrency {
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

// Refused is the rule that refused, the one with the longest wait if there are
// several; nil if none did.
func (v *Verdict) Refused() *Rule {
	var refused *Rule
	for i := range v.Rules {
		if r := &v.Rules[i]; !v.Allowed && !r.Allowed && !r.Check.Shadow && (refused == nil || r.nearer(refused)) {
			refused = r
		}
	}
	return refused
}

// problem is the body of a refusal (RFC 9457), with the members that
// draft-ietf-httpapi-ratelimit-headers-11 gives the type quota-exceeded.
type problem struct {
	Type       string   `json:"type"`
	Title      string   `json:"title"`
	Status     int      `json:"status"`
	Detail     string   `json:"detail"`
	Code       string   `json:"code"`
	Request    string   `json:"request_id,omitempty"`
	Violated   []string `json:"violated-policies,omitempty"`
	Tier       string   `json:"tier,omitempty"`
	Limit      int64    `json:"limit,omitempty"`
	Window     int64    `json:"window,omitempty"`
	RetryAfter int64    `json:"retryAfter,omitempty"`
	Upgrade    string   `json:"upgrade,omitempty"`
}

// quotaExceeded is the type that the draft registers.
const quotaExceeded = "https://iana.org/assignments/http-problem-types#quota-exceeded"

func (v *Verdict) problem(request string) problem {
	p := problem{Type: "about:blank", Title: http.StatusText(v.Status()), Status: v.Status(), Request: request, Tier: v.Tier}
	if v.Denied {
		p.Code, p.Detail = "denied", "This caller is refused."
		return p
	}
	p.Type, p.Code, p.Upgrade = quotaExceeded, "limited", v.Upgrade
	p.RetryAfter, _ = v.RetryAfter()
	p.Detail = "The limit cannot be counted at this moment; try again in a second."
	if r := v.Refused(); r != nil && v.Decision.Mode != ratelimit.ModeShut {
		p.Limit = r.Check.Limit.Max
		p.Detail = "The limit " + r.Name + " of " + strconv.FormatInt(p.Limit, 10)
		if r.Check.Limit.Algorithm == ratelimit.Concurrency {
			p.Detail += " at once is reached."
		} else {
			p.Window = seconds(r.Check.Limit.Window)
			p.Detail += " in " + short(r.Check.Limit.Window) + " is used up."
		}
		for i := range v.Rules {
			if o := &v.Rules[i]; !o.Allowed && !o.Check.Shadow {
				p.Violated = append(p.Violated, o.Name)
			}
		}
	}
	return p
}

// Body is the answer of a refusal: a page for a browser, problem+json for all
// others. accept is the request's Accept header.
func (v *Verdict) Body(accept, request string) (body []byte, contentType string) {
	p := v.problem(request)
	if !strings.Contains(accept, "text/html") {
		b, _ := json.Marshal(p) // strings and integers: cannot fail
		return append(b, '\n'), "application/problem+json"
	}
	page := `<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">` +
		"<title>" + p.Title + "</title><h1>" + p.Title + "</h1><p>" + html.EscapeString(p.Detail)
	if p.RetryAfter > 0 {
		page += "<p>Try again in " + (time.Duration(p.RetryAfter) * time.Second).String() + "."
	}
	if p.Upgrade != "" {
		page += `<p><a href="` + html.EscapeString(p.Upgrade) + `">Get a higher limit</a>`
	}
	return []byte(page + "\n"), "text/html; charset=utf-8"
}
