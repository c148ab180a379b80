package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const hmacSecret = "a secret of forty characters, as Supabase"

// signer is a key of an issuer.
type signer struct {
	id  string
	alg jose.SignatureAlgorithm
	key crypto.Signer
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func newSigner(t testing.TB, id string, alg jose.SignatureAlgorithm) signer {
	t.Helper()
	var k crypto.Signer
	var err error
	switch alg {
	case jose.RS256, jose.PS256:
		k = rsaKey()
	case jose.ES256:
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.EdDSA:
		_, k, err = ed25519.GenerateKey(rand.Reader)
	default:
		t.Fatalf("no keys for %s", alg)
	}
	if err != nil {
		t.Fatal(err)
	}
	return signer{id, alg, k}
}

func (s signer) public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: s.key.Public(), KeyID: s.id, Algorithm: string(s.alg), Use: "sig"}
}

// token signs claims; change may alter the header.
func (s signer) token(t testing.TB, claims any) string {
	return sign(t, s.alg, s.key, map[jose.HeaderKey]any{"kid": s.id, "typ": "JWT"}, claims)
}

func hs256(t testing.TB, secret string, claims any) string {
	return sign(t, jose.HS256, []byte(secret), map[jose.HeaderKey]any{"typ": "JWT"}, claims)
}

func sign(t testing.TB, alg jose.SignatureAlgorithm, key any, header map[jose.HeaderKey]any, claims any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, &jose.SignerOptions{ExtraHeaders: header})
	if err != nil {
		t.Fatal(err)
	}
	payload, ok := claims.(string)
	if !ok {
		b, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		payload = string(b)
	}
	jws, err := s.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// raw puts a token together without a key's help.
func raw(header, payload, signature string) string {
	e := base64.RawURLEncoding.EncodeToString
	return e([]byte(header)) + "." + e([]byte(payload)) + "." + e([]byte(signature))
}

type claims map[string]any

// supabase is what a user's token of Supabase says.
func supabase(user, workspace, tier string) claims {
	return claims{
		"iss": "https://x.supabase.co/auth/v1", "aud": "authenticated", "role": "authenticated",
		"sub": user, "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(),
		"app_metadata":  claims{"workspace_id": workspace, "tier": tier, "provider": "email"},
		"user_metadata": claims{"tier": "enterprise"},
	}
}

func (c claims) with(key string, v any) claims {
	out := claims{}
	maps.Copy(out, c)
	if out[key] = v; v == nil {
		delete(out, key)
	}
	return out
}

// issuer is an issuer's endpoint, reached without a network.
type issuer struct {
	mu      sync.Mutex
	keys    []signer
	down    bool
	body    string // in place of the keys
	fetches int
	silent  bool // it never answers
}

func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fetches++
	if i.silent {
		i.mu.Unlock()
		<-r.Context().Done()
		i.mu.Lock()
		return nil, r.Context().Err()
	}
	if i.down {
		return nil, errors.New("nobody is there")
	}
	body := i.body
	if body == "" {
		var set jose.JSONWebKeySet
		for _, k := range i.keys {
			set.Keys = append(set.Keys, k.public())
		}
		b, err := json.Marshal(set)
		if err != nil {
			return nil, err
		}
		body = string(b)
	}
	return &http.Response{StatusCode: 200, Status: "200 OK", Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (i *issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

const jwks = "https://x.supabase.co/auth/v1/.well-known/jwks.json"

// config is the reference case.
func config(change ...func(*Config)) Config {
	var c Config
	c.SetDefaults()
	c.JWT.Secret = hmacSecret
	c.JWT.Cookie = "sb-*-auth-token"
	c.Workspace, c.Tier = "jwt:app_metadata.workspace_id", "jwt:app_metadata.tier"
	for _, f := range change {
		f(&c)
	}
	return c
}

func withJWKS(c *Config) { c.JWT.JWKS, c.JWT.Secret = jwks, "" }

// newDesk runs a desk until the test ends. In a bubble, the caller ends it.
func newDesk(t testing.TB, c Config, via *issuer) *Desk {
	t.Helper()
	d := Deps{}
	if via != nil {
		d.Via = via
	}
	desk, err := New(c, d)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- desk.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return desk
}

// from is a request of a client with these headers.
func from(peer string, headers ...string) *Request {
	return &Request{Peer: netip.MustParseAddr(peer), Header: func(name string) string {
		for i := 0; i+1 < len(headers); i += 2 {
			if headers[i] == name {
				return headers[i+1]
			}
		}
		return ""
	}}
}

func withToken(token string) *Request { return from("203.0.113.9", "Authorization", "Bearer "+token) }

func withCookie(cookie string) *Request { return from("203.0.113.9", "Cookie", cookie) }
