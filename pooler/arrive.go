package pooler

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
)

// A login that asks the client for nothing is served by the event loops as soon as its
// first packet is there. All others get a goroutine.

// arrivesFor is how long a client has no goroutine that has sent nothing yet. Its login's
// own limit counts from its connection on.
const arrivesFor = time.Second

// arrive lets the event loops wait for the client's first packet. It reports whether
// they can.
func (s *session) arrive() bool {
	s.lane.Lock()
	defer s.lane.Unlock()
	s.sock.Own(&s.task)
	s.in.Shrink()
	s.late = time.AfterFunc(arrivesFor, func() {
		s.lane.Lock()
		defer s.lane.Unlock()
		if s.at == arriving {
			s.escalate(atLogin)
		}
	})
	if s.sock.Watch() {
		return true
	}
	s.late.Stop()
	s.at = aside
	s.sock.Own(nil)
	s.in.Own()
	return false
}

// admitNow serves the client's first packet, if that can be done without waiting.
func (s *session) admitNow(w *loop.Worker) bool {
	s.in.Borrow(w.Scratch)
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
			s.late.Stop()
			s.late = nil
			s.in.Skip(size)
			return s.enterNow(&start, policy)
		case s.in.Buffered() > 0:
			s.late.Stop()
			s.escalate(atLogin)
			return false
		}
		switch err := s.in.FillFrom((*loop.Try)(s.sock)); {
		case err == nil:
		case loop.Waits(err):
			return false
		default:
			s.escalate(atLogin)
			return false
		}
	}
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
	if !s.greetable() {
		s.escalate(atWelcome)
		return false
	}
	if err := s.welcome(); err != nil {
		s.fail(err)
		return false
	}
	s.at = resting
	if !s.pool.laned() {
		s.escalate(atRest)
		return false
	}
	return true
}

// greetable reports whether what the client is to be told at login is known.
func (s *session) greetable() bool {
	p, err := s.route()
	if err != nil {
		return true // which is all that it is to be told
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.retired && p.welcome[s.settings.Key()] != nil
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
	s.enrol(params)
	_, _ = rand.Read(s.secret) // never fails
	out := pgwire.Append(nil, pgwire.Authentication, make([]byte, 4))
	out = append(out, params...)
	out = pgwire.Append(out, pgwire.BackendKeyData, binary.BigEndian.AppendUint32(nil, s.id), s.secret)
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

// enrol notes what the client is told at login, and what it chose.
func (s *session) enrol(welcome []byte) {
	s.settings = s.pool.settings.Intern(s.settings)
	s.login = s.settings
	s.told = s.pool.settings.OfWelcome(welcome)
}

// inform tells the client what the server reports differently from what the client
// was told last, and what was heard while the server answered the pooler itself.
func (s *session) inform() {
	if !s.untold {
		return
	}
	s.untold = false
	out := s.backend.heard
	s.backend.heard = nil
	for _, p := range s.backend.reports.All() {
		if value, ok := s.told.Get(p.Name); !ok || value != p.Value {
			out = pgwire.AppendParameter(out, p.Name, p.Value)
		}
	}
	s.told = s.backend.reports
	if len(out) > 0 && !s.mute {
		_, _ = s.conn.Write(out) // a client that is gone is noticed where it is served
	}
}

// hear notes a setting that the server reports to the client. A client that has reset one
// which it chose at login hears of what it chose: it will have that again. keep reports whether
// the message is for the client.
func (s *session) hear(body []byte) (keep bool) {
	name, value, _, ok := pgwire.Strings(body)
	if !ok {
		return true
	}
	b := s.backend
	s.mu.Lock() // the uplink reads what the server reports
	defer s.mu.Unlock()
	b.note(body)
	tells, keep := string(value), true
	if s.resets {
		usual, _ := b.atLogin.Get(string(name))
		if chosen, ok := s.chosen(string(name)); ok && tells == usual && chosen != tells {
			tells, keep = chosen, false
		}
	}
	if told, _ := s.told.Get(string(name)); !keep && told != tells {
		s.held = pgwire.AppendParameter(s.held, string(name), tells)
	}
	s.told = b.pool.settings.Intern(s.told.With(string(name), tells))
	switch string(name) {
	case "is_superuser", "in_hot_standby", "server_version", "server_encoding":
		return keep // these follow from others
	}
	b.left |= scan.Setting
	b.mentions.Add(string(name))
	return keep
}

// A leadBack is the setting that the text that was sent last leads back to what was chosen at login, or "all".
type leadBack struct {
	name  string // until its answer has come
	local bool   // until the transaction's end
}

// leadsBack notes that the message that is being sent, which may do e, carries out this text, and maybe no other.
func (s *session) leadsBack(e scan.Effect, text []byte) {
	if s.back = (leadBack{}); e&scan.Back != 0 && s.login.Len() > 0 {
		s.back.name, s.back.local = scan.LeadsBack(text)
	}
}

// hearBack lets the client hear of what it chose at login, and has now led back to, where the server has nothing to say:
// what the client had set last is the server's own default. The lock is held.
func (s *session) hearBack() {
	b, db, back := s.backend, &s.exchange.DB, s.back.name
	if s.cycles.len() > 0 {
		return // it is the answer to an earlier text
	}
	if s.back.name = ""; s.back.local && b.status == pgwire.Idle {
		return // it had no effect
	}
	done := db.Command == "RESET" || db.Command == "SET" || db.Command == "DISCARD ALL"
	if !done || db.Queries != 1 || db.SQLState != "" {
		return
	}
	for _, p := range b.reports.All() {
		chosen, ok := s.chosen(p.Name)
		usual, _ := b.atLogin.Get(p.Name)
		told, _ := s.told.Get(p.Name)
		if ok && (back == "all" || strings.EqualFold(back, p.Name)) && p.Value == usual && told == usual && chosen != usual {
			s.held = pgwire.AppendParameter(s.held, p.Name, chosen)
			s.told = b.pool.settings.Intern(s.told.With(p.Name, chosen))
		}
	}
}

// chosen is what the client was told at login of a setting that it had chosen.
func (s *session) chosen(name string) (value string, ok bool) {
	if value, ok = s.login.Get(strings.ToLower(name)); !ok {
		return "", false
	}
	p := s.pool
	p.mu.Lock()
	told := p.welcome[s.login.Key()]
	p.mu.Unlock()
	if canonical, ok := p.settings.OfWelcome(told).Get(name); ok {
		value = canonical
	}
	return value, true
}
