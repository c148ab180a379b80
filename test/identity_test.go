package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"mainstay.dev/mainstay/claude/claudetest"
)

// issuer signs tokens as Supabase does, and publishes its keys.
type issuer struct {
	t    *testing.T
	keys map[string]*ecdsa.PrivateKey
	set  atomic.Pointer[jose.JSONWebKeySet]
	url  string
}

func newIssuer(t *testing.T) *issuer {
	i := &issuer{t: t, keys: map[string]*ecdsa.PrivateKey{}}
	i.publish("first")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(i.set.Load())
	}))
	t.Cleanup(srv.Close)
	i.url = srv.URL + "/auth/v1/.well-known/jwks.json"
	return i
}

// publish makes a key and adds it to the set.
func (i *issuer) publish(id string) {
	i.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	i.keys[id] = key
	set := new(jose.JSONWebKeySet)
	for id, k := range i.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Public(), KeyID: id, Algorithm: "ES256", Use: "sig"})
	}
	i.set.Store(set)
}

func (i *issuer) token(alg jose.SignatureAlgorithm, key any, kid, user, tier string, lives time.Duration) string {
	i.t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, &jose.SignerOptions{ExtraHeaders: map[jose.HeaderKey]any{"kid": kid, "typ": "JWT"}})
	if err != nil {
		i.t.Fatal(err)
	}
	payload, err := json.Marshal(map[string]any{
		"iss": "https://x.supabase.co/auth/v1", "aud": "authenticated", "sub": user, "exp": time.Now().Add(lives).Unix(),
		"app_metadata": map[string]any{"workspace_id": "ws-of-" + user, "tier": tier}, "user_metadata": map[string]any{"tier": "enterprise"},
	})
	if err != nil {
		i.t.Fatal(err)
	}
	jws, err := s.Sign(payload)
	if err != nil {
		i.t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return text
}

// cookie is a session as @supabase/ssr writes it, in chunks.
func cookie(t *testing.T, token string) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"access_token": token, "token_type": "bearer", "refresh_token": "r", "user": map[string]any{"id": "x", "about": strings.Repeat("x", 4000)}})
	if err != nil {
		t.Fatal(err)
	}
	value := "base64-" + base64.RawURLEncoding.EncodeToString(b)
	var parts []string
	for n := 0; value != ""; n++ {
		size := min(3180, len(value))
		parts = append(parts, fmt.Sprintf("sb-ref-auth-token.%d=%s", n, value[:size]))
		value = value[size:]
	}
	return "theme=dark; " + strings.Join(parts, "; ")
}

// policy is the limit that an answer says holds for its caller.
func (m *mainstay) policy(headers ...string) string {
	m.t.Helper()
	req, err := http.NewRequest("GET", m.edge+"/version", nil)
	if err != nil {
		m.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	policy, _, _ := strings.Cut(resp.Header.Get("RateLimit-Policy"), ",")
	return fmt.Sprint(resp.StatusCode, " ", policy)
}

const hmacSecret = "a-secret-of-the-older-kind-that-supabase-has"

func TestWhoAsksIsKnownInAllPlanesAndNobodyCanPretend(t *testing.T) {
	is := newIssuer(t)
	api := claudetest.New(claudetest.Options{Seed: 1, Keep: 10})
	m := setup(t, fmt.Sprintf(`identity:
  trusted_proxies: [10.0.0.0/8]
  jwt: {jwks: %q, secret: %q, cookie: "sb-*-auth-token", issuer: https://x.supabase.co/auth/v1}
  user: "jwt:sub, header:X-User-Id"
  workspace: "jwt:app_metadata.workspace_id"
  tier: "jwt:app_metadata.tier, header:X-Tier"
limits: {per: [user], tiers: {free: {requests: 500, window: 1h}, pro: {requests: 1000, window: 1h}, enterprise: {requests: 10000, window: 1h}}}
`, is.url, hmacSecret), "ANTHROPIC_BASE_URL="+api.Start(t), "ANTHROPIC_API_KEY=sk-ant-test").start(testapp())

	first := is.keys["first"]
	pro := is.token(jose.ES256, first, "first", "ann", "pro", time.Hour)
	const free, asPro, asEnterprise = `200 "address";q=500;w=3600`, `200 "user";q=1000;w=3600`, `200 "user";q=10000;w=3600`
	eventually(t, "the issuer's keys", func() (bool, string) {
		v := m.metrics()["mainstay_identity_keys"]
		return v == 1, fmt.Sprint(v)
	})
	for name, headers := range map[string][]string{
		"bearer": {"Authorization", "Bearer " + pro},
		"cookie": {"Cookie", cookie(t, pro)},
		"HS256":  {"Authorization", "Bearer " + is.token(jose.HS256, []byte(hmacSecret), "", "bob", "pro", time.Hour)},
	} {
		if got := m.policy(headers...); got != asPro {
			t.Errorf("%s: %s", name, got)
		}
	}

	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(first.Public())
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(is.token(jose.ES256, first, "first", "eve", "enterprise", time.Hour), ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"first"}`))
	for reason, headers := range map[string][]string{
		"algorithm":   {"Authorization", "Bearer " + none + "." + parts[1] + "."},
		"signature":   {"Authorization", "Bearer " + is.token(jose.ES256, other, "first", "eve", "enterprise", time.Hour)},
		"signature ":  {"Authorization", "Bearer " + is.token(jose.HS256, der, "first", "eve", "enterprise", time.Hour)},
		"unknown_key": {"Authorization", "Bearer " + is.token(jose.ES256, other, "../../etc/passwd", "eve", "enterprise", time.Hour)},
		"expired":     {"Cookie", cookie(t, is.token(jose.ES256, first, "first", "eve", "enterprise", -time.Hour))},
		"too_large":   {"Authorization", "Bearer " + none + "." + strings.Repeat("A", 20000) + ".x"},
		"malformed":   {"Authorization", "Bearer a.b.c"},
		"":            {"X-User-Id", "eve", "X-Tier", "enterprise"},
	} {
		if got := m.policy(headers...); got != free {
			t.Errorf("%s: %s", reason, got)
		}
		if reason = strings.TrimSpace(reason); reason == "" {
			continue
		}
		if n := m.metrics()[`mainstay_identity_refused_total{reason="`+reason+`"}`]; n == 0 {
			t.Errorf("%s was not counted", reason)
		}
	}

	// A key that the issuer has just begun to use.
	is.publish("second")
	rotated := is.token(jose.ES256, is.keys["second"], "second", "ann", "enterprise", time.Hour)
	eventually(t, "the new key", func() (bool, string) { // 10s after the last fetch
		got := m.policy("Authorization", "Bearer "+rotated)
		return got == asEnterprise, got
	})

	// The app is told, and clients are not believed.
	_, _, told := m.get("/header?name=Mainstay-Identity", "Authorization", "Bearer "+pro, "Mainstay-Identity", "v1.forged.x")
	if !strings.HasPrefix(told, "v1.") || strings.Contains(told, "forged") {
		t.Errorf("the app was told %q", told)
	}
	if _, _, told := m.get("/header?name=Mainstay-Identity", "Mainstay-Identity", "v1.forged.x"); told != "" {
		t.Errorf("the app was told %q of nobody", told)
	}
	if _, _, told := m.get("/header?name=X-User-Id", "X-User-Id", "eve"); told != "" {
		t.Errorf("the app was told %q by a stranger", told)
	}

	// It forwards what it was told, so that the Claude plane knows too; Claude does not.
	if status, _, body := m.get("/ask", "Cookie", cookie(t, pro)); status != 200 {
		t.Fatalf("ask: %d %s", status, body)
	}
	eventually(t, "the call in the log", func() (bool, string) {
		for line := range strings.Lines(m.log.String()) {
			if strings.Contains(line, `"plane":"claude"`) && strings.Contains(line, `"user":"ann"`) && strings.Contains(line, `"workspace":"ws-of-ann"`) && strings.Contains(line, `"tier":"pro"`) {
				return true, ""
			}
		}
		return false, tail(m.log.String(), 3)
	})
	for _, r := range api.Requests() {
		if r.Header.Get("Mainstay-Identity") != "" {
			t.Error("Claude was told who asks")
		}
	}
	if strings.Contains(m.log.String(), pro) || strings.Contains(m.log.String(), told) {
		t.Error("a token stands in the log")
	}
}
