package edge_test

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/traffic"
)

const apiKey = "0123456789abcdef0123456789abcdef"

// desk knows one API key, and believes a proxy on this machine if it is told to.
func desk(t *testing.T, change func(*identity.Config)) *identity.Desk {
	t.Helper()
	var c identity.Config
	c.SetDefaults()
	sum := sha256.Sum256([]byte(apiKey))
	c.Keys = map[string]identity.Key{"ci": {SHA256: hex.EncodeToString(sum[:]), Workspace: "acme", Tier: "pro"}}
	change(&c)
	d, err := identity.New(c, identity.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestTheAppIsToldWhoAsksAndNobodyElseMayTellIt(t *testing.T) {
	for _, trusted := range []string{"loopback", "192.0.2.1"} {
		d := desk(t, func(c *identity.Config) {
			c.TrustedProxies, c.User = []string{trusted}, "header:X-User-Id"
		})
		seen := make(chan http.Header, 1)
		h := startWith(t, defaults(), func(deps *edge.Deps) { deps.Identity = d })
		h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Mainstay-Identity", r.Header.Get("Mainstay-Identity")) // an app that echoes
			seen <- r.Header
		}))

		if resp, _ := get(t, "http://"+h.addr, "X-Api-Key", apiKey, "Mainstay-Identity", "v1.forged.x", "Mainstay_Identity", "v1.forged.y"); resp.Header.Get("Mainstay-Identity") != "" {
			t.Error("the client was told what is for the app")
		}
		got := <-seen
		if w, _ := d.Open(got.Get("Mainstay-Identity")); w.User != "key:ci" || w.Workspace != "acme" || w.Tier != "pro" || len(got["Mainstay-Identity"]) != 1 {
			t.Errorf("the app was told %q: %+v", got["Mainstay-Identity"], w)
		}
		if x := h.ledger.next(t, 0); x.User != "key:ci" || x.Workspace != "acme" || x.Tier != "pro" {
			t.Errorf("recorded %s %s %s", x.User, x.Workspace, x.Tier)
		}

		get(t, "http://"+h.addr, "X-User-Id", "u1", "X_user_id", "root", "Mainstay_Identity", "v1.forged.y", "mainstay-identity", "v1.forged.z")
		got = <-seen
		w, _ := d.Open(got.Get("Mainstay-Identity"))
		if trusted == "loopback" && (w.User != "u1" || got.Get("X-User-Id") != "u1") {
			t.Errorf("a proxy that is trusted: %+v %v", w, got)
		}
		if trusted != "loopback" && (w.User != "" || got.Get("X-User-Id") != "" || got.Get("Mainstay-Identity") != "") {
			t.Errorf("a stranger: %+v %v", w, got)
		}
		for name := range got {
			if strings.Contains(name, "_") {
				t.Errorf("the app was told %s: %s", name, got[name])
			}
		}
		h.ledger.next(t, 1)
	}
}

func TestAKeyThatIsNotBelievedIsAnsweredWith401IfSoConfigured(t *testing.T) {
	h := startWith(t, defaults(), func(deps *edge.Deps) {
		deps.Identity = desk(t, func(c *identity.Config) { c.OnRefusal = "refuse" })
	})
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {}))
	resp, _ := get(t, "http://"+h.addr, "X-Api-Key", "nobody's key")
	if resp.StatusCode != 401 || resp.Header.Get("Mainstay-Code") != "unauthorized" || !strings.Contains(resp.Header.Get("Www-Authenticate"), "unknown_api_key") {
		t.Errorf("%s %v", resp.Status, resp.Header)
	}
	if x := h.ledger.next(t, 0); x.Code != "unauthorized" {
		t.Errorf("recorded %s", x.Code)
	}
	if resp, _ := get(t, "http://"+h.addr); resp.StatusCode != 200 {
		t.Errorf("without a key: %s", resp.Status)
	}
}

func TestAClientCertificateNamesItsOwnerToTheApp(t *testing.T) {
	cert, key := writeCertificate(t, "shop.example")
	ours, oursKey := writeCertificate(t, "batch")
	strange, strangeKey := writeCertificate(t, "stranger")
	d := desk(t, func(c *identity.Config) { c.User = "certificate:cn" })
	h := startWith(t, defaults(func(c *edge.Config) {
		c.TLS = edge.TLS{Listen: "127.0.0.1:0", Cert: cert, Key: key, ClientCA: ours}
	}), func(deps *edge.Deps) { deps.Identity = d })
	seen := make(chan http.Header, 1)
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header }))
	ask := func(cert, key string) (user string, proto int, err error) {
		cfg := &tls.Config{InsecureSkipVerify: true} // it is the client's certificate that matters here
		if cert != "" {
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				t.Fatal(err)
			}
			// Whatever authorities the server names: a stranger would not care.
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}}
		defer client.CloseIdleConnections()
		resp, err := client.Get("https://" + h.tls + "/")
		if err != nil {
			return "", 0, err
		}
		resp.Body.Close()
		w, _ := d.Open((<-seen).Get("Mainstay-Identity"))
		return w.User, resp.ProtoMajor, nil
	}
	if user, proto, err := ask(ours, oursKey); user != "batch" || proto != 2 || err != nil {
		t.Errorf("ours: %q over HTTP/%d %v", user, proto, err)
	}
	if user, _, err := ask("", ""); user != "" || err != nil {
		t.Errorf("none: %q %v", user, err)
	}
	if user, _, err := ask(strange, strangeKey); err == nil {
		t.Errorf("a stranger's: %q", user)
	}
}

func TestAUserKeepsItsColorWhereverItComesFrom(t *testing.T) {
	d := desk(t, func(c *identity.Config) {
		c.TrustedProxies, c.User, c.Workspace = []string{"loopback"}, "header:X-User-Id", "header:X-Team"
	})
	h := startWith(t, defaults(), func(deps *edge.Deps) { deps.Identity = d })
	says := func(color string) string {
		return app(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, color) })
	}
	blue, green := says("blue"), says("green")
	for by, header := range map[string]string{traffic.StickyUser: "X-User-Id", traffic.StickyWorkspace: "X-Team"} {
		plan := traffic.Plan{Mode: traffic.Serve, Sticky: traffic.Sticky{By: by}, Targets: []traffic.Target{
			{ID: "green-2", Address: green, Color: "green", Weight: 50}, {ID: "blue-1", Address: blue, Color: "blue", Weight: 50},
		}}
		if _, err := h.Apply(plan); err != nil {
			t.Fatal(err)
		}
		colors := map[string]int{}
		for n := range 40 {
			_, first := get(t, "http://"+h.addr, header, fmt.Sprint("id-", n), "X-Forwarded-For", "192.0.2.1")
			_, again := get(t, "http://"+h.addr, header, fmt.Sprint("id-", n), "X-Forwarded-For", "198.51.100.7")
			if first != again {
				t.Fatalf("by %s, id-%d got %s and then %s", by, n, first, again)
			}
			colors[first]++
		}
		if len(colors) != 2 {
			t.Errorf("by %s, all of 40 got %v", by, colors)
		}
	}
}
