package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"
	"time"
)

// Header is the header in which the edge tells the app who asks, sealed. The app
// may forward it as it is to the Claude plane and to limits/check. What clients
// send in it never reaches the app.
const Header = "Mainstay-Identity"

// maxSealed bounds what is opened; three ids of the greatest length fit.
const maxSealed = 8 << 10

// A Seal makes and opens identities that pass through the app: what was sealed
// cannot be altered, and holds for a while only. It is no secret from the app,
// which may read it: v1, the JSON of [Sealed] in base64url, and the seal, with dots
// between. A Seal is safe for concurrent use.
type Seal struct {
	key, names []byte

	mu         sync.RWMutex
	young, old map[Sealed]closed // by what they say, but for when they expire
}

// closed is a value that is given out until half of its life is over.
type closed struct {
	text  string
	fresh time.Time
}

// maxClosed is how many values are kept in each of two generations.
const maxClosed = 4096

// NewSeal returns a seal with a secret, of 32 bytes or more.
func NewSeal(secret []byte) *Seal {
	return &Seal{key: derive(secret, "mainstay identity seal v1"), names: derive(secret, "mainstay identity names v1")}
}

// derive makes a key for one purpose of a secret.
func derive(secret []byte, purpose string) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(purpose))
	return mac.Sum(nil)
}

// Sealed is what stands in the header.
type Sealed struct {
	User      string `json:"user,omitempty"`
	Workspace string `json:"workspace,omitempty"`
	Tier      string `json:"tier,omitempty"`
	Key       string `json:"key,omitempty"`
	Step      string `json:"step,omitempty"` // of the ladder of degradation, such as cheaper
	Expires   int64  `json:"exp"`            // Unix time
}

const sealVersion = "v1."

// For seals v, to hold for between half of life and all of it: whoever comes again
// within the first half gets the same value.
func (s *Seal) For(v Sealed, life time.Duration) string {
	now := time.Now()
	v.Expires = 0
	s.mu.RLock()
	c, known := s.young[v]
	if !known {
		c, known = s.old[v]
	}
	s.mu.RUnlock()
	if known && now.Before(c.fresh) {
		return c.text
	}
	key := v
	v.Expires = now.Add(life).Unix()
	c = closed{s.Close(v), now.Add(life / 2)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.young == nil || len(s.young) >= maxClosed {
		s.old, s.young = s.young, map[Sealed]closed{}
	}
	s.young[key] = c
	return c.text
}

// Close seals s, to hold until it expires.
func (s *Seal) Close(v Sealed) string {
	b, _ := json.Marshal(v) // strings and a number: cannot fail
	text := make([]byte, 0, len(sealVersion)+base64.RawURLEncoding.EncodedLen(len(b))+1+22)
	text = append(text, sealVersion...)
	text = base64.RawURLEncoding.AppendEncode(text, b)
	mac := s.mac(text)
	text = append(text, '.')
	return string(base64.RawURLEncoding.AppendEncode(text, mac[:]))
}

// mac is half of an HMAC-SHA256, which nobody guesses in ten minutes.
func (s *Seal) mac(text []byte) (mac [16]byte) {
	h := hmac.New(sha256.New, s.key)
	h.Write(text)
	var sum [sha256.Size]byte
	copy(mac[:], h.Sum(sum[:0]))
	return mac
}

// Open returns what text says, or why it is not believed.
func (s *Seal) Open(text string, now time.Time) (v Sealed, reason Reason) {
	i := strings.LastIndexByte(text, '.')
	if len(text) > maxSealed || i < len(sealVersion) || !strings.HasPrefix(text, sealVersion) {
		return Sealed{}, Malformed
	}
	given, err := base64.RawURLEncoding.DecodeString(text[i+1:])
	if err != nil {
		return Sealed{}, Malformed
	}
	if mac := s.mac([]byte(text[:i])); !hmac.Equal(given, mac[:]) {
		return Sealed{}, Signature
	}
	b, err := base64.RawURLEncoding.DecodeString(text[len(sealVersion):i])
	if err != nil || json.Unmarshal(b, &v) != nil {
		return Sealed{}, Malformed
	}
	if now.Unix() >= v.Expires {
		return Sealed{}, Expired
	}
	return v, ""
}

// pseudonym stands for an id in logs: always the same for the same id, and of no
// use to whoever has not got the secret.
func (s *Seal) pseudonym(kind byte, id string) string {
	if id == "" {
		return ""
	}
	h := hmac.New(sha256.New, s.names)
	h.Write(append([]byte{kind}, id...))
	var sum [sha256.Size]byte
	return "h:" + base64.RawURLEncoding.EncodeToString(h.Sum(sum[:0])[:12])
}
