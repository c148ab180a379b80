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
	"strconv"

	"github.com/xdg-go/scram"

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
	t     *Target
	c     *Conn
	scram *scram.ClientConversation
	ok    bool
}

// finished is asked when the server says that it is ready.
func (a *authentication) finished() error {
	if !a.ok {
		return errors.New("the server is ready without having authenticated us")
	}
	return nil
}

func (a *authentication) answer(body []byte) error {
	if len(body) < 4 {
		return errors.New("malformed authentication request")
	}
	kind, data := binary.BigEndian.Uint32(body), body[4:]
	switch kind {
	case authOK:
		if a.scram != nil && !a.scram.Valid() {
			return errors.New("the server did not prove that it knows the password")
		}
		a.ok = true
		return nil
	case authCleartext:
		return a.send([]byte(a.t.password), []byte{0})
	case authMD5:
		if len(data) != 4 {
			return errors.New("malformed md5 authentication request")
		}
		return a.send([]byte(md5Answer(a.t.User, a.t.password, data)), []byte{0})
	case authSASL:
		return a.beginSCRAM(data)
	case authSASLContinue, authSASLFinal:
		return a.continueSCRAM(data, kind == authSASLFinal)
	}
	return fmt.Errorf("the server asks for authentication method %d, which Mainstay does not know; use scram-sha-256, md5 or password in pg_hba.conf", kind)
}

func (a *authentication) send(parts ...[]byte) error {
	_, err := a.c.Write(pgwire.Append(nil, pgwire.Password, parts...))
	return err
}

func md5Answer(user, password string, salt []byte) string {
	inner := md5.Sum([]byte(password + user))
	outer := md5.Sum(append([]byte(hex.EncodeToString(inner[:])), salt...))
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
	// The user's name is in the startup packet; PostgreSQL ignores it here.
	client, err := scram.SHA256.NewClient("", a.t.password, "")
	if err != nil { // not a text that SASLprep allows: PostgreSQL takes the bytes as they are
		if client, err = scram.SHA256.NewClientUnprepped("", a.t.password, ""); err != nil {
			return err
		}
	}
	client.WithMinIterations(1) // the server's scram_iterations decides
	name := mechanism
	conn, encrypted := a.c.Conn.(*tls.Conn)
	switch {
	case encrypted && plus:
		state := conn.ConnectionState()
		binding, err := scram.NewTLSServerEndpointBinding(&state)
		if err != nil {
			return fmt.Errorf("bind the login to the server's certificate: %w", err)
		}
		name, a.scram = mechanismPlus, client.NewConversationWithChannelBinding(binding)
	case encrypted:
		a.scram = client.NewConversationAdvertisingChannelBinding()
	case plain:
		a.scram = client.NewConversation()
	default:
		return errors.New("the server wants channel binding, which needs TLS; use sslmode=require")
	}
	first, err := a.scram.Step("")
	if err != nil {
		return err
	}
	length := binary.BigEndian.AppendUint32(nil, uint32(len(first)))
	return a.send([]byte(name), []byte{0}, length, []byte(first))
}

var iterations = regexp.MustCompile(`,i=([0-9]+)`)

func (a *authentication) continueSCRAM(data []byte, last bool) error {
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
