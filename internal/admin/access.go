package admin

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	linkLife    = time.Minute
	sessionLife = 12 * time.Hour
	maxLinks    = 32
	maxSessions = 64
)

// Who a request comes from.
type visitor int

const (
	nobody  visitor = iota
	browser         // has a session: may look
	owner           // has the token: may do anything
)

// access decides who may enter. Secrets are kept and compared as their hashes, so
// that neither a lookup nor a comparison tells anything by its time.
type access struct {
	token    string
	hash     [32]byte
	cookie   string // its name
	links    keyring
	sessions keyring
}

// newAccess names the cookie after the port: cookies do not know ports, and two
// Mainstays on one machine must not log each other out.
func newAccess(token, port string) *access {
	return &access{
		token: token, hash: sha256.Sum256([]byte(token)), cookie: "mainstay_session_" + port,
		links:    keyring{life: linkLife, max: maxLinks},
		sessions: keyring{life: sessionLife, max: maxSessions},
	}
}

// who tells whom r comes from.
func (a *access) who(r *http.Request) visitor {
	if given, ok := bearer(r.Header.Get("Authorization")); ok {
		hash := sha256.Sum256([]byte(given))
		if subtle.ConstantTimeCompare(hash[:], a.hash[:]) == 1 {
			return owner
		}
		return nobody
	}
	if c, err := r.Cookie(a.cookie); err == nil && a.sessions.has(c.Value) {
		return browser
	}
	return nobody
}

// bearer takes the token out of an Authorization header (RFC 6750).
func bearer(header string) (token string, ok bool) {
	scheme, token, ok := strings.Cut(header, " ")
	return token, ok && strings.EqualFold(scheme, "Bearer")
}

// begin makes a session's cookie.
func (a *access) begin() *http.Cookie {
	return &http.Cookie{
		Name: a.cookie, Value: a.sessions.issue(), Path: "/", MaxAge: int(sessionLife / time.Second),
		HttpOnly: true, SameSite: http.SameSiteStrictMode,
	}
}

// end forgets r's session and makes the cookie that deletes the browser's.
func (a *access) end(r *http.Request) *http.Cookie {
	if c, err := r.Cookie(a.cookie); err == nil {
		a.sessions.take(c.Value)
	}
	return &http.Cookie{Name: a.cookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode}
}

// prove shows that whoever listens here knows the token, without telling it: the
// command line asks before it sends the token to a port that a stranger may have
// taken over after a crash.
func prove(token, nonce string) string {
	mac := hmac.New(sha256.New, []byte(token))
	mac.Write([]byte("mainstay admin " + nonce))
	return hex.EncodeToString(mac.Sum(nil))
}

// A keyring holds secrets that were given out, each for a while.
type keyring struct {
	life time.Duration
	max  int

	mu   sync.Mutex
	keys map[[32]byte]time.Time // hash → end of life
}

// issue makes a secret. When there are too many, the one that would end first is
// forgotten.
func (k *keyring) issue() string {
	secret := newSecret()
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		k.keys = map[[32]byte]time.Time{}
	}
	var first [32]byte
	for h, end := range k.keys {
		if !now.Before(end) {
			delete(k.keys, h)
		} else if e, ok := k.keys[first]; !ok || end.Before(e) {
			first = h
		}
	}
	if len(k.keys) >= k.max {
		delete(k.keys, first)
	}
	k.keys[sha256.Sum256([]byte(secret))] = now.Add(k.life)
	return secret
}

func (k *keyring) has(secret string) bool {
	hash := sha256.Sum256([]byte(secret))
	k.mu.Lock()
	defer k.mu.Unlock()
	end, ok := k.keys[hash]
	return ok && time.Now().Before(end)
}

// take reports whether the secret is good, and makes it useless.
func (k *keyring) take(secret string) bool {
	hash := sha256.Sum256([]byte(secret))
	k.mu.Lock()
	defer k.mu.Unlock()
	end, ok := k.keys[hash]
	delete(k.keys, hash)
	return ok && time.Now().Before(end)
}
