package credential

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/xdg-go/scram"
)

// login plays the client of a SCRAM exchange.
func login(t *testing.T, c *Credential, password string) bool {
	t.Helper()
	client, err := scram.SHA256.NewClientUnprepped("", password, "")
	if err != nil {
		t.Fatal(err)
	}
	ours := client.WithMinIterations(1).NewConversation()
	theirs, err := c.Conversation()
	if err != nil {
		t.Fatal(err)
	}
	message := ""
	for range 2 {
		if message, err = ours.Step(message); err != nil {
			return false
		}
		if message, err = theirs.Step(message); err != nil {
			return false
		}
	}
	_, err = ours.Step(message)
	return err == nil && theirs.Valid()
}

func md5Answer(user, password string, salt [4]byte) string {
	inner := md5.Sum([]byte(password + user))
	outer := md5.Sum(append([]byte(hex.EncodeToString(inner[:])), salt[:]...))
	return "md5" + hex.EncodeToString(outer[:])
}

func TestAPasswordIsAcceptedByItsOwnCredentialAlone(t *testing.T) {
	salt := [4]byte{1, 2, 3, 4}
	for _, password := range []string{"secret", "pässwörd", "a\u00a0b", "\xff\xfe", "🐘"} {
		for _, iterations := range []int{Human, Generated} {
			c, err := New("ann", password, iterations)
			if err != nil {
				t.Fatal(err)
			}
			if password != "a\u00a0b" && !login(t, c, password) { // SASLprep makes that one a space
				t.Errorf("%q is refused by scram", password)
			}
			if login(t, c, password+"x") {
				t.Errorf("%q is accepted by scram with another password", password)
			}
			if !c.CheckMD5(md5Answer("ann", password, salt), salt) || c.CheckMD5(md5Answer("bob", password, salt), salt) {
				t.Errorf("%q: md5 is wrong", password)
			}
		}
	}
}

func TestWhatPostgreSQLKeepsOfAPasswordServesInItsPlace(t *testing.T) {
	made, err := New("ann", "pencil", Human)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", made.scram.Iters, b64([]byte(made.scram.Salt)), b64(made.scram.StoredKey), b64(made.scram.ServerKey))
	c, err := New("ann", text, Human)
	if err != nil {
		t.Fatal(err)
	}
	if !login(t, c, "pencil") || login(t, c, "crayon") || c.MD5() {
		t.Error("the verifier is not what it was made from")
	}
	hashed, err := New("ann", "md5"+hashMD5([]byte("pencilann")), Human)
	if err != nil {
		t.Fatal(err)
	}
	salt := [4]byte{9}
	if !hashed.CheckMD5(md5Answer("ann", "pencil", salt), salt) || hashed.SCRAM() {
		t.Error("the md5 hash does not serve")
	}
}

func TestAMalformedVerifierIsRefused(t *testing.T) {
	for _, text := range []string{
		"", "SCRAM-SHA-256$", "SCRAM-SHA-256$4096:AAAA", "SCRAM-SHA-256$0:AAAA$AAAA:AAAA",
		"SCRAM-SHA-256$4096:AAAA$AAAA:AAAA", "SCRAM-SHA-256$x:AAAA$AAAA:AAAA", "SCRAM-SHA-256$4096:!$!:!",
	} {
		if _, err := New("ann", text, Human); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestAUserWhoDoesNotExistLooksLikeOneWhoDoes(t *testing.T) {
	key := []byte("key")
	c := Doomed("ghost", key)
	if login(t, c, "") || login(t, c, "ghost") {
		t.Error("a doomed login was accepted")
	}
	if Doomed("ghost", key).scram.Salt != c.scram.Salt || Doomed("other", key).scram.Salt == c.scram.Salt {
		t.Error("the salt must depend on the user alone")
	}
	if !c.SCRAM() || !c.MD5() {
		t.Error("a doomed credential must offer every method")
	}
}

func FuzzNew(f *testing.F) {
	f.Add("SCRAM-SHA-256$4096:c2FsdA==$" + strings.Repeat("A", 43) + "=:" + strings.Repeat("A", 43) + "=")
	f.Add("md5d41d8cd98f00b204e9800998ecf8427e")
	f.Add("a password")
	f.Fuzz(func(t *testing.T, secret string) {
		if c, err := New("ann", secret, Generated); err == nil && !c.SCRAM() && !c.MD5() {
			t.Errorf("%q can be checked by no method", secret)
		}
	})
}
