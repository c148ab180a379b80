// Package login is the server's side of PostgreSQL's authentication methods: it
// asks a client to prove who it is and checks the answer
// (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP).
//
// Only the pooler imports it. It does not know the connection: a [Channel] carries
// its questions.
package login

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"mainstay.dev/mainstay/pooler/internal/credential"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// A Channel carries authentication requests to a client, and its answers back. Its
// deadline is the login's.
type Channel interface {
	// Ask sends a request and returns the body of the answer, valid until the next.
	Ask(request []byte) ([]byte, error)
	// Tell sends a request that needs no answer.
	Tell(request []byte) error
}

// ErrProtocol is wrapped by errors that mean that the client said something that
// the protocol does not allow.
var ErrProtocol = errors.New("malformed authentication message")

// Authentication requests
// (https://www.postgresql.org/docs/current/protocol-message-formats.html).
const (
	askPassword     = 3
	askMD5          = 5
	askSASL         = 10
	askSASLContinue = 11
	askSASLFinal    = 12
)

func request(kind uint32, data ...[]byte) []byte {
	return pgwire.Append(nil, pgwire.Authentication, append([][]byte{binary.BigEndian.AppendUint32(nil, kind)}, data...)...)
}

// Password asks for the password in the clear. The keys of this and the others are what
// a client that may log in has thereby revealed.
func Password(ch Channel, user string, c *credential.Credential) (keys credential.Keys, ok bool, err error) {
	body, err := ch.Ask(request(askPassword))
	if err != nil {
		return keys, false, err
	}
	given, _, ok := pgwire.String(body)
	if !ok || !c.CheckPassword(user, string(given)) {
		return keys, false, nil
	}
	return credential.Keys{Password: string(given)}, true, nil
}

// MD5 asks for the hash that PostgreSQL calls md5.
func MD5(ch Channel, c *credential.Credential) (keys credential.Keys, ok bool, err error) {
	var salt [4]byte
	_, _ = rand.Read(salt[:]) // never fails
	body, err := ch.Ask(request(askMD5, salt[:]))
	if err != nil {
		return keys, false, err
	}
	answer, _, ok := pgwire.String(body)
	if !ok || !c.CheckMD5(string(answer), salt) {
		return keys, false, nil
	}
	return c.Hash(), true, nil
}

// SCRAM leads a SCRAM-SHA-256 login, or SCRAM-SHA-256-PLUS if the client chooses it
// and binding, the connection's tls-server-end-point, is not nil.
func SCRAM(ch Channel, c *credential.Credential, binding []byte) (keys credential.Keys, ok bool, err error) {
	offer := credential.Mechanism + "\x00\x00"
	if binding != nil {
		offer = credential.MechanismPlus + "\x00" + offer
	}
	body, err := ch.Ask(request(askSASL, []byte(offer)))
	if err != nil {
		return keys, false, err
	}
	chosen, rest, ok := pgwire.String(body)
	if !ok || len(rest) < 4 || int(binary.BigEndian.Uint32(rest)) != len(rest)-4 {
		return keys, false, fmt.Errorf("%w: SASLInitialResponse", ErrProtocol)
	}
	exchange := c.Conversation(binding)
	first, err := exchange.First(string(chosen), string(rest[4:]))
	if err != nil {
		return keys, false, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if body, err = ch.Ask(request(askSASLContinue, []byte(first))); err != nil {
		return keys, false, err
	}
	final, keys, ok := exchange.Last(string(body))
	if !ok {
		return keys, false, nil
	}
	return keys, true, ch.Tell(request(askSASLFinal, []byte(final)))
}
