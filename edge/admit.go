package edge

import (
	"cmp"
	"context"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"mainstay.dev/mainstay/edge/internal/overload"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/limits"
)

// maxID bounds a request id that comes with a request.
const maxID = 128

// identify says who is asking.
func (s *Server) identify(ctx context.Context, r *Request) {
	r.Who = s.deps.Identity.Resolve(ctx, &identity.Request{Peer: r.Peer, Header: r.Header, Certificate: r.cert})
	r.Trusted, r.Client = r.Who.Trusted, r.Who.Address
	r.x.User, r.x.Workspace, r.x.Tier = r.Who.Shown.User, r.Who.Shown.Workspace, r.Who.Tier
}

// admit says whether the request may enter; a code other than OK is the reason
// why not.
func (p *policy) admit(r *Request) Code {
	r.ID = r.Header("X-Request-Id")
	if !validID(r.ID) {
		r.ID = newID()
	}
	x := r.x
	x.ID = r.ID
	x.Caller = r.Client.String()
	x.Trace.Continue(r.Header("Traceparent"), r.Header("Tracestate"))
	switch {
	case r.HeaderSize > int(p.cfg.Header):
		return HeaderTooBig
	case r.Host == "" || r.Method == "CONNECT" || !validPath(r.Path) || !printable(r.Header("Upgrade")):
		return BadRequest
	case p.cfg.Body > 0 && r.Length > int64(p.cfg.Body):
		return TooLarge
	case r.Who.Unfit:
		return Unauthorized
	}
	return OK
}

// limit asks the rate limits whether the caller has requests left. It runs after
// route, since they are per class of requests.
func (s *Server) limit(ctx context.Context, r *Request) Code {
	if s.deps.Limits == nil {
		return OK
	}
	v, err := s.deps.Limits.Admit(ctx, limits.Ask{
		User: r.Who.User, Workspace: r.Who.Workspace, Tier: r.Who.Tier, Address: r.Client, Method: r.Method, Path: r.Path, App: r.x.Route,
	})
	r.verdict = v
	switch {
	case err != nil && ctx.Err() != nil:
		return s.gone()
	case err != nil:
		s.deps.Log.Error("the rate limits decided nothing; this is a bug", "request_id", r.ID, "err", err)
		return Internal
	case v.Allowed:
		return s.slow(ctx, r)
	case v.Denied:
		return Denied
	}
	return Limited
}

// slow delays a request whose caller has nearly used up a limit.
func (s *Server) slow(ctx context.Context, r *Request) Code {
	long := r.verdict.Delay()
	if long == 0 {
		return OK
	}
	began := time.Now()
	all, each := r.verdict.Waiting()
	err := s.slowed.Wait(ctx, &r.Who, long, all, each)
	r.x.Waited += time.Since(began)
	switch {
	case err == nil:
		return OK
	case ctx.Err() != nil:
		return s.gone()
	}
	return Shed
}

// enter waits for the request's turn when more come than the app can take. A request
// enters once, however many targets it is tried on; one that may not gives its place
// on t back. One that was held for a deploy has waited, and is not shed for it.
func (l *lane) enter(ctx context.Context, t *target) Code {
	s, p := l.s, l.s.policy.Load().overload
	if !p.On || l.pass.Inside() || l.held {
		return OK
	}
	began := time.Now()
	pass, err := s.valve.Enter(ctx, p.Work(&overload.Request{
		Who: &l.Who, Tier: cmp.Or(l.verdict.Tier, l.Who.Tier), Class: l.verdict.Route, Method: l.Method, Path: l.Path,
	}))
	if err == nil {
		l.pass = pass
		l.x.Waited += time.Since(began)
		return OK
	}
	l.unprobe(t)
	t.leave()
	if ctx.Err() != nil {
		return s.gone()
	}
	return Shed
}

// leave gives the request's place among those that the app is given back. How long
// the app took to begin its answer tells how crowded it is, if it answered.
func (l *lane) leave() {
	switch {
	case l.took > 0:
		l.pass.Leave(l.took, l.kept == "" && l.x.HTTP.Status != http.StatusServiceUnavailable && l.x.HTTP.Status != http.StatusGatewayTimeout)
	case l.code == TargetTimeout:
		l.pass.Leave(0, false)
	default:
		l.pass.Free()
	}
}

// tell puts into an answer where the caller stands, unless a cache may give the
// answer to others: they would take it for their own.
func (l *lane) tell(h http.Header) {
	if len(l.verdict.Rules) == 0 || shared(h) {
		return
	}
	for _, name := range singles {
		delete(h, name) // the app's own limits would contradict ours
	}
	l.verdict.Headers(time.Now(), func(name, value string) { set(h, name, value) })
	if warning := l.verdict.Warning(); warning != "" {
		set(h, "X-Ratelimit-Warning", warning)
	}
}

// singles are the fields that an app with limits of its own sends too, as its answer's
// header has them, and of which a client must see one; RateLimit and RateLimit-Policy
// are lists.
var singles = [...]string{"X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Reset"}

// targeted are headers that go before Cache-Control for some caches (RFC 9213).
var targeted = [...]string{"Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "Vercel-Cdn-Cache-Control", "Surrogate-Control"}

// shared reports whether a cache may store an answer for everybody (RFC 9111, 3):
// it has a lifetime, or one can be guessed of it, and nothing forbids it.
func shared(h http.Header) bool {
	for _, name := range targeted {
		if len(h[name]) > 0 && !forbidden(strings.ToLower(strings.Join(h[name], ","))) {
			return true
		}
	}
	cc := strings.ToLower(strings.Join(h["Cache-Control"], ","))
	if forbidden(cc) {
		return false
	}
	if strings.Contains(cc, "public") || strings.Contains(cc, "s-maxage") {
		return true
	}
	if strings.Contains(cc, "no-cache") {
		return false
	}
	return strings.Contains(cc, "max-age") || len(h["Expires"]) > 0 || len(h["Last-Modified"]) > 0
}

func forbidden(control string) bool {
	return strings.Contains(control, "no-store") || strings.Contains(control, "private")
}

// validPath reports whether path is one (empty: the root of an absolute URL) or
// the * of OPTIONS.
func validPath(path string) bool { return path == "" || path[0] == '/' || path == "*" }

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' })
}

// validID keeps ids that are safe in a header, a log line and a URL.
func validID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if c != '-' && c != '_' && c != '.' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

func newID() string {
	var b [32]byte
	var raw [16]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		raw[i], raw[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	hex.Encode(b[:], raw[:])
	return string(b[:])
}
