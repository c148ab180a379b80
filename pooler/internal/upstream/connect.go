package upstream

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

// bufferSize is that of the read buffer that a connection keeps for its life. It
// holds all but the longest errors, and many rows.
const bufferSize = 16 << 10

// Dial opens a stream to an address, as net.Dialer.DialContext does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// A Conn is a connection that has logged in and is ready for a query.
type Conn struct {
	net.Conn
	Raw    net.Conn // below TLS; the same as Conn without it
	In     *pgwire.Reader
	PID    uint32
	Host   Host
	Key    []byte         // for a cancel request
	Params []pgwire.Param // what the server reported, in its order
}

// Encrypted reports whether the connection uses TLS.
func (c *Conn) Encrypted() bool { return c.Conn != c.Raw }

// Refused is an error that PostgreSQL itself answered at login.
type Refused struct {
	SQLState, Message string
}

func (e *Refused) Error() string { return e.Message + " (" + e.SQLState + ")" }

// Passing reports whether the refusal is one that time mends: the server is
// starting up, shutting down, or full.
func (e *Refused) Passing() bool {
	return e.SQLState == "57P03" || e.SQLState == "53300" || e.SQLState == "57P01" || e.SQLState == "57P02"
}

// Passing reports whether an error of Connect is one that time mends, such as a
// server that is being restarted, and not one that somebody must mend, such as a
// wrong password.
func Passing(err error) bool {
	if refused, ok := errors.AsType[*Refused](err); ok {
		return refused.Passing()
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return false
	}
	return !errors.Is(err, errNoTLS)
}

// Connect dials, negotiates TLS as the target's SSLMode says, and logs in. ctx
// limits all of it. Of several hosts it takes the first that accepts us and is as
// target_session_attrs wants it; if there is none the error names all.
func (t *Target) Connect(ctx context.Context, dial Dial) (*Conn, error) {
	hosts := t.Hosts
	if t.Shuffle {
		hosts = slices.Clone(hosts)
		rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	}
	var errs []error
	for i, h := range hosts {
		// None may use up what the ones behind it need.
		limited, cancel := ctx, context.CancelFunc(func() {})
		if until, ok := ctx.Deadline(); ok && i < len(hosts)-1 {
			limited, cancel = context.WithTimeout(ctx, time.Until(until)/time.Duration(len(hosts)-i))
		}
		c, err := t.connectTo(limited, dial, h)
		cancel()
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 1 {
		return nil, errs[0]
	}
	return nil, errors.Join(errs...)
}

func (t *Target) connectTo(ctx context.Context, dial Dial, h Host) (*Conn, error) {
	var first error
	for i, encrypt := range t.attempts(h) {
		c, err := t.connect(ctx, dial, h, encrypt)
		if err == nil {
			return c, nil
		}
		if i == 0 {
			first = err
		}
		// Only the other way of encryption could go better than a refusal or a
		// failed handshake; a dead server is dead both ways.
		var refused *Refused
		if !errors.As(err, &refused) && !errors.Is(err, errHandshake) {
			return nil, err
		}
		if refused != nil && refused.SQLState != "28000" { // 28000: pg_hba.conf has no line for this
			return nil, err
		}
	}
	return nil, first
}

// How a connection is encrypted.
type encryption uint8

const (
	never encryption = iota
	ifOffered
	always
)

func (t *Target) attempts(h Host) []encryption {
	if h.Network == "unix" {
		return []encryption{never}
	}
	switch t.SSL {
	case Disable:
		return []encryption{never}
	case Allow:
		return []encryption{never, always}
	case Prefer:
		return []encryption{ifOffered, never}
	}
	return []encryption{always}
}

var (
	errHandshake = errors.New("TLS handshake")
	errNoTLS     = errors.New("no TLS")
)

func (t *Target) connect(ctx context.Context, dial Dial, h Host, encrypt encryption) (c *Conn, err error) {
	raw, err := dial(ctx, h.Network, h.Address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", h.Address, err)
	}
	stop := interruptOn(ctx, raw)
	defer func() {
		stop()
		if err == nil {
			err = raw.SetDeadline(time.Time{})
		}
		if err != nil {
			raw.Close()
			c = nil
			if cause := context.Cause(ctx); cause != nil {
				err = fmt.Errorf("log in to %s: %w (%w)", h.Address, err, cause)
			}
		}
	}()
	conn, err := t.secure(ctx, raw, h, encrypt)
	if err != nil {
		return nil, err
	}
	c = &Conn{Conn: conn, Raw: raw, In: pgwire.NewReader(conn, bufferSize), Host: h}
	if err := t.login(c); err != nil {
		return nil, err
	}
	return c, t.suits(c)
}

// suits reports whether a server is what target_session_attrs asks for, by what
// PostgreSQL 14 and later report at login.
func (t *Target) suits(c *Conn) error {
	if t.Wants == "" {
		return nil
	}
	told := map[string]string{}
	for _, p := range c.Params {
		told[p.Name] = p.Value
	}
	standby, known := told["in_hot_standby"]
	readOnly := standby == "on" || told["default_transaction_read_only"] == "on"
	fits := map[string]bool{
		"read-write": !readOnly, "read-only": readOnly, "primary": standby != "on", "standby": standby == "on",
	}[t.Wants]
	switch {
	case !known:
		return fmt.Errorf("%s does not tell whether it is a standby; target_session_attrs needs PostgreSQL 14", c.Host.Address)
	case !fits:
		return &Refused{SQLState: "57P03", Message: fmt.Sprintf("%s is not %s, which target_session_attrs asks for", c.Host.Address, t.Wants)}
	}
	return nil
}

// interruptOn ends what conn does when ctx ends. The returned function undoes it
// and waits until the interruption, if it began, is over.
func interruptOn(ctx context.Context, conn net.Conn) (stop func()) {
	done := make(chan struct{})
	undo := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = conn.SetDeadline(time.Unix(1, 0)) // a closed connection is as good
	})
	return func() {
		if !undo() {
			<-done
		}
	}
}

// secure asks for TLS if it shall be used. It reads the one byte of the answer by
// itself, so that nothing slips in before the handshake (CVE-2021-23222).
func (t *Target) secure(ctx context.Context, raw net.Conn, h Host, encrypt encryption) (net.Conn, error) {
	if encrypt == never {
		return raw, nil
	}
	if t.Direct {
		return t.handshake(ctx, raw, h)
	}
	if _, err := raw.Write(pgwire.AppendTLSRequest(nil)); err != nil {
		return nil, fmt.Errorf("ask %s for TLS: %w", h.Address, err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(raw, answer[:]); err != nil {
		return nil, fmt.Errorf("ask %s for TLS: %w", h.Address, err)
	}
	switch {
	case answer[0] == 'S':
	case answer[0] == 'N' && encrypt == ifOffered:
		return raw, nil
	case answer[0] == 'N':
		return nil, fmt.Errorf("%w: %s refuses it, and sslmode=%s asks for it", errNoTLS, h.Address, t.SSL)
	default:
		return nil, fmt.Errorf("%s answered the request for TLS with byte %#x: is it PostgreSQL?", h.Address, answer[0])
	}
	return t.handshake(ctx, raw, h)
}

func (t *Target) handshake(ctx context.Context, raw net.Conn, h Host) (net.Conn, error) {
	if sock, ok := raw.(*loop.Conn); ok {
		raw = loop.NewCarrier(sock, sock, nil)
	}
	conn := tls.Client(raw, t.tlsConfig(h))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("%w with %s: %w", errHandshake, h.Address, err)
	}
	if t.Direct && conn.ConnectionState().NegotiatedProtocol != "postgresql" {
		return nil, fmt.Errorf("%w with %s: it does not speak PostgreSQL there (ALPN); sslnegotiation=direct needs PostgreSQL 17", errHandshake, h.Address)
	}
	return conn, nil
}

// login sends the startup packet and answers what the server asks until it is
// ready for a query.
func (t *Target) login(c *Conn) error {
	params := append([]pgwire.Param{{Name: "user", Value: t.User}, {Name: "database", Value: t.Database}}, t.Settings...)
	if _, err := c.Write(pgwire.AppendStartup(nil, params)); err != nil {
		return fmt.Errorf("log in to %s: %w", c.Host.Address, err)
	}
	auth := authentication{t: t, c: c}
	for {
		typ, body, err := c.In.Next()
		if err != nil {
			return fmt.Errorf("log in to %s: %w", c.Host.Address, err)
		}
		switch typ {
		case pgwire.Authentication:
			err = auth.answer(body)
		case pgwire.ParameterStatus:
			err = c.note(body)
		case pgwire.BackendKeyData:
			if len(body) < 8 {
				return fmt.Errorf("log in to %s: malformed BackendKeyData", c.Host.Address)
			}
			c.PID, c.Key = binary.BigEndian.Uint32(body), append([]byte(nil), body[4:]...)
		case pgwire.ErrorResponse:
			return fmt.Errorf("log in to %s as %s: %w", c.Host.Address, t.User, refusal(body))
		case pgwire.ReadyForQuery:
			return auth.finished()
		case pgwire.NoticeResponse, pgwire.NegotiateProto:
		default:
			return fmt.Errorf("log in to %s: unexpected message %q", c.Host.Address, typ)
		}
		if err != nil {
			return fmt.Errorf("log in to %s as %s: %w", c.Host.Address, t.User, err)
		}
	}
}

func refusal(body []byte) *Refused {
	return &Refused{SQLState: string(pgwire.Field(body, 'C')), Message: string(pgwire.Field(body, 'M'))}
}

// maxParams bounds what a server may report at login.
const maxParams = 1000

func (c *Conn) note(body []byte) error {
	name, value, _, ok := pgwire.Strings(body)
	if !ok || len(c.Params) == maxParams {
		return errors.New("malformed ParameterStatus")
	}
	c.Params = append(c.Params, pgwire.Param{Name: string(name), Value: string(value)})
	return nil
}

var errTalks = errors.New("it answered, which PostgreSQL does not")

// Cancel asks the server to cancel what connection c is doing. It returns when the
// server has taken the request: by then the signal has been sent to the backend,
// or the request was void. After an error the signal may still come.
func (t *Target) Cancel(ctx context.Context, dial Dial, c *Conn) error {
	raw, err := dial(ctx, c.Host.Network, c.Host.Address)
	if err != nil {
		return fmt.Errorf("dial %s to cancel: %w", c.Host.Address, err)
	}
	defer raw.Close()
	stop := interruptOn(ctx, raw)
	defer stop()
	encrypt := never
	if c.Encrypted() {
		encrypt = always
	}
	conn, err := t.secure(ctx, raw, c.Host, encrypt)
	if err != nil {
		return err
	}
	if _, err := conn.Write(pgwire.AppendCancel(nil, c.PID, c.Key)); err != nil {
		return fmt.Errorf("send a cancel request to %s: %w", c.Host.Address, err)
	}
	// The server closes the connection once it has signalled the backend.
	var none [1]byte
	_, err = conn.Read(none[:])
	switch {
	case context.Cause(ctx) != nil:
		err = context.Cause(ctx)
	case errors.Is(err, io.EOF):
		return nil
	}
	return fmt.Errorf("wait for %s to take a cancel request: %w", c.Host.Address, cmp.Or(err, errTalks))
}
