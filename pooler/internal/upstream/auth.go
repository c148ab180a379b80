package upstream

import (
	"bytes"
	"crypto/md5"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"

	"mainstay.dev/mainstay/pooler/internal/credential"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// Authentication requests
// (https://www.postgresql.org/docs/current/protocol-message-formats.html).
const (
	authOK           = 0
	authCleartext    = 3
	authMD5          = 5
	authSASL         = 10
	authSASLContinue = 11
	authSASLFinal    = 12
)

// maxIterations bounds the work that a server can make us do at login; PostgreSQL's
// default is 4096.
const maxIterations = 1_000_000

// authentication is our side of proving who we are.
type authentication struct {
	t      *Target
	c      *Conn
	scram  *scram.ClientConversation
	proof  *credential.Proof // with keys in the password's place
	ok     bool
	bound  bool // to the server's certificate
	proven bool // the server has shown that it knows our keys
	asked  bool // for anything
}

// finished is asked when the server says that it is ready.
func (a *authentication) finished() error {
	if !a.ok {
		return errors.New("the server is ready without having authenticated us")
	}
	return nil
}

// Methods, in require_auth's words.
const (
	methodNone     = "none"
	methodPassword = "password"
	methodMD5      = "md5"
	methodSCRAM    = "scram-sha-256"
)

// methodOf names what the server asks for, or that it asks for nothing at all; "" goes on with what it has asked for.
func (a *authentication) methodOf(kind uint32) string {
	switch kind {
	case authOK:
		if !a.asked {
			return methodNone
		}
	case authCleartext:
		return methodPassword
	case authMD5:
		return methodMD5
	case authSASL:
		return methodSCRAM
	}
	return ""
}

func (a *authentication) answer(body []byte) error {
	if len(body) < 4 {
		return errors.New("malformed authentication request")
	}
	kind, data := binary.BigEndian.Uint32(body), body[4:]
	if method := a.methodOf(kind); method != "" && a.t.Methods != nil && !slices.Contains(a.t.Methods, method) {
		return fmt.Errorf("the server asks for %s, and require_auth allows %s only", method, strings.Join(a.t.Methods, ", "))
	}
	a.asked = true
	switch kind {
	case authOK:
		if a.t.Binding == "require" && !a.bound {
			return errors.New("the server does not bind the login to the TLS connection, and channel_binding=require asks for it")
		}
		if a.scram != nil && !a.scram.Valid() || a.proof != nil && !a.proven {
			return errors.New("the server did not prove that it knows the password")
		}
		a.ok = true
		return nil
	case authCleartext:
		if !a.c.Encrypted() && !a.c.Host.local() {
			return errors.New("the server asks for the password in the clear, and the connection is not encrypted; use sslmode=require")
		}
		if err := a.needPassword(); err != nil {
			return err
		}
		return a.send([]byte(a.t.password), []byte{0})
	case authMD5:
		if len(data) != 4 {
			return errors.New("malformed md5 authentication request")
		}
		if hash := a.t.keys.MD5; hash != "" {
			return a.send([]byte(saltMD5(hash, data)), []byte{0})
		}
		if err := a.needPassword(); err != nil {
			return err
		}
		return a.send([]byte(md5Answer(a.t.User, a.t.password, data)), []byte{0})
	case authSASL:
		return a.beginSCRAM(data)
	case authSASLContinue, authSASLFinal:
		return a.continueSCRAM(data, kind == authSASLFinal)
	}
	return fmt.Errorf("the server asks for authentication method %d, which Mainstay does not know; use scram-sha-256, md5 or password in pg_hba.conf", kind)
}

// needPassword refuses methods that a client's keys are no good for.
func (a *authentication) needPassword() error {
	if kind := a.t.keys.Kind(); kind != "" && a.t.keys.Password == "" {
		return fmt.Errorf("only what the client's login by %[1]s revealed is known, and the server asks for something else; use %[1]s in pg_hba.conf, or let the client log in by password", kind)
	}
	return nil
}

func (a *authentication) send(parts ...[]byte) error {
	_, err := a.c.Write(pgwire.Append(nil, pgwire.Password, parts...))
	return err
}

func md5Answer(user, password string, salt []byte) string {
	inner := md5.Sum([]byte(password + user))
	return saltMD5(hex.EncodeToString(inner[:]), salt)
}

// saltMD5 is md5Answer by what PostgreSQL keeps of the password.
func saltMD5(hash string, salt []byte) string {
	outer := md5.Sum(append([]byte(hash), salt...))
	return "md5" + hex.EncodeToString(outer[:])
}

// The mechanisms of https://www.postgresql.org/docs/current/sasl-authentication.html.
const (
	mechanism     = "SCRAM-SHA-256"
	mechanismPlus = "SCRAM-SHA-256-PLUS"
)

func (a *authentication) beginSCRAM(offered []byte) error {
	plain, plus := false, false
	for name, rest, ok := pgwire.String(offered); ok && len(name) > 0; name, rest, ok = pgwire.String(rest) {
		plain = plain || string(name) == mechanism
		plus = plus || string(name) == mechanismPlus
	}
	if !plain && !plus {
		return fmt.Errorf("the server offers only the SASL mechanisms %q", bytes.Split(offered, []byte{0}))
	}
	var binding *scram.ChannelBinding
	conn, encrypted := a.c.Conn.(*tls.Conn)
	if encrypted && plus && a.t.Binding != "disable" {
		state := conn.ConnectionState()
		found, err := scram.NewTLSServerEndpointBinding(&state)
		if err != nil {
			return fmt.Errorf("bind the login to the server's certificate: %w", err)
		}
		binding, a.bound = &found, true
	}
	if binding == nil && !plain {
		return errors.New("the server wants channel binding, which needs TLS; use sslmode=require")
	}
	if a.t.keys.Client != nil {
		return a.beginProof(binding)
	}
	if err := a.needPassword(); err != nil {
		return err
	}
	// The user's name is in the startup packet; PostgreSQL ignores it here.
	client, err := scram.SHA256.NewClient("", a.t.password, "")
	if err != nil { // not a text that SASLprep allows: PostgreSQL takes the bytes as they are
		if client, err = scram.SHA256.NewClientUnprepped("", a.t.password, ""); err != nil {
			return err
		}
	}
	client.WithMinIterations(1) // the server's scram_iterations decides
	name := mechanism
	switch {
	case binding != nil:
		name, a.scram = mechanismPlus, client.NewConversationWithChannelBinding(*binding)
	case encrypted && a.t.Binding != "disable":
		a.scram = client.NewConversationAdvertisingChannelBinding()
	default:
		a.scram = client.NewConversation()
	}
	first, err := a.scram.Step("")
	if err != nil {
		return err
	}
	return a.choose(name, first)
}

// choose answers with a mechanism and its first message.
func (a *authentication) choose(name, first string) error {
	length := binary.BigEndian.AppendUint32(nil, uint32(len(first)))
	return a.send([]byte(name), []byte{0}, length, []byte(first))
}

// beginProof is beginSCRAM with keys.
func (a *authentication) beginProof(binding *scram.ChannelBinding) error {
	name, data := mechanism, []byte(nil)
	if binding != nil {
		name, data = mechanismPlus, binding.Data
	}
	var first string
	a.proof, first = credential.NewProof(a.t.keys, data)
	return a.choose(name, first)
}

func (a *authentication) continueProof(data []byte, last bool) error {
	if last {
		err := a.proof.Check(string(data))
		a.proven = err == nil
		return err
	}
	answer, err := a.proof.Answer(string(data))
	if err != nil {
		return err
	}
	return a.send([]byte(answer))
}

var iterations = regexp.MustCompile(`,i=([0-9]+)`)

func (a *authentication) continueSCRAM(data []byte, last bool) error {
	if a.proof != nil {
		return a.continueProof(data, last)
	}
	if a.scram == nil {
		return errors.New("the server continues a SCRAM exchange that was never begun")
	}
	if m := iterations.FindSubmatch(data); m != nil {
		if n, err := strconv.Atoi(string(m[1])); err != nil || n > maxIterations {
			return fmt.Errorf("the server asks for %s SCRAM iterations; more than %d are refused", m[1], maxIterations)
		}
	}
	answer, err := a.scram.Step(string(data))
	if err != nil {
		return err
	}
	if last {
		return nil
	}
	return a.send([]byte(answer))
}
