package pooler

import (
	"mainstay.dev/mainstay/pooler/internal/fingerprint"
	"mainstay.dev/mainstay/pooler/internal/memo"
	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
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
	home := s.backend.pool.home()
	var buf [memo.MaxText]byte
	key, ok := memo.Key(buf[:0], text)
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
		s.backend.pool.home().texts.Put(key, harmless{s.pooler.shapes.Of(text), by})
	}
}

// sendWhole is send for a whole cycle, which is buffered, when the server owes nothing yet
// but answers to replays: nothing has to be waited for, but that those are there before a
// transaction ends (errHold). It returns the bytes that were sent.
func (s *session) sendWhole() (size int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.backend
	s.next.start = s.exchange.Start
	for ends := false; !ends; {
		typ, n, _, err := s.in.Header()
		if err != nil {
			return size, err
		}
		if b.replays > 0 && s.mayEnd(typ, n) {
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
	if size == 0 || b.pool.sessions() || b.replays > 0 || b.left&scan.AnyChange != 0 || len(s.portals) > 0 {
		return 0
	}
	_, n, _, _ := s.in.Header() // its Parse
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.text(pgwire.Parse, n); !s.harmless {
		return 0
	}
	s.next.start, s.next.bytes = s.exchange.Start, int64(size)
	s.newUnnamed()
	s.keepUnnamed(0, s.head(n)[1:], true)
	s.owe(debt{kind: owesParse, unnamed: true})
	s.debts.asked += int32(between)
	b.out = append(b.out, s.in.Peek(size)...)
	s.in.Skip(size)
	s.noteSent(pgwire.Sync)
	return size
}
