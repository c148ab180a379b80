package pooler

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"mainstay.dev/mainstay/pooler/internal/credential"
	"mainstay.dev/mainstay/pooler/internal/hba"
	"mainstay.dev/mainstay/pooler/internal/login"
	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/telemetry"
)

// admit logs the client in: who is it, may it enter. It returns errLeft for a
// connection that was no login.
func (s *session) admit() error {
	policy := s.pooler.policy.Load()
	if err := s.conn.SetDeadline(time.Unix(0, s.came).Add(policy.config.LoginTimeout)); err != nil {
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

// catchUp writes to the client what the event loops have left below TLS.
func (s *session) catchUp() {
	c := loop.CarrierOf(s.conn)
	if !c.Behind() {
		return
	}
	s.writing.Store(true)
	err := c.Flush()
	s.writing.Store(false)
	s.moved.Add(1)
	if err != nil {
		s.mute = true
		if s.backend != nil {
			s.backend.interrupt(grace)
		}
	}
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
	s.user, s.database, s.application = start.Get("user"), start.Get("database"), start.Get("application_name")
	if s.user == "" {
		return refusedLogin("28000", "no PostgreSQL user name specified in startup packet", "")
	}
	if s.database == "" {
		s.database = s.user
	}
	s.redirect(policy)
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

// redirect finds the database by the name that a TLS client asked for, or by the
// tenant behind the user's name.
func (s *session) redirect(policy *policy) {
	if conn, ok := s.conn.(*tls.Conn); ok {
		if name, ok := policy.hosts[strings.ToLower(conn.ConnectionState().ServerName)]; ok {
			s.database = name
		}
	}
	if _, known := policy.accounts[s.user]; known {
		return
	}
	if dot := strings.LastIndexByte(s.user, '.'); dot > 0 {
		if name, ok := policy.tenants[s.user[dot+1:]]; ok {
			s.user, s.database = s.user[:dot], name
		}
	}
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
	_, err := s.conn.Write(pgwire.AppendNegotiate(nil, min(start.Minor, newestMinor), options))
	return err
}

// trusts reports whether clients from this machine need no password.
func (p *policy) trusts() bool { return p.config.open() }

// authenticate lets the client prove who it is, as the rules say.
func (s *session) authenticate(start *pgwire.Startup, policy *policy) error {
	account, known := policy.accounts[s.user]
	method := policy.config.Auth
	var rule hba.Found
	switch {
	case account.quick != nil: // the app's own, whatever the rules say
	case len(policy.config.HBA) > 0:
		visitor := s.visitor()
		var ok bool
		var unknown error
		rule, ok = policy.rules.Find(visitor, func() map[string]bool {
			roles, err := s.roles(policy)
			unknown = errors.Join(unknown, err)
			return roles
		})
		switch {
		case unknown != nil:
			return end(Unreachable, "the user's roles cannot be looked up in PostgreSQL now", "see pooler.groups and auth_query, and Mainstay's log").because(unknown)
		case !ok:
			return refusedLogin("28000", fmt.Sprintf("no rule of pooler.hba fits user %q, database %q, from %s, %s",
				s.user, s.database, s.raw.RemoteAddr(), map[bool]string{true: "encrypted", false: "not encrypted"}[visitor.TLS]), "add one")
		}
		method = rule.Method
	case !known && policy.trusts():
		if !s.visitor().Local() {
			return refusedLogin("28000", "no users are configured, so only clients on this machine may log in", "add pooler.users")
		}
		return nil
	}
	switch method {
	case hba.Trust:
		return nil
	case hba.Reject:
		return refusedLogin("28000", fmt.Sprintf("a rule of pooler.hba rejects user %q, database %q, from %s", s.user, s.database, s.raw.RemoteAddr()), "")
	case hba.Cert:
		return s.proveCertificate(rule)
	}
	account, err := s.secretOf(account, known, method, policy)
	if err != nil {
		return err
	}
	check := account.credential
	// pgjdbc, known by this setting, refuses fewer iterations than RFC 7677 asks for.
	if account.quick != nil && start.Get("extra_float_digits") == "" {
		check = account.quick
	}
	if err := s.prove(method, check, policy); err != nil {
		return err
	}
	s.color = account.color
	if account.database != "" && account.database != s.database {
		return refusedLogin("28000", fmt.Sprintf("user %q may open database %q only", s.user, account.database), "")
	}
	return nil
}

// secretOf finds what the user's password is checked against. One who does not exist,
// or whose secret the method can't check, gets what no password passes.
func (s *session) secretOf(a account, known bool, method string, policy *policy) (account, error) {
	if !known {
		a.color = telemetry.ColorUnknown
		if policy.directory != nil {
			ctx, cancel := context.WithTimeout(context.Background(), policy.config.LoginTimeout)
			defer cancel()
			found, err := policy.directory.Find(ctx, s.pooler.deps.Dial, policy.targets[s.database], s.user)
			if err != nil {
				return a, end(Unreachable, "the user cannot be looked up in PostgreSQL now", "see pooler.auth_query, and Mainstay's log").because(err)
			}
			a.credential = found
		}
	}
	if a.credential == nil || method == hba.SCRAM && !a.credential.SCRAM() {
		a.credential, a.quick = credential.Doomed(s.user, s.pooler.doom), nil
	}
	return a, nil
}

// roles asks PostgreSQL what the user is a member of.
func (s *session) roles(policy *policy) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), policy.config.LoginTimeout)
	defer cancel()
	return policy.directory.Roles(ctx, s.pooler.deps.Dial, policy.targets[s.database], s.user)
}

// Wrong passwords that are free, of one user from one address, and of all from there.
const (
	freeForUser    = 5
	freeForAddress = 50
)

// prove checks the client's password.
func (s *session) prove(method string, c *credential.Credential, policy *policy) (err error) {
	guesses, address := &s.pooler.guesses, s.visitor().Address.Unmap()
	if address.Is6() { // whoever has one has the network
		network, _ := address.WithZone("").Prefix(64)
		address = network.Addr()
	}
	own := address.String() + " " + s.user
	for key, free := range map[string]int{address.String(): freeForAddress, own: freeForUser} {
		wait, ok := guesses.Turn(key, free, time.Now())
		if !ok {
			return refusedLogin("28000", "too many wrong passwords from this address lately", "wait a few seconds")
		}
		time.Sleep(wait)
	}
	var keys credential.Keys
	ok := false
	switch {
	case method == hba.Password:
		if s.conn == s.raw && !s.visitor().Local() {
			return refusedLogin("28000", "a password is not asked for over a connection that is not encrypted", "connect with sslmode=require")
		}
		keys, ok, err = login.Password(s, s.user, c)
	case method == hba.MD5 && c.MD5():
		keys, ok, err = login.MD5(s, c)
	default:
		keys, ok, err = login.SCRAM(s, c, s.binding(policy))
	}
	if p := policy.pools[s.database]; ok && (keys.Client != nil || p != nil && p.perClient()) {
		s.keys = &keys
	}
	if errors.Is(err, login.ErrProtocol) {
		return protocolError(err.Error())
	}
	if err != nil {
		return err
	}
	if ok {
		guesses.Right(own) // the address' is kept: who has one password may guess others
	} else {
		guesses.Wrong(own, time.Now())
		guesses.Wrong(address.String(), time.Now())
		if policy.directory != nil {
			policy.directory.Forget(policy.targets[s.database], s.user)
		}
		return refusedLogin("28P01", fmt.Sprintf("password authentication failed for user %q", s.user), "")
	}
	return nil
}

// proveCertificate lets a client in whose verified certificate the rule allows that user.
func (s *session) proveCertificate(rule hba.Found) error {
	conn, ok := s.conn.(*tls.Conn)
	if !ok || len(conn.ConnectionState().VerifiedChains) == 0 {
		return refusedLogin("28000", "connection requires a valid client certificate", "connect with sslcert and sslkey")
	}
	if name := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; !rule.Names(name, s.user) {
		return refusedLogin("28000", fmt.Sprintf("certificate authentication failed for user %q: the certificate is for %q", s.user, name), "")
	}
	return nil
}

// visitor is the client as the rules see it. Connections in memory are of this
// machine.
func (s *session) visitor() hba.Visitor {
	v := hba.Visitor{User: s.user, Database: s.database, TLS: s.conn != s.raw}
	switch a := s.raw.RemoteAddr().(type) {
	case *net.TCPAddr:
		v.Address = a.AddrPort().Addr()
	case *net.UnixAddr:
	default:
		if a.Network() != "pipe" {
			v.Address = netip.IPv4Unspecified()
		}
	}
	return v
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
