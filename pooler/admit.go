package pooler

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"mainstay.dev/mainstay/pooler/internal/credential"
	"mainstay.dev/mainstay/pooler/internal/login"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/telemetry"
)

// admit logs the client in: who is it, may it enter. It returns errLeft for a
// connection that was no login.
func (s *session) admit() error {
	policy := s.pooler.policy.Load()
	if err := s.conn.SetDeadline(time.Now().Add(policy.config.LoginTimeout)); err != nil {
		return errLeft
	}
	start, err := s.startup(policy)
	if err != nil {
		return s.loginError(err, policy)
	}
	s.begin()
	if err := s.identify(&start, policy); err != nil {
		return s.loginError(err, policy)
	}
	// A client may have to wait for a server now, for longer than a login may take.
	s.mu.Lock()
	late := s.stage != running
	if !late {
		err = s.conn.SetDeadline(time.Time{})
	}
	s.mu.Unlock()
	if late {
		return s.sentence()
	}
	if err != nil {
		return errGone
	}
	return s.welcome()
}

// loginError sorts what went wrong while a client logged in.
func (s *session) loginError(err error, policy *policy) error {
	if _, known := errors.AsType[*ending](err); known || errors.Is(err, errLeft) {
		return err
	}
	s.mu.Lock()
	stage := s.stage
	s.mu.Unlock()
	switch {
	case stage != running:
		return s.sentence()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return end(Denied, fmt.Sprintf("the login took longer than %v", policy.config.LoginTimeout), "").because(err)
	case s.busy:
		return errGone
	}
	return errLeft
}

// startup reads first packets until one asks for a session.
func (s *session) startup(policy *policy) (pgwire.Startup, error) {
	for range 3 { // TLS, GSS and the startup itself: nobody needs more
		start, err := s.in.ReadStartup()
		if err != nil {
			return start, s.badStartup(err)
		}
		switch start.Kind {
		case pgwire.StartCancel:
			s.pooler.cancelFor(start)
			return start, errLeft
		case pgwire.StartTLS:
			err = s.offerTLS(policy.tls)
		case pgwire.StartGSS:
			err = s.answerByte('N')
		case pgwire.StartSession:
			if policy.config.TLS.Require && s.conn == s.raw {
				s.begin()
				return start, refusedLogin("28000", "this pooler takes encrypted connections only", "connect with sslmode=require")
			}
			return start, nil
		}
		if err != nil {
			return start, err
		}
	}
	s.begin()
	return pgwire.Startup{}, protocolError("more than one request for encryption")
}

// badStartup tells a packet that is wrong from a connection that ended. Only the
// former is worth a word: port scanners and health checks hang up too.
func (s *session) badStartup(err error) error {
	if _, network := errors.AsType[net.Error](err); network || s.in.Buffered() == 0 && isEnd(err) {
		return err
	}
	s.begin()
	if errors.Is(err, pgwire.ErrVersion) {
		return end(Unsupported, err.Error(), "")
	}
	return protocolError(err.Error())
}

func isEnd(err error) bool {
	return err != nil && (errors.Is(err, net.ErrClosed) || strings.HasSuffix(err.Error(), "EOF"))
}

func (s *session) answerByte(b byte) error {
	_, err := s.conn.Write([]byte{b})
	return err
}

func (s *session) offerTLS(cfg *tls.Config) error {
	if cfg == nil || s.conn != s.raw {
		return s.answerByte('N')
	}
	if s.in.Buffered() > 0 { // sent before the handshake: not by whom it will be with (CVE-2021-23214)
		s.begin()
		return protocolError("received unencrypted data after SSL request")
	}
	if err := s.answerByte('S'); err != nil {
		return err
	}
	conn := tls.Server(s.raw, cfg)
	// The connection's deadline limits it.
	if err := conn.HandshakeContext(context.Background()); err != nil {
		return err
	}
	s.mu.Lock()
	s.conn = conn
	s.mu.Unlock()
	s.in.Redirect(conn)
	return nil
}

func refusedLogin(sqlstate, message, hint string) error {
	return &ending{code: Denied, fault: pgwire.Fault{SQLState: sqlstate, Message: message, Hint: hint}}
}

// identify finds out who the client is and lets it prove it.
func (s *session) identify(start *pgwire.Startup, policy *policy) error {
	s.user, s.database, s.application = start.Get("user"), start.Get("database"), start.Get("application_name")
	if s.user == "" {
		return refusedLogin("28000", "no PostgreSQL user name specified in startup packet", "")
	}
	if s.database == "" {
		s.database = s.user
	}
	if err := s.negotiate(start); err != nil {
		return err
	}
	if err := s.authenticate(start, policy); err != nil {
		return err
	}
	if err := s.pooler.count(s, policy); err != nil {
		return err
	}
	var err error
	if s.settings, err = state.OfStartup(start); err != nil {
		refusal, _ := errors.AsType[*state.Refusal](err)
		return &ending{code: Unsupported, fault: pgwire.Fault{SQLState: refusal.SQLState, Message: refusal.Message}}
	}
	return nil
}

// negotiate answers a client that knows more of the protocol than 3.0.
func (s *session) negotiate(start *pgwire.Startup) error {
	var options []string
	for _, p := range start.Parameters {
		if strings.HasPrefix(p.Name, "_pq_.") {
			options = append(options, p.Name)
		}
	}
	if start.Minor == 0 && len(options) == 0 {
		return nil
	}
	_, err := s.conn.Write(pgwire.AppendNegotiate(nil, options))
	return err
}

func (s *session) authenticate(start *pgwire.Startup, policy *policy) error {
	account, known := policy.accounts[s.user]
	if !known && policy.trusts() {
		if !s.fromHere() {
			return refusedLogin("28000", "no users are configured, so only clients on this machine may log in", "add pooler.users")
		}
		return nil
	}
	if !known {
		account.credential, account.color = credential.Doomed(s.user, s.pooler.doom), telemetry.ColorUnknown
	}
	check := account.credential
	// pgjdbc, known by this setting, refuses fewer iterations than RFC 7677 asks for.
	if account.quick != nil && start.Get("extra_float_digits") == "" {
		check = account.quick
	}
	var ok bool
	var err error
	if policy.config.Auth == authMD5 && check.MD5() {
		ok, err = login.MD5(s, check)
	} else {
		_, ok, err = login.SCRAM(s, check, s.binding(policy))
	}
	if errors.Is(err, login.ErrProtocol) {
		return protocolError(err.Error())
	}
	if err != nil {
		return err
	}
	if !ok {
		return refusedLogin("28P01", fmt.Sprintf("password authentication failed for user %q", s.user), "")
	}
	s.color = account.color
	if account.database != "" && account.database != s.database {
		return refusedLogin("28000", fmt.Sprintf("user %q may open database %q only", s.user, account.database), "")
	}
	return nil
}

// fromHere reports whether the client is on this machine.
func (s *session) fromHere() bool {
	switch a := s.raw.RemoteAddr().(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return s.raw.RemoteAddr().Network() == "pipe" // in memory
}

// Ask sends an authentication request and returns the body of the answer.
func (s *session) Ask(request []byte) ([]byte, error) {
	if err := s.Tell(request); err != nil {
		return nil, err
	}
	typ, body, err := s.in.Next()
	if err != nil {
		return nil, err
	}
	if typ != pgwire.Password {
		return nil, protocolError(fmt.Sprintf("expected password response, got message type %d", typ))
	}
	return body, nil
}

// Tell sends an authentication request that needs no answer.
func (s *session) Tell(request []byte) error {
	_, err := s.conn.Write(request)
	return err
}

// binding is what a client that binds its login to the TLS connection must know of
// our certificate; nil without TLS.
func (s *session) binding(policy *policy) []byte {
	if s.conn == s.raw {
		return nil
	}
	return policy.binding
}

// welcome tells the client that it is in, and what the server is like.
func (s *session) welcome() error {
	params, err := s.greeting()
	if err != nil {
		return err
	}
	if _, err := rand.Read(s.secret[:]); err != nil {
		return err
	}
	out := pgwire.Append(nil, pgwire.Authentication, make([]byte, 4))
	out = append(out, params...)
	out = pgwire.Append(out, pgwire.BackendKeyData, binary.BigEndian.AppendUint32(nil, s.id), s.secret[:])
	out = pgwire.AppendReady(out, pgwire.Idle)
	s.mu.Lock()
	s.entered = true
	s.mu.Unlock()
	if _, err := s.conn.Write(out); err != nil {
		return errGone
	}
	s.busy = false // a login that goes well is no exchange
	return nil
}

// greeting asks the pool what the client is to be told.
func (s *session) greeting() ([]byte, error) {
	for {
		p, err := s.route()
		if err != nil {
			return nil, err
		}
		params, err := p.greet(s)
		if !errors.Is(err, errRetired) {
			return params, err
		}
	}
}

// admitted reports whether the client has been let in.
func (s *session) admitted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entered
}
