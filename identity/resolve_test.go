package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

func keyed(c *Config) {
	sum := sha256.Sum256([]byte("mk_live_0123456789abcdef"))
	c.Keys = map[string]Key{"ci": {SHA256: hex.EncodeToString(sum[:]), Workspace: "acme", Tier: "enterprise"}}
}

func TestAnAPIKeyIsFoundByItsHash(t *testing.T) {
	d := newDesk(t, config(keyed, func(c *Config) { c.OnRefusal = "refuse" }), nil)
	for name, r := range map[string]*Request{
		"own header": from("203.0.113.9", "X-Api-Key", "mk_live_0123456789abcdef"),
		"bearer":     withToken("mk_live_0123456789abcdef"),
		"both":       from("203.0.113.9", "X-Api-Key", "another key of the app's", "Authorization", "bearer mk_live_0123456789abcdef"),
	} {
		if w := d.Resolve(t.Context(), r); w.Key != "ci" || w.User != "key:ci" || w.Workspace != "acme" || w.Tier != "enterprise" || w.By != ByKey || w.Unfit {
			t.Errorf("%s: %+v", name, w)
		}
	}
	for name, r := range map[string]*Request{
		"unknown":   from("203.0.113.9", "X-Api-Key", "mk_live_0123456789abcdeF"),
		"too short": from("203.0.113.9", "X-Api-Key", "mk"),
		"huge":      from("203.0.113.9", "X-Api-Key", strings.Repeat("k", 1<<20)),
		"the hash":  from("203.0.113.9", "X-Api-Key", config(keyed).Keys["ci"].SHA256),
	} {
		if w := d.Resolve(t.Context(), r); w.Key != "" || w.User != "" || w.Refused != UnknownAPI || !w.Unfit {
			t.Errorf("%s: %+v", name, w)
		}
	}
}

func TestAHeaderIsBelievedFromATrustedProxyOnly(t *testing.T) {
	d := newDesk(t, config(func(c *Config) {
		c.TrustedProxies = []string{"10.0.0.0/8"}
		c.User, c.Tier = "header:x-user-id", "header:X-Tier"
	}), nil)
	told := []string{"X-User-Id", "u1", "X-Tier", "enterprise"}
	if w := d.Resolve(t.Context(), from("10.1.2.3", told...)); w.User != "u1" || w.Tier != "enterprise" || w.By != ByHeader {
		t.Errorf("trusted: %+v", w)
	}
	w := d.Resolve(t.Context(), from("203.0.113.9", told...))
	if w.User != "" || w.Tier != "" || w.By != ByAddress {
		t.Errorf("anybody: %+v", w)
	}
	if want := []string{"X-User-Id", "X-Tier"}; !slices.Equal(w.Vouched, want) {
		t.Errorf("vouched for: %v", w.Vouched)
	}
	if w := d.Resolve(t.Context(), from("10.1.2.3", "X-User-Id", "u1\r\nX-Tier: enterprise", "X-Tier", strings.Repeat("x", 100))); w.User != "" || w.Tier != "" {
		t.Errorf("no ids: %+v", w)
	}
}

func TestASignedCookieSaysWhoAsks(t *testing.T) {
	d := newDesk(t, config(func(c *Config) {
		c.JWT, c.User, c.CookieSecret = JWT{Refresh: time.Minute}, "cookie:uid", "keyboard cat"
		c.Workspace, c.Tier, c.JWT.Cookie = "", "", ""
	}), nil)
	mac := hmac.New(sha256.New, []byte("keyboard cat"))
	mac.Write([]byte("u=7"))
	signed := "s:u=7." + strings.TrimRight(base64.StdEncoding.EncodeToString(mac.Sum(nil)), "=")
	if w := d.Resolve(t.Context(), withCookie("a=b; uid="+url.QueryEscape(signed))); w.User != "u=7" || w.By != ByCookie {
		t.Errorf("got %+v", w)
	}
	for _, forged := range []string{"u7", "s:u7", "s:u=8" + signed[5:], "s:.", "%zz", "s:u=7.####"} {
		if w := d.Resolve(t.Context(), withCookie("uid="+url.QueryEscape(forged))); w.User != "" || w.Refused != BadCookie || w.Unfit {
			t.Errorf("%s: %+v", forged, w)
		}
	}
}

func TestAClientCertificateSaysWhoAsks(t *testing.T) {
	d := newDesk(t, config(func(c *Config) { c.User, c.Workspace = "jwt:sub, certificate:uri", "certificate:o" }), nil)
	r := from("203.0.113.9")
	r.Certificate = &x509.Certificate{Subject: pkix.Name{CommonName: "batch", Organization: []string{"acme"}}, URIs: []*url.URL{{Scheme: "spiffe", Host: "acme", Path: "/batch"}}}
	if w := d.Resolve(t.Context(), r); w.User != "spiffe://acme/batch" || w.Workspace != "acme" || w.By != ByCertificate {
		t.Errorf("got %+v", w)
	}
	r.Header = withToken(hs256(t, hmacSecret, supabase("u1", "", ""))).Header
	if w := d.Resolve(t.Context(), r); w.User != "u1" || w.By != ByToken {
		t.Errorf("the first place goes first: %+v", w)
	}
}

func TestTheTableOfTiersGoesBeforeTheToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tiers")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write("# from the database\nworkspace:w1 pro\nuser:u 9 pro\nworkspace:w5 free\n")
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, config(func(c *Config) {
			c.TiersFile, c.Tiers = path, map[string]string{"user:u2": "enterprise", "workspace:w3": "team", "workspace:w5": "pro"}
		}), nil)
		tier := func(user, workspace string) string {
			return d.Resolve(t.Context(), withToken(hs256(t, hmacSecret, supabase(user, workspace, "free")))).Tier
		}
		for _, tc := range [][3]string{
			{"u0", "w0", "free"}, {"u1", "w1", "pro"}, {"u2", "w1", "enterprise"}, {"u3", "w3", "team"}, {"u 9", "w0", "pro"}, {"u5", "w5", "pro"},
		} {
			if got := tier(tc[0], tc[1]); got != tc[2] {
				t.Errorf("%s of %s: %s, want %s", tc[0], tc[1], got, tc[2])
			}
		}
		write("workspace:w1 enterprise\n")
		time.Sleep(2 * watchLook)
		if got := tier("u1", "w1"); got != "enterprise" {
			t.Errorf("after the file changed: %s", got)
		}
		write("workspace:w1 free\nnonsense\n")
		time.Sleep(2 * watchLook)
		if got := tier("u1", "w1"); got != "enterprise" {
			t.Errorf("with a mistake in the file: %s", got)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * watchLook)
		if got := tier("u1", "w1"); got != "enterprise" {
			t.Errorf("without the file: %s", got)
		}
		write("workspace:w1 team\n")
		time.Sleep(2 * watchLook)
		if got := tier("u1", "w1"); got != "team" {
			t.Errorf("with a new file: %s", got)
		}
	})
}

func TestWhatWasProvedHoldsForItsTokenAloneAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, config(), nil)
		token := hs256(t, hmacSecret, supabase("u1", "w1", "pro"))
		for range 3 {
			if w := d.Resolve(t.Context(), withToken(token)); w.User != "u1" {
				t.Fatalf("got %+v", w)
			}
		}
		if n := d.Stats().Verified; n != 1 {
			t.Errorf("verified %d times", n)
		}
		for i := range len(token) { // every neighbour of a token that is known
			if token[i] == '.' {
				continue
			}
			b := []byte(token)
			if b[i]++; b[i] == '.' {
				b[i]++
			}
			w := d.Resolve(t.Context(), withToken(string(b)))
			if w.User != "" && i < len(token)-1 { // the last letter has bits that count for nothing
				t.Fatalf("changed at %d: %+v", i, w)
			}
		}
		if w := d.Resolve(t.Context(), withCookie("sb-x-auth-token="+token+".")); w.User != "" {
			t.Errorf("as a cookie with a dot more: %+v", w)
		}
		time.Sleep(time.Hour + 31*time.Second) // its life and the leeway
		if w := d.Resolve(t.Context(), withToken(token)); w.User != "" || w.Refused != Expired {
			t.Errorf("after it expired: %+v", w)
		}
	})
}

func TestTheMemoryIsBounded(t *testing.T) {
	m := newMemory(10)
	now := time.Now()
	for i := range 100_000 {
		var g tag
		copy(g[:], fmt.Sprintf("%c%08d", byte(i), i))
		m.put(g, &proof{until: now.Add(time.Hour)})
	}
	if n := m.len(); n > shards*2*10 {
		t.Errorf("%d are kept", n)
	}
	s := NewSeal([]byte("0123456789abcdef0123456789abcdef"))
	for i := range 5 * maxClosed {
		_ = s.For(Sealed{User: fmt.Sprint(i)}, time.Minute)
	}
	if n := len(s.young) + len(s.old); n > 2*maxClosed {
		t.Errorf("%d seals are kept", n)
	}
	// What is asked for stays, however much comes by.
	d := newDesk(t, config(), nil)
	known := withToken(hs256(t, hmacSecret, supabase("u1", "w1", "pro")))
	for i := range 3 * badShard * shards {
		_ = d.Resolve(t.Context(), withToken(fmt.Sprintf("e30.%d.x", i)))
		_ = d.Resolve(t.Context(), known)
	}
	if n := d.policy.Load().bad.len(); n > 2*badShard*shards {
		t.Errorf("%d refusals are kept", n)
	}
	if n := d.Stats(); n.Memory != 1 || n.Verified != 3*badShard*shards+1 {
		t.Errorf("stats %+v", n)
	}
}

func TestASealedIdentityPassesThroughTheAppUnchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, config(), nil)
		w := d.Resolve(t.Context(), withToken(hs256(t, hmacSecret, supabase("u1", "w1", "pro"))))
		text := d.Seal(&w, "cheaper")
		if got, step := d.Open(text); got.User != "u1" || got.Workspace != "w1" || got.Tier != "pro" || got.By != BySeal || step != "cheaper" {
			t.Errorf("got %+v %s", got, step)
		}
		for i := range len(text) - 1 {
			b := []byte(text)
			b[i] ^= 1
			if got, _ := d.Open(string(b)); got.User != "" || got.Tier != "" {
				t.Fatalf("changed at %d: %+v", i, got)
			}
		}
		for _, junk := range []string{"", "v1.", "v1..", "v1.e30.", "v2.e30.AAAA", strings.Repeat("v1.", 10000)} {
			if got, _ := d.Open(junk); got.Refused == "" || got.User != "" {
				t.Errorf("%q: %+v", junk, got)
			}
		}
		if got, _ := newDesk(t, config(), nil).Open(text); got.User != "" {
			t.Errorf("another installation believes it: %+v", got)
		}
		time.Sleep(4 * time.Minute)
		if again := d.Seal(&w, "cheaper"); again != text {
			t.Error("another value within the first half of its life")
		}
		if other := d.Seal(&w, ""); other == text {
			t.Error("another step has the same value")
		}
		time.Sleep(2 * time.Minute)
		if again := d.Seal(&w, "cheaper"); again == text {
			t.Error("the same value after half of its life")
		}
		time.Sleep(4 * time.Minute)
		if got, _ := d.Open(text); got.User != "" || got.Refused != Expired {
			t.Errorf("after ten minutes: %+v", got)
		}
		anybody := d.Resolve(t.Context(), from("203.0.113.9"))
		if text := d.Seal(&anybody, ""); text != "" {
			t.Errorf("for an address: %s", text)
		}
	})
}

func TestNamesStandInRecordsAsTheConfigurationSays(t *testing.T) {
	r := withToken(hs256(t, hmacSecret, supabase("u1", "w1", "pro")))
	shown := func(names string) Names {
		d, err := New(config(func(c *Config) { c.Names, c.Secret = names, "0123456789abcdef0123456789abcdef" }), Deps{})
		if err != nil {
			t.Fatal(err)
		}
		w := d.Resolve(t.Context(), r)
		if w.User != "u1" {
			t.Errorf("%s: the user is %s", names, w.User)
		}
		return w.Shown
	}
	if got := shown("plain"); got != (Names{"u1", "w1"}) {
		t.Errorf("plain: %v", got)
	}
	if got := shown("none"); got != (Names{}) {
		t.Errorf("none: %v", got)
	}
	if got := shown("hashed"); got != shown("hashed") || !strings.HasPrefix(got.User, "h:") || got.User == got.Workspace || strings.Contains(got.User, "u1") {
		t.Errorf("hashed: %v", got)
	}
}

func TestCompileNamesEveryMistakeAndItsMend(t *testing.T) {
	c := config(func(c *Config) {
		c.JWT = JWT{Secret: "short", JWKS: "http://example.com/jwks", Cookie: "*", Leeway: time.Hour}
		c.Keys = map[string]Key{"a": {SHA256: "abc"}}
		c.User, c.Workspace, c.Tier = "header:X-User-Id", "nonsense, certificate:x, cookie:w", "jwt:user_metadata.tier"
		c.Tiers = map[string]string{"u1": "pro"}
		c.TiersFile, c.Secret, c.OnRefusal, c.Names, c.TellApp = "/no/such/file", "short", "x", "y", -1
	})
	_, err := Compile(c)
	var paths []string
	for _, p := range setting.Of(err) {
		if p.Mend == "" {
			t.Errorf("%s has no mend", p.Path)
		}
		paths = append(paths, p.Path)
	}
	slices.Sort(paths)
	want := "jwt.cookie jwt.jwks jwt.leeway jwt.refresh jwt.secret keys.a.sha256 names on_refusal secret tell_app tier tiers.u1 tiers_file user workspace workspace workspace"
	if got := strings.Join(paths, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	_, err = Compile(config(func(c *Config) {
		c.JWT = JWT{Refresh: time.Minute}
		c.CookieSecret = "x"
		c.Tier = "cookie:tier"
		c.Workspace = "jwt:org"
	}))
	if ps := setting.Of(err); len(ps) != 2 {
		t.Errorf("got %v", err)
	}
}

func TestKeysComeOnlyFromWhereNobodyCanChangeThem(t *testing.T) {
	for url, want := range map[string]bool{
		jwks: true, "http://localhost:8000/jwks": true, "http://127.0.0.1/jwks": true, "http://kong:8000/jwks": true, "http://10.0.0.7/jwks": true, "http://[::1]/jwks": true,
		"http://example.com/jwks": false, "http://8.8.8.8/jwks": false, "file:///etc/passwd": false, "": false, "https://": false, "https://u:p@example.com/": false, "ftp://a/b": false,
	} {
		if fetchable(url) != want {
			t.Errorf("%s: %v", url, !want)
		}
	}
}

func TestEveryReasonAndSourceIsCounted(t *testing.T) {
	var c counts
	if len(c.refused) != len(Reasons) || len(c.callers) != len(Sources) {
		t.Errorf("%d and %d counters for %d reasons and %d sources", len(c.refused), len(c.callers), len(Reasons), len(Sources))
	}
}

func TestManyMayAskWhileTheConfigurationChanges(t *testing.T) {
	d := newDesk(t, config(keyed), nil)
	r := withToken(hs256(t, hmacSecret, supabase("u1", "w1", "pro")))
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 500 {
				if w := d.Resolve(t.Context(), r); w.User != "u1" {
					t.Errorf("got %+v", w)
				}
				_ = d.Stats()
			}
		})
	}
	for range 50 {
		commit, err := d.Prepare(config(keyed))
		if err != nil {
			t.Fatal(err)
		}
		commit()
	}
	all.Wait()
}

func TestATokenThatIsKnownCostsNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	d := newDesk(t, config(keyed), nil)
	token := hs256(t, hmacSecret, supabase("u1", "w1", "pro").with("x", strings.Repeat("x", 500)))
	for name, r := range map[string]*Request{
		"bearer": withToken(token), "cookie": withCookie("a=b; sb-x-auth-token=" + token), "chunks": withCookie("sb-x-auth-token.0=" + token[:300] + "; sb-x-auth-token.1=" + token[300:]),
		"key": from("203.0.113.9", "X-Api-Key", "mk_live_0123456789abcdef"), "nobody": from("203.0.113.9"), "forged": withToken(token + "x"),
	} {
		if n := testing.AllocsPerRun(100, func() { _ = d.Resolve(t.Context(), r) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestAHeaderThatStandsThereTwiceIsNotBelieved(t *testing.T) {
	d := newDesk(t, config(func(c *Config) { c.TrustedProxies, c.User = []string{"10.0.0.0/8"}, "header:X-User-Id" }), nil)
	if w := d.Resolve(t.Context(), from("10.1.2.3", "X-User-Id", "victim,u1")); w.User != "" {
		t.Errorf("got %+v", w)
	}
}

func TestAHeaderFullOfCookiesCostsLittle(t *testing.T) {
	looked := 0
	eachCookie(strings.Repeat("a=;", 100_000), func(string, string) bool { looked++; return true })
	if looked != maxCookies {
		t.Errorf("looked at %d cookies", looked)
	}
	for s, want := range map[string]int{".0": 0, ".15": 15, ".16": -1, ".01": -1, ".": -1, "": -1, ".x": -1, "-1": -1, ".1x": -1, ".111": -1, ".-1": -1} {
		if got := chunkNumber(s); got != want {
			t.Errorf("%q is chunk %d", s, got)
		}
	}
}

func TestNobodyIsRefusedBecauseTheIssuerIsDown(t *testing.T) {
	k, fresh := newSigner(t, "k", "ES256"), newSigner(t, "fresh", "ES256")
	for _, known := range []bool{false, true} {
		via := &issuer{keys: []signer{k}, down: !known}
		synctest.Test(t, func(t *testing.T) {
			d := newDesk(t, config(withJWKS, func(c *Config) { c.OnRefusal = "refuse" }), via)
			time.Sleep(time.Second)
			via.set(func() { via.down = true })
			time.Sleep(20 * time.Minute)
			if w := d.Resolve(t.Context(), withToken(fresh.token(t, supabase("u1", "", "")))); w.Unfit || w.Refused != NoKeys || w.User != "" {
				t.Errorf("keys known %v: %+v", known, w)
			}
		})
	}
}

func TestKeysAreNotTakenFromWhereARedirectLeads(t *testing.T) {
	for to, want := range map[string]bool{"https://y.supabase.co/jwks": true, "http://10.0.0.1/jwks": false, "http://evil.example/jwks": false} {
		s := newKeySource(jwks, redirect(to), "")
		if _, _, err := s.get(t.Context()); (err == nil) != want {
			t.Errorf("%s: %v", to, err)
		}
	}
}

// redirect leads from the issuer to another address, where a key set is.
type redirect string

func (to redirect) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.String() == jwks {
		return &http.Response{StatusCode: 302, Header: http.Header{"Location": {string(to)}}, Body: http.NoBody, Request: r}, nil
	}
	body := `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}
