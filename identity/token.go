package identity

import (
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

// The reasons why a credential is not believed.
const (
	Malformed   Reason = "malformed"     // no token, or one with a member twice
	TooLarge    Reason = "too_large"     // beyond 16 KiB
	Algorithm   Reason = "algorithm"     // none, an unknown one, or not the key's own
	UnknownKey  Reason = "unknown_key"   // signed with a key that the issuer does not publish
	NoKeys      Reason = "no_keys"       // the issuer's keys cannot be had, so that nobody can tell
	Signature   Reason = "signature"     // forged, or signed by somebody else
	Expired     Reason = "expired"       // its time is over
	NotYet      Reason = "not_yet_valid" // its time has not come
	Issuer      Reason = "issuer"        // made by somebody else
	Audience    Reason = "audience"      // made for somebody else
	Claims      Reason = "claims"        // a claim is no id, or there is no exp
	UnknownAPI  Reason = "unknown_api_key"
	BadCookie   Reason = "cookie_signature"
	BadIdentity Reason = "identity_header" // of a Seal
)

// Reasons lists them all, for the metric and the docs.
var Reasons = []Reason{Malformed, TooLarge, Algorithm, UnknownKey, NoKeys, Signature, Expired, NotYet, Issuer, Audience, Claims, UnknownAPI, BadCookie, BadIdentity}

const (
	maxToken  = 16 << 10
	maxHeader = 4 << 10 // of a token, encoded: some hold a chain of certificates
)

// shaped reports whether s is three parts with dots between, as a signed token is.
func shaped(s string) bool {
	first := strings.IndexByte(s, '.')
	return first > 0 && strings.Count(s, ".") == 2
}

// hmacs and publics are the algorithms that are believed at all: which one a token
// may have is its key's to say.
var (
	hmacs   = []jose.SignatureAlgorithm{jose.HS256}
	publics = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}
	all     = append(append([]jose.SignatureAlgorithm{}, hmacs...), publics...)
)

// A proof is what a credential was found to say. It is immutable.
type proof struct {
	reason Reason    // why it is not believed; empty: it is
	values []string  // of the policy's slots
	until  time.Time // when it expires
	keys   *keySet   // those it was checked with; nil: a secret
}

func refused(r Reason) *proof { return &proof{reason: r} }

// verify checks raw from its shape to its claims.
func (p *policy) verify(ctx context.Context, raw string, keys *keySource) *proof {
	if len(raw) > maxToken {
		return refused(TooLarge)
	}
	if !shaped(raw) || strings.IndexByte(raw, '.') > maxHeader {
		return refused(Malformed)
	}
	t, err := jose.ParseSignedCompact(raw, all)
	if err != nil {
		if _, ok := errors.AsType[*jose.ErrUnexpectedSignatureAlgorithm](err); ok {
			return refused(Algorithm)
		}
		return refused(Malformed)
	}
	payload, set, reason := p.signed(ctx, t, keys)
	if reason != "" {
		return refused(reason)
	}
	proof := p.judge(payload, time.Now())
	proof.keys = set
	return proof
}

// signed returns the payload if one of our keys has signed it. An algorithm belongs
// to a key: a secret takes HS256 alone, and a key of the set the one that it was
// published for, so that a public key is never taken for a secret.
func (p *policy) signed(ctx context.Context, t *jose.JSONWebSignature, keys *keySource) ([]byte, *keySet, Reason) {
	h := &t.Signatures[0].Protected
	if _, critical := h.ExtraHeaders["crit"]; critical { // it asks for what we do not know
		return nil, nil, Malformed
	}
	if h.Algorithm == string(jose.HS256) {
		for _, secret := range p.secrets {
			if payload, err := t.Verify(secret); err == nil {
				return payload, nil, ""
			}
		}
		if len(p.secrets) == 0 {
			return nil, nil, Algorithm
		}
		return nil, nil, Signature
	}
	if keys == nil {
		return nil, nil, Algorithm
	}
	set, candidates, reason := keys.find(ctx, h.KeyID, jose.SignatureAlgorithm(h.Algorithm))
	if reason != "" {
		return nil, nil, reason
	}
	for _, k := range candidates {
		if payload, err := t.Verify(k); err == nil {
			return payload, set, ""
		}
	}
	return nil, nil, Signature
}

// judge reads the claims of a token that is genuine.
func (p *policy) judge(payload []byte, now time.Time) *proof {
	claims, err := parse(payload)
	if err != nil {
		return refused(Malformed)
	}
	j := &p.cfg.JWT
	exp, ok := moment(claims["exp"])
	if !ok {
		return refused(Claims)
	}
	exp = exp.Add(j.Leeway)
	if !now.Before(exp) {
		return refused(Expired)
	}
	if given, there := claims["nbf"]; there {
		nbf, ok := moment(given)
		if !ok {
			return refused(Claims)
		}
		if now.Add(j.Leeway).Before(nbf) {
			return refused(NotYet)
		}
	}
	if iss, _ := claims["iss"].(string); j.Issuer != "" && iss != j.Issuer {
		return refused(Issuer)
	}
	if len(j.Audience) > 0 && !meant(claims["aud"], j.Audience) {
		return refused(Audience)
	}
	out := &proof{until: exp, values: make([]string, len(p.slots))}
	for i, path := range p.slots {
		v, ok := text(lookup(claims, path))
		if !ok {
			return refused(Claims)
		}
		out.values[i] = strings.Clone(v) // not the payload with it
	}
	return out
}

// parse reads an object. A member that is there twice is an error, since two
// readers would read two things.
func parse(payload []byte) (claims map[string]any, err error) {
	d := json.NewDecoder(strings.NewReader(string(payload)))
	d.SetNumberType(json.UnmarshalJSONNumber)
	if err := d.Decode(&claims); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one value")
	}
	if claims == nil {
		return nil, errors.New("null")
	}
	return claims, nil
}

// lookup finds what path leads to. A dot may lead into an object or be part of a
// name (https://example.com/tier): the longest name goes first.
func lookup(in map[string]any, path string) any {
	if v, ok := in[path]; ok {
		return v
	}
	for i := len(path) - 1; i > 0; i-- {
		if path[i] != '.' {
			continue
		}
		if inner, ok := in[path[:i]].(map[string]any); ok {
			if v := lookup(inner, path[i+1:]); v != nil {
				return v
			}
		}
	}
	return nil
}

// text is a claim as an id: a string or a whole number. What is absent is empty;
// false tells that it is there and no id.
func text(v any) (string, bool) {
	switch v := v.(type) {
	case nil:
		return "", true
	case string:
		return v, v == "" || validID(v)
	case json.Number:
		return string(v), len(v) <= 20 && !strings.ContainsAny(string(v), ".eE+")
	}
	return "", false
}

// moment reads a NumericDate (RFC 7519, 2).
func moment(v any) (time.Time, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return time.Time{}, false
	}
	f, err := n.Float64()
	const last = 1 << 40 // seconds: beyond any calendar
	if err != nil || math.IsNaN(f) || f <= 0 || f > last {
		return time.Time{}, false
	}
	return time.Unix(int64(f), 0), true
}

// meant reports whether aud, a string or a list of them, holds one of ours.
func meant(aud any, ours []string) bool {
	list, ok := aud.([]any)
	if !ok {
		list = []any{aud}
	}
	for _, a := range list {
		for _, o := range ours {
			if s, ok := a.(string); ok && s == o {
				return true
			}
		}
	}
	return false
}

// maxID bounds an id of a user or a workspace, and maxTier the name of a tier.
const (
	maxID   = 256
	maxTier = 64
)

// validID reports whether s may stand in a log, a key and a header.
func validID(s string) bool {
	if s == "" || len(s) > maxID {
		return false
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == 0xfffd || r >= 0x80 && r <= 0x9f || r == 0x2028 || r == 0x2029 {
			return false
		}
	}
	return true
}

func validTier(s string) bool { return len(s) <= maxTier && validID(s) }
