// Package credential checks the passwords of the pooler's clients, without keeping
// or re-deriving them at login: what a login needs is computed once, when the
// configuration is compiled.
//
// Only the pooler imports it. A [Credential] is immutable and may be used by many
// logins at once.
package credential

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"
)

// Iterations for SCRAM: what RFC 7677 asks for a password that a person chose, and
// what a generated secret of 128 bits or more needs, which no dictionary holds.
const (
	Human     = 4096
	Generated = 1
)

// A Credential is what must be known to check one user's password.
type Credential struct {
	scram  scram.StoredCredentials
	md5    string // md5(password user) in hex; "" if only a SCRAM verifier is known
	doomed bool
}

// New derives the credential from a secret as it stands in the configuration: a
// password, or in its place what PostgreSQL keeps of one: a SCRAM verifier
// ("SCRAM-SHA-256$4096:…") or an md5 hash ("md5" and 32 hex digits).
func New(user, secret string, iterations int) (*Credential, error) {
	switch {
	case secret == "":
		return nil, errors.New("an empty password would never be accepted")
	case strings.HasPrefix(secret, "SCRAM-SHA-256$"):
		stored, err := parseVerifier(secret)
		return &Credential{scram: stored}, err
	case isMD5(secret):
		return &Credential{md5: secret[3:]}, nil
	}
	var salt [16]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return nil, err
	}
	stored, err := derive(secret, scram.KeyFactors{Salt: string(salt[:]), Iters: iterations})
	if err != nil {
		return nil, err
	}
	return &Credential{scram: stored, md5: hashMD5([]byte(secret + user))}, nil
}

func derive(password string, factors scram.KeyFactors) (stored scram.StoredCredentials, err error) {
	client, err := scram.SHA256.NewClient("", password, "")
	if err != nil { // SASLprep does not allow it: clients send the bytes as they are
		if client, err = scram.SHA256.NewClientUnprepped("", password, ""); err != nil {
			return stored, err
		}
	}
	return client.WithMinIterations(1).GetStoredCredentialsWithError(factors)
}

// Doomed is a credential that every password fails, for a user who does not exist:
// the exchange looks like any other, also when it is repeated. verifier: like one that
// is known by a SCRAM verifier alone, which is asked for and checked otherwise.
func Doomed(user string, key []byte, verifier bool) *Credential {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(user))
	sum := mac.Sum(nil)
	c := &Credential{doomed: true, scram: scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(sum[:16]), Iters: Human}, StoredKey: sum, ServerKey: sum,
	}}
	if !verifier {
		c.md5 = hex.EncodeToString(sum[:16])
	}
	return c
}

// SCRAM reports whether the credential can be checked by SCRAM-SHA-256.
func (c *Credential) SCRAM() bool { return len(c.scram.StoredKey) > 0 }

// MD5 reports whether the credential can be checked by md5.
func (c *Credential) MD5() bool { return c.md5 != "" }

// Hash is what md5 needs to know of the password; empty if only a SCRAM verifier is known.
func (c *Credential) Hash() Keys { return Keys{MD5: c.md5} }

// CheckPassword checks a password that was sent as it is. With a SCRAM verifier that
// costs its iterations, so callers bound how often.
func (c *Credential) CheckPassword(user, password string) bool {
	if c.md5 != "" {
		return subtle.ConstantTimeCompare([]byte(hashMD5([]byte(password+user))), []byte(c.md5)) == 1 && !c.doomed
	}
	if password == "" {
		return false
	}
	given, err := derive(password, c.scram.KeyFactors)
	return err == nil && subtle.ConstantTimeCompare(given.StoredKey, c.scram.StoredKey) == 1 && !c.doomed
}

// CheckMD5 checks the answer to an md5 request with this salt.
func (c *Credential) CheckMD5(answer string, salt [4]byte) bool {
	want := "md5" + hashMD5(append([]byte(c.md5), salt[:]...))
	return subtle.ConstantTimeCompare([]byte(answer), []byte(want)) == 1 && !c.doomed
}

func hashMD5(b []byte) string {
	sum := md5.Sum(b)
	return hex.EncodeToString(sum[:])
}

func isMD5(secret string) bool {
	digits, ok := strings.CutPrefix(secret, "md5")
	if !ok || len(digits) != 32 {
		return false
	}
	_, err := hex.DecodeString(digits)
	return err == nil && strings.ToLower(digits) == digits
}

// maxIterations bounds the work that a verifier can make us do; PostgreSQL lets every
// user choose the one of its own password.
const maxIterations = 1_000_000

// parseVerifier reads "SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>"
// (pg_authid.rolpassword).
func parseVerifier(text string) (stored scram.StoredCredentials, err error) {
	malformed := errors.New("malformed SCRAM verifier; copy it whole from pg_authid.rolpassword")
	parts := strings.Split(text, "$")
	if len(parts) != 3 {
		return stored, malformed
	}
	count, salt, ok1 := strings.Cut(parts[1], ":")
	storedKey, serverKey, ok2 := strings.Cut(parts[2], ":")
	if !ok1 || !ok2 {
		return stored, malformed
	}
	stored.Iters, err = strconv.Atoi(count)
	if err != nil || stored.Iters < 1 {
		return stored, malformed
	}
	if stored.Iters > maxIterations {
		return stored, fmt.Errorf("a SCRAM verifier of %d iterations: more than %d are refused", stored.Iters, maxIterations)
	}
	var fields [3][]byte
	for i, s := range []string{salt, storedKey, serverKey} {
		if fields[i], err = base64.StdEncoding.DecodeString(s); err != nil {
			return stored, fmt.Errorf("%w: %w", malformed, err)
		}
	}
	if len(fields[1]) != sha256.Size || len(fields[2]) != sha256.Size {
		return stored, malformed
	}
	stored.Salt, stored.StoredKey, stored.ServerKey = string(fields[0]), fields[1], fields[2]
	return stored, nil
}
