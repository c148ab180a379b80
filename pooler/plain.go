package pooler

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"mainstay.dev/mainstay/pooler/internal/fingerprint"
	"mainstay.dev/mainstay/pooler/internal/loop"
	"mainstay.dev/mainstay/pooler/internal/memo"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// Most cycles do nothing that a pooler must know of, and come again and again with other
// constants. They are recognised by their texts, and sent without a second look.

// A harmless text does nothing that outlives its transaction, as far as the catalog was
// known when it was read.
type harmless struct {
	shape *fingerprint.Shape
	by    *revealed
}

// remember looks whether the text is known to be harmless, and notes what else there is to
// see in it.
func (s *session) remember(text []byte) bool {
	if len(text) <= 192 { // a large buffer would be zeroed each time
		var buf [192]byte
		return s.recognise(text, buf[:0])
	}
	var buf [memo.MaxText]byte
	return s.recognise(text, buf[:0])
}

// recognise is remember, with room for the key.
func (s *session) recognise(text, buf []byte) bool {
	home := s.backend.pool.home()
	key, ok := memo.Key(buf, text)
	if !ok {
		return false
	}
	known, ok := home.texts.Get(key)
	if !ok || known.by != home.hidden.known.Load() {
		return false
	}
	s.harmless = true
	if memo.Commented(key) {
		s.seekTraceparent(text)
	}
	if s.next.shape == nil {
		s.next.shape = known.shape
		s.keepForPlan(text)
	}
	return true
}

// learnHarmless remembers a text that was read, and found to be harmless.
func (s *session) learnHarmless(text []byte, by *revealed) {
	var buf [memo.MaxText]byte
	if key, ok := memo.Key(buf[:0], text); ok {
		s.backend.pool.home().texts.Put(key, harmless{s.shapeOf(text), by})
	}
}

// seekTraceparent notes the trace that a text belongs to.
func (s *session) seekTraceparent(text []byte) {
	if !s.next.traced {
		s.next.trace, s.next.traced = pgwire.FindTraceparent(text)
	}
}

// mostOut is how much the event loops make ready for a server at once: what a client's messages stand for may be
// far longer than they are.
const mostOut = 8 * outLimit

// sendWhole is send for a whole cycle, which is buffered, when the server owes nothing yet
// but answers to replays: nothing has to be waited for, but that those are there before a
// transaction ends, or that it takes what there is (errHold). It returns the bytes that were sent.
func (s *session) sendWhole() (size int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.backend
	if s.canceling() {
		return 0, errHold
	}
	s.next.start = s.exchange.Start
	for ends := false; !ends; {
		typ, n, _, err := s.in.Header()
		if err != nil {
			return size, err
		}
		if b.replays > 0 && s.mustKnow(typ, n) || len(b.out) > mostOut || s.mustSense(typ, n) {
			return size, errHold
		}
		size += pgwire.HeaderSize + n
		s.next.bytes += int64(pgwire.HeaderSize + n)
		s.behind, s.open = s.open, true
		text, _ := s.text(typ, n)
		rest, err := s.rewrite(typ, n, text, true)
		if err == nil {
			err = s.refused
		}
		if err != nil {
			return size, err
		}
		b.out = append(b.out, s.in.Peek(rest)...)
		s.in.Skip(rest)
		ends = s.noteSent(typ)
	}
	return size, nil
}

// sendPlain is sendWhole for what drivers mostly send that do not prepare: an unnamed
// statement that is known to be harmless is parsed, and executed. All of it goes to the
// server as it came. It returns 0 if the cycle is another one.
func (s *session) sendPlain() (size int) {
	b := s.backend
	size, between := s.in.Plain()
	if size == 0 || b.pool.sessions() || b.replays > 0 || b.left&scan.AnyChange != 0 || len(s.portals) > 0 && !s.onlyUnnamed() {
		return 0
	}
	_, n, _, _ := s.in.Header() // its Parse
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.canceling() {
		return 0
	}
	text, _ := s.text(pgwire.Parse, n)
	if !s.harmless {
		return 0
	}
	s.next.start, s.next.bytes = s.exchange.Start, int64(size)
	s.newUnnamed(text)
	delete(s.portals, "") // there is another one
	s.keepUnnamed(0, s.head(n)[1:], true)
	s.owe(debt{kind: owesParse, unnamed: true})
	s.debts.asked += int32(between)
	b.out = append(b.out, s.in.Peek(size)...)
	s.in.Skip(size)
	s.noteSent(pgwire.Sync)
	return size
}

// scanPlain is scan for an answer as nearly all are: to one such cycle, without an error, and
// there to its end. It reports whether it was one; if not, nothing has been done.
func (s *session) scanPlain() bool {
	b := s.backend
	if b.replays > 0 || s.untold || !s.busy || len(s.held) > 0 || s.debts.ours || s.added != nil || s.synced != nil || s.attempt.anew != nil || len(s.untried) > 0 ||
		b.tuned || b.left&scan.Listens != 0 || b.pool.sessions() || b.In.Partial() {
		return false
	}
	size := b.In.Buffered()
	tag, parsed, ok := pgwire.PlainAnswer(b.In.Peek(size))
	if !ok {
		return false
	}
	command, rows := pgwire.Tag(tag)
	name := commandName(command)
	if name != "SELECT" && name != "INSERT" && name != "UPDATE" && name != "DELETE" {
		return false
	}
	s.mu.Lock()
	owed := s.debts.list[s.debts.head:]
	if parsed && len(owed) > 0 && owed[0].kind == owesParse && !owed[0].taken {
		owed = owed[1:]
	} else if parsed {
		owed = nil
	}
	if len(owed) != 1 || owed[0].kind != owesQuery && owed[0].kind != owesSync || s.open || s.midway || s.severed != 0 || s.back.name != "" {
		s.mu.Unlock()
		return false
	}
	s.debts.clear()
	b.status, s.block, s.renamed, s.why = pgwire.Idle, pgwire.Idle, nil, nil
	s.answering, s.closing, s.mum, s.withheld = false, true, false, false
	c, _ := s.cycles.pop()
	s.mu.Unlock()
	x := s.exchange
	x.DB.Command, x.DB.Rows, x.DB.Queries = name, x.DB.Rows+rows, x.DB.Queries+1
	x.BytesOut += int64(size)
	b.In.Pass(size)
	s.record(&c)
	return true
}

// enterAs returns a server that was entered with the settings that the client chose at login, instead of the one that it
// has claimed: so RESET leads back to them, wherever it stands. That one is for others, if the pool has room for both.
func (p *pool) enterAs(b *backend, s *session) (*backend, error) {
	login := cmp.Or(s.login, s.settings) // there is no login before it is over
	if b.entered.Equal(login) {
		return b, nil
	}
	target, limit := p.target.Choosing(login.All()), p.limits().ConnectTimeout
	if own := p.target.ConnectTimeout; own > 0 {
		limit = own
	}
	ctx, cancel := context.WithTimeout(p.context(), limit)
	defer cancel()
	conn, err := target.Connect(ctx, p.dialLoop)
	refused, ok := errors.AsType[*upstream.Refused](err)
	if ok && refused.Passing() { // there may be no room beside it
		b.broken.Store(true)
		b.close()
		conn, err = target.Connect(ctx, p.dialLoop)
		refused, ok = errors.AsType[*upstream.Refused](err)
	}
	switch {
	case err != nil && ok && !refused.Passing():
		p.release(b)
		return nil, unsuited(err)
	case err != nil:
		p.release(b)
		return nil, p.unreachable(err)
	}
	other := newBackend(p, conn)
	other.entered = p.settings.Intern(login)
	other.settings = other.entered
	p.mu.Lock()
	now := time.Now()
	stays := !b.broken.Load() && !p.retired && !p.stale(b, now) && len(p.all)+p.dialing < p.room() && p.occupy()
	p.all[other] = struct{}{}
	p.lend(other, s, now)
	b.holder = nil
	switch {
	case !stays:
		delete(p.all, b)
	case p.line.Waiting() > 0 || p.paused != nil:
		p.hand(b, now, nil)
	default: // where it was
		b.since = b.before
		p.idle = slices.Insert(p.idle, 0, b)
	}
	p.mu.Unlock()
	if !stays {
		b.close()
	}
	return other, nil
}

// keepSaid notes which settings the unnamed statement may change, itself or by the functions that it calls, each time
// that it is executed.
func (s *session) keepSaid(text []byte) {
	b, u := s.backend, &s.unnamed
	if u.left&(scan.Setting|scan.AnyChange) != 0 {
		for _, backslash := range scan.Modes(text, b.backslash(), !s.swayed()) {
			u.said.Find(text, backslash, u.left)
			b.pool.home().hidden.hints().Find(text, backslash, &u.said)
		}
	}
}

// read says what a text may leave behind, by its own words and by those that hide more. varies is whether that depends on its
// constants. The settings that it names are noted. Behind what may have changed how strings are written, which the
// server has not answered yet, it is read in both ways.
func (s *session) read(text []byte, known *revealed) (e scan.Effect, varies bool) {
	b, hints := s.backend, known.all()
	e = eachWay(scan.Modes(text, b.backslash(), !s.swayed()), func(backslash bool) scan.Effect {
		changes, varied := hints.Changes(text, backslash)
		e := changes | scan.Effects(text, backslash) | hints.Find(text, backslash, &b.mentions)
		if e&(scan.Setting|scan.AnyChange) != 0 {
			b.mentions.Find(text, backslash, e)
		}
		varies = varies || varied
		return e
	})
	if s.garbled(text) {
		e |= scan.Unknown | scan.Catalog
	}
	return e, varies
}

// partly is what a text may do of which there is only the beginning, which does e.
func (s *session) partly(e scan.Effect, text []byte, known *revealed) scan.Effect {
	b := s.backend
	for _, hint := range known.all() {
		for _, name := range hint.Settings {
			b.mentions.Add(name)
		}
	}
	changes, _ := scan.Hints{}.Changes(text, b.backslash())
	return e.Unlikely()&^(scan.Prepares|scan.Back) | changes&scan.Catalog | scan.Unseen | scan.Opaque
}

// given is what the values of a Bind, of so many bytes, may add to what the statement does: one may be the name of a setting,
// or lead search_path to what is temporary.
func (s *session) given(values []byte, size int) (e scan.Effect) {
	b := s.backend
	if b.left&(scan.Setting|scan.AnyChange|scan.Local) == 0 {
		return 0
	}
	if scan.Contains(values, "pg_temp") {
		e = scan.Temporary
	}
	if b.left&scan.AnyChange != 0 {
		if pgwire.Values(values, b.mentions.Guess); len(values) < size {
			e |= scan.Opaque
		}
		if b.left&scan.Opaque != 0 {
			pgwire.Values(values, b.mentions.Code)
		}
	}
	return e
}

// eachWay is what reading a text in these ways says. Of the second, which is not the likely one, only what lasts counts.
func eachWay(modes []bool, read func(backslash bool) scan.Effect) (e scan.Effect) {
	for i, backslash := range modes {
		one := read(backslash)
		if i > 0 {
			one = one.Unlikely()
		}
		e |= one
	}
	return e
}

// whole are encodings in which no character of several bytes has a backslash for one of them. There are others.
var whole = []string{"UTF8", "LATIN1", "LATIN9", "WIN1252"}

// garbled reports whether a text may be another one to the server than it is to us, because it is converted: from another
// encoding than the server's own, or maybe from one that the client has only just chosen.
func (s *session) garbled(text []byte) bool {
	recoded, halves := s.recoded()
	known := s.backend.pool.home().hidden.known.Load()
	return scan.Garbled(text, s.swayed() || halves, recoded && known != nil && known.foreign)
}

// leaves is what the client's statement of this name may leave behind.
func (s *session) leaves(name []byte) scan.Effect {
	if len(name) == 0 {
		s.rebindUnnamed()
		s.relearn()
		return s.unnamed.left | s.leavesOf(s.unnamed.runs)
	}
	st := s.names[string(name)]
	if st != nil && st.late != nil {
		s.rebind(string(name), 0)
		st = s.names[string(name)]
	}
	return s.leavesOf(st)
}

// leavesOf is what a statement, which may be nil, may leave behind.
func (s *session) leavesOf(st *statement) scan.Effect {
	if st == nil {
		return 0
	}
	left := st.left | s.leavesOf(st.runs)
	if in := s.hiddenIn(st); in != nil {
		left |= in.effect
	}
	return left
}

// recall notes what a statement that is used again may leave behind.
func (s *session) recall(left scan.Effect, said *scan.Mentions, body []byte) {
	b := s.backend
	b.stains.Doubt(left&sways, body, b.backslash())
	if left&scan.Executes != 0 {
		left |= s.executesSQL()
	}
	s.taint(left)
	s.resets = s.resets || left&scan.Back != 0
	s.next.ends = s.next.ends || left&scan.Ends != 0
	b.mentions.Join(said)
}

// rests gives back what the session does not need while it waits for its client.
func (s *session) rests(w *loop.Worker) {
	if s.backend == nil {
		keep(w, s.shed())
	}
}

// beginOn is beginAt, with what the worker may have kept for it.
func (s *session) beginOn(w *loop.Worker, now time.Time) {
	if s.errand == nil {
		s.carry(kept(w))
	}
	s.beginAt(now)
}

// calls is what a function may leave behind that the client calls by its OID: nothing if it is one of those for large
// objects, for which drivers call functions so.
func (s *session) calls(n int) scan.Effect {
	if head := s.head(n); len(head) >= 4 {
		switch binary.BigEndian.Uint32(head) {
		case 715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172, 3457, 3458, 3459, 3460: // pg_proc.dat
			return 0
		}
	}
	s.asks(scan.Sequence)
	return scan.Unknown
}

// give writes to the client. On the event loops, which must not wait, what there is no room for
// is left to a goroutine, which has to have the session next.
func (s *session) give(p []byte) (err error) {
	switch {
	case s.at == aside:
		s.writing.Store(true)
		_, err = s.conn.Write(p)
		s.writing.Store(false)
		s.moved.Add(1)
		return err
	case len(s.stuck) > 0:
		s.stuck = append(s.stuck, p...)
		return nil
	}
	n, err := loop.TryWrite(s.conn, s.sock, p)
	if loop.Waits(err) {
		s.stuck, err = append(s.stuck, p[n:]...), nil
	}
	return err
}

// catchUp writes to the client what the event loops have left, also below TLS.
func (s *session) catchUp() {
	var stuck []byte
	if s.errand != nil {
		stuck, s.stuck = s.stuck, nil
	}
	c := loop.CarrierOf(s.conn)
	if !c.Behind() && len(stuck) == 0 {
		return
	}
	var err error
	if !s.admitted() {
		err = s.limitLogin(s.pooler.policy.Load())
	}
	if err == nil && len(stuck) > 0 {
		err = s.give(stuck)
	} else if err == nil {
		s.writing.Store(true)
		err = c.Flush()
		s.writing.Store(false)
		s.moved.Add(1)
	}
	if err != nil {
		s.mute = true
		if s.backend != nil {
			s.backend.interrupt(grace)
		}
	}
}

// leaveStuck leaves to a goroutine what the client did not take of an answer: all of it, if done.
func (s *session) leaveStuck(done bool, err error) {
	s.pass() // behind what is stuck
	switch {
	case err != nil:
		s.fail(err)
	case done:
		s.escalate(atPass)
	default:
		s.escalate(atAnswer)
	}
}

// maxKept bounds the errands that a worker keeps.
const maxKept = 64

// keep leaves an errand with the worker, for a session that it serves later; nil: there is none.
func keep(w *loop.Worker, e *errand) {
	if e == nil {
		return
	}
	all, _ := w.Kept.(*[]*errand)
	if all == nil {
		all = new([]*errand)
		w.Kept = all
	}
	if len(*all) == maxKept {
		errands.Put(e)
		return
	}
	*all = append(*all, e)
}

// kept returns an errand that was left with the worker, or another one.
func kept(w *loop.Worker) *errand {
	all, _ := w.Kept.(*[]*errand)
	if all == nil || len(*all) == 0 {
		return errands.Get().(*errand)
	}
	last := len(*all) - 1
	e := (*all)[last]
	*all = (*all)[:last]
	return e
}
