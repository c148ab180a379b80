package edge

import (
	"cmp"
	"crypto/subtle"
	"encoding/binary"
	"hash/fnv"
	"math/bits"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"mainstay.dev/mainstay/internal/traffic"
)

// route says where a request belongs. There is one app for now, so every request
// belongs to it; hosts and paths come with the second.
func (p *policy) route(r *Request) {
	r.x.Route = "app"
}

// previewFor returns a target of the color that the plan previews, if r asks for
// it by the header and its secret, or by the host.
func (p *plan) previewFor(r *Request, tried []*target) (t *target, asked bool) {
	v := &p.preview
	if v.Color == "" {
		return nil, false
	}
	switch {
	case v.Header != "" && v.Secret != "" && subtle.ConstantTimeCompare([]byte(r.Header(v.Header)), []byte(v.Secret.Reveal())) == 1:
		r.secret = http.CanonicalHeaderKey(v.Header)
	case v.Host == "" || !strings.EqualFold(bare(r.Host), bare(v.Host)):
		return nil, false
	}
	r.spare = false
	return p.draw(tried, false, func(sh share) int {
		if sh.color != v.Color {
			return 0
		}
		return max(1, sh.weight)
	}), true
}

// bare is a host without its port.
func bare(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}

// colorFor is the color that a client keeps to, or "" if any will do. But by
// cookie it follows from a hash: as a color's weight grows, clients move to
// it and none moves back, as long as the plan names the colors in the same order.
func (p *plan) colorFor(r *Request) string {
	var key string
	switch p.sticky.By {
	case traffic.StickyCookie:
		value := cookie(r.Header("Cookie"), p.cookieName())
		for _, sh := range p.shares {
			if value != "" && sh.weight > 0 && sh.release == value {
				return sh.color
			}
		}
		return ""
	case traffic.StickyHeader:
		key = r.Header(p.sticky.Name)
	case traffic.StickyAddress:
		key = network(r.Client)
	case traffic.StickyUser:
		key = cmp.Or(r.Who.User, network(r.Client))
	case traffic.StickyWorkspace:
		key = cmp.Or(r.Who.Workspace, network(r.Client))
	}
	if key == "" {
		return ""
	}
	total := 0
	for _, sh := range p.shares {
		total += sh.weight
	}
	hi, _ := bits.Mul64(hash(key), uint64(total))
	at := int(hi)
	for _, sh := range p.shares {
		if at -= sh.weight; at < 0 {
			return sh.color
		}
	}
	return ""
}

// network is a client's address; of IPv6 the /64, which is one client's.
func network(a netip.Addr) string {
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}

// hash spreads FNV-1a over all 64 bits (the finisher of MurmurHash3), since its
// upper ones hardly differ between keys that end alike.
func hash(key string) uint64 {
	f := fnv.New64a()
	_, _ = f.Write([]byte(key)) // never fails
	x := f.Sum64()
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// stickyCookie is the name of the cookie where the plan gives none.
const stickyCookie = "mainstay-color"

// cookieAge is how long a client keeps to its color at most, in seconds. It need
// only outlast a rollout: a cookie of another release counts for nothing.
const cookieAge = 24 * 60 * 60

func (p *plan) cookieName() string {
	if p.sticky.Name != "" {
		return p.sticky.Name
	}
	return stickyCookie
}

// release is the value of the sticky cookie. The version is part of it, or a
// cookie of the rollout before would send its client to the color that was new
// then. It is no secret and gives no right: a client may choose among the colors
// that have a weight.
func release(color, version string) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], hash(color+"\x00"+version))
	return color + "-" + strconv.FormatUint(uint64(binary.BigEndian.Uint32(b[:4])), 36)
}

// cookie finds the value of name in a Cookie header.
func cookie(header, name string) string {
	for header != "" {
		var part string
		// More than one header was joined by a comma, which no value of ours has.
		if i := strings.IndexAny(header, ";,"); i >= 0 {
			part, header = header[:i], header[i+1:]
		} else {
			part, header = header, ""
		}
		if k, v, ok := strings.Cut(strings.TrimSpace(part), "="); ok && k == name {
			return v
		}
	}
	return ""
}

// settle prepares what follows from the choice of t: the cookie that keeps a new
// client with it, and the mirror.
func (p *plan) settle(r *Request, t *target) {
	r.pin, r.mirror = "", nil
	if p.sticky.By == traffic.StickyCookie && p.colorFor(r) == "" &&
		slices.ContainsFunc(p.shares, func(sh share) bool { return sh.target == t && sh.weight > 0 }) {
		r.pin = p.cookieName() + "=" + t.release + "; Path=/; Max-Age=" + strconv.Itoa(cookieAge) + "; HttpOnly; SameSite=Lax"
	}
	if p.mirror != nil && p.mirror.wants(r, t) {
		r.mirror = p.mirror
	}
}

// setCookie gives a new client its color. An answer that caches may share must
// not carry it: they would give everyone the same.
func (l *lane) setCookie(resp *http.Response) {
	for _, cc := range resp.Header["Cache-Control"] {
		if cc = strings.ToLower(cc); strings.Contains(cc, "public") || strings.Contains(cc, "s-maxage") {
			return
		}
	}
	value := l.pin
	if l.Secure || l.Trusted && l.header("X-Forwarded-Proto") == "https" {
		value += "; Secure"
	}
	resp.Header["Set-Cookie"] = append(resp.Header["Set-Cookie"], value)
}
