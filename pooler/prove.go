package pooler

import (
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
	"mainstay.dev/mainstay/pooler/internal/directory"
	"mainstay.dev/mainstay/pooler/internal/hba"
	"mainstay.dev/mainstay/pooler/internal/login"
	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/telemetry"
)

// A proof is what is known of a client that is asked to prove who it is.
type proof struct {
	start    pgwire.Startup
	policy   *policy
	account  account
	dialogue *login.Dialogue
	waited   bool // for its turn to guess
}

// redirect finds the database by the name that a TLS client asked for, or by the
// tenant behind the user's name.
func (s *session) redirect(policy *policy) {
	if conn, ok := s.conn.(*tls.Conn); ok {
		if name, ok := policy.hosts[strings.ToLower(conn.ConnectionState().ServerName)]; ok {
			s.database = name
		}
	}
	if user, database, ok := policy.tenantOf(s.user); ok {
		s.user, s.database = user, database
	}
}

// tenantOf splits a name that is a user's and a tenant's.
func (p *policy) tenantOf(name string) (user, database string, ok bool) {
	if _, known := p.accounts[name]; known {
		return "", "", false
	}
	if dot := strings.LastIndexByte(name, '.'); dot > 0 {
		database, ok = p.tenants[name[dot+1:]]
		user = name[:dot]
	}
	return user, database, ok
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
	waited, err := s.awaitTurn() // first: who guesses must not make PostgreSQL work
	if err != nil {
		return err
	}
	if account, err = s.secretOf(account, known, method, policy); err != nil {
		return err
	}
	if method == hba.Password && s.conn == s.raw && !s.visitor().Local() {
		return refusedLogin("28000", "a password is not asked for over a connection that is not encrypted", "connect with sslmode=require")
	}
	if err := s.give(s.question(method, &proof{start: *start, policy: policy, account: account, waited: waited})); err != nil {
		return err
	}
	return s.converse()
}

// secretOf finds what the user's password is checked against. One who does not exist,
// or whose secret the method can't check, gets what no password passes.
func (s *session) secretOf(a account, known bool, method string, policy *policy) (account, error) {
	if !known {
		a.color = telemetry.ColorUnknown
		if policy.directory != nil {
			ctx, cancel := context.WithTimeout(context.Background(), policy.config.LoginTimeout)
			defer cancel()
			found, err := policy.directory.Find(ctx, s.lookupAt(policy), s.user)
			if err != nil {
				return a, end(Unreachable, "the user cannot be looked up in PostgreSQL now", "see pooler.auth_query, and Mainstay's log").because(err)
			}
			a.credential = found
		}
	}
	if a.credential == nil || method == hba.SCRAM && !a.credential.SCRAM() {
		a.credential, a.quick = credential.Doomed(s.user, s.pooler.doom, policy.verifiers), nil
	}
	return a, nil
}

// roles asks PostgreSQL what the user is a member of.
func (s *session) roles(policy *policy) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), policy.config.LoginTimeout)
	defer cancel()
	return policy.directory.Roles(ctx, s.lookupAt(policy), s.user)
}

// lookupAt is where the user is looked up.
func (s *session) lookupAt(policy *policy) directory.Server {
	patience := min(policy.config.Databases[s.database].Pool.OutageWait, policy.config.LoginTimeout)
	return directory.Server{Dial: s.pooler.deps.Dial, Target: policy.targets[s.database], Patience: patience}
}

// Wrong passwords that are free, of one user from one address, and of all from there.
const (
	freeForUser    = 5
	freeForAddress = 50
)

// A guess is under what wrong passwords are counted.
type guess struct {
	of   string
	free int
}

// guesses are those of a client: all of its address, and those of this user from there.
func (s *session) guesses(user string) [2]guess {
	address := s.visitor().Address.Unmap()
	if address.Is6() { // whoever has one has the network
		network, _ := address.WithZone("").Prefix(64)
		address = network.Addr()
	}
	all := address.String()
	user = user[:min(len(user), directory.MaxName)] // what is kept is bounded
	return [2]guess{{all, freeForAddress}, {all + " " + user, freeForUser}}
}

var errGuesses = refusedLogin("28000", "too many wrong passwords from this address lately", "wait a few seconds")

// awaitTurn waits until the client may try a password. It reports whether it had to take a turn.
func (s *session) awaitTurn() (taken bool, err error) {
	for _, g := range s.guesses(s.user) {
		taken = taken || !s.pooler.guesses.Free(g.of, g.free)
		wait, ok := s.pooler.guesses.Turn(g.of, g.free, time.Now())
		if !ok {
			return taken, errGuesses
		}
		time.Sleep(wait)
	}
	return taken, nil
}

// mayGuess reports whether a client would not have to wait for its turn.
func (s *session) mayGuess(user string) bool {
	for _, g := range s.guesses(user) {
		if !s.pooler.guesses.Free(g.of, g.free) {
			return false
		}
	}
	return true
}

// question begins to let the client prove its password.
func (s *session) question(method string, p *proof) (request []byte) {
	c := p.account.credential
	// pgjdbc, known by this setting, refuses fewer iterations than RFC 7677 asks for.
	if p.account.quick != nil && p.start.Get("extra_float_digits") == "" {
		c = p.account.quick
	}
	switch {
	case method == hba.Password:
		p.dialogue, request = login.Password(s.user, c)
	case method == hba.MD5 && c.MD5():
		p.dialogue, request = login.MD5(c)
	default:
		p.dialogue, request = login.SCRAM(c, s.binding(p.policy))
	}
	s.proof = p
	return request
}

// converse leads the rest of the dialogue.
func (s *session) converse() error {
	for {
		typ, body, err := s.in.Next()
		switch {
		case errors.Is(err, pgwire.ErrTooShort), errors.Is(err, pgwire.ErrTooLong):
			return protocolError(err.Error())
		case err != nil:
			return err
		}
		request, err := s.answered(typ, body)
		switch {
		case err != nil:
			return err
		case s.proof.dialogue.Over():
			return s.judge(request)
		}
		if err := s.give(request); err != nil {
			return err
		}
	}
}

// answered takes one of the client's answers.
func (s *session) answered(typ byte, body []byte) (request []byte, err error) {
	switch {
	case typ != pgwire.Password:
		return nil, protocolError(fmt.Sprintf("expected password response, got message type %d", typ))
	case pgwire.HeaderSize+len(body) > clientBuffer: // on either lane, however large the reader's buffer is
		return nil, protocolError(fmt.Sprintf("a password response of %d bytes is too long", len(body)))
	}
	request, err = s.proof.dialogue.Next(body)
	if errors.Is(err, login.ErrProtocol) {
		err = protocolError(err.Error())
	}
	return request, err
}

// judge says whether the dialogue, which is over, lets the client in. It leaves its last word for the welcome.
func (s *session) judge(last []byte) error {
	p := s.proof
	s.proof = nil
	keys, ok := p.dialogue.Outcome()
	guesses := s.guesses(s.user)
	if !p.waited && !s.mayGuess(s.user) {
		return errGuesses // asked at once with others who were wrong; a right one is told no more
	}
	if !ok {
		for _, g := range guesses {
			s.pooler.guesses.Wrong(g.of, time.Now())
		}
		if p.policy.directory != nil {
			p.policy.directory.Forget(p.policy.targets[s.database], s.user)
		}
		return refusedLogin("28P01", fmt.Sprintf("password authentication failed for user %q", s.user), "")
	}
	s.pooler.guesses.Right(guesses[1].of) // the address' is kept: who has one password may guess others
	if pool := p.policy.pools[s.database]; keys.Client != nil || pool != nil && pool.perClient() {
		s.keys = &keys
	}
	s.color = p.account.color
	if only := p.account.database; only != "" && only != s.database {
		return refusedLogin("28000", fmt.Sprintf("user %q may open database %q only", s.user, only), "")
	}
	s.held = last
	return nil
}

// provesAlone reports whether the client may prove its password at once, and nobody else has to be
// asked about it.
func (s *session) provesAlone(start *pgwire.Startup, policy *policy) bool {
	user := start.Get("user")
	if of, _, ok := policy.tenantOf(user); ok {
		user = of
	}
	account, known := policy.accounts[user]
	if policy.config.TLS.Require || account.quick == nil && len(policy.config.HBA) > 0 || !known && (policy.directory != nil || policy.trusts()) {
		return false
	}
	return s.mayGuess(user)
}

// questionNow begins to let such a client prove it.
func (s *session) questionNow(start *pgwire.Startup, policy *policy) bool {
	s.begin()
	err := s.introduce(start, policy)
	if err == nil {
		account, known := policy.accounts[s.user]
		if account, err = s.secretOf(account, known, policy.config.Auth, policy); err == nil {
			err = s.give(s.question(policy.config.Auth, &proof{start: *start, policy: policy, account: account}))
		}
	}
	if err != nil {
		s.fail(s.loginError(err, policy))
		return false
	}
	return s.asked()
}

// asked goes on when the client has been asked something.
func (s *session) asked() bool {
	if len(s.stuck) > 0 {
		s.escalate(atProof)
		return false
	}
	s.at = proving
	return true
}

// proveNow takes what the client has answered, and lets it in if that was the last.
func (s *session) proveNow(w *loop.Worker) bool {
	s.in.Borrow(w.Scratch)
	w.Lent = true
	for {
		typ, n, ok, err := s.in.Header()
		switch {
		case s.ending.Load():
			s.expected()
			s.fail(s.sentence())
			return false
		case w.Now.Sub(time.Unix(0, s.came)) > s.proof.policy.config.LoginTimeout:
			s.expected()
			s.fail(s.loginError(os.ErrDeadlineExceeded, s.proof.policy))
			return false
		case err != nil, ok && pgwire.HeaderSize+n > clientBuffer: // a goroutine meets it again
			s.expected()
			s.escalate(atProof)
			return false
		case ok && s.in.Buffered() >= pgwire.HeaderSize+n:
			s.expected()
			frame := s.in.Peek(pgwire.HeaderSize + n)
			s.in.Skip(len(frame))
			return s.answeredNow(typ, frame[pgwire.HeaderSize:])
		}
		if !s.fillLogin(atProof) {
			return false
		}
	}
}

// answeredNow goes on with an answer.
func (s *session) answeredNow(typ byte, body []byte) bool {
	p := s.proof
	request, err := s.answered(typ, body)
	if err == nil && !p.dialogue.Over() {
		if err = s.give(request); err == nil {
			return s.asked()
		}
	} else if err == nil {
		if err = s.judge(request); err == nil {
			err = s.register(&p.start, p.policy)
		}
		if err == nil {
			return s.letInNow()
		}
	}
	s.fail(s.loginError(err, p.policy))
	return false
}

// admitProven logs a client in that the event loops have asked to prove its password.
func (s *session) admitProven() error {
	p := s.proof
	if s.mute { // it did not even take the question
		return errGone
	}
	if err := s.limitLogin(p.policy); err != nil {
		return err
	}
	err := s.converse()
	if err == nil {
		err = s.register(&p.start, p.policy)
	}
	if err != nil {
		return s.loginError(err, p.policy)
	}
	return s.letIn()
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

// turnAway closes a connection for which there is no room at all, and tells it so if it can be told at once. libpq
// shows no error that comes in answer to its request for encryption: one that asks for that is told no first, and
// gets the time to go on without it, unless too many do at once.
func (p *Server) turnAway(conn net.Conn) {
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(turnAwayLimit)) != nil {
		return
	}
	in := pgwire.NewReader(conn, clientBuffer)
	start, err := in.ReadStartup() // to some systems what is left unread means that what was written is to be forgotten
	asks := func() bool { return err == nil && (start.Kind == pgwire.StartTLS || start.Kind == pgwire.StartGSS) }
	if asks() {
		defer p.away.Add(-1)
		if p.away.Add(1) <= spare {
			_ = conn.SetDeadline(time.Now().Add(leisure)) // a closed connection is as good
			for tries := 0; asks() && tries < 2; tries++ {
				_, _ = conn.Write([]byte{'N'})
				start, err = in.ReadStartup()
			}
		}
	}
	full := end(TooManyClients, "too many connections are waiting to log in", "raise pooler.max_clients")
	_ = conn.SetWriteDeadline(time.Now().Add(turnAwayLimit))
	_, _ = conn.Write(full.fault.AppendFatal(nil))
}

// turnAwayLimit bounds the write of a message that fits every socket's buffer, and how long the client's first packet
// is waited for; leisure, how long one that asks for encryption has.
const (
	turnAwayLimit = 10 * time.Millisecond
	leisure       = time.Second
)

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

// binding is what a client that binds its login to the TLS connection must know of
// our certificate; nil without TLS.
func (s *session) binding(policy *policy) []byte {
	if s.conn == s.raw {
		return nil
	}
	return policy.binding
}
