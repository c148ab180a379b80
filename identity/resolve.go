package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"time"
)

// certificateParts are the parts of a client certificate that may name somebody.
var certificateParts = map[string]func(*x509.Certificate) string{
	"cn":    func(c *x509.Certificate) string { return c.Subject.CommonName },
	"o":     func(c *x509.Certificate) string { return first(c.Subject.Organization) },
	"ou":    func(c *x509.Certificate) string { return first(c.Subject.OrganizationalUnit) },
	"dns":   func(c *x509.Certificate) string { return first(c.DNSNames) },
	"email": func(c *x509.Certificate) string { return first(c.EmailAddresses) },
	"uri": func(c *x509.Certificate) string {
		if len(c.URIs) == 0 {
			return ""
		}
		return c.URIs[0].String()
	},
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// Resolve says who sent r.
func (d *Desk) Resolve(ctx context.Context, r *Request) Who {
	p := d.policy.Load()
	w := Who{Address: p.proxies.Client(r.Peer, r.Header), Trusted: p.proxies.Trusted(r.Peer), Rewrites: p.proxies.Rewrites(r.Peer), By: ByAddress, Vouched: p.vouched}
	if !d.byKey(p, r, &w) {
		d.byClaims(ctx, p, r, &w)
	}
	if tier := p.tierOf(&w); tier != "" {
		w.Tier = tier
	}
	w.Unfit = w.Unfit && p.cfg.OnRefusal == onRefusalRefuse
	p.show(&w)
	d.counts.count(&w)
	return w
}

// tierOf is the tier that the tables give w.
func (p *policy) tierOf(w *Who) string {
	if tier := p.tiers.of(w); tier != "" || p.tierFile == nil {
		return tier
	}
	return p.tierFile.get().of(w)
}

// show fills in the names as the configuration wants them in records.
func (p *running) show(w *Who) {
	switch p.cfg.Names {
	case namesPlain:
		w.Shown = Names{w.User, w.Workspace}
	case namesHashed:
		w.Shown = Names{p.seal.pseudonym('u', w.User), p.seal.pseudonym('w', w.Workspace)}
	}
}

// Seal returns the value of [Header] for the app, or "" for a caller for whom
// nothing vouches, or if the configuration wants none. step is the rung of the
// ladder of degradation that the caller stands on, if any.
func (d *Desk) Seal(w *Who, step string) string {
	p := d.policy.Load()
	if p.cfg.TellApp == 0 || w.By == ByAddress && w.Workspace == "" && w.Tier == "" && step == "" {
		return ""
	}
	return p.seal.For(Sealed{User: w.User, Workspace: w.Workspace, Tier: w.Tier, Key: w.Key, Step: step}, p.cfg.TellApp)
}

// Open reads a value of [Header] that the app has forwarded, and returns whom it
// names and the step. What is not believed is counted, and names nobody.
func (d *Desk) Open(text string) (w Who, step string) {
	p := d.policy.Load()
	v, reason := p.seal.Open(text, time.Now())
	if reason != "" {
		d.counts.refuse(BadIdentity)
		return Who{By: ByAddress, Refused: reason}, ""
	}
	w = Who{User: v.User, Workspace: v.Workspace, Tier: v.Tier, Key: v.Key, By: BySeal}
	p.show(&w)
	return w, v.Step
}

// bearer is the token of Authorization: Bearer, or "".
func bearer(r *Request) string {
	scheme, token, ok := strings.Cut(r.Header("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.Trim(token, " ")
}

// The lengths that an API key may have.
const (
	minKey = 20
	maxKey = 512
)

// byKey looks for an API key. One in the header that nobody knows is refused; a
// bearer token that is neither a key nor a signed token is none of ours: apps have
// their own.
func (d *Desk) byKey(p *running, r *Request, w *Who) bool {
	if len(p.policy.keys) == 0 && p.keyFile == nil {
		return false
	}
	shown := r.Header(p.keyName)
	if key := p.apiKey(shown); key != nil {
		key.fill(w)
		return true
	}
	if shown != "" {
		w.Refused, w.Unfit = UnknownAPI, true
	}
	if token := bearer(r); !shaped(token) {
		if key := p.apiKey(token); key != nil {
			w.Refused, w.Unfit = "", false
			key.fill(w)
			return true
		}
	}
	return false
}

// apiKey finds a key by its hash: the time it takes tells nothing of any key.
func (p *policy) apiKey(shown string) *apiKey {
	if len(shown) < minKey || len(shown) > maxKey {
		return nil
	}
	var b [maxKey]byte
	sum := sha256.Sum256(b[:copy(b[:], shown)])
	if key := p.keys[sum]; key != nil || p.keyFile == nil {
		return key
	}
	return (*p.keyFile.get())[sum]
}

func (k *apiKey) fill(w *Who) {
	w.Key, w.User, w.Workspace, w.Tier, w.By = k.name, k.User, k.Workspace, k.Tier, ByKey
}

// byClaims fills w from the places that the configuration names.
func (d *Desk) byClaims(ctx context.Context, p *running, r *Request, w *Who) {
	var claims *proof
	if p.tokens() {
		claims = d.token(ctx, p, r, w)
	}
	for i, to := range [...]*string{&w.User, &w.Workspace, &w.Tier} {
		for _, at := range p.fields[i] {
			v := d.value(p, &at, claims, r, w)
			if v == "" || i == fieldTier && len(v) > maxTier {
				continue
			}
			if *to = v; i == fieldUser {
				w.By = at.by
			}
			break
		}
	}
}

// value is what stands at a place, if somebody vouches for it.
func (d *Desk) value(p *running, at *place, claims *proof, r *Request, w *Who) (v string) {
	switch at.by {
	case ByToken:
		if claims != nil {
			v = claims.values[at.slot]
		}
		return v
	case ByHeader:
		if w.Trusted {
			v = r.Header(at.name)
		}
		if strings.Contains(v, ",") { // twice: the client's own went through beside the proxy's
			v = ""
		}
	case ByCertificate:
		if r.Certificate != nil {
			v = certificateParts[at.name](r.Certificate)
		}
	case ByCookie:
		return d.signed(p, at.name, r, w)
	}
	if !validID(v) {
		return ""
	}
	return v
}

// token verifies the bearer token, and the cookie's if that names no user. It
// returns nil if nothing is proved. w notes why one is not believed; only a bearer
// token makes it unfit, since the app must be able to renew what stands in a cookie.
func (d *Desk) token(ctx context.Context, p *running, r *Request, w *Who) *proof {
	s := scratches.Get().(*scratch)
	defer s.release()
	var proved *proof
	if token := bearer(r); len(token) > maxToken {
		w.Refused, w.Unfit = TooLarge, true
	} else if shaped(token) {
		s.raw = append(append(s.raw[:0], 'b'), token...)
		switch got := d.prove(ctx, p, s); {
		case got.reason != "":
			w.Refused, w.Unfit = got.reason, got.reason != NoKeys // which is not the sender's fault
		case p.names(got):
			return got
		default:
			proved = got
		}
	}
	if p.cookie == "" {
		return proved
	}
	raw, found := session(append(s.raw[:0], 'c'), r.Header("Cookie"), p.cookie)
	if s.raw = raw; !found {
		return proved
	}
	got := d.prove(ctx, p, s)
	if got.reason == "" {
		return got
	}
	if w.Refused == "" {
		w.Refused = got.reason
	}
	return proved
}

// names reports whether a proof tells the user.
func (p *policy) names(got *proof) bool {
	for _, at := range p.fields[fieldUser] {
		if at.by == ByToken && got.values[at.slot] != "" {
			return true
		}
	}
	return false
}

// prove returns what the credential in s proves: from memory, or by verifying it.
func (d *Desk) prove(ctx context.Context, p *running, s *scratch) *proof {
	t, now := d.tags.tag(s), time.Now()
	if got := p.good.get(t, now); got != nil && (got.keys == nil || got.keys == p.keys.set.Load()) {
		return got
	}
	if got := p.bad.get(t, now); got != nil {
		return got
	}
	d.counts.verified.Add(1)
	raw := string(s.raw[1:])
	if s.raw[0] == 'c' {
		raw = fromSession(raw)
	}
	got := p.verify(ctx, raw, p.keys)
	switch got.reason {
	case "":
		p.good.put(t, got)
	case UnknownKey, NoKeys: // which may be had in a moment
	default:
		got.until = now.Add(badFor)
		p.bad.put(t, got)
	}
	return got
}

// signed is the value of a cookie that the app has signed.
func (d *Desk) signed(p *running, name string, r *Request, w *Who) string {
	value := cookieNamed(r.Header("Cookie"), name)
	if value == "" {
		return ""
	}
	v, ok := unsign(value, p.cfg.CookieSecret.Reveal())
	if !ok {
		w.Refused = BadCookie
	}
	return v
}
