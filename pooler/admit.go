package pooler

import (
	"bytes"
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

	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/state"
)

// admit logs the client in: who is it, may it enter. It returns errLeft for a
// connection that was no login.
func (s *session) admit() error {
	policy := s.pooler.policy.Load()
	if err := s.limitLogin(policy); err != nil {
		return err
	}
	start, err := s.startup(policy)
	if err != nil {
		return s.loginError(err, policy)
	}
	s.begin()
	if err := s.identify(&start, policy); err != nil {
		return s.loginError(err, policy)
	}
	return s.letIn()
}

// limitLogin bounds how long the client may take to log in.
func (s *session) limitLogin(policy *policy) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stage == killed { // which has a deadline of its own
		return s.sentence()
	}
	if err := s.conn.SetDeadline(time.Unix(0, s.came).Add(policy.config.LoginTimeout)); err != nil {
		return errLeft
	}
	return nil
}

// letIn welcomes a client that may enter.
func (s *session) letIn() (err error) {
	// It may have to wait for a server now, for longer than a login may take.
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
	if err := s.directTLS(policy.tls); err != nil {
		return pgwire.Startup{}, err
	}
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
	return s.handshake(cfg, nil)
}

// handshake goes on encrypted; read is what has been read of it.
func (s *session) handshake(cfg *tls.Config, read []byte) error {
	conn := tls.Server(loop.NewCarrier(s.raw, s.sock, read), cfg)
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

// recordHandshake is the first byte of TLS: no startup packet begins with it.
const recordHandshake = 0x16

// directTLS serves a client that speaks TLS from the first byte on
// (sslnegotiation=direct). It must name PostgreSQL by ALPN, so that nobody can make
// another protocol's client speak to us.
func (s *session) directTLS(cfg *tls.Config) error {
	if cfg == nil {
		return nil
	}
	if s.in.Buffered() == 0 {
		if err := s.in.Fill(); err != nil {
			return s.badStartup(err)
		}
	}
	if s.in.Peek(1)[0] != recordHandshake {
		return nil
	}
	read := bytes.Clone(s.in.Peek(s.in.Buffered()))
	s.in.Skip(len(read))
	if err := s.handshake(cfg, read); err != nil {
		return err
	}
	if s.conn.(*tls.Conn).ConnectionState().NegotiatedProtocol != "postgresql" {
		s.begin()
		return protocolError("direct TLS connection without the ALPN protocol postgresql")
	}
	return nil
}

func refusedLogin(sqlstate, message, hint string) error {
	return &ending{code: Denied, fault: pgwire.Fault{SQLState: sqlstate, Message: message, Hint: hint}}
}

// identify finds out who the client is and lets it prove it.
func (s *session) identify(start *pgwire.Startup, policy *policy) error {
	if err := s.introduce(start, policy); err != nil {
		return err
	}
	if err := s.authenticate(start, policy); err != nil {
		return err
	}
	return s.register(start, policy)
}

// introduce notes who the client says that it is.
func (s *session) introduce(start *pgwire.Startup, policy *policy) error {
	s.user, s.database, s.application = start.Get("user"), start.Get("database"), start.Get("application_name")
	if s.user == "" {
		return refusedLogin("28000", "no PostgreSQL user name specified in startup packet", "")
	}
	if s.database == "" {
		s.database = s.user
	}
	s.redirect(policy)
	return s.negotiate(start)
}

// register notes what a client has chosen that has proved who it is.
func (s *session) register(start *pgwire.Startup, policy *policy) error {
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

// newestMinor is the protocol's version 3.x that is spoken here: 3.2 has longer
// cancel keys.
const newestMinor = 2

// Lengths of a cancel key's secret: protocol 3.0 knows one alone.
const (
	shortSecret = 4
	longSecret  = 32
)

// negotiate answers a client that knows more of the protocol than we do.
func (s *session) negotiate(start *pgwire.Startup) error {
	s.secret = make([]byte, shortSecret)
	if start.Minor >= 2 {
		s.secret = make([]byte, longSecret)
	}
	var options []string
	for _, p := range start.Parameters {
		if strings.HasPrefix(p.Name, "_pq_.") {
			options = append(options, p.Name)
		}
	}
	if start.Minor <= newestMinor && len(options) == 0 {
		return nil
	}
	return s.give(pgwire.AppendNegotiate(nil, min(start.Minor, newestMinor), options))
}

// A login that asks nobody but the client is served by the event loops. All others get a goroutine.

// arrivesFor is how long a client has no goroutine that has sent nothing yet, or not answered. Its
// login's own limit counts from its connection on.
const arrivesFor = time.Second

// arrive serves the client's first packet, or lets the event loops wait for it.
func (s *session) arrive(w *loop.Worker) {
	s.lane.Lock()
	defer s.stepped()
	s.at = arriving
	s.sock.Own(&s.task)
	s.in.Borrow(w.Scratch)
	w.Lent = true
	// As a rule it is there already, and the loops need not be told of it.
	_ = s.in.FillFrom((*loop.Try)(s.sock)) // admitNow meets an error again
	if !s.sock.Watch() {
		s.fail(end(TooManyClients, "the system lets Mainstay watch no more connections", "raise fs.epoll.max_user_watches"))
	}
	s.steps(w)
}

// expect gives the session a goroutine if the client sends nothing for a while.
func (s *session) expect() {
	if s.late != nil {
		return
	}
	left := s.pooler.policy.Load().config.LoginTimeout - time.Since(time.Unix(0, s.came))
	s.late = time.AfterFunc(min(arrivesFor, left), func() {
		s.lane.Lock()
		defer s.lane.Unlock()
		switch s.at {
		case arriving:
			s.escalate(atLogin)
		case proving:
			s.escalate(atProof)
		}
	})
}

// expected is the end of that.
func (s *session) expected() {
	if s.late != nil {
		s.late.Stop()
		s.late = nil
	}
}

// admitNow serves the client's first packet, if that can be done without waiting.
func (s *session) admitNow(w *loop.Worker) bool {
	s.in.Borrow(w.Scratch)
	w.Lent = true
	policy := s.pooler.policy.Load()
	for {
		start, size, ok := s.in.PeekStartup()
		switch {
		case ok && start.Kind == pgwire.StartTLS && policy.tls == nil && s.in.Buffered() == size:
			s.in.Skip(size)
			if _, err := s.sock.TryWrite([]byte{'N'}); err != nil {
				s.escalate(atLogin) // it meets that again
				return false
			}
			continue
		case ok && start.Kind == pgwire.StartSession && s.entersFreely(&start, policy):
			s.expected()
			s.in.Skip(size)
			return s.enterNow(&start, policy)
		case ok && start.Kind == pgwire.StartSession && s.provesAlone(&start, policy):
			s.expected()
			s.in.Skip(size)
			return s.questionNow(&start, policy)
		case s.in.Buffered() > 0:
			s.expected()
			s.escalate(atLogin)
			return false
		}
		if !s.fillLogin(atLogin) {
			return false
		}
	}
}

// fillLogin reads what a client that logs in has sent. It reports whether there was something; if the client is gone,
// a goroutine meets that again.
func (s *session) fillLogin(from entry) bool {
	switch err := s.in.FillFrom((*loop.Try)(s.sock)); {
	case err == nil:
		return true
	case loop.Waits(err):
		s.expect()
	default:
		s.expected()
		s.escalate(from)
	}
	return false
}

// entersFreely reports whether the client is let in, or refused, by its name alone.
func (s *session) entersFreely(start *pgwire.Startup, policy *policy) bool {
	_, known := policy.accounts[start.Get("user")]
	return !known && len(policy.config.HBA) == 0 && policy.trusts() && !policy.config.TLS.Require && len(policy.tenants) == 0
}

// enterNow lets the client in.
func (s *session) enterNow(start *pgwire.Startup, policy *policy) bool {
	s.begin()
	if err := s.identify(start, policy); err != nil {
		s.fail(s.loginError(err, policy))
		return false
	}
	return s.letInNow()
}

// letInNow is letIn, if that can be done without waiting.
func (s *session) letInNow() bool {
	params, err := s.greetingNow()
	if err == nil && params == nil {
		s.escalate(atWelcome)
		return false
	}
	if err == nil {
		err = s.greet(params)
	}
	switch {
	case err != nil:
		s.fail(err)
	case len(s.stuck) > 0:
		s.escalate(atTurn)
	case !s.pool.laned():
		s.escalate(atRest)
	default:
		s.at = resting
		return true
	}
	return false
}

// greetingNow is greeting, or nil if that is not known yet.
func (s *session) greetingNow() ([]byte, error) {
	p, err := s.route()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retired {
		return nil, nil
	}
	return p.welcome[s.settings.Key()], nil
}

// quit ends a session that has said goodbye between two transactions.
func (s *session) quit() {
	s.at = aside
	s.sock.Own(nil)
	s.spare()
	s.raw.Close()
	s.pooler.leave(s)
	s.pooler.ended.Done()
}

// welcome tells the client that it is in, and what the server is like.
func (s *session) welcome() error {
	params, err := s.greeting()
	if err != nil {
		return err
	}
	return s.greet(params)
}

// greet is welcome, with what it is like.
func (s *session) greet(params []byte) error {
	s.enrol(params)
	_, _ = rand.Read(s.secret)                                           // never fails
	out := pgwire.Append(s.held, pgwire.Authentication, make([]byte, 4)) // what ends a SCRAM login is not worth a write of its own
	s.held = nil
	out = append(out, params...)
	out = pgwire.Append(out, pgwire.BackendKeyData, binary.BigEndian.AppendUint32(nil, s.id), s.secret)
	out = pgwire.AppendReady(out, pgwire.Idle)
	s.mu.Lock()
	s.entered = true
	s.mu.Unlock()
	if s.give(out) != nil {
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

// enrol notes what the client is told at login, and what it chose.
func (s *session) enrol(welcome []byte) {
	s.settings = s.pool.settings.Intern(s.settings)
	s.login = s.settings
	s.told = s.pool.settings.OfWelcome(welcome)
	s.login.Tell(s.told)
}
