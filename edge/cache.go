package edge

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/cache"
	"mainstay.dev/mainstay/edge/internal/kept"
	"mainstay.dev/mainstay/edge/internal/rfc9111"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/internal/traffic"
	"mainstay.dev/mainstay/telemetry"
)

// keeper has the answers for the ladder's last step. Nothing else is answered from them:
// as long as the app may be asked, it is.
type keeper struct {
	*kept.Store
	given, missed [needs]atomic.Uint64
}

func newKeeper(s limits.Stale) *keeper {
	return &keeper{Store: kept.New(int64(s.Memory), int64(s.Largest))}
}

// A need is why a kept answer is asked for.
type need uint8

const (
	needLimit need = iota
	needShed
	needFailure
	needs
)

func (n need) String() string { return [...]string{"limited", "shed", "failed"}[n] }

// needOf is what a code means to the ladder's last step; false: nothing is kept against
// it. Callers who are denied or not believed are answered so, and all in maintenance.
func needOf(c Code) (need, bool) {
	switch c {
	case Limited:
		return needLimit, true
	case Shed:
		return needShed, true
	case NoTarget, HoldFull, HoldTimeout, TargetUnreachable, TargetBroke, TargetTimeout, AppError:
		return needFailure, true
	}
	return 0, false
}

// Kept is how the answers for the ladder's last step stand.
type Kept struct {
	cache.Stats
	Given  map[string]uint64 `json:"given"`  // answers that took the place of another, by why
	Missed map[string]uint64 `json:"missed"` // looks in vain
}

func (k *keeper) stats() *Kept {
	if k == nil {
		return nil
	}
	st := &Kept{Stats: k.Stats(), Given: map[string]uint64{}, Missed: map[string]uint64{}}
	for n := range needs {
		st.Given[n.String()], st.Missed[n.String()] = k.given[n].Load(), k.missed[n].Load()
	}
	return st
}

// levels is stats as metrics; they are there, and 0, where nobody is limited.
func (k *keeper) levels() (levels []telemetry.Level) {
	st := k.stats()
	if st == nil {
		st = &Kept{}
	}
	level := func(name, help string, value float64, counter bool, labels ...telemetry.Label) {
		levels = append(levels, telemetry.Level{Name: "mainstay_edge_cache_" + name, Help: help, Value: value, Counter: counter, Labels: labels})
	}
	level("bytes", "Memory that kept answers take, for limits.degrade.stale.", float64(st.Weight), false)
	level("entries", "Resources of which answers are kept.", float64(st.Entries), false)
	level("stored_total", "Answers that were kept.", float64(st.Stored), true)
	level("evicted_total", "Resources whose answers left before they were over, for others.", float64(st.Evicted), true)
	for n := range needs {
		why := telemetry.Label{Name: "reason", Value: n.String()}
		level("stale_total", "Kept answers that took the place of another: limited (a 429), shed (a 503), failed (the app gave none, or an error).", float64(st.Given[n.String()]), true, why)
		level("stale_missed_total", "Looks for such an answer that found none.", float64(st.Missed[n.String()]), true, why)
	}
	return levels
}

// personal are headers by which apps know their callers.
var personal = [...]string{"Cookie", "Authorization", "X-Api-Key", "Api-Key", "Apikey", "X-Auth-Token", "X-Access-Token"}

// known reports whether the request shows who is asking, by whatever means: its answer
// may be meant for nobody else (RFC 9111, 3.5 says so of Authorization).
func (r *Request) known() bool {
	return r.Who.By != identity.ByAddress || r.Who.Workspace != "" || r.Who.Tier != "" || r.cert != nil || r.has(personal[:])
}

// confusing are headers that make apps take a GET for another request, though no answer
// says so in Vary.
var confusing = [...]string{"Upgrade", "X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Middleware-Subrequest"}

// rewriting are those that a trusted proxy may write, beside X-Forwarded-Host, which is
// part of the resource.
var rewriting = slices.DeleteFunc(slices.Collect(maps.Keys(diverting)), func(name string) bool { return name == "X-Forwarded-Host" })

func (r *Request) has(names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return r.Header(name) != "" })
}

// plain reports whether all that the answer may depend on is in the resource and in the
// headers that Vary names.
func (l *lane) plain() bool {
	r := &l.Request
	return (r.Method == "GET" || r.Method == "HEAD") && l.up == nil && !r.has(confusing[:]) && !strings.Contains(r.Header("Accept"), "text/event-stream") &&
		(!r.Trusted || !r.Who.Rewrites || !r.has(rewriting)) // from others the app does not see them
}

func (l *lane) resource() (k kept.Resource) {
	k.Scheme, k.Host = l.origin()
	k.Host = strings.ToLower(k.Host)
	k.Path, k.Query, k.Forced = l.uri()
	return k
}

// keeping is what is known, before it is sent, of a request whose answer may be kept.
type keeping struct {
	on     bool
	req    kept.Request
	ticket cache.Ticket
	asked  time.Time
	origin uint64
	copy   *kept.Copy // nil: it is not kept
}

// expect prepares to keep the answer of the target. One that is made for a caller who is
// to be content with less is not kept, nor is that of a release that takes no traffic of
// its own.
func (l *lane) expect(t *target) {
	if l.keep.on {
		l.keep = keeping{} // of the try before
	}
	s := l.verdict.Stale()
	if s == nil || l.Method != "GET" || l.verdict.Step() == limits.Cheaper || l.secret != "" || l.Request.Header("Range") != "" || !l.plain() ||
		rfc9111.ParseControl([]string{l.Request.Header("Cache-Control")}).NoStore {
		return
	}
	if origin, ok := l.s.plan.Load().termOf(t); ok {
		l.keep = keeping{on: true, req: l.stored(s), asked: time.Now(), origin: origin}
		l.keep.ticket = l.s.kept.Ticket(l.keep.req.Resource)
	}
}

// stored is the request as the store sees it.
func (l *lane) stored(s *limits.Stale) kept.Request {
	return kept.Request{Resource: l.resource(), Header: l.Request.Header, Most: s.For, Live: l.s.plan.Load().live}
}

// consider sees an answer before its header is passed on: it has it kept if it may be,
// drops what it makes untrue, and puts a kept one in the place of an error.
func (l *lane) consider(resp *http.Response) {
	switch {
	case !l.verdict.Keeps():
		l.s.kept.Clear() // a reload may have ended the step
	case !safe(l.Method):
		if resp.StatusCode < 400 {
			l.outdate(resp.Header)
		}
	case troubled(resp.StatusCode):
		l.cover(resp)
	case l.keep.on && resp.StatusCode == http.StatusNotModified:
		l.renew(resp.Header)
	case l.keep.on:
		l.keepAnswer(resp)
	}
}

// unanswered drops what a request may have changed that came to no answer: nobody knows
// what became of it, unless it did not leave.
func (l *lane) unanswered() {
	switch {
	case safe(l.Method) || l.code == TargetUnreachable || l.s.kept == nil:
	case l.verdict.Keeps():
		l.outdate(nil)
	default:
		l.s.kept.Clear()
	}
}

// keepAnswer has the answer copied while it passes. One that may not be kept ends what
// is kept, though its like was: the app has another mind now. Not so that of a caller
// who is known: others get other answers.
func (l *lane) keepAnswer(resp *http.Response) {
	k, known := &l.keep, l.known()
	term, ok := rfc9111.Storable(resp.StatusCode, resp.Header, k.asked, time.Now())
	vary, alike := rfc9111.Vary(resp.Header)
	switch {
	case !ok || !alike || slices.ContainsFunc(vary, l.unequal) || strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream"):
		if !known && final(resp.StatusCode) {
			l.s.kept.Drop(k.req.Resource)
		}
	case !known || term.Open:
		k.copy = l.s.kept.Copy(resp, &k.req, &kept.Answer{Term: term, Color: l.target.color, Origin: k.origin, Asked: k.asked}, vary, k.ticket)
	}
}

// renew keeps anew what the app has just said to be still so.
func (l *lane) renew(h http.Header) {
	k := &l.keep
	if term, ok := rfc9111.Storable(http.StatusOK, h, k.asked, time.Now()); ok && (term.Open || !l.known()) {
		l.s.kept.Renew(&k.req, h, &kept.Answer{Term: term, Color: l.target.color, Origin: k.origin, Asked: k.asked}, k.ticket)
	}
}

// unequal reports whether a request header is not the same for the app as the client
// sent it, so that nobody else's can be compared with it, or a secret that is not to be
// remembered. That there is none of a kind can be.
func (r *Request) unequal(name string) bool {
	return untold[name] || strings.HasPrefix(name, "X-Forwarded") || strings.HasPrefix(name, "Mainstay-") || slices.Contains(told[:], name) ||
		slices.Contains(personal[:], name) && r.Header(name) != ""
}

// final reports whether a status says how things are with the resource, and not with the
// request or the app.
func final(status int) bool {
	switch status {
	case http.StatusPartialContent:
		return false
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone, http.StatusUnavailableForLegalReasons:
		return true
	}
	return status < 400
}

// fetch finds a kept answer that may take the place of what the request came to.
func (l *lane) fetch(code Code, now time.Time) (*kept.Answer, need) {
	s := l.verdict.Stale()
	n, ok := needOf(code)
	if !ok || s == nil || n == needFailure && !s.IfError || !l.plain() {
		return nil, n
	}
	a := l.find(s, now)
	if a == nil {
		l.s.kept.missed[n].Add(1)
		return nil, n
	}
	l.s.kept.given[n].Add(1)
	l.kept, l.x.HTTP.Cache = code, "stale"
	return a, n
}

// find returns the newest answer that may be given to the request; nil: there is none.
// Who is known gets only what the app calls everybody's, who keeps to a color only what
// that gave, and who asks for a preview or the newest state nothing.
func (l *lane) find(s *limits.Stale, now time.Time) *kept.Answer {
	r, p := &l.Request, l.s.plan.Load()
	if p.mode == traffic.Maintenance {
		return nil // which everybody is to see
	}
	control := r.Header("Cache-Control")
	if _, preview := p.previewFor(r, nil); preview || rfc9111.ParseControl([]string{control}).NoCache || control == "" && r.Header("Pragma") == "no-cache" ||
		r.Header("If-Match") != "" || r.Header("If-Unmodified-Since") != "" {
		return nil
	}
	known, color, req := r.known(), p.colorFor(r), l.stored(s)
	return l.s.kept.Find(&req, now, func(a *kept.Answer) bool {
		return (!known || a.Term.Open) && (color == "" || color == a.Color)
	})
}

// give is a kept answer as the client gets it.
func (l *lane) give(a *kept.Answer, n need, now time.Time) (status int, h http.Header, body []byte) {
	status, h, body = a.Give(l.Request.Header, n.String(), now)
	set(h, "X-Request-Id", l.ID)
	l.tell(h)
	delete(h, "Retry-After") // which would be the refusal's
	if l.Method == "HEAD" {
		body = nil
	}
	return status, h, body
}

// instead answers with what is kept in place of a refusal, and reports whether it did.
func (l *lane) instead(code Code, err error) bool {
	now := time.Now()
	a, n := l.fetch(code, now)
	if a == nil {
		return false
	}
	if l.code, l.err = code, err; code == Limited {
		l.err = l.verdict.Why()
	}
	status, h, body := l.give(a, n, now)
	maps.Copy(l.out.Header(), h)
	l.out.WriteHeader(status)
	if len(body) > 0 {
		_, _ = l.out.Write(body) // as in refuse
	}
	return true
}

// troubled reports whether an answer says that the app has none (RFC 5861, 4).
func troubled(status int) bool {
	switch status {
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// cover puts a kept answer in the place of the app's error. The record says what it was.
func (l *lane) cover(resp *http.Response) {
	now := time.Now()
	a, n := l.fetch(AppError, now)
	if a == nil {
		return
	}
	resp.Body.Close()
	l.failure = resp.StatusCode
	var body []byte
	resp.StatusCode, resp.Header, body = l.give(a, n, now)
	resp.ContentLength, resp.Trailer, resp.Body = int64(len(body)), nil, http.NoBody
	if len(body) > 0 {
		resp.Body = io.NopCloser(bytes.NewReader(body))
	}
}

// safe reports whether requests of a method change nothing (RFC 9110, 9.2.1; QUERY, and
// WebDAV's that read).
func safe(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PROPFIND", "REPORT", "SEARCH":
		return true
	}
	return false
}

// outdate drops what a request may have changed (RFC 9111, 4.4): what is kept for its
// URI, and for those on the same host that the answer names.
func (l *lane) outdate(answer http.Header) {
	r := l.resource()
	l.drop(r)
	base, err := url.Parse(r.Path)
	for _, name := range []string{"Location", "Content-Location"} {
		value := answer.Get(name)
		if value == "" || err != nil {
			continue
		}
		if u, bad := base.Parse(value); bad == nil && (u.Host == "" || strings.EqualFold(u.Host, r.Host)) {
			r.Path, r.Query, r.Forced = u.EscapedPath(), u.RawQuery, u.ForceQuery
			l.drop(r)
		}
	}
}

func (l *lane) drop(r kept.Resource) {
	for _, r.Scheme = range []string{"http", "https"} {
		l.s.kept.Drop(r)
	}
}
