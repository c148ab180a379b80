package identity

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
)

func TestAVerifiedTokenSaysWhoAsks(t *testing.T) {
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.EdDSA} {
		t.Run(string(alg), func(t *testing.T) {
			k := newSigner(t, "k1", alg)
			d := newDesk(t, config(withJWKS), &issuer{keys: []signer{k}})
			w := d.Resolve(t.Context(), withToken(k.token(t, supabase("u1", "w1", "pro"))))
			if w.User != "u1" || w.Workspace != "w1" || w.Tier != "pro" || w.By != ByToken || w.Refused != "" {
				t.Errorf("got %+v", w)
			}
		})
	}
	t.Run("HS256", func(t *testing.T) {
		d := newDesk(t, config(func(c *Config) { c.JWT.Previous = "the secret before, which is 32 long" }), nil)
		for _, secret := range []string{hmacSecret, "the secret before, which is 32 long"} {
			if w := d.Resolve(t.Context(), withToken(hs256(t, secret, supabase("u1", "w1", "pro")))); w.User != "u1" || w.Tier != "pro" {
				t.Errorf("got %+v", w)
			}
		}
	})
	t.Run("Auth0", func(t *testing.T) {
		k := newSigner(t, "a0", jose.RS256)
		d := newDesk(t, config(withJWKS, func(c *Config) {
			c.JWT.Issuer, c.JWT.Audience = "https://acme.eu.auth0.com/", []string{"https://api.acme.com"}
			c.Workspace, c.Tier = "jwt:org_id", "jwt:https://acme.com/claims.tier, jwt:https://acme.com/tier"
		}), &issuer{keys: []signer{k}})
		w := d.Resolve(t.Context(), withToken(k.token(t, claims{
			"iss": "https://acme.eu.auth0.com/", "aud": []string{"https://api.acme.com", "https://acme.eu.auth0.com/userinfo"},
			"sub": "auth0|7", "org_id": "org_1", "https://acme.com/tier": "enterprise", "exp": time.Now().Add(time.Hour).Unix(),
		})))
		if w.User != "auth0|7" || w.Workspace != "org_1" || w.Tier != "enterprise" {
			t.Errorf("got %+v", w)
		}
	})
}

func TestATokenThatIsNotBelievedIsAnAddressAndCounted(t *testing.T) {
	k, other := newSigner(t, "k1", jose.ES256), newSigner(t, "k1", jose.ES256)
	r := newSigner(t, "r1", jose.RS256)
	good := supabase("u1", "w1", "pro")
	der, err := x509.MarshalPKIXPublicKey(r.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(withJWKS, func(c *Config) {
		c.JWT.Secret, c.JWT.Issuer, c.JWT.Audience = hmacSecret, "https://x.supabase.co/auth/v1", []string{"authenticated"}
	})
	payload, _ := json.Marshal(good)
	genuine := k.token(t, good)
	parts := strings.Split(genuine, ".")
	for name, tc := range map[string]struct {
		token string
		want  Reason
	}{
		"alg none":                         {raw(`{"alg":"none"}`, string(payload), ""), Algorithm},
		"alg None":                         {raw(`{"alg":"nOnE","kid":"k1"}`, string(payload), "x"), Algorithm},
		"no alg":                           {raw(`{"kid":"k1"}`, string(payload), "x"), Algorithm},
		"HS256 with the public key":        {sign(t, jose.HS256, der, map[jose.HeaderKey]any{"kid": "r1"}, good), Signature},
		"another key of the same name":     {other.token(t, good), Signature},
		"another algorithm than the key's": {sign(t, jose.RS512, r.key, map[jose.HeaderKey]any{"kid": "r1"}, good), Algorithm},
		"a kid that is a path":             {sign(t, jose.ES256, k.key, map[jose.HeaderKey]any{"kid": "../../../../dev/null"}, good), UnknownKey},
		"a kid that is SQL":                {sign(t, jose.ES256, k.key, map[jose.HeaderKey]any{"kid": "k1' OR '1'='1"}, good), UnknownKey},
		"a key of its own":                 {sign(t, jose.ES256, other.key, map[jose.HeaderKey]any{"kid": "mine", "jwk": other.public(), "jku": "https://evil.example/jwks"}, good), UnknownKey},
		"crit":                             {raw(`{"alg":"ES256","kid":"k1","crit":["x"],"x":1}`, string(payload), "x"), Malformed},
		"the secret of somebody else":      {hs256(t, "not the secret, but also 32 bytes long", good), Signature},
		"a changed payload":                {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(payload), "pro", "max", 1))) + "." + parts[2], Signature},
		"no signature":                     {parts[0] + "." + parts[1] + ".", Signature},
		"a cut signature":                  {parts[0] + "." + parts[1] + "." + parts[2][:20], Signature},
		"expired":                          {k.token(t, good.with("exp", time.Now().Add(-time.Minute).Unix())), Expired},
		"not yet":                          {k.token(t, good.with("nbf", time.Now().Add(time.Minute).Unix())), NotYet},
		"no exp":                           {k.token(t, good.with("exp", nil)), Claims},
		"exp is text":                      {k.token(t, good.with("exp", "9999999999")), Claims},
		"exp beyond time":                  {k.token(t, good.with("exp", 1e300)), Claims},
		"another issuer":                   {k.token(t, good.with("iss", "https://y.supabase.co/auth/v1")), Issuer},
		"another audience":                 {k.token(t, good.with("aud", []string{"x", "y"})), Audience},
		"no audience":                      {k.token(t, good.with("aud", nil)), Audience},
		"a user with a line break":         {k.token(t, good.with("sub", "u1\nu2")), Claims},
		"a user that is an object":         {k.token(t, good.with("sub", claims{"id": 1})), Claims},
		"a user that is a fraction":        {k.token(t, good.with("sub", 1.5)), Claims},
		"a user of a thousand letters":     {k.token(t, good.with("sub", strings.Repeat("u", 1000))), Claims},
		"a claim twice":                    {k.token(t, strings.Replace(string(payload), `"sub"`, `"sub":"root","sub"`, 1)), Malformed},
		"a claim twice, deeper":            {k.token(t, strings.Replace(string(payload), `"tier":"pro"`, `"tier":"pro","tier":"enterprise"`, 1)), Malformed},
		"a list":                           {k.token(t, `[1]`), Malformed},
		"null":                             {k.token(t, `null`), Malformed},
		"two payloads":                     {k.token(t, string(payload)+string(payload)), Malformed},
		"no JSON":                          {k.token(t, `hello`), Malformed},
		"a header twice":                   {raw(`{"alg":"ES256","alg":"none","kid":"k1"}`, string(payload), "x"), Malformed},
		"junk with two dots":               {"a.b.c", Malformed},
		"a huge header":                    {raw(`{"alg":"ES256","kid":"`+strings.Repeat("k", 8000)+`"}`, string(payload), "x"), Malformed},
		"a huge token":                     {k.token(t, good.with("x", strings.Repeat("x", 20000))), TooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, cfg, &issuer{keys: []signer{k, r}})
			if w := d.Resolve(t.Context(), withToken(genuine)); w.User != "u1" || w.Tier != "pro" {
				t.Fatalf("the genuine one: %+v", w)
			}
			for range 2 { // and not from memory either
				w := d.Resolve(t.Context(), withToken(tc.token))
				if w.Refused != tc.want || w.User != "" || w.Workspace != "" || w.Tier != "" || w.By != ByAddress {
					t.Errorf("got %+v, want %s", w, tc.want)
				}
			}
			if n := d.Stats().Refused[tc.want]; n != 2 {
				t.Errorf("%d counted as %s", n, tc.want)
			}
		})
	}
}

func TestAPublishedSecretOrAWeakKeyVouchesForNothing(t *testing.T) {
	for name, set := range map[string]string{
		"a secret":      `{"keys":[{"kty":"oct","kid":"s","alg":"HS256","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]}`,
		"for something": `{"keys":[{"kty":"OKP","crv":"Ed25519","use":"enc","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`,
		"a short RSA":   `{"keys":[{"kty":"RSA","n":"` + strings.Repeat("A", 20) + `Q","e":"AQAB"}]}`,
		"an odd pair":   `{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"RS256","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`,
		"no keys":       `{}`,
		"no JSON":       `<html>`,
		"too many":      `{"keys":[` + strings.Repeat(`{},`, 100) + `{}]}`,
	} {
		if set, err := parseKeySet([]byte(set)); err == nil {
			t.Errorf("%s: %+v", name, set)
		}
	}
	// A kind that is not known does not spoil the others.
	set, err := parseKeySet([]byte(`{"keys":[{"kty":"AKP","kid":"new"},{"kty":"OKP","crv":"Ed25519","kid":"e","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`))
	if err != nil || len(set.keys) != 1 || set.keys[0].alg != jose.EdDSA {
		t.Errorf("%+v %v", set, err)
	}
}

func TestATokenWithoutAUserLeavesTheCallerAnAddress(t *testing.T) {
	d := newDesk(t, config(), nil)
	anon := hs256(t, hmacSecret, claims{"iss": "supabase", "role": "anon", "exp": time.Now().Add(time.Hour).Unix()})
	if w := d.Resolve(t.Context(), withToken(anon)); w.User != "" || w.Refused != "" || w.By != ByAddress {
		t.Errorf("got %+v", w)
	}
	// supabase-js sends its public key as the bearer token, and the user in the cookie.
	user := hs256(t, hmacSecret, supabase("u1", "w1", "pro"))
	r := from("203.0.113.9", "Authorization", "Bearer "+anon, "Cookie", "sb-x-auth-token="+user)
	if w := d.Resolve(t.Context(), r); w.User != "u1" || w.Tier != "pro" {
		t.Errorf("got %+v", w)
	}
}

func TestATokenIsFoundInEveryKindOfCookie(t *testing.T) {
	d := newDesk(t, config(), nil)
	token := hs256(t, hmacSecret, supabase("u1", "w1", "pro"))
	session, err := json.Marshal(map[string]any{"access_token": token, "refresh_token": "r", "user": map[string]any{"id": "u1", "note": strings.Repeat("ü", 2000)}})
	if err != nil {
		t.Fatal(err)
	}
	coded := "base64-" + base64.RawURLEncoding.EncodeToString(session)
	escaped := url.PathEscape(string(session))
	list, _ := json.Marshal([]any{token, "r", nil, nil, nil})
	chunks := func(name, value string, backwards bool) string {
		var parts []string
		for i := 0; value != ""; i++ {
			n := min(3180, len(value))
			for n < len(value) && strings.LastIndexByte(value[:n], '%') > n-3 { // not in the middle of one
				n--
			}
			parts = append(parts, fmt.Sprintf("%s.%d=%s", name, i, value[:n]))
			value = value[n:]
		}
		if backwards {
			for i := range len(parts) / 2 {
				parts[i], parts[len(parts)-1-i] = parts[len(parts)-1-i], parts[i]
			}
		}
		return strings.Join(parts, "; ")
	}
	for name, cookie := range map[string]string{
		"the token itself":   "a=1; sb-x-auth-token=" + token + "; b=2",
		"a session":          "sb-x-auth-token=" + escaped,
		"base64":             "theme=dark; sb-x-auth-token=" + coded,
		"a list":             "sb-x-auth-token=" + url.PathEscape(string(list)),
		"chunks":             "theme=dark; " + chunks("sb-x-auth-token", coded, false),
		"chunks backwards":   chunks("sb-x-auth-token", coded, true) + "; theme=dark",
		"escaped chunks":     chunks("sb-x-auth-token", escaped, false),
		"whole after chunks": "sb-x-auth-token.0=old; sb-x-auth-token.1=older; sb-x-auth-token=" + coded,
		"joined headers":     "theme=dark,sb-x-auth-token=" + coded,
	} {
		for range 2 {
			if w := d.Resolve(t.Context(), withCookie(cookie)); w.User != "u1" || w.Tier != "pro" || w.Refused != "" {
				t.Errorf("%s: got %+v", name, w)
			}
		}
	}
	for name, cookie := range map[string]string{
		"another name":     "sb-x-auth-token-code-verifier=" + token,
		"its chunks":       "sb-x-auth-token-code-verifier.0=" + token,
		"no first chunk":   "sb-x-auth-token.1=" + token,
		"a missing middle": "sb-x-auth-token.0=" + coded[:100] + "; sb-x-auth-token.2=" + coded[100:],
		"broken base64":    "sb-x-auth-token=base64-" + strings.Repeat("!", 50),
		"empty":            "sb-x-auth-token=",
	} {
		if w := d.Resolve(t.Context(), withCookie(cookie)); w.User != "" || w.Unfit {
			t.Errorf("%s: got %+v", name, w)
		}
	}
}

func TestARefusedTokenIsRefusedIfTheConfigurationSaysSo(t *testing.T) {
	d := newDesk(t, config(func(c *Config) { c.OnRefusal = "refuse" }), nil)
	old := hs256(t, hmacSecret, supabase("u1", "w1", "pro").with("exp", time.Now().Add(-time.Hour).Unix()))
	if w := d.Resolve(t.Context(), withToken(old)); !w.Unfit || w.Refused != Expired {
		t.Errorf("bearer: %+v", w)
	}
	if w := d.Resolve(t.Context(), withCookie("sb-x-auth-token="+old)); w.Unfit || w.Refused != Expired {
		t.Errorf("a cookie that the app has to renew: %+v", w)
	}
	if w := d.Resolve(t.Context(), withToken("whsec_of_the_app_itself")); w.Unfit || w.Refused != "" {
		t.Errorf("a token of the app's own kind: %+v", w)
	}
	if w := newDesk(t, config(), nil).Resolve(t.Context(), withToken(old)); w.Unfit {
		t.Errorf("by default: %+v", w)
	}
}

// bubble runs f in virtual time with a desk that asks via.
func bubble(t *testing.T, via *issuer, f func(t *testing.T, d *Desk)) {
	synctest.Test(t, func(t *testing.T) {
		f(t, newDesk(t, config(withJWKS), via))
	})
}

func TestANewKeyIsFetchedOnceWhenItIsFirstSeen(t *testing.T) {
	old, fresh := newSigner(t, "old", jose.ES256), newSigner(t, "fresh", jose.ES256)
	via := &issuer{keys: []signer{old}}
	bubble(t, via, func(t *testing.T, d *Desk) {
		if w := d.Resolve(t.Context(), withToken(old.token(t, supabase("u1", "", "")))); w.User != "u1" {
			t.Fatalf("got %+v", w)
		}
		time.Sleep(time.Minute)
		via.set(func() { via.keys = []signer{old, fresh} })
		if w := d.Resolve(t.Context(), withToken(fresh.token(t, supabase("u2", "", "")))); w.User != "u2" {
			t.Errorf("the first token with a new key: %+v", w)
		}
		if n := via.count(); n != 2 {
			t.Errorf("%d fetches, want 2", n)
		}
		// Whoever invents keys gets no fetch each.
		for i := range 100 {
			made := newSigner(t, fmt.Sprint("made up ", i), jose.EdDSA)
			if w := d.Resolve(t.Context(), withToken(made.token(t, supabase("u3", "", "")))); w.Refused != UnknownKey {
				t.Errorf("got %+v", w)
			}
		}
		if n := via.count(); n != 2 {
			t.Errorf("%d fetches after a hundred invented keys, want 2", n)
		}
	})
}

func TestAKeyThatIsWithdrawnIsNoLongerBelieved(t *testing.T) {
	old, fresh := newSigner(t, "old", jose.ES256), newSigner(t, "fresh", jose.ES256)
	via := &issuer{keys: []signer{old, fresh}}
	bubble(t, via, func(t *testing.T, d *Desk) {
		stolen := withToken(old.token(t, supabase("u1", "", "")))
		if w := d.Resolve(t.Context(), stolen); w.User != "u1" {
			t.Fatalf("got %+v", w)
		}
		via.set(func() { via.keys = []signer{fresh} })
		time.Sleep(11 * time.Minute) // jwt.refresh; the token has not expired
		if w := d.Resolve(t.Context(), stolen); w.User != "" || w.Refused != UnknownKey {
			t.Errorf("got %+v", w)
		}
	})
}

func TestWhileTheIssuerIsDownTheLastKeysStand(t *testing.T) {
	k := newSigner(t, "k", jose.ES256)
	via := &issuer{keys: []signer{k}}
	bubble(t, via, func(t *testing.T, d *Desk) {
		synctest.Wait()
		via.set(func() { via.down = true })
		time.Sleep(24 * time.Hour)
		if w := d.Resolve(t.Context(), withToken(k.token(t, supabase("u1", "", "")))); w.User != "u1" {
			t.Errorf("got %+v", w)
		}
		if s := d.Stats(); s.Failures == 0 || s.Keys != 1 {
			t.Errorf("stats %+v", s)
		}
		fresh := newSigner(t, "fresh", jose.ES256)
		via.set(func() { via.down, via.keys = false, []signer{fresh} })
		time.Sleep(2 * time.Minute)
		if w := d.Resolve(t.Context(), withToken(fresh.token(t, supabase("u2", "", "")))); w.User != "u2" {
			t.Errorf("after it came back: %+v", w)
		}
	})
}

func TestAnIssuerThatHangsHoldsNobodyUp(t *testing.T) {
	k := newSigner(t, "k", jose.ES256)
	via := &issuer{keys: []signer{k}, silent: true}
	bubble(t, via, func(t *testing.T, d *Desk) {
		began := time.Now()
		if w := d.Resolve(t.Context(), withToken(k.token(t, supabase("u1", "", "")))); w.Refused != NoKeys {
			t.Errorf("got %+v", w)
		}
		if waited := time.Since(began); waited != waitWithin {
			t.Errorf("waited %v", waited)
		}
		time.Sleep(fetchWithin)
		began = time.Now()
		_ = d.Resolve(t.Context(), withToken(k.token(t, supabase("u2", "", ""))))
		if waited := time.Since(began); waited != 0 {
			t.Errorf("waited %v after it had failed", waited)
		}
		via.set(func() { via.silent = false })
		time.Sleep(10 * time.Second)
		if w := d.Resolve(t.Context(), withToken(k.token(t, supabase("u1", "", "")))); w.User != "u1" {
			t.Errorf("after it came back: %+v", w)
		}
	})
}

func TestAReloadKeepsTheKeysAndForgetsWhatWasProved(t *testing.T) {
	k := newSigner(t, "k", jose.ES256)
	via := &issuer{keys: []signer{k}}
	bubble(t, via, func(t *testing.T, d *Desk) {
		r := withToken(k.token(t, supabase("u1", "w1", "pro")))
		if w := d.Resolve(t.Context(), r); w.Tier != "pro" {
			t.Fatalf("got %+v", w)
		}
		via.set(func() { via.down = true })
		commit, err := d.Prepare(config(withJWKS, func(c *Config) { c.Tier, c.JWT.Audience = "", []string{"authenticated"} }))
		if err != nil {
			t.Fatal(err)
		}
		commit()
		synctest.Wait()
		if w := d.Resolve(t.Context(), r); w.User != "u1" || w.Tier != "" {
			t.Errorf("got %+v", w)
		}
		if _, err := d.Prepare(Config{}); err == nil {
			t.Error("an empty configuration was taken")
		}
	})
}

func TestTheKeysOutliveARestartWhileTheIssuerIsDown(t *testing.T) {
	k := newSigner(t, "k", jose.ES256)
	dir := t.TempDir()
	life := func(via *issuer, f func(t *testing.T, d *Desk)) {
		synctest.Test(t, func(t *testing.T) {
			d, err := New(config(withJWKS), Deps{Via: via, Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- d.Run(ctx) }()
			synctest.Wait()
			f(t, d)
			cancel()
			<-done
		})
	}
	life(&issuer{keys: []signer{k}}, func(t *testing.T, d *Desk) {})
	life(&issuer{down: true}, func(t *testing.T, d *Desk) {
		if w := d.Resolve(t.Context(), withToken(k.token(t, supabase("u1", "w1", "pro")))); w.User != "u1" {
			t.Errorf("after a restart: %+v", w)
		}
	})
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	if err := os.WriteFile(files[0], []byte("{damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	life(&issuer{down: true}, func(t *testing.T, d *Desk) {
		if w := d.Resolve(t.Context(), withToken(k.token(t, supabase("u1", "w1", "pro")))); w.User != "" || w.Refused != NoKeys {
			t.Errorf("with a damaged file: %+v", w)
		}
	})
}

// A fetch that ends between a request's look at the keys and its question for a
// fetch leaves nothing to wait for; what it brought counts all the same.
func TestAFetchThatEndsWhileOneAsksForItCounts(t *testing.T) {
	k := newSigner(t, "k1", jose.ES256)
	s := newKeySource(jwks, &issuer{keys: []signer{k}}, "")
	s.mu.Lock() // the request comes as far as the question
	refused := make(chan Reason, 1)
	go func() {
		_, _, reason := s.find(t.Context(), "k1", jose.ES256)
		refused <- reason
	}()
	time.Sleep(20 * time.Millisecond) // if it has not looked by then, the test sees less, not something else
	set, _, err := s.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.set.Store(set)
	s.begun = time.Now()
	s.mu.Unlock()
	if reason := <-refused; reason != "" {
		t.Errorf("the token is refused: %s", reason)
	}
}
