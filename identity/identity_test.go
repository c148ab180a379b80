package identity

import (
	"net/netip"
	"strings"
	"testing"

	"mainstay.dev/mainstay/internal/setting"
)

func compile(t *testing.T, header string, trusted ...string) *Proxies {
	t.Helper()
	p, err := CompileProxies(Config{TrustedProxies: trusted, ClientHeader: header})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestClientIsTheNearestAddressThatIsNoTrustedProxy(t *testing.T) {
	for _, tc := range []struct {
		name, header, peer, value, want string
		trusted                         []string
	}{
		{"nobody is trusted: the header is ignored", XForwardedFor, "9.9.9.9", "1.1.1.1", "9.9.9.9", nil},
		{"an untrusted peer: the header is ignored", XForwardedFor, "9.9.9.9", "1.1.1.1", "9.9.9.9", []string{"loopback"}},
		{"a trusted peer speaks for the client", XForwardedFor, "127.0.0.1", "1.1.1.1", "1.1.1.1", []string{"loopback"}},
		{"the forged left part is not read", XForwardedFor, "127.0.0.1", "6.6.6.6, 1.1.1.1", "1.1.1.1", []string{"loopback"}},
		{"trusted hops are passed over", XForwardedFor, "127.0.0.1", "6.6.6.6, 1.1.1.1, 10.0.0.3", "1.1.1.1", []string{"loopback", "private"}},
		{"junk ends the walk", XForwardedFor, "127.0.0.1", "1.1.1.1, junk, 10.0.0.3", "10.0.0.3", []string{"loopback", "private"}},
		{"a port is not part of the address", XForwardedFor, "127.0.0.1", "1.1.1.1:4711", "1.1.1.1", []string{"loopback"}},
		{"IPv6 with brackets and port", XForwardedFor, "::1", "[2001:db8::1]:443", "2001:db8::1", []string{"loopback"}},
		{"a mapped address is the IPv4 one", XForwardedFor, "::ffff:127.0.0.1", "1.1.1.1", "1.1.1.1", []string{"loopback"}},
		{"Forwarded, RFC 7239", Forwarded, "127.0.0.1", `for=6.6.6.6, For="[2001:db8::2]:99";proto=https`, "2001:db8::2", []string{"loopback"}},
		{"Forwarded with an obfuscated node", Forwarded, "127.0.0.1", `for=_hidden`, "127.0.0.1", []string{"loopback"}},
		{"Cloudflare names the client", CFConnectingIP, "173.245.48.9", "1.2.3.4", "1.2.3.4", []string{"cloudflare"}},
		{"nothing told: the peer", XForwardedFor, "127.0.0.1", "", "127.0.0.1", []string{"127.0.0.1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := compile(t, tc.header, tc.trusted...)
			asked := ""
			got := p.Client(netip.MustParseAddr(tc.peer), func(name string) string { asked = name; return tc.value })
			if got.String() != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			if asked != "" && !strings.EqualFold(asked, tc.header) {
				t.Errorf("read %s, may read %s only", asked, tc.header)
			}
		})
	}
}

func TestCompileReportsEveryMistake(t *testing.T) {
	_, err := CompileProxies(Config{TrustedProxies: []string{"nonsense", "10.0.0.0/99"}, ClientHeader: "x-real-ip"})
	if ps := setting.Of(err); len(ps) != 3 {
		t.Fatalf("got %d mistakes, want 3:\n%v", len(ps), err)
	}
}

func FuzzClient(f *testing.F) {
	f.Add("1.1.1.1, [::1]:3", "for=1.1.1.1;by=x")
	f.Add(",,,", `for="`)
	for _, s := range []string{"", ";=,", "for=[", strings.Repeat(",", 500)} {
		f.Add(s, s)
	}
	x, _ := CompileProxies(Config{TrustedProxies: []string{"loopback", "private"}, ClientHeader: XForwardedFor})
	y, _ := CompileProxies(Config{TrustedProxies: []string{"loopback", "private"}, ClientHeader: Forwarded})
	peer := netip.MustParseAddr("127.0.0.1")
	f.Fuzz(func(t *testing.T, xff, fwd string) {
		if a := x.Client(peer, func(string) string { return xff }); !a.IsValid() {
			t.Error("no address")
		}
		if a := y.Client(peer, func(string) string { return fwd }); !a.IsValid() {
			t.Error("no address")
		}
	})
}

func TestAZoneOrAMappedRangeHidesNobody(t *testing.T) {
	p, err := CompileProxies(Config{TrustedProxies: []string{"private", "::ffff:203.0.113.0/120", "fe80::9%eth0"}, ClientHeader: XForwardedFor})
	if err != nil {
		t.Fatal(err)
	}
	for _, peer := range []string{"fe80::1%eth0", "203.0.113.7", "::ffff:203.0.113.7"} {
		if !p.Trusted(netip.MustParseAddr(peer)) {
			t.Errorf("%s is not trusted", peer)
		}
	}
	got := p.Client(netip.MustParseAddr("10.0.0.1"), func(string) string { return `2001:db8::1%"evil` })
	if got != netip.MustParseAddr("2001:db8::1") {
		t.Errorf("client %s", got)
	}
}

func TestOnlyATrustedProxyThatIsNamedRewrites(t *testing.T) {
	p, err := CompileProxies(Config{ClientHeader: XForwardedFor, TrustedProxies: []string{"private", "cloudflare"}, Rewriting: []string{"10.0.0.5", "9.9.9.9"}})
	if err != nil {
		t.Fatal(err)
	}
	for peer, want := range map[string]bool{"10.0.0.5": true, "10.0.0.6": false, "9.9.9.9": false, "173.245.48.9": false} {
		if got := p.Rewrites(netip.MustParseAddr(peer)); got != want {
			t.Errorf("%s rewrites: %v", peer, got)
		}
	}
	if _, err := CompileProxies(Config{ClientHeader: XForwardedFor, Rewriting: []string{"loopback"}}); err == nil {
		t.Error("a proxy that rewrites and is not trusted was accepted")
	}
}
