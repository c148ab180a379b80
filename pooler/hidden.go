package pooler

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/pooler/internal/audit"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/upstream"
)

// What functions and triggers do to the session is not seen in the texts that use them. So
// a database's sources are read from its catalog (package scan, [scan.Hints]): by the first
// connection before anybody has it, behind a transaction that changed the schema, and
// once a minute behind some transaction, in case somebody else did. That look also shows
// whether tables have changed, which makes statements that are prepared from then on new.

// catalogEvery is how often the catalog is looked at for changes that were made elsewhere.
const catalogEvery = time.Minute

// catalogLimit bounds each of the two questions; mostly they take milliseconds. PostgreSQL
// gives up a little earlier.
const catalogLimit = 30 * time.Second

// hidden is what a database's catalog hides. Its methods may be called from several
// goroutines.
type hidden struct {
	known atomic.Pointer[revealed]
	next  atomic.Int64 // when it is to be looked at again, in nanoseconds since 1970
	first sync.Mutex   // over the first look, which all wait for
}

// revealed is what was read from the catalog.
type revealed struct {
	mark  string
	hints scan.Hints

	columns string // a mark of what tables are like
}

// hiddenIn is what a statement's text does by the functions that it calls.
type hiddenIn struct {
	by     *revealed
	effect scan.Effect
	said   scan.Mentions
}

// home is the pool that knows the catalog: members share their parent's.
func (p *pool) home() *pool {
	if p.parent != nil {
		return p.parent
	}
	return p
}

// hints are those that are known; nil if there are none.
func (h *hidden) hints() scan.Hints {
	if r := h.known.Load(); r != nil {
		return r.hints
	}
	return nil
}

// due reports whether the catalog is to be looked at, and that the caller is to do it.
func (h *hidden) due(now time.Time) bool {
	next := h.next.Load()
	return now.UnixNano() > next && h.next.CompareAndSwap(next, now.Add(catalogEvery).UnixNano())
}

// learnHidden reads the catalog on a new connection, if nobody has before.
func (s *backend) learnHidden() error {
	h := &s.pool.home().hidden
	h.first.Lock()
	defer h.first.Unlock()
	if s.pool.sessions() || h.known.Load() != nil || !h.due(time.Now()) {
		return nil
	}
	return s.reveal()
}

// reveal reads the catalog if it has changed. A server that refuses to show it is served
// without; only a connection that is lost is an error.
func (s *backend) reveal() error {
	var found audit.Hidden
	h := &s.pool.home().hidden
	known := h.known.Load()
	if err := s.execWithin(catalogLimit, audit.State, found.Row); err != nil {
		return s.unlessRefused(err)
	}
	if known != nil && known.columns != found.Columns {
		s.pool.statements.renew() // what is prepared from now on is prepared anew
	}
	if known != nil && known.mark == found.Mark {
		if known.columns != found.Columns {
			h.known.Store(&revealed{known.mark, known.hints, found.Columns})
		}
		return nil
	}
	version, _ := s.atLogin.Get("server_version")
	version, _, _ = strings.Cut(version, ".")
	major, _ := strconv.Atoi(version) // 0 if it is no number
	if err := s.execWithin(catalogLimit, audit.Catalog(major), found.Row); err != nil {
		return s.unlessRefused(err)
	}
	r := &revealed{mark: found.Mark, hints: found.Hints(), columns: found.Columns}
	h.known.Store(r)
	s.pool.statements.renew()
	if s.left&scan.AnyChange != 0 { // the transaction may have used what it made
		for _, hint := range r.hints {
			for _, name := range hint.Settings {
				s.mentions.Add(name)
			}
		}
	}
	return nil
}

// lookIntoCatalog reads the catalog behind a transaction.
func (s *session) lookIntoCatalog(b *backend) error {
	err := b.reveal()
	b.left &^= scan.Catalog
	if err == nil {
		return nil
	}
	b.broken.Store(true)
	if b.left == 0 && b.pins == 0 { // the client has nothing there
		return nil
	}
	return s.unread(err)
}

// unlessRefused ends the transaction in which PostgreSQL refused to show its catalog.
func (s *backend) unlessRefused(err error) error {
	if _, refused := errors.AsType[*upstream.Refused](err); !refused {
		return err
	}
	s.pool.log.Warn("the sources of functions cannot be read: what they leave in a session is not seen", "database", s.pool.name, "err", err)
	return s.rollBack()
}

// hiddenIn is what a statement does by the functions that it calls; nil: nothing.
func (s *session) hiddenIn(st *statement) *hiddenIn {
	known := s.backend.pool.home().hidden.known.Load()
	if known == nil || known.hints == nil {
		return nil
	}
	in := st.hidden.Load()
	if in == nil || in.by != known {
		in = &hiddenIn{by: known}
		text, _, _ := bytes.Cut(st.body, nul)
		in.effect = known.hints.Find(text, false, &in.said)
		st.hidden.Store(in)
	}
	return in
}

// leavesOf is what a statement, which may be nil, may leave behind.
func (s *session) leavesOf(st *statement) scan.Effect {
	if st == nil {
		return 0
	}
	if in := s.hiddenIn(st); in != nil {
		return st.left | in.effect
	}
	return st.left
}
