package credential

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	_ "crypto/sha512" // for certificates that are signed with it
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// The mechanisms of https://www.postgresql.org/docs/current/sasl-authentication.html.
const (
	Mechanism     = "SCRAM-SHA-256"
	MechanismPlus = "SCRAM-SHA-256-PLUS"
)

// Keys are what a login reveals to a server that can check it: enough to log in in the
// client's name, at a server that keeps the same secret. They are as secret as the
// password. The zero value is a login that reveals nothing.
type Keys struct {
	Client, Server []byte // by SCRAM-SHA-256: good for that, with the same verifier
	Password       string // that was sent as it is: good for everything
	MD5            string // md5(password user) in hex: good for md5
}

// Kind names the login that revealed them: scram-sha-256, password or md5; "" if none
// did.
func (k Keys) Kind() string {
	switch {
	case k.Client != nil:
		return "scram-sha-256"
	case k.Password != "":
		return "password"
	case k.MD5 != "":
		return "md5"
	}
	return ""
}

// Equal reports whether the keys are the same. It takes the same time whatever differs.
func (k Keys) Equal(o Keys) bool {
	return hmac.Equal(k.Client, o.Client) && hmac.Equal([]byte(k.Password+"\x00"+k.MD5), []byte(o.Password+"\x00"+o.MD5))
}

// An Exchange is the server's side of one SCRAM-SHA-256 login (RFC 5802, RFC 7677).
// PostgreSQL's clients leave the user's name to the startup packet, so the one here
// is ignored.
type Exchange struct {
	credential *Credential
	binding    []byte // tls-server-end-point of the connection; nil: PLUS was not offered
	gs2        string
	bare       string // client-first-message-bare
	first      string // server-first-message
	nonce      string
}

// Conversation begins a login. binding is what a client that binds the login to
// the TLS connection must know of our certificate; nil if it cannot.
func (c *Credential) Conversation(binding []byte) *Exchange {
	return &Exchange{credential: c, binding: binding}
}

var errMessage = errors.New("malformed SCRAM message")

// First takes the client's first message and returns the answer. mechanism is the
// one that the client chose.
func (e *Exchange) First(mechanism, message string) (answer string, err error) {
	flag, rest, ok1 := strings.Cut(message, ",")
	authzid, bare, ok2 := strings.Cut(rest, ",")
	if !ok1 || !ok2 || authzid != "" {
		return "", errMessage
	}
	switch {
	case mechanism == MechanismPlus && e.binding != nil && flag == "p=tls-server-end-point":
	case mechanism == MechanismPlus:
		return "", fmt.Errorf("%w: channel binding %q is not possible here", errMessage, flag)
	case flag == "y" && e.binding != nil:
		return "", errors.New("the client believes that the server cannot bind to the TLS connection, and it can: somebody may have changed what it was told")
	case mechanism != Mechanism || flag != "n" && flag != "y":
		return "", errMessage
	}
	fields := strings.SplitN(bare, ",", 3)
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "n=") || !strings.HasPrefix(fields[1], "r=") || len(fields[1]) < 10 {
		return "", errMessage
	}
	for _, c := range []byte(fields[1]) {
		if c < 0x21 || c > 0x7e {
			return "", errMessage
		}
	}
	e.gs2, e.bare = flag+",,", bare
	e.nonce = fields[1][2:] + rand.Text()
	stored := &e.credential.scram
	e.first = fmt.Sprintf("r=%s,s=%s,i=%d", e.nonce, base64.StdEncoding.EncodeToString([]byte(stored.Salt)), stored.Iters)
	return e.first, nil
}

// Last takes the client's last message. ok reports whether the client knows the
// password; then answer is what proves the same of us. The work is the same
// whatever is wrong.
func (e *Exchange) Last(message string) (answer string, keys Keys, ok bool) {
	cut := strings.LastIndex(message, ",p=")
	if cut < 0 {
		return "", keys, false
	}
	unproven := message[:cut]
	proof, err := base64.StdEncoding.DecodeString(message[cut+3:])
	if err != nil || len(proof) != sha256.Size {
		return "", keys, false
	}
	fields := strings.SplitN(unproven, ",", 3)
	bound := e.gs2
	if strings.HasPrefix(e.gs2, "p=") {
		bound += string(e.binding)
	}
	want := "c=" + base64.StdEncoding.EncodeToString([]byte(bound))
	ok = len(fields) >= 2 && subtle.ConstantTimeCompare([]byte(fields[0]), []byte(want)) == 1 && fields[1] == "r="+e.nonce
	stored := &e.credential.scram
	message = e.bare + "," + e.first + "," + unproven
	signature := sign(stored.StoredKey, message)
	subtle.XORBytes(proof, proof, signature)
	hash := sha256.Sum256(proof)
	ok = subtle.ConstantTimeCompare(hash[:], stored.StoredKey) == 1 && ok && !e.credential.doomed
	answer = "v=" + base64.StdEncoding.EncodeToString(sign(stored.ServerKey, message))
	if !ok {
		return "", keys, false
	}
	return answer, Keys{Client: proof, Server: stored.ServerKey}, true
}

func sign(key []byte, message string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(message))
	return mac.Sum(nil)
}

// A Proof is the client's side of one SCRAM-SHA-256 login with keys instead of a
// password.
type Proof struct {
	keys                   Keys
	gs2, bare, bound, last string
	nonce                  string
}

// NewProof begins a login. binding is the server's tls-server-end-point, nil if
// there is no TLS or the server does not offer PLUS; encrypted whether there is TLS.
func NewProof(keys Keys, binding []byte) (p *Proof, first string) {
	p = &Proof{keys: keys, gs2: "n,,", nonce: rand.Text()}
	if binding != nil {
		p.gs2 = "p=tls-server-end-point,,"
	}
	p.bound = "c=" + base64.StdEncoding.EncodeToString(append([]byte(p.gs2), binding...))
	p.bare = "n=,r=" + p.nonce
	return p, p.gs2 + p.bare
}

// Answer answers the server's first message.
func (p *Proof) Answer(message string) (string, error) {
	fields := strings.SplitN(message, ",", 4)
	if len(fields) < 3 || !strings.HasPrefix(fields[0], "r="+p.nonce) || len(fields[0]) <= len(p.nonce)+2 {
		return "", errMessage
	}
	unproven := p.bound + "," + fields[0]
	p.last = p.bare + "," + message + "," + unproven
	hash := sha256.Sum256(p.keys.Client)
	proof := sign(hash[:], p.last)
	subtle.XORBytes(proof, proof, p.keys.Client)
	return unproven + ",p=" + base64.StdEncoding.EncodeToString(proof), nil
}

// Check checks the server's last message.
func (p *Proof) Check(message string) error {
	want := "v=" + base64.StdEncoding.EncodeToString(sign(p.keys.Server, p.last))
	if p.last == "" || subtle.ConstantTimeCompare([]byte(message), []byte(want)) != 1 {
		return errors.New("the server did not prove that it knows the password")
	}
	return nil
}

// EndPoint is the tls-server-end-point channel binding of a certificate (RFC 5929,
// section 4.1); nil if its signature has no hash to take.
func EndPoint(cert *x509.Certificate) []byte {
	hash := crypto.SHA256 // also where the signature's is MD5 or SHA-1
	switch cert.SignatureAlgorithm {
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384, x509.SHA384WithRSAPSS:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512, x509.SHA512WithRSAPSS:
		hash = crypto.SHA512
	case x509.PureEd25519, x509.UnknownSignatureAlgorithm:
		return nil
	}
	h := hash.New()
	h.Write(cert.Raw)
	return h.Sum(nil)
}
