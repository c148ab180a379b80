package pooler

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// At a transaction's end the server is asked what the client has left there (package audit), if that cannot be told without.

// taint notes what the message that is being sent may leave behind.
func (s *backend) taint(e scan.Effect) {
	s.earlier = s.left
	if s.left |= e; e&(scan.Catalog|scan.Makes) != 0 {
		s.alters()
	}
	if e != 0 {
		s.cleared = cleared{}
	}
}

// A cleared is what the last text has ended, if it has been carried out, and the server need not be asked for. Many drivers
// send such a text whenever a connection goes back to a pool of theirs.
type cleared struct {
	by     scan.Effect // see [scan.Clears]
	chosen bool        // what was chosen at login has been given again behind it
	all    bool        // it may be DISCARD ALL, in whatever protocol, and whatever was before
}

// clears notes what is gone behind the text that is being sent, which may do e and is not in a transaction block.
func (s *backend) clears(e scan.Effect, text []byte) {
	const itself = scan.Setting | scan.Back | scan.Discards | scan.Temporary | scan.Locks | scan.Hold | scan.Listens | scan.Prepares
	if e != 0 && e&^itself == 0 {
		s.cleared.by = scan.Clears(text, s.backslash())
	}
}

// foretell completes what is known without asking.
func (s *session) foretell(b *backend) {
	c := &b.cleared
	if db := &s.exchange.DB; c.all && db.Command == "DISCARD ALL" && db.Queries == 1 && db.SQLState == "" {
		c.by = scan.Clears([]byte(db.Command), false)
	}
	if _, role := s.login.Get("role"); role {
		c.by = 0 // it is not always led back
	}
	if c.chosen && !s.login.Wholly() {
		c.by &^= scan.Setting // some of it has been given again, and some not
	}
	if b.pins&scan.Locks != 0 {
		c.by &^= scan.Locks // the function may be another one of this name
	}
}

// settle finds out what the client has left on its server at a transaction's end. It returns whether the server may go to another client.
func (s *session) settle(b *backend) (free bool, err error) {
	defer b.unlessPanic()
	s.keepSequences(b)
	if b.left&scan.Catalog != 0 {
		if err := s.lookIntoCatalog(b); err != nil {
			return true, err
		}
	}
	if b.pins != 0 && s.settings.Temporary() {
		b.left |= scan.Temporary
	}
	if b.left&scan.Opaque != 0 || b.pins&scan.Temporary != 0 {
		b.opaque = s.id
		b.pool.opaque.Store(true)
	}
	if b.left&scan.Lasting != 0 {
		s.foretell(b)
		if err := s.look(b); err != nil {
			b.broken.Store(true)
			return true, err
		}
	}
	if b.pins != 0 {
		clear(s.portals) // the others are forgotten with the server
		return false, nil
	}
	if b.left != 0 || b.pool.resetAlways() {
		_ = b.clean() // what cannot be cleaned is not used again
	}
	return true, nil
}

// tidy is settle at the end of a session, whose client will not hear of it.
func (s *session) tidy(b *backend) error {
	defer b.unlessPanic()
	if err := b.rollBack(); err != nil {
		return err
	}
	s.keepSequences(b)
	if b.left&scan.Catalog != 0 {
		if err := s.lookIntoCatalog(b); err != nil {
			return err
		}
	}
	return b.clean()
}

// lookLimit bounds how long that may take: mostly it is less than a millisecond.
const lookLimit = 30 * time.Second

// maxLooks bounds how often the question is asked again.
const maxLooks = 20

// timed reports whether PostgreSQL has refused a statement since it took, or waited, too long.
func timed(err error) bool {
	refused, ok := errors.AsType[*upstream.Refused](err)
	return ok && (refused.SQLState == "57014" || refused.SQLState == "55P03")
}

// look asks the server what the client has left there.
func (s *session) look(b *backend) (err error) {
	if b.mentions.Full || b.mentions.Odd && b.left&scan.AnyChange != 0 {
		b.left |= scan.Nameless
	}
	q := audit.Question{Effects: b.left, Names: b.mentions.Settings, Known: b.settings, Cleared: b.cleared.by}
	found, err := b.inquire(&q, s.login)
	if err != nil {
		return s.unread(err)
	}
	if b.status != pgwire.Idle {
		return s.unread(errOutOfStep)
	}
	user, _ := b.atLogin.Get("session_authorization")
	has, wants := found.Settings(&q, s.login, user)
	if q.Cleared&scan.Setting != 0 && b.cleared.chosen {
		has = wants // what was chosen at login has been given again
	}
	if q.Hash {
		b.hashes.Learn(has, &found)
	}
	if found.Forged() {
		b.brief = neverBriefed
	} else if b.brief == briefed && !found.Briefed(&q) {
		b.brief = unbriefed
	}
	before := s.settings
	b.settings, s.settings = b.pool.settings.Intern(has), b.pool.settings.Intern(wants)
	s.assure()
	if s.settings != before {
		s.varied = s.varies()
	}
	if b.settings != q.Known {
		b.replan(b.settings, true)
	}
	var stays scan.Effect
	if q.Asked()&scan.Prepares != 0 {
		all, own, vague := s.made.Carried(found.Statements(), s.prepares, s.missing, found.Stuck)
		if b.named, own = b.pool.settings.Intern(all), b.pool.settings.Intern(own); own != s.prepares {
			s.prepares, s.executes = own, &executions{left: effectsOf(own)}
		}
		if b.stuck = append(found.Stuck, vague...); len(vague) > 0 {
			stays = scan.Prepares
		}
		if q.Cleared&scan.Prepares == 0 && found.Shared != len(b.prepared) {
			if err := b.count(); err != nil {
				return s.unread(err)
			}
		}
	}
	if found.Pins&scan.Prepares != 0 {
		s.executes = &executions{left: scan.Unseen}
	}
	b.pins = b.pins&^q.Asked() | found.Pins | stays | b.left&audit.Sticky
	b.left, b.cleared = 0, cleared{}
	b.mentions.Reset()
	b.executed = nil
	reasons := ""
	if b.pins != 0 {
		reasons = audit.Reasons(b.pins)
	}
	s.mu.Lock()
	s.pinned = reasons
	s.mu.Unlock()
	if err := s.attend(b, found.Channels); err != nil || !s.settings.Temporary() || q.Asked()&scan.Temporary != 0 {
		return err
	}
	b.left = scan.Temporary // what was made since is
	return s.look(b)
}

// inquire asks what there is: briefly, if that may do.
func (s *backend) inquire(q *audit.Question, login *state.Settings) (found audit.Findings, err error) {
	brief := &s.pool.brief
	q.Brief = brief.Serves(q, login) && s.isBriefed(brief)
	for tries := 0; ; {
		sql := q.SQL()
		if sql == "" {
			return found, nil
		}
		if s.status != pgwire.Idle {
			sql = "ROLLBACK;" + sql
		}
		found = audit.Findings{}
		err = s.execWithin(lookLimit, sql, found.Row)
		refused, ok := errors.AsType[*upstream.Refused](err)
		switch {
		case timed(err) && tries < maxLooks: // by what the client has set: it may be short even for the first of this
			tries++
			q.Untimed, q.Brief, q.Hash = true, false, false // the limits are among what is hashed
		case ok && (q.Brief || q.Hash):
			switch refused.SQLState {
			case "26000": // somebody has dropped it
				s.brief = unbriefed
			case "42501": // the client's role may not ask in this way
			default:
				s.brief = unbriefed
				brief.Off()
			}
			if err = s.rollBack(); err != nil {
				return found, err
			}
			q.Brief, q.Hash = false, false
		case err == nil && q.Brief && !s.hashes.Settles(q, &found):
			q.Brief, q.Hash = false, !found.Forged()
			if !q.Hash {
				s.brief = neverBriefed
			}
		default:
			return found, err
		}
	}
}

// briefness is whether a server has the statements of [audit.Brief].
type briefness uint8

const (
	unbriefed briefness = iota
	briefed
	neverBriefed
)

// isBriefed reports whether it has, and sees to it.
func (s *backend) isBriefed(brief *audit.Brief) bool {
	if s.brief != unbriefed {
		return s.brief == briefed
	}
	s.brief = neverBriefed
	if !brief.Read() {
		var names audit.Listing
		if s.execWithin(lookLimit, audit.Names, names.Row) != nil {
			return false // what is asked next tells of a connection that is lost
		}
		brief.Name(names)
	}
	var messages []byte
	for _, one := range brief.Statements() {
		messages = pgwire.Append(messages, pgwire.Parse, []byte(one.Name), nul, []byte(one.Value), []byte{0, 0, 0})
	}
	if s.talk(lookLimit, pgwire.Append(messages, pgwire.Sync), nil) == nil {
		s.brief = briefed
	}
	return s.brief == briefed
}

func (s *session) unread(err error) error {
	return end(Lost, "the session's settings could not be read back from the server", "connect again").because(fmt.Errorf("audit: %w", err))
}

// clean makes the server fit for another client: no transaction, nothing left
// behind. A server that cannot be cleaned is broken.
func (s *backend) clean() error {
	if err := s.rollBack(); err != nil {
		return err
	}
	left := s.left | s.pins
	if left&audit.Wreck != 0 {
		s.broken.Store(true)
		return errors.New("what the client left cannot be undone")
	}
	if s.pool.resetAlways() {
		left |= scan.Lasting | scan.Sequence
	}
	if s.opaque != nobodys {
		left |= scan.Opaque // it may have a seed
	}
	sql := audit.Wipe(left)
	if s.tuned {
		sql += s.pool.hub.Closes(0)
	}
	if sql == "" {
		s.forgive()
		return nil
	}
	if err := s.exec(sql); err != nil || s.status != pgwire.Idle {
		s.broken.Store(true)
		return fmt.Errorf("reset: %w", err)
	}
	if strings.Contains(sql, "RESET ALL") {
		s.settings, s.opaque = state.None, nobodys
		s.replan(state.None, true)
	}
	if strings.Contains(sql, "DEALLOCATE") {
		s.unlearn()
		s.named = state.None
	}
	if strings.Contains(sql, forgetSequences) {
		s.sequences = nobodys
	}
	s.forgive()
	return nil
}

// unlearn notes that the server has dropped all that was prepared.
func (s *backend) unlearn() {
	clear(s.prepared)
	s.stains.Clear()
	s.brief = unbriefed
}

// forgive forgets what may have been left: it is not there, or it has been wiped.
func (s *backend) forgive() {
	s.left, s.pins, s.heard, s.tuned, s.stuck = 0, 0, nil, false, nil
	s.stains.Settle()
	s.mentions.Reset()
	s.executed = nil
}

// discard wipes everything at the end of a session that had the server to itself.
func (s *backend) discard() error {
	if err := s.rollBack(); err != nil {
		return err
	}
	if (s.left|s.pins)&audit.Wreck != 0 {
		s.broken.Store(true)
		return errors.New("what the client left cannot be undone")
	}
	err := s.exec("DISCARD ALL")
	if err == nil {
		err = s.exec(audit.Reseed()) // which that does not
	}
	if err != nil {
		s.broken.Store(true)
		return err
	}
	s.settings, s.named, s.sequences, s.opaque = s.entered, state.None, nobodys, nobodys
	s.analysed, s.mixed = s.entered.Constants(s.atLogin), false
	s.unlearn()
	s.forgive()
	return nil
}

// currval and lastval answer with what the server's session was given last, whoever its client was. They must never answer with
// another client's value.
//
// Nothing is done for databases whose clients never ask for them. Once one has, each server forgets such values (DISCARD SEQUENCES, in
// front of the client's first message) when it changes hands. So a value that was given in the same transaction is right, and one
// that is not there is PostgreSQL's own error (55000). A client that asks for what an earlier transaction was given keeps its server
// from its next such transaction on; until then it gets the server that it had last, if nobody has had it since.

// Whose values a server's session knows, besides the id of a session.
const (
	nobodys  = 0
	severals = ^uint32(0)
)

// takeSequences makes the values that the server knows the client's own, if it matters. It reports whether the server has to forget those that it has.
func (s *session) takeSequences() (forget bool) {
	b := s.backend
	switch {
	case b.sequences == s.id:
	case b.sequences == nobodys:
		b.sequences = s.id
	case b.pool.sequences.Load():
		b.sequences = s.id
		return true
	default:
		b.sequences = severals
	}
	return false
}

const forgetSequences = "DISCARD SEQUENCES"

// asks notes that the next message, which may do e, is carried out now.
func (s *session) asks(e scan.Effect) {
	if e&scan.Sequence != 0 && (s.backend.left|e)&scan.Advances == 0 {
		s.straddles = true
	}
	s.ownSequences(e)
}

// mayForget reports whether the server may forget values here, in front of what comes next: none is the client's own, and nothing
// has to come before the snapshot that this takes: an isolation level or its kind, or a table's LOCK.
func (s *session) mayForget() bool {
	b := s.backend
	early := func(word string) bool { return scan.Contains(s.in.Peek(s.in.Buffered()), word) }
	return b.status == pgwire.Idle || b.status == pgwire.InBlock && b.earlier&scan.Advances == 0 && !slices.ContainsFunc([]string{"transaction", "isolation", "deferrable", "read write", "lock ", "lock\t", "lock\n"}, early)
}

// ownSequences sees to it, before a message is sent that asks for a sequence's last value, that the server knows none of another client's. The lock is held.
func (s *session) ownSequences(e scan.Effect) {
	b := s.backend
	amid := s.behind || s.uplink != nil || s.debts.len() > b.replays
	if e&scan.Sequence == 0 {
		if e&scan.Opaque != 0 && b.sequences == severals && !amid && s.mayForget() { // it may ask
			b.sequences = s.id
			s.sendReplay(forgetSequences, "")
		}
		return
	}
	if !b.pool.sequences.Load() {
		b.pool.sequences.Store(true)
	}
	switch {
	case b.sequences == s.id || b.status == pgwire.InFailed:
	case amid:
		s.refused = end(Unsupported, "currval or lastval is asked for in the middle of a pipeline, and the server may know another client's values",
			"use INSERT … RETURNING, or connect again: from now on servers forget them in time")
	default: // the database's first to ask
		b.sequences = s.id
		s.sendReplay(forgetSequences, "")
	}
}

// keepSequences pins the server, at a transaction's end, for a client that will ask for the values that it was given. What is over with the transaction is forgotten.
func (s *session) keepSequences(b *backend) {
	if s.straddles && b.left&scan.Advances != 0 {
		b.pins |= scan.Sequence
		s.mu.Lock()
		s.pinned = audit.Reasons(b.pins)
		s.mu.Unlock()
	}
	if b.left&(scan.Local|scan.AnyChange|scan.Nameless|scan.Unseen) != 0 { // maybe for the transaction only
		s.unsure = false
	}
	b.mixed = b.stains.Settle() || b.mixed // functions may have been analysed meanwhile
	if b.left&scan.Makes != 0 || b.changing && b.left&scan.Catalog == 0 {
		b.pool.outdate() // a name may lead to what was made, and its tag may not say so (SELECT INTO); or was dropped
	}
	if b.left&scan.Makes != 0 && b.left&(scan.Temporary|scan.Setting|scan.AnyChange|scan.Local) != 0 {
		b.left |= scan.Temporary | scan.Opaque // by where search_path leads now, and with defaults that nobody reads
	}
	if b.left &= scan.Lasting; b.left&scan.Catalog == 0 { // else that is looked at first
		b.changed()
	}
}

// What leads a server back from what another client has left may be refused: that is no fault of the client that has the
// server now. Nothing of its cycle has been carried out by then, so the server is closed and the cycle goes to another one.
//
// So does one whose settings PostgreSQL refuses for the moment, since it was canceled meanwhile, or took too long: there it is
// turned down with that error.

// sendChange sends one of the queries that change settings, of which so many statements, the first, lead back what another
// client has left. Its BEGIN goes ahead by itself: it may fail too, by a cancel request, the time limit of another, or a text behind it that cannot
// be read, and PostgreSQL passes over all that follows what fails in the extended protocol, up to a Sync. The lock is held.
func (s *session) sendChange(query string, back int) {
	b := s.backend
	b.out = pgwire.Append(b.out, pgwire.Parse, nul, []byte(beginReplay), nul, nul, nul)
	b.out = pgwire.Append(b.out, pgwire.Bind, make([]byte, 8))
	b.out = pgwire.Append(b.out, pgwire.Execute, make([]byte, 5))
	b.out = pgwire.AppendQuery(b.out, query+";COMMIT")
	s.aside(debt{at: int32(back) + 1})
	b.unnamed = ticket{}
}

// maxAstray bounds how many servers are closed for one cycle. Those that are opened in their place have nothing to be led back.
const maxAstray = 100

// astray reports whether the server's error is of what changes settings, and the client's cycle, which is still at hand, goes to another
// one: to be carried out, if it is what another client has left that cannot be led back, or to be turned down.
func (s *session) astray(d debt, body []byte) bool {
	b := s.backend
	if d.name != "" || b.status != pgwire.Idle || !s.busy || s.mute || b.pins != 0 || s.attempt.tries >= maxAstray {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uplink != nil && (s.attempt.size == 0 || s.attempt.cycle == nil) {
		return false // it reads over what has been sent
	}
	if _, ok := s.resendable(); !ok || s.stage != running || s.lost != nil {
		return false
	}
	code := string(pgwire.Field(body, 'C'))
	canceled := code == "57014" && (b.canceling > 0 || s.canceled == s.turn.Load()) // the request may be over
	switch {
	case s.debts.answered < d.at && !canceled:
	case code != "57014" && code != "55P03" || s.attempt.tries >= maxTries:
		return false
	case s.setback == nil:
		s.setback = &unmade{name: namePrefix, body: bytes.Clone(body)}
	}
	return true
}
