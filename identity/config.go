// Package identity says who is asking: for now the client's address behind
// trusted proxies; users, workspaces and tiers come with the limits. The planes
// and limits/check share it, so that all of them name a caller alike.
//
// Anyone may import it. It knows no plane.
package identity

import (
	"net/netip"
	"strings"

	"mainstay.dev/mainstay/internal/setting"
)

// Config is the identity section.
type Config struct {
	TrustedProxies []string `yaml:"trusted_proxies" doc:"Peers whose forwarding headers are believed: addresses, CIDR ranges, or the names loopback, private and cloudflare."`
	ClientHeader   string   `yaml:"client_header" doc:"The one header in which a trusted proxy tells the client's address: x-forwarded-for, forwarded or cf-connecting-ip. The others are not believed, since a proxy passes on what it does not write."`

	JWT       JWT    `yaml:"jwt" planned:"users and tiers from tokens come with the rate limits" doc:"Where tokens come from and who vouches for them."`
	User      string `yaml:"user" planned:"comes with the rate limits" doc:"Where the user's id stands."`
	Workspace string `yaml:"workspace" planned:"comes with the rate limits" doc:"Where the workspace's id stands."`
	Tier      string `yaml:"tier" planned:"comes with the rate limits" doc:"Where the tier stands."`
}

// JWT says how tokens are found and verified.
type JWT struct {
	JWKS   string `yaml:"jwks" doc:"Address of the key set."`
	Cookie string `yaml:"cookie" doc:"Name of the cookie that holds the token; * matches any run of characters."`
}

// The names of Config.ClientHeader.
const (
	XForwardedFor  = "x-forwarded-for"
	Forwarded      = "forwarded"
	CFConnectingIP = "cf-connecting-ip"
)

// SetDefaults fills in what the file leaves out.
func (c *Config) SetDefaults() { *c = Config{ClientHeader: XForwardedFor} }

// Validate reports every mistake.
func (c *Config) Validate(ps *setting.Problems) {
	_, err := Compile(*c)
	*ps = append(*ps, setting.Of(err)...)
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

// Compile checks c and returns the rule that obeys it. It is pure.
func Compile(c Config) (*Proxies, error) {
	var ps setting.Problems
	p := &Proxies{header: c.ClientHeader}
	switch c.ClientHeader {
	case XForwardedFor, Forwarded, CFConnectingIP:
	default:
		ps.Add("client_header", "must be x-forwarded-for, forwarded or cf-connecting-ip", "try "+XForwardedFor)
	}
	for _, s := range c.TrustedProxies {
		ranges, ok := named[s]
		if !ok {
			ranges = s
		}
		for r := range strings.FieldsSeq(ranges) {
			prefix, err := parseRange(r)
			if err != nil {
				ps.Add("trusted_proxies", s+" is neither an address, a range nor a known name", "try 10.0.0.5, 10.0.0.0/8, loopback, private or cloudflare")
				continue
			}
			p.ranges = append(p.ranges, prefix)
		}
	}
	return p, ps.Err()
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
