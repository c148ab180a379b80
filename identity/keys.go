package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxKeys  = 64
	maxKID   = 256
	maxTries = 4 // keys that are tried for a token which names none
)

// keySet is what an issuer has published. It is immutable.
type keySet struct{ keys []publicKey }

type publicKey struct {
	id  string
	alg jose.SignatureAlgorithm
	key any // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// parseKeySet reads a key set (RFC 7517). Keys that are not for checking
// signatures, or of a kind that we do not know, are passed over.
func parseKeySet(b []byte) (*keySet, error) {
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("read the key set: %w", err)
	}
	if len(doc.Keys) > maxKeys {
		return nil, fmt.Errorf("the key set has %d keys; at most %d are read", len(doc.Keys), maxKeys)
	}
	set := new(keySet)
	for _, raw := range doc.Keys {
		if k, ok := parseKey(raw); ok {
			set.keys = append(set.keys, k)
		}
	}
	if len(set.keys) == 0 {
		return nil, errors.New("the key set has no key for signatures")
	}
	return set, nil
}

func parseKey(raw []byte) (publicKey, bool) {
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON(raw); err != nil || !k.Valid() || !k.IsPublic() || k.Use != "" && k.Use != "sig" || len(k.KeyID) > maxKID {
		return publicKey{}, false
	}
	own, kin := algorithms(k.Key)
	if own == "" {
		return publicKey{}, false
	}
	out := publicKey{id: k.KeyID, alg: own, key: k.Key}
	if k.Algorithm != "" {
		out.alg = jose.SignatureAlgorithm(k.Algorithm)
	}
	return out, slices.Contains(kin, out.alg)
}

// algorithms are the one that a key has if it does not say, and those that it may
// say. A short RSA key vouches for nothing, and a very long one costs too much.
func algorithms(key any) (own jose.SignatureAlgorithm, kin []jose.SignatureAlgorithm) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits >= 2048 && bits <= 8192 {
			return jose.RS256, []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
		}
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 256:
			own = jose.ES256
		case 384:
			own = jose.ES384
		case 521:
			own = jose.ES512
		}
		return own, []jose.SignatureAlgorithm{own}
	case ed25519.PublicKey:
		return jose.EdDSA, []jose.SignatureAlgorithm{jose.EdDSA}
	}
	return "", nil
}

// find returns the keys that a token with this kid and algorithm may be signed
// with; the kid is compared and nothing else.
func (s *keySet) find(kid string, alg jose.SignatureAlgorithm) (keys []any, reason Reason) {
	reason = UnknownKey
	for _, k := range s.keys {
		switch {
		case kid != "" && k.id != kid:
		case k.alg != alg:
			if kid != "" {
				reason = Algorithm
			}
		case len(keys) < maxTries:
			keys = append(keys, k.key)
		}
	}
	if len(keys) > 0 {
		reason = ""
	}
	return keys, reason
}

// equal reports whether s and o publish the same.
func (s *keySet) equal(o *keySet) bool {
	return o != nil && slices.EqualFunc(s.keys, o.keys, func(a, b publicKey) bool {
		k, ok := a.key.(interface{ Equal(crypto.PublicKey) bool })
		return a.id == b.id && a.alg == b.alg && ok && k.Equal(b.key)
	})
}
