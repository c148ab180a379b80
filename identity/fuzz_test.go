package identity

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

func BenchmarkResolve(b *testing.B) {
	d := newDesk(b, config(keyed), nil)
	token := hs256(b, hmacSecret, supabase("u1", "w1", "pro").with("x", strings.Repeat("x", 500)))
	session := "base64-" + base64.RawURLEncoding.EncodeToString([]byte(`{"access_token":"`+token+`","user":"`+strings.Repeat("x", 1000)+`"}`))
	for _, c := range []struct {
		name string
		r    *Request
	}{
		{"token of 1 kB", withToken(token)},
		{"cookie of 2.7 kB", withCookie("theme=dark; sb-x-auth-token=" + session)},
		{"key", from("203.0.113.9", "X-Api-Key", "mk_live_0123456789abcdef")},
		{"nobody", from("203.0.113.9")},
		{"forged", withToken(token + "x")},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = d.Resolve(b.Context(), c.r)
			}
		})
	}
	w := d.Resolve(b.Context(), withToken(token))
	b.Run("seal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = d.Seal(&w, "")
		}
	})
}

func FuzzToken(f *testing.F) {
	k := newSigner(f, "k1", "ES256")
	good := k.token(f, supabase("u1", "w1", "pro"))
	for _, s := range []string{good, "a.b.c", "..", raw(`{"alg":"none"}`, `{}`, ""), raw(`{"alg":"ES256","crit":[]}`, `{"exp":1}`, "x"), strings.Repeat("[", 5000) + ".x.y"} {
		f.Add(s)
	}
	d := newDesk(f, config(withJWKS), &issuer{keys: []signer{k}})
	f.Fuzz(func(t *testing.T, token string) {
		if w := d.Resolve(t.Context(), withToken(token)); w.User != "" && token != good {
			if i := strings.LastIndexByte(token, '.'); i < 0 || !strings.HasPrefix(good, token[:i]) {
				t.Errorf("%s is believed: %+v", token, w)
			}
		}
	})
}

func FuzzClaims(f *testing.F) {
	for _, s := range []string{`{"exp":9999999999,"sub":"u"}`, `{"exp":1e9,"app_metadata":{"workspace_id":7}}`, strings.Repeat(`{"a":`, 3000), `{"sub":"\ud800"}`, "null", "[]"} {
		f.Add([]byte(s))
	}
	p, err := Compile(config())
	if err != nil {
		f.Fatal(err)
	}
	now := time.Now()
	f.Fuzz(func(t *testing.T, payload []byte) {
		got := p.judge(payload, now)
		for _, v := range got.values {
			if v != "" && !validID(v) {
				t.Errorf("%q is an id", v)
			}
		}
	})
}

func FuzzCookie(f *testing.F) {
	for _, s := range []string{"sb-x-auth-token=a", "sb-x-auth-token.0=base64-eyJ; sb-x-auth-token.1=x", "a=;,=;==", "sb-x-auth-token=%5B%22", "s:a.b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		raw, _ := session(nil, header, "sb-*-auth-token")
		if len(raw) > len(header)*maxChunks+maxChunks {
			t.Errorf("%d bytes of %d", len(raw), len(header))
		}
		_ = fromSession(string(raw))
		if v, ok := unsign(header, "secret"); ok {
			t.Errorf("%s is signed", v)
		}
	})
}

func FuzzSeal(f *testing.F) {
	s := NewSeal([]byte("0123456789abcdef0123456789abcdef"))
	good := s.Close(Sealed{User: "u1", Expires: 1 << 40})
	f.Add(good)
	f.Add("v1..")
	f.Fuzz(func(t *testing.T, text string) {
		if v, reason := s.Open(text, time.Now()); reason == "" && text[:len(text)-1] != good[:len(good)-1] {
			t.Errorf("%s says %+v", text, v)
		}
	})
}
