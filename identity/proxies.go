package identity

import (
	"net/netip"
	"strings"
)

// maxHops bounds how many entries of a forwarding chain are read.
const maxHops = 32

// Proxies knows which peers may speak for a client. It is immutable and safe for
// concurrent use.
type Proxies struct {
	ranges []netip.Prefix
	header string
}

// Trusted reports whether forwarding headers from peer are believed.
func (p *Proxies) Trusted(peer netip.Addr) bool {
	peer = peer.Unmap().WithZone("") // a range contains no address with a zone
	for _, r := range p.ranges {
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
	if len(p.ranges) == 0 || !p.Trusted(peer) {
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
