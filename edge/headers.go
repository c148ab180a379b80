package edge

import (
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"

	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/limits"
)

// untold are the headers in which a proxy tells of the client, and those that
// make some frameworks serve another path than the one that was asked for; so do
// all that begin with X-Forwarded. From a peer that nobody trusts they are lies
// until shown otherwise.
var untold = names("X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "X-Originating-Ip", "X-Remote-Ip", "X-Remote-Addr", "Client-Ip", "True-Client-Ip",
	"Forwarded", "Forwarded-For", "Cf-Connecting-Ip", "Cf-Connecting-Ipv6", "Cf-Pseudo-Ipv4", "Fastly-Client-Ip", "Fly-Client-Ip", "X-Appengine-User-Ip",
	"X-Original-Url", "X-Original-Host", "X-Rewrite-Url", "X-Scheme", "X-Url-Scheme", "Front-End-Https")

// diverting are those of them that change the host or the path.
var diverting = names("X-Forwarded-Host", "X-Forwarded-Server", "X-Forwarded-Prefix", "X-Forwarded-Path", "X-Forwarded-Uri", "X-Forwarded-Url",
	"X-Original-Url", "X-Original-Host", "X-Rewrite-Url")

// framing are the headers that HTTP itself acts on, and Proxy, which a CGI app
// would find in its environment as HTTP_PROXY.
var framing = names("Host", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Te", "Trailer", "Keep-Alive", "Proxy", "Proxy-Authorization")

func names(list ...string) map[string]bool {
	set := make(map[string]bool, len(list))
	for _, name := range list {
		set[name] = true
	}
	return set
}

// cleanse removes what the target must not be told. Many frameworks read X_Real_Ip
// as X-Real-Ip, so a name with an underscore is judged as they would read it, and
// no proxy worth the trust writes one.
//
// What changes the host or the path is the client's word also behind a trusted
// proxy, unless that one writes it itself: Cloudflare, say, passes it on.
func cleanse(h http.Header, trusted, rewrites bool) {
	for name := range h {
		read, alias := name, strings.Contains(name, "_")
		if alias {
			read = http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
		}
		lie := untold[read] || strings.HasPrefix(read, "X-Forwarded")
		if lie && (alias || !trusted) || diverting[read] && !rewrites || alias && framing[read] || read == identity.Header || read == degradeHeader {
			delete(h, name)
		}
	}
	delete(h, "Proxy")
	delete(h, "Mainstay-Mirror") // ours alone
	delete(h, "Http2-Settings")
	// HTTP in a tunnel would pass the edge unseen (h2c smuggling).
	if up := h.Get("Upgrade"); up != "" && carriesHTTP(up) {
		delete(h, "Upgrade")
		delete(h, "Connection")
	}
}

// degradeHeader asks the app to do with less for a caller who has nearly used up a
// limit.
const degradeHeader = "Mainstay-Degrade"

// disown removes the headers in which only a trusted proxy may tell who asks, and
// whatever frameworks would read as one of them.
func disown(h http.Header, vouched []string, trusted bool) {
	if len(vouched) == 0 {
		return
	}
	for name := range h {
		read := http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
		if (!trusted || read != name) && slices.Contains(vouched, read) {
			delete(h, name)
		}
	}
}

// cleanseTrailer does the same for what comes after a body, where HTTP's own
// headers have no business either (RFC 9110, 6.5.1).
func cleanseTrailer(h http.Header) {
	cleanse(h, false, false)
	for name := range h {
		if framing[name] {
			delete(h, name)
		}
	}
}

func carriesHTTP(upgrade string) bool {
	upgrade = strings.ToLower(upgrade)
	return strings.Contains(upgrade, "h2") || strings.Contains(upgrade, "http") || strings.Contains(upgrade, "tls")
}

// rewrite turns the client's request into the one for the target. The reverse
// proxy has removed hop-by-hop and X-Forwarded headers from the copy already.
func (l *lane) rewrite(pr *httputil.ProxyRequest) {
	out, h := pr.Out, pr.Out.Header
	out.URL.Scheme, out.URL.Host = "http", l.target.address
	out.URL.RawQuery = pr.In.URL.RawQuery // as it came: the app is the one to judge it
	out.Host = l.Host

	cleanse(h, l.Trusted, l.Who.Rewrites)
	disown(h, l.Who.Vouched, l.Trusted)
	step := ""
	if l.verdict.Step() == limits.Cheaper {
		step = limits.Cheaper.String()
		set(h, degradeHeader, step)
	}
	who := l.Who
	if who.Tier == "" && (who.By != identity.ByAddress || step != "") {
		who.Tier = l.verdict.Tier // the default one counts for whoever has none, in the other planes too
	}
	if sealed := l.s.deps.Identity.Seal(&who, step); sealed != "" {
		set(h, identity.Header, sealed)
	}
	if l.secret != "" {
		delete(h, l.secret)
	}
	if l.up != nil {
		out.Trailer = pr.In.Trailer // filled when the body has been read; the copy never is
	}

	peer := l.x.Caller
	if l.Peer != l.Client {
		peer = l.Peer.String()
	}
	proto, host := l.origin()
	chain, elements := peer, ""
	if l.Trusted {
		if f := l.header("X-Forwarded-For"); f != "" {
			chain = f + ", " + peer
		}
		if f := l.header("Forwarded"); f != "" {
			elements = f + ", "
		}
	}
	// One array for all values: they may be read after the lane has gone back to
	// its pool, so they cannot be the lane's.
	values := [...]string{chain, proto, host, l.x.Caller, elements + element(l.Peer.Is6(), peer, host, proto), l.ID, l.x.Trace.Traceparent()}
	for i, name := range told {
		h[name] = values[i : i+1 : i+1]
	}
	if l.x.Trace.State == "" {
		delete(h, "Tracestate")
	}
}

// origin is the scheme and the host that the app is told the client has asked for.
func (r *Request) origin() (proto, host string) {
	proto, host = "http", r.Host
	if r.Secure {
		proto = "https"
	}
	if !r.Trusted {
		return proto, host
	}
	if p := r.Header("X-Forwarded-Proto"); p == "http" || p == "https" {
		proto = p
	}
	if f := r.Header("X-Forwarded-Host"); f != "" && r.Who.Rewrites {
		host = f
	}
	return proto, host
}

// set is http.Header.Set for a name that is canonical already.
func set(h http.Header, name, value string) { h[name] = []string{value} }

// told are the headers that rewrite sets, in the order of its values.
var told = [...]string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-Ip", "Forwarded", "X-Request-Id", "Traceparent"}

// element is this hop's part of the Forwarded header (RFC 7239).
func element(is6 bool, peer, host, proto string) string {
	if is6 {
		peer = `"[` + peer + `]"`
	}
	if strings.ContainsAny(host, `"\`) { // no host has one; a forged X-Forwarded-Host may
		host = strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(host)
	}
	return "for=" + peer + `;host="` + host + `";proto=` + proto
}
