package identity

import (
	"net/netip"
	"strings"

	"mainstay.dev/mainstay/internal/setting"
)

// maxHops bounds how many entries of a forwarding chain are read.
const maxHops = 32

// Proxies knows which peers may speak for a client. It is safe for concurrent use,
// and changes only with the file that the configuration names, if a [Desk] watches it.
type Proxies struct {
	ranges    []netip.Prefix
	file      *watched[[]netip.Prefix] // more of them; nil: there is none
	rewriting []netip.Prefix
	header    string
}

// Trusted reports whether forwarding headers from peer are believed.
func (p *Proxies) Trusted(peer netip.Addr) bool {
	if within(p.ranges, peer) {
		return true
	}
	more := p.file.get()
	return more != nil && within(*more, peer)
}

// Rewrites reports whether peer is trusted and itself writes the headers that
// change the host or the path of a request, so that they are not the client's.
func (p *Proxies) Rewrites(peer netip.Addr) bool { return p.Trusted(peer) && within(p.rewriting, peer) }

func within(ranges []netip.Prefix, peer netip.Addr) bool {
	peer = peer.Unmap().WithZone("") // a range contains no address with a zone
	for _, r := range ranges {
		if r.Contains(peer) {
			return true
		}
	}
	return false
}

// Client returns the address of whoever began the request: peer itself, or, when
// peer is a trusted proxy, the nearest address in its forwarding header that is
// not a trusted proxy too. Anything left of that may be forged and is not read.
// header returns all values of a header, joined by commas.
func (p *Proxies) Client(peer netip.Addr, header func(name string) string) netip.Addr {
	peer = peer.Unmap().WithZone("")
	if !p.Trusted(peer) {
		return peer
	}
	switch p.header {
	case CFConnectingIP:
		if a, ok := hostOnly(strings.TrimSpace(header("Cf-Connecting-Ip"))); ok {
			return a
		}
		return peer
	case Forwarded:
		return p.nearest(peer, header("Forwarded"), forwardedFor)
	}
	return p.nearest(peer, header("X-Forwarded-For"), hostOnly)
}

// nearest walks a chain from its right end, the part that trusted proxies wrote.
func (p *Proxies) nearest(peer netip.Addr, chain string, addr func(string) (netip.Addr, bool)) netip.Addr {
	client := peer
	for range maxHops {
		if chain == "" {
			return client
		}
		entry := chain
		if i := strings.LastIndexByte(chain, ','); i >= 0 {
			chain, entry = chain[:i], chain[i+1:]
		} else {
			chain = ""
		}
		a, ok := addr(strings.TrimSpace(entry))
		if !ok {
			return client
		}
		client = a
		if !p.Trusted(a) {
			return client
		}
	}
	return client
}

// hostOnly reads an address that may carry a port or brackets. A zone means
// nothing to anyone but who wrote it, and could be any text; it is dropped.
func hostOnly(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

// forwardedFor reads the for parameter of one element of a Forwarded header
// (RFC 7239). A comma inside a quoted string would split the element; no address
// holds one, so such an element is simply not believed.
func forwardedFor(element string) (netip.Addr, bool) {
	for pair := range strings.SplitSeq(element, ";") {
		name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if ok && strings.EqualFold(name, "for") {
			return hostOnly(strings.Trim(value, `"`))
		}
	}
	return netip.Addr{}, false
}

// cloudflare is https://www.cloudflare.com/ips-v4 and ips-v6; the lists have not
// changed since September 2023.
const cloudflare = `173.245.48.0/20 103.21.244.0/22 103.22.200.0/22 103.31.4.0/22 141.101.64.0/18
108.162.192.0/18 190.93.240.0/20 188.114.96.0/20 197.234.240.0/22 198.41.128.0/17 162.158.0.0/15
104.16.0.0/13 104.24.0.0/14 172.64.0.0/13 131.0.72.0/22
2400:cb00::/32 2606:4700::/32 2803:f800::/32 2405:b500::/32 2405:8100::/32 2a06:98c0::/29 2c0f:f248::/32`

// named lists the ranges that have a name.
var named = map[string]string{
	"loopback":   "127.0.0.0/8 ::1/128",
	"private":    "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7 169.254.0.0/16 fe80::/10",
	"cloudflare": cloudflare,
}

// CompileProxies checks the part of c that is about addresses, and returns the rule
// that obeys it. It is pure.
func CompileProxies(c Config) (*Proxies, error) {
	var ps setting.Problems
	p := compileProxies(c, &ps)
	return p, ps.Err()
}

func compileProxies(c Config, ps *setting.Problems) *Proxies {
	p := &Proxies{header: c.ClientHeader}
	switch c.ClientHeader {
	case XForwardedFor, Forwarded, CFConnectingIP:
	default:
		ps.Add("client_header", "must be x-forwarded-for, forwarded or cf-connecting-ip", "try "+XForwardedFor)
	}
	p.ranges = peers("trusted_proxies", c.TrustedProxies, ps)
	p.rewriting = peers("rewriting_proxies", c.Rewriting, ps)
	p.file = openWatched(ps, "proxies_file", c.ProxiesFile, "proxies", "The file of trusted proxies", "give a file with an address or range a line", readRanges)
	if len(c.Rewriting) > 0 && len(c.TrustedProxies) == 0 && c.ProxiesFile == "" {
		ps.Add("rewriting_proxies", "counts for trusted proxies only, and there are none", "name them in trusted_proxies too")
	}
	return p
}

// peers reads a list of addresses, ranges and names.
func peers(key string, list []string, ps *setting.Problems) (out []netip.Prefix) {
	for _, s := range list {
		ranges, ok := named[s]
		if !ok {
			ranges = s
		}
		for r := range strings.FieldsSeq(ranges) {
			prefix, err := parseRange(r)
			if err != nil {
				ps.Add(key, s+" is neither an address, a range nor a known name", "try 10.0.0.5, 10.0.0.0/8, loopback, private or cloudflare")
				continue
			}
			out = append(out, prefix)
		}
	}
	return out
}

func parseRange(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 { // peers are compared unmapped
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		return p.Masked(), err
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	a = a.Unmap().WithZone("")
	return a.Prefix(a.BitLen())
}
