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
	_, ok := converse(t, c.Conversation(nil), Mechanism, client.WithMinIterations(1).NewConversation())
	return ok
}

// converse plays a whole exchange, and checks that both sides believe it or neither.
func converse(t *testing.T, theirs *Exchange, mechanism string, ours *scram.ClientConversation) (Keys, bool) {
	t.Helper()
	message, err := ours.Step("")
	if err != nil {
		t.Fatal(err)
	}
	if message, err = theirs.First(mechanism, message); err != nil {
		return Keys{}, false
	}
	if message, err = ours.Step(message); err != nil {
		return Keys{}, false
	}
	answer, keys, ok := theirs.Last(message)
	if !ok {
		return Keys{}, false
	}
	if _, err = ours.Step(answer); err != nil {
		t.Errorf("the client does not believe the server: %v", err)
	}
	return keys, true
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
	c := Doomed("ghost", key, false)
	if login(t, c, "") || login(t, c, "ghost") {
		t.Error("a doomed login was accepted")
	}
	if Doomed("ghost", key, false).scram.Salt != c.scram.Salt || Doomed("other", key, false).scram.Salt == c.scram.Salt {
		t.Error("the salt must depend on the user alone")
	}
	if !c.SCRAM() || !c.MD5() {
		t.Error("a doomed credential must offer every method")
	}
}

// plus returns a client that binds to a certificate whose binding has these bytes.
func plus(t *testing.T, password, binding string) *scram.ClientConversation {
	t.Helper()
	client, err := scram.SHA256.NewClientUnprepped("", password, "")
	if err != nil {
		t.Fatal(err)
	}
	return client.NewConversationWithChannelBinding(scram.ChannelBinding{Type: scram.ChannelBindingTLSServerEndpoint, Data: []byte(binding)})
}

func TestALoginIsBoundToTheCertificate(t *testing.T) {
	c, err := New("ann", "pencil", Human)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := converse(t, c.Conversation([]byte("ours")), MechanismPlus, plus(t, "pencil", "ours")); !ok {
		t.Error("a login that is bound to our certificate is refused")
	}
	if _, ok := converse(t, c.Conversation([]byte("ours")), MechanismPlus, plus(t, "pencil", "somebody's")); ok {
		t.Error("a login that is bound to another certificate is accepted")
	}
	if _, ok := converse(t, c.Conversation([]byte("ours")), MechanismPlus, plus(t, "crayon", "ours")); ok {
		t.Error("a wrong password is accepted")
	}
	if _, ok := converse(t, c.Conversation(nil), MechanismPlus, plus(t, "pencil", "ours")); ok {
		t.Error("binding without TLS is accepted")
	}
	client, err := scram.SHA256.NewClientUnprepped("", "pencil", "")
	if err != nil {
		t.Fatal(err)
	}
	// "y": the client was made to believe that we do not offer PLUS.
	if _, ok := converse(t, c.Conversation([]byte("ours")), Mechanism, client.NewConversationAdvertisingChannelBinding()); ok {
		t.Error("a downgrade is accepted")
	}
	if _, ok := converse(t, c.Conversation(nil), Mechanism, client.NewConversationAdvertisingChannelBinding()); !ok {
		t.Error("a client that could bind is refused where we cannot")
	}
}

func TestTheKeysOfALoginLogInElsewhere(t *testing.T) {
	c, err := New("ann", "pencil", Human)
	if err != nil {
		t.Fatal(err)
	}
	client, err := scram.SHA256.NewClientUnprepped("", "pencil", "")
	if err != nil {
		t.Fatal(err)
	}
	keys, ok := converse(t, c.Conversation(nil), Mechanism, client.NewConversation())
	if !ok {
		t.Fatal("refused")
	}
	for _, binding := range [][]byte{nil, []byte("theirs")} {
		mechanism := Mechanism
		if binding != nil {
			mechanism = MechanismPlus
		}
		proof, first := NewProof(keys, binding)
		server := c.Conversation(binding)
		message, err := server.First(mechanism, first)
		if err != nil {
			t.Fatal(err)
		}
		if message, err = proof.Answer(message); err != nil {
			t.Fatal(err)
		}
		answer, _, ok := server.Last(message)
		if !ok || proof.Check(answer) != nil {
			t.Errorf("binding %q: %v, %v", binding, ok, proof.Check(answer))
		}
		if proof.Check("v=AAAA") == nil {
			t.Error("an impostor is believed")
		}
	}
	other, err := New("ann", "pencil", Human) // the same password with another salt
	if err != nil {
		t.Fatal(err)
	}
	proof, first := NewProof(keys, nil)
	server := other.Conversation(nil)
	message, err := server.First(Mechanism, first)
	if err != nil {
		t.Fatal(err)
	}
	if message, err = proof.Answer(message); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := server.Last(message); ok {
		t.Error("keys serve for a verifier that they do not belong to")
	}
}

func TestAPasswordInTheClearIsCheckedAgainstAVerifierToo(t *testing.T) {
	made, err := New("ann", "pencil", Generated)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Credential{made, {scram: made.scram}} {
		if !c.CheckPassword("ann", "pencil") || c.CheckPassword("ann", "crayon") || c.CheckPassword("ann", "") {
			t.Error("wrong")
		}
	}
	if Doomed("ann", []byte("k"), false).CheckPassword("ann", "pencil") || Doomed("ann", []byte("k"), true).CheckPassword("ann", "pencil") {
		t.Error("doomed, and accepted")
	}
}

// PostgreSQL lets every user choose the verifier of its own password.
func TestAVerifierThatAsksForEndlessWorkIsRefused(t *testing.T) {
	key := base64.StdEncoding.EncodeToString(make([]byte, 32))
	if _, err := New("ann", "SCRAM-SHA-256$2147483647:c2FsdA==$"+key+":"+key, Human); err == nil || !strings.Contains(err.Error(), "2147483647") {
		t.Errorf("%v", err)
	}
}

func FuzzExchange(f *testing.F) {
	f.Add("n,,n=,r=0123456789", "c=biws,r=0123456789x,p=AAAA")
	f.Add("p=tls-server-end-point,,n=,r=0123456789", "")
	f.Add("y,,n=,r=0123456789,m=x", ",p=")
	c, err := New("ann", "pencil", Generated)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, first, last string) {
		for _, mechanism := range []string{Mechanism, MechanismPlus} {
			e := c.Conversation([]byte("binding"))
			_, _ = e.First(mechanism, first)
			if _, _, ok := e.Last(last); ok {
				t.Fatalf("%q and %q log in", first, last)
			}
		}
	})
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
