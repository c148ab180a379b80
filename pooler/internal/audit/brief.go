package audit

import (
	"slices"
	"strings"
	"sync"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/prepared"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
)

// To list what a session has set, PostgreSQL writes down all of its 350 settings, with their descriptions, which takes it 0.7 ms;
// to hash the values of those that a session can set takes 0.1 ms. So that is what is asked by statements that stay
// prepared, and the list only if the hash is not the one that it was when the list was the one that is known.

// A Brief knows what is hashed, of the servers of one pool. The zero value is ready. Its methods may be called from several
// goroutines.
type Brief struct {
	mu    sync.Mutex
	names []string // of the settings that are hashed; nil: not read yet
	off   bool
}

// Hashes are those of one server, by what was set: another one may have begun with other values, where those of its database or
// user have been altered since. The zero value is ready.
type Hashes map[string]string

// Names of the statements that servers keep prepared for this.
var (
	briefName = prepared.Prefix + "_settings"
	restName  = prepared.Prefix + "_rest"
)

// maxHashes bounds how many hashes are kept of a server.
const maxHashes = 200

// Names is the SQL that reads which settings a session can set; its rows are for [Listing.Row]. What superusers alone may see is
// not hashed, lest a role that a client takes may not ask.
const Names = begin + "SELECT 'b',name,NULL FROM pg_catalog.pg_settings WHERE context OPERATOR(pg_catalog.=) ANY (ARRAY['user','superuser'])" +
	" AND name OPERATOR(pg_catalog.<>) ALL (ARRAY['transaction_isolation','transaction_read_only','transaction_deferrable','dynamic_library_path','session_preload_libraries']);COMMIT"

// A Listing is the answer: names. It counts when it is complete.
type Listing []string

// Row takes one row of it.
func (l *Listing) Row(body []byte) error {
	var columns [3][]byte
	if !pgwire.Columns(body, columns[:]) || string(columns[0]) != "b" {
		return errRow
	}
	*l = append(*l, string(columns[1]))
	return nil
}

// Name says which settings are hashed, unless that is known.
func (b *Brief) Name(all Listing) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.names == nil {
		b.names = all
	}
}

// Read reports whether the names have been read.
func (b *Brief) Read() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.names != nil
}

// Off lets it be used no more.
func (b *Brief) Off() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.off = true
}

// Serves reports whether the question can be asked in this way: it asks for all settings, and names none that is not hashed. Nor
// does it of a client that chose some at login, and may have led one back: that is not the same as to set it to the
// server's default.
func (b *Brief) Serves(q *Question, login *state.Settings) bool {
	if q.Effects&(scan.Back|scan.Discards) != 0 && login.Len() > 0 {
		return false
	}
	if !q.Everything() || q.Effects&asksSettings == 0 || q.Cleared&scan.Setting != 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	hashed := func(name string) bool {
		return strings.Contains(name, ".") || name == "all" || name == "role" || name == "session_authorization" ||
			slices.ContainsFunc(b.names, func(n string) bool { return strings.EqualFold(n, name) })
	}
	return !b.off && (b.names == nil || !slices.ContainsFunc(q.Names, func(name string) bool { return !hashed(name) }))
}

// Statements are what a server is to keep prepared, by name.
func (b *Brief) Statements() []pgwire.Param {
	b.mu.Lock()
	defer b.mu.Unlock()
	// When the server has read its configuration anew, what is not set has other values.
	hash := "SELECT 'h',pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat(pg_catalog.array_agg(pg_catalog.current_setting(n,true))::pg_catalog.text," +
		"pg_catalog.date_part('epoch',pg_catalog.pg_conf_load_time())),pg_catalog.getdatabaseencoding())),'hex'),NULL FROM pg_catalog.unnest(" + array(b.names) + ") AS n"
	rest := strings.ReplaceAll(strings.TrimSuffix(tables+locks+cursors+channels, ";"), ";", " UNION ALL ")
	return []pgwire.Param{{Name: briefName, Value: hash}, {Name: restName, Value: rest}}
}

// Settles reports whether the answer to a brief question says what is set: then it has been added to what was found.
func (h Hashes) Settles(q *Question, f *Findings) bool {
	known := known(q.Known)
	if q.Effects&(scan.Back|scan.Discards) != 0 {
		known = nil // what has gone back may have been what it was
	}
	hash, ok := h[state.Of(known).Key()]
	if !ok || f.forged || f.hash != hash {
		return false
	}
	f.all = known
	return true
}

// Forged reports whether somebody has made a statement under the name of one of ours.
func (f *Findings) Forged() bool { return f.forged }

// Learn notes that has was set when the hash was the one that was found.
func (h *Hashes) Learn(has *state.Settings, f *Findings) {
	if f.hash == "" || f.forged {
		return
	}
	if *h == nil || len(*h) >= maxHashes {
		*h = Hashes{}
	}
	(*h)[state.Of(known(has)).Key()] = f.hash
}

// array is the SQL for these texts.
func array(texts []string) string {
	var sql strings.Builder
	for n, text := range texts {
		if n > 0 {
			sql.WriteByte(',')
		}
		sql.WriteString(state.Literal(text))
	}
	return "ARRAY[" + sql.String() + "]::pg_catalog.text[]"
}

// known are those of a session's settings that are among all that a server lists.
func known(s *state.Settings) (list []pgwire.Param) {
	for _, p := range s.All() {
		if p.Name != "role" && p.Name != "session_authorization" && !strings.Contains(p.Name, ".") {
			list = append(list, p)
		}
	}
	return list
}
