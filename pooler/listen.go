package pooler

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"mainstay.dev/mainstay/pooler/internal/hub"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
)

// An ear is what a session knows of its channels in transaction mode. It has one once it
// has listened. A client's LISTEN is carried out by the server that it
// has at the time, so that errors, rollbacks and savepoints count as they do in
// PostgreSQL. At the transaction's end the server is asked to what it listens; the
// pool's hub listens to that from then on, and the server does not any more. Only then
// the client learns that it is done.
//
// A client that listens already gets a server that does too, for those of its
// transactions that may change or show it (tune).
type ear struct {
	hub      *hub.Hub
	channels []string // in the order in which the client listened; guarded by the session's lock, as the rest
	mail     []byte   // notifications for the client that are not written yet
	later    []byte   // those that the hub hears while parting
	parting  bool     // the server is about to be listened for by the hub
	woken    bool     // rest is to be interrupted for them
}

// tunes are the effects for which a client's channels must be known to its server. A
// transaction that is begun may hold any.
const tunes = scan.Begins | scan.Listens | scan.Notifies | scan.Discards | scan.Unseen | scan.AnyChange | scan.Executes

// tune makes the server listen to what the client listens to, before a transaction
// that may need it.
func (s *session) tune(extent pgwire.Extent) error {
	b := s.backend
	if s.ear == nil || len(s.ear.channels) == 0 || b.tuned || b.status != pgwire.Idle || b.pool.sessions() {
		return nil
	}
	if extent == pgwire.Whole && s.effects()&tunes == 0 {
		s.synced = s.ear.hub.Sync() // what was sent before the query comes before its end
		return nil
	}
	if err := s.replayed(); err != nil {
		return err
	}
	b.tuned = true
	b.left |= scan.Listens
	if err := b.exec(hub.ListenTo(s.ear.channels) + s.ear.hub.Opens(s.id)); err != nil {
		b.broken.Store(true)
		return unsuited(err)
	}
	return nil
}

// effects are those of the client's next cycle, which is buffered whole.
func (s *session) effects() (e scan.Effect) {
	rest := s.in.Peek(s.in.Buffered())
	backslash, hints := s.backend.backslash(), s.backend.pool.home().hidden.hints()
	for {
		typ, n, body := pgwire.Split(rest)
		rest = rest[n:]
		switch typ {
		case pgwire.Query:
			text, _, _ := pgwire.String(body)
			return e | scan.Effects(text, backslash) | hints.Find(text, backslash, nil)
		case pgwire.FunctionCall, pgwire.Sync:
			return e
		case pgwire.Parse:
			_, text, _, _ := pgwire.Strings(body)
			e |= scan.Effects(text, backslash) | hints.Find(text, backslash, nil)
		case pgwire.Bind:
			_, name, _, _ := pgwire.Strings(body)
			e |= s.leaves(name)
		}
	}
}

// mustAttend reports whether the client is to learn of its transaction's end only when
// its channels are in order. The lock is held.
func (s *session) mustAttend() bool {
	b := s.backend
	return (b.tuned || b.left&scan.Listens != 0) && !b.pool.sessions()
}

// barrierLimit bounds how long a client waits for its own notifications before it is
// told that its transaction has ended.
const barrierLimit = time.Second

// attend lets the hub listen to what the client's transaction has left the server
// listening to, and the server not any more.
func (s *session) attend(b *backend, found []string) error {
	var had []string
	if s.ear != nil {
		had = s.ear.channels
	}
	if !b.tuned && len(found) == 0 {
		b.heard = nil
		return nil
	}
	now := found
	if !b.tuned {
		now = slices.Concat(had, without(found, had))
	}
	if s.ear == nil {
		e := &ear{hub: b.pool.hub}
		s.mu.Lock()
		s.ear = e
		s.mu.Unlock()
	}
	if s.ear.hub != b.pool.hub { // the pool was replaced
		return errLost(s.database)
	}
	come, gone := without(now, had), without(had, now)
	s.ear.hub.Unsubscribe(s.id, gone)
	if len(come) > 0 {
		limits := b.pool.limits()
		if err := s.ear.hub.Subscribe(b.pool.context(), s.id, listener{s}, come, max(limits.AcquireTimeout, limits.OutageWait)); err != nil {
			return end(Unreachable, "LISTEN was not carried out: the pooler's connection that listens could not be opened", "try again").because(err)
		}
	}
	s.mu.Lock()
	s.ear.channels = now
	s.ear.drop(gone, s.id)
	s.ear.parting = true
	s.mu.Unlock()
	defer s.parted()
	token := s.ear.hub.AwaitBarrier(s.id, listener{s})
	if err := b.exec(s.ear.hub.Parts(s.id)); err != nil {
		b.broken.Store(true)
		return s.unread(err)
	}
	s.post(b, come)
	if err := b.exec("UNLISTEN *"); err != nil {
		b.broken.Store(true)
		return s.unread(err)
	}
	b.heard, b.tuned = nil, false
	if token != nil {
		select {
		case <-token:
		case <-time.After(barrierLimit):
		}
	}
	return nil
}

// parted lets the client have what the hub has heard since the barrier, behind what its
// own server has heard before.
func (s *session) parted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.ear
	e.mail = append(e.mail, e.later...)
	e.later, e.parting = nil, false
}

// drop takes the client's own notifications out that it does not listen to any more:
// they are of the transaction that has ended that.
func (e *ear) drop(channels []string, own uint32) {
	if len(channels) == 0 {
		return
	}
	var kept []byte
	for rest := e.mail; len(rest) > 0; {
		typ, n, body := pgwire.Split(rest)
		pid, channel, _, _ := hub.Notification(body)
		if typ != pgwire.Notification || pid != own || !slices.Contains(channels, channel) {
			kept = append(kept, rest[:n]...)
		}
		rest = rest[n:]
	}
	e.mail = kept
}

// without lists what is in a and not in b.
func without(a, b []string) (list []string) {
	known := make(map[string]bool, len(b))
	for _, one := range b {
		known[one] = true
	}
	for _, one := range a {
		if !known[one] {
			list = append(list, one)
		}
	}
	return list
}

// post hands the client what its own server has heard, up to its barrier, on channels
// that the hub has not listened to before.
func (s *session) post(b *backend, channels []string) {
	for rest := b.heard; len(rest) > 0; {
		_, n, body := pgwire.Split(rest)
		frame := rest[:n]
		rest = rest[n:]
		pid, channel, _, ok := hub.Notification(body)
		if ok && s.ear.hub.IsBarrier(channel) && pid == b.PID {
			break
		}
		if !ok || !slices.Contains(channels, channel) {
			continue
		}
		if pid == b.PID {
			binary.BigEndian.PutUint32(body, s.id)
		}
		s.mu.Lock()
		s.ear.mail = append(s.ear.mail, frame...) // no more than a server's heard
		s.mu.Unlock()
	}
	b.heard = nil
}

// holdBack keeps a CommandComplete from the client, if it may be the last of a
// transaction whose channels have to be put in order first: some drivers take it for the
// end, and do not wait for ReadyForQuery.
func (s *session) holdBack(body []byte) bool {
	if len(s.held) > 0 {
		s.pass()
		s.tellHeld()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mustAttend() || len(body) >= lookInto {
		return false
	}
	if _, ends := s.debts.firstReady(); !ends {
		return false // the server says no more before the client does
	}
	s.held = pgwire.Append(s.held, pgwire.CommandComplete, body)
	return true
}

// tellHeld sends what was held back.
func (s *session) tellHeld() {
	if len(s.held) > 0 && !s.mute {
		_ = s.give(s.held) // a client that is gone is noticed where it is served
	}
	s.held = s.held[:0]
}

// notify hands the client messages that belong to no query, whole ones. They are
// written between two of its transactions, now if it rests there: never in the middle
// of another message. It does not wait for the client; one that leaves more unread
// than it may is disconnected. Any goroutine may call it.
func (s *session) notify(frames []byte) {
	limit := int(s.pooler.buffer(s.database))
	s.mu.Lock()
	e := s.ear
	if e == nil || s.stage == killed {
		s.mu.Unlock()
		return
	}
	if len(e.mail)+len(e.later)+len(frames) > limit {
		e.mail, e.later = nil, nil
		s.mu.Unlock()
		s.expel(end(ListenBehind, "terminating connection: the client left more notifications unread than pooler.databases."+s.database+".listen.buffer holds",
			"read them sooner, end transactions sooner, or raise it; then LISTEN again, and read again what they tell of"))
		return
	}
	if e.parting {
		e.later = append(e.later, frames...)
		s.mu.Unlock()
		return
	}
	e.mail = append(e.mail, frames...)
	if s.resting && s.between() && !e.woken {
		e.woken = true
		_ = s.conn.SetReadDeadline(longAgo) // a closed connection is as good
	}
	s.mu.Unlock()
}

// buffer is how many bytes of notifications a client of this database may leave unread.
func (p *Server) buffer(database string) int64 {
	return int64(p.policy.Load().config.Databases[database].Listen.Buffer)
}

// calmed undoes what notify did to interrupt rest, and reports whether it did. The lock
// is held.
func (s *session) calmed() bool {
	e := s.ear
	if e == nil || !e.woken {
		return false
	}
	e.woken = false
	if s.stage == running {
		_ = s.conn.SetReadDeadline(time.Time{}) // a closed connection is noticed by whoever reads it
	}
	return true
}

// deliver writes the client's notifications, if it is between two transactions.
func (s *session) deliver() {
	if s.ear == nil {
		return
	}
	s.mu.Lock()
	if !s.between() || len(s.ear.mail) == 0 {
		s.mu.Unlock()
		return
	}
	mail := s.ear.mail
	s.ear.mail = nil
	s.mu.Unlock()
	if s.mute {
		return
	}
	if _, err := s.conn.Write(mail); err != nil {
		s.mute = true // what was cut must not be followed by anything
	}
}

// A listener is a session as its hub sees it.
type listener struct{ *session }

func (s listener) Ending() bool { return s.dead.Load() }

func (s listener) Notify(frames []byte) { s.notify(frames) }

// Lost tells the client that notifications may be lost.
func (s listener) Lost(back bool) {
	if disconnect := s.pooler.policy.Load().config.Databases[s.database].Listen.OnLoss == lossDisconnect; disconnect || !back {
		if disconnect {
			s.expel(errLost(s.database))
		}
		return
	}
	s.mu.Lock()
	var channels []string
	if s.ear != nil {
		channels = s.ear.channels
	}
	s.mu.Unlock()
	const most = 20
	names := strings.Join(channels[:min(len(channels), most)], ", ")
	if len(channels) > most {
		names += ", …"
	}
	s.notify(pgwire.Fault{
		SQLState: "01000", Message: "notifications may have been lost, since the connection that listens for this client was; it listens again to " + names,
		Hint: "read again what they tell of; listen.on_loss: disconnect makes this an end of the connection",
	}.AppendWarning(nil))
}

// deaf ends what the session listens to.
func (s *session) deaf() {
	if s.ear != nil {
		s.ear.hub.Leave(s.id)
	}
}

func errLost(database string) *ending {
	return end(ListenLost, fmt.Sprintf("terminating connection: notifications may have been lost, since the connection that listens to database %q was", database),
		"connect, LISTEN, and read again what they tell of")
}

// awaitHub waits, for a while, until the hub has caught up with what the client is to
// hear before its next ReadyForQuery.
func (s *session) awaitHub() {
	if s.synced == nil {
		return
	}
	select {
	case <-s.synced:
	case <-time.After(barrierLimit):
	}
	s.synced = nil
}

// inform tells the client what the server reports differently from what the client
// was told last, and what was heard while the server answered the pooler itself.
func (s *session) inform() {
	if s.informed() {
		return
	}
	out := s.backend.heard
	if s.backend.heard = nil; s.ear == nil { // it has listened to nothing
		out = nil
	}
	for p := range s.news {
		out = pgwire.AppendParameter(out, p.Name, p.Value)
	}
	s.told, s.untold = s.backend.reports, false
	if !s.mute {
		_ = s.give(out) // a client that is gone is noticed where it is served
	}
}

// informed reports whether there is nothing of that.
func (s *session) informed() bool {
	if !s.untold {
		return true
	}
	for range s.news {
		return false
	}
	if len(s.backend.heard) > 0 {
		return false
	}
	s.told, s.untold = s.backend.reports, false
	return true
}

// news yields what the server reports differently.
func (s *session) news(yield func(pgwire.Param) bool) {
	for _, p := range s.backend.reports.All() {
		if value, ok := s.told.Get(p.Name); (!ok || value != p.Value) && !yield(p) {
			return
		}
	}
}
