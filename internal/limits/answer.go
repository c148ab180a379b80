package limits

import (
	"encoding/json"
	"errors"
	"html"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"mainstay.dev/mainstay/ratelimit"
	"mainstay.dev/mainstay/ratelimit/httplimit"
)

// Fields are the header fields that [Verdict.Headers] sets.
var Fields = httplimit.Fields

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

// Headers tells the caller where it stands, as [httplimit.Headers] does.
func (v *Verdict) Headers(now time.Time, set func(name, value string)) {
	if !v.Denied {
		httplimit.Headers(v.Rules, v.Decision, now, set)
	}
}

// RetryAfter is after how many whole seconds a refused request may come again;
// false if it was not refused for now but for good.
func (v *Verdict) RetryAfter() (int64, bool) {
	if v.Allowed || v.Denied {
		return 0, false
	}
	return httplimit.RetryAfter(v.Rules, v.Decision)
}

// Refused is the rule that refused, the one with the longest wait if there are
// several; nil if none did.
func (v *Verdict) Refused() *Rule { return httplimit.Refused(v.Rules, v.Decision) }

// Nearest is the rule that refuses first, or has refused; nil if there is none.
func (v *Verdict) Nearest() *Rule { return httplimit.Nearest(v.Rules) }

// Why says in words which limit refused, for the log; nil if none did.
func (v *Verdict) Why() error {
	if v.Allowed {
		return nil
	}
	p := v.problem("")
	return errors.New(p.Detail)
}

// seconds rounds up.
func seconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }

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
