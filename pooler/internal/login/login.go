// Package login is the server's side of PostgreSQL's authentication methods: it
// asks a client to prove who it is and checks the answer
// (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP).
//
// Only the pooler imports it. It does not know the connection: who leads a [Dialogue]
// carries its requests to the client and the answers back.
package login

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"mainstay.dev/mainstay/pooler/internal/credential"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// A Dialogue is one login. It is not safe for concurrent use.
type Dialogue struct {
	credential *credential.Credential
	next       func(*Dialogue, []byte) (request []byte, err error) // nil: it is over
	user       string                                              // for a password
	salt       [4]byte                                             // for md5
	exchange   *credential.Exchange                                // for SCRAM
	keys       credential.Keys
	ok         bool
}

// Next takes the client's answer, the body of its message, and returns the next request.
// Once it is [Dialogue.Over] that needs no answer, and may be nil.
func (d *Dialogue) Next(answer []byte) (request []byte, err error) {
	next := d.next
	d.next = nil
	return next(d, answer)
}

// Over reports whether the client has no more to say.
func (d *Dialogue) Over() bool { return d.next == nil }

// Outcome tells, when it is over, whether the client has proved who it is, and what one that has
// revealed by it.
func (d *Dialogue) Outcome() (keys credential.Keys, ok bool) { return d.keys, d.ok }

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

// Password asks for the password in the clear.
func Password(user string, c *credential.Credential) (d *Dialogue, request []byte) {
	return &Dialogue{credential: c, user: user, next: (*Dialogue).password}, ask(askPassword)
}

func (d *Dialogue) password(answer []byte) ([]byte, error) {
	given, _, ok := pgwire.String(answer)
	if d.ok = ok && d.credential.CheckPassword(d.user, string(given)); d.ok {
		d.keys = credential.Keys{Password: string(given)}
	}
	return nil, nil
}

// MD5 asks for the hash that PostgreSQL calls md5.
func MD5(c *credential.Credential) (d *Dialogue, request []byte) {
	d = &Dialogue{credential: c, next: (*Dialogue).md5}
	_, _ = rand.Read(d.salt[:]) // never fails
	return d, ask(askMD5, d.salt[:])
}

func (d *Dialogue) md5(answer []byte) ([]byte, error) {
	given, _, ok := pgwire.String(answer)
	if d.ok = ok && d.credential.CheckMD5(string(given), d.salt); d.ok {
		d.keys = d.credential.Hash()
	}
	return nil, nil
}

// SCRAM leads a SCRAM-SHA-256 login, or SCRAM-SHA-256-PLUS if the client chooses it
// and binding, the connection's tls-server-end-point, is not nil.
func SCRAM(c *credential.Credential, binding []byte) (d *Dialogue, request []byte) {
	offer := credential.Mechanism + "\x00\x00"
	if binding != nil {
		offer = credential.MechanismPlus + "\x00" + offer
	}
	return &Dialogue{exchange: c.Conversation(binding), next: (*Dialogue).scramFirst}, ask(askSASL, []byte(offer))
}

func (d *Dialogue) scramFirst(answer []byte) ([]byte, error) {
	chosen, rest, ok := pgwire.String(answer)
	if !ok || len(rest) < 4 || int(binary.BigEndian.Uint32(rest)) != len(rest)-4 {
		return nil, fmt.Errorf("%w: SASLInitialResponse", ErrProtocol)
	}
	first, err := d.exchange.First(string(chosen), string(rest[4:]))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	d.next = (*Dialogue).scramLast
	return ask(askSASLContinue, []byte(first)), nil
}

func (d *Dialogue) scramLast(answer []byte) ([]byte, error) {
	final, keys, ok := d.exchange.Last(string(answer))
	if !ok {
		return nil, nil
	}
	d.keys, d.ok = keys, true
	return ask(askSASLFinal, []byte(final)), nil
}

func ask(kind uint32, data ...[]byte) []byte {
	return pgwire.Append(nil, pgwire.Authentication, append([][]byte{binary.BigEndian.AppendUint32(nil, kind)}, data...)...)
}
