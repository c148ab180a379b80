package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"strings"
)

const (
	maxChunks  = 16
	maxCookies = 500      // that are looked at; what comes after them is none of ours
	maxCookie  = 32 << 10 // of a session, all chunks together
)

// eachCookie visits the cookies of a header until visit returns false. Several
// headers come joined by commas; no value that we read has one.
func eachCookie(header string, visit func(name, value string) bool) {
	for n := 0; header != "" && n < maxCookies; n++ {
		part, rest, _ := strings.Cut(header, ";")
		if i := strings.IndexByte(part, ','); i >= 0 { // by hand: IndexAny looks at each byte
			part, rest = part[:i], header[i+1:]
		}
		header = rest
		if name, value, ok := strings.Cut(strings.Trim(part, " \t"), "="); ok && !visit(name, value) {
			return
		}
	}
}

// cookieNamed returns the first cookie of that name.
func cookieNamed(header, name string) (value string) {
	eachCookie(header, func(n, v string) bool {
		if n == name {
			value = v
		}
		return value == ""
	})
	return value
}

// session appends to raw the value of the first cookie that g means, or its chunks
// with a zero byte after each, and tells whether there was one.
func session(raw []byte, header string, g glob) ([]byte, bool) {
	base, whole, found := "", "", false
	eachCookie(header, func(name, value string) bool {
		if g.match(name) {
			base, whole, found = name, value, true
			return false
		}
		if name, first := strings.CutSuffix(name, ".0"); first && base == "" && g.match(name) {
			base = name // chunks, unless the whole one comes yet
		}
		return true
	})
	if found {
		return append(append(raw, whole...), 0), true
	}
	if base == "" {
		return raw, false
	}
	var chunks [maxChunks]string
	eachCookie(header, func(name, value string) bool {
		if number, ok := strings.CutPrefix(name, base); ok {
			if i := chunkNumber(number); i >= 0 && chunks[i] == "" {
				chunks[i] = value
			}
		}
		return true
	})
	for _, chunk := range chunks {
		if chunk == "" || len(raw) > maxCookie {
			break
		}
		raw = append(append(raw, chunk...), 0)
	}
	return raw, true
}

// chunkNumber reads ".7"; -1: it is no number of a chunk.
func chunkNumber(s string) int {
	if len(s) < 2 || len(s) > 3 || s[0] != '.' || s[1] == '0' && len(s) > 2 {
		return -1
	}
	n := 0
	for _, c := range []byte(s[1:]) {
		if c < '0' || c > '9' {
			return -1
		}
		n = 10*n + int(c-'0')
	}
	if n >= maxChunks {
		return -1
	}
	return n
}

// fromSession finds the token in what session has gathered: the token itself, or a
// session as Supabase's libraries write it: JSON or "base64-" and JSON in
// base64url, percent-encoded, an object with access_token or a list that begins
// with it.
func fromSession(raw string) string {
	if len(raw) > maxCookie {
		return ""
	}
	var b strings.Builder
	for chunk := range strings.SplitSeq(raw, "\x00") {
		if plain, err := url.PathUnescape(chunk); err == nil {
			chunk = plain
		}
		b.WriteString(chunk)
	}
	text := strings.Trim(b.String(), `"`)
	if code, ok := strings.CutPrefix(text, "base64-"); ok {
		plain, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(code, "="))
		if err != nil {
			return ""
		}
		text = string(plain)
	}
	switch {
	case strings.HasPrefix(text, "{"):
		var s struct {
			Token string `json:"access_token"`
		}
		_ = json.Unmarshal([]byte(text), &s) // no session: no token
		return s.Token
	case strings.HasPrefix(text, "["):
		var s []any
		_ = json.Unmarshal([]byte(text), &s)
		if len(s) > 0 {
			token, _ := s[0].(string)
			return token
		}
		return ""
	}
	return text
}

// unsign returns the value of a cookie that was signed as cookie-signature does
// it: s:VALUE.HMAC, percent-encoded.
func unsign(value, secret string) (string, bool) {
	if len(value) > 4096 {
		return "", false
	}
	plain, err := url.PathUnescape(value)
	if err != nil {
		return "", false
	}
	plain, ok := strings.CutPrefix(plain, "s:")
	i := strings.LastIndexByte(plain, '.')
	if !ok || i < 0 {
		return "", false
	}
	given, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(plain[i+1:], "="))
	if err != nil {
		return "", false
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(plain[:i]))
	if !hmac.Equal(given, mac.Sum(nil)) || !validID(plain[:i]) {
		return "", false
	}
	return plain[:i], true
}
