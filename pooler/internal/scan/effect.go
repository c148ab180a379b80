package scan

import (
	"bytes"
	"strings"
)

// Effect is what a text may do to its session beyond its transaction, and what else
// a pooler must know of it.
type Effect uint32

const (
	Setting    Effect = 1 << iota // changes a setting that [Mentions] names
	AnyChange                     // may change settings that nobody can name: DO, CALL, set_config of an expression
	Back                          // RESET, SET … TO DEFAULT, DISCARD: leads back to what was at login
	Temporary                     // may make or drop something temporary
	Locks                         // takes or gives back a session's advisory lock
	Hold                          // makes or closes a cursor that outlives its transaction
	Listens                       // LISTEN or UNLISTEN
	Notifies                      // NOTIFY, or pg_notify
	Prepares                      // PREPARE, DEALLOCATE
	Seeds                         // setseed: what random() will return
	Sequence                      // asks what the session's last sequence value was: currval, lastval
	Connects                      // dblink_connect: a connection that the server's session holds
	Loads                         // LOAD: a library stays
	Ends                          // COMMIT, ROLLBACK and their kind
	Discards                      // DISCARD
	Alone                         // may refuse to run in a transaction block: VACUUM, CREATE DATABASE…
	Unseen                        // was not looked at as a whole
	Nameless                      // changes a setting whose name the server computes
	Terminates                    // pg_terminate_backend
	Cancels                       // pg_cancel_backend
	Executes                      // EXECUTE: does what another text says
	Catalog                       // may have changed what functions and triggers there are, or how they are: see [Hints]
	Advances                      // may be given a sequence's next value: INSERT, COPY, nextval…
	Begins                        // BEGIN, START TRANSACTION
	Local                         // changes a setting until the transaction's end
	Keeps                         // keeps something in the server's memory that nothing shows: pg_backup_start, a library's own variables
	Fetches                       // FETCH: what it returns depends on the cursors that there are when it is prepared
	Makes                         // CREATE, ALTER, SELECT INTO: what it makes is temporary if search_path leads there
	Opaque                        // was not read, or cannot be: may have set what nobody can ask for by its name

	leads  // in a routine: has search_path lead to where it is told
	tables // in a routine: makes some, which may hide what it uses itself
	alters // in a routine: changes some, or makes them like others, whatever these hide
)

// Lasting are the effects that outlive a transaction.
const Lasting = Setting | AnyChange | Back | Temporary | Locks | Hold | Listens | Prepares | Seeds | Connects | Loads | Discards | Unseen | Nameless | Catalog | Keeps | Opaque

// Effects says what a text may do. backslash is whether plain strings know backslash
// escapes.
func Effects(sql []byte, backslash bool) (e Effect) {
	w := walk{lexer: lexer{sql: sql, backslash: backslash}}
	for {
		t := w.next()
		if w.calling {
			e |= w.argument(t)
		}
		switch {
		case t.kind == end:
			return e | w.toTemporary(e)
		case w.isMark(t, ';'):
			w.first, w.second = wordNone, wordNone
			w.began = false
		case t.kind == word:
			e |= w.word(t)
			w.began = true
		case t.kind == quoted && w.began:
			e |= w.word(t) // a function's name may stand in quotes
		default:
			w.began = true
		}
	}
}

// toTemporary says whether a text with these effects has search_path lead to what is temporary: then any table that it
// makes is. (Where it may, by a path that is not there to be read, is known by what it makes: see Makes.)
func (w *walk) toTemporary(e Effect) Effect {
	if e&(Setting|AnyChange|Local) != 0 && Contains(w.sql, "pg_temp") || e&(leads|Makes) == leads|Makes {
		return Temporary
	}
	return 0
}

// Contains reports whether a text has a word in it, which must be lower case, however it is written.
func Contains(sql []byte, word string) bool {
	for i := 0; i+len(word) <= len(sql); i++ {
		if lower(sql[i]) == word[0] && strings.EqualFold(string(sql[i:i+len(word)]), word) {
			return true
		}
	}
	return false
}

// A walk is a lexer that knows where in its statement it is.
type walk struct {
	lexer
	piece         bool // the text is a routine's, or a piece of what one executes: others give it its parameters, and the rest
	open          bool // it takes in what is not known: see aName
	nested        int  // how deep in code that is executed the text is: see maxNested
	began         bool // the statement's first token has been seen
	first, second wordID
	last          wordID // the word before
	settled       int    // up to here, what a SET does is told
	calling       bool   // it is in the arguments of set_config:
	inner         call   // of this call,
	outer         []call // and of these, of which each holds the next
	depth         int    // how deep in brackets it is, for comparison
}

// wordID is a word that means something; most don't.
type wordID uint8

const (
	wordNone wordID = iota
	wordOther
	wordSet
	wordReset
	wordLocal
	wordDo
	wordCall
	wordCreate
	wordSelect
	wordWith
	wordInsert
	wordInto
	wordDeclare
	wordHold
	wordExplain
	wordPrepare
	wordReplace
	wordGlobal
	wordDrop
	wordClose
	wordStart
	wordTruncate
)

// word says what a word does where it stands.
func (w *walk) word(t token) (e Effect) {
	var buf [40]byte
	n := w.fold(t, &buf)
	if w.spelled(t) {
		e = Unknown
	}
	id := wordOther
	if !w.began {
		id, e = w.command(buf[:n])
		w.first, w.last = id, id
		return e
	}
	if t.kind == word || w.calls() {
		e |= w.call(buf[:n])
	}
	switch string(buf[:n]) {
	case "temp", "temporary":
		if w.temporary() {
			e |= Temporary
		}
	case "into":
		if id = wordInto; (w.first == wordSelect || w.first == wordWith) && w.last != wordInsert {
			e |= Makes
		}
	case "insert", "merge":
		id = wordInsert
	case "update":
		e |= w.updates()
	case "create":
		id = wordCreate
	case "local":
		id = wordLocal
	case "global":
		id = wordGlobal
	case "replace":
		id = wordReplace
	case "hold":
		if w.first == wordDeclare && w.last == wordWith {
			e |= Hold
		}
	case "with":
		id = wordWith
	case "execute":
		if w.first == wordExplain || w.first == wordCreate {
			e |= Executes
		}
	case "cascade":
		if w.first == wordTruncate {
			e |= anything // what triggers of tables do that it does not name
		}
	case "transaction":
		if w.first == wordPrepare && w.second == wordNone {
			e |= Ends
		}
	case "database", "tablespace", "concurrently", "subscription", "system":
		e |= Alone
	default:
		e |= named(buf[:n])
	}
	if w.second == wordNone {
		w.second = id
	}
	w.last = id
	return e
}

// call says what a word does that may be a function's name.
func (w *walk) call(name []byte) Effect {
	switch string(name) {
	case "set_config":
		return w.setConfig()
	case "setseed":
		return Seeds
	case "set_limit":
		return AnyChange
	case "currval", "lastval":
		return Sequence
	case "nextval", "setval", "insert", "merge":
		return Advances
	case "pg_notify":
		return Notifies
	case "dblink_connect", "dblink_connect_u":
		return Connects
	case "pg_advisory_lock", "pg_advisory_lock_shared", "pg_try_advisory_lock", "pg_try_advisory_lock_shared",
		"pg_advisory_unlock", "pg_advisory_unlock_shared", "pg_advisory_unlock_all":
		return Locks
	case "query_to_xml", "query_to_xmlschema", "query_to_xml_and_xmlschema", "cursor_to_xml", "cursor_to_xmlschema", "table_to_xml",
		"table_to_xml_and_xmlschema", "schema_to_xml", "schema_to_xml_and_xmlschema", "database_to_xml", "database_to_xml_and_xmlschema",
		"ts_stat", "ts_rewrite", "brin_summarize_new_values", "brin_summarize_range", "bt_index_check", "bt_index_parent_check", "crosstab", "crosstab2", "crosstab3", "crosstab4", "connectby", "xpath_table", "standardize_address":
		return anything // by a text, or the expressions of an index, that it is given
	case "check_foreign_key", "_internal_resolve", "run_job", "st_mapalgebra", "_st_mapalgebra":
		return anything // by triggers or functions that it comes to: of refint, pg_graphql, timescaledb, postgis_raster
	case "pg_create_physical_replication_slot", "pg_create_logical_replication_slot", "pg_copy_physical_replication_slot", "pg_copy_logical_replication_slot":
		return Keeps // a temporary one
	case "pg_backup_start", "pg_start_backup", "pg_replication_origin_session_setup", "isn_weak", "hypopg_create_index", "hypopg_hide_index":
		return Keeps
	case "pg_terminate_backend":
		return Terminates
	case "pg_cancel_backend":
		return Cancels
	}
	if bytes.HasPrefix(name, []byte("pgr_")) || bytes.HasPrefix(name, []byte("_pgr_")) {
		return anything // of pgrouting: by a text that it is given
	}
	return 0
}

// Unknown is what a text may do that is executed, and cannot be read, or is another one.
const Unknown = anything | Nameless | Seeds

// updates says what an UPDATE, whose word has been read, does by the name of what it updates: pg_settings sets what it is told to.
func (l lexer) updates() Effect {
	for range 8 { // ONLY, and a database and schema
		if t := l.next(); l.named(t, "pg_settings") {
			return AnyChange
		} else if l.is(t, "set") || t.kind != word && t.kind != quoted && !l.isMark(t, '.') && !l.isMark(t, '(') {
			return 0
		}
	}
	return 0
}

// calls reports whether an argument list comes next.
func (l lexer) calls() bool { return l.isMark(l.next(), '(') }

// spelled reports whether a name is a U&"…", which may spell any other.
func (w *walk) spelled(t token) bool {
	return t.kind == quoted && t.from > 2 && w.sql[t.from-2] == '&' && lower(w.sql[t.from-3]) == 'u'
}

// named says what the mere name of something betrays.
func named(name []byte) Effect {
	switch {
	case string(name) == "pg_listening_channels":
		return Listens
	case len(name) >= 7 && string(name[:7]) == "pg_temp":
		return Temporary
	}
	return 0
}

// fold puts a word into buf in lower case; 0 if it is too long to mean anything.
func (w *walk) fold(t token, buf *[40]byte) int {
	n := t.to - t.from
	if n > len(buf) {
		return 0
	}
	for i := range n {
		buf[i] = lower(w.sql[t.from+i])
	}
	return n
}

// temporary reports whether TEMP stands where it makes something temporary: it is
// also a name that columns and tables have.
func (w *walk) temporary() bool {
	switch w.last {
	case wordLocal, wordGlobal:
		return w.first != wordInsert
	case wordCreate, wordReplace:
		return w.first == wordCreate || w.first == wordSelect || w.first == wordWith || w.first == wordExplain
	case wordInto:
		return w.first != wordInsert
	}
	return false
}

// command says what the first word of a statement means.
func (w *walk) command(name []byte) (id wordID, e Effect) {
	switch string(name) {
	case "select", "values", "table":
		return wordSelect, 0
	case "insert":
		return wordInsert, Advances
	case "merge", "copy":
		return wordOther, Advances
	case "update":
		return wordOther, w.updates()
	case "with":
		return wordWith, 0
	case "set":
		return wordSet, w.set()
	case "reset":
		return wordReset, Setting | Back
	case "discard":
		if l := w.lexer; l.is(l.next(), "all") {
			return wordOther, Discards | Back
		}
		return wordOther, Temporary // PLANS and SEQUENCES leave nothing, and nothing out
	case "do":
		return wordDo, free | w.doing()
	case "call":
		return wordCall, free | Ends
	case "create":
		return wordCreate, Makes
	case "alter":
		return wordOther, Makes
	case "explain":
		return wordExplain, 0
	case "declare":
		return wordDeclare, 0
	case "close":
		return wordClose, Hold
	case "drop":
		return wordDrop, Temporary
	case "truncate":
		return wordTruncate, 0
	case "fetch":
		return wordOther, Fetches
	case "listen", "unlisten":
		return wordOther, Listens
	case "notify":
		return wordOther, Notifies
	case "prepare":
		l := w.lexer
		if l.is(l.next(), "transaction") {
			return wordOther, Ends
		}
		return wordPrepare, Prepares
	case "execute":
		return wordOther, Executes | Advances
	case "deallocate":
		return wordOther, Prepares
	case "load":
		return wordOther, Loads
	case "begin", "start":
		return wordOther, Begins
	case "commit", "rollback", "end", "abort":
		return wordOther, Ends
	case "analyze", "analyse":
		return wordOther, w.ofTables()
	case "vacuum", "cluster", "reindex":
		return wordOther, Alone | w.ofTables()
	case "checkpoint":
		return wordOther, Alone
	}
	return wordOther, 0
}

// ofTables says what VACUUM and its kind do: of all tables, whose indexes may call functions, if they name none.
func (l lexer) ofTables() Effect {
	t := l.next()
	for l.is(t, "full") || l.is(t, "freeze") || l.is(t, "verbose") || l.is(t, "analyze") || l.is(t, "analyse") {
		t = l.next()
	}
	if t.kind == end || t.kind == mark || l.is(t, "index") || l.is(t, "schema") || l.is(t, "database") || l.is(t, "system") {
		return anything
	}
	return 0
}

// set says what a SET does; the word itself has been read.
func (w *walk) set() Effect {
	l := w.lexer
	t := l.next()
	if l.keyword(t, "constraints") || l.keyword(t, "transaction") {
		return 0
	}
	name, after, local := t, l, l.keyword(t, "local")
	if local || l.keyword(t, "session") {
		name = after.next()
	}
	switch seed, _ := after.value(name); {
	case name.kind != text && strings.EqualFold(seed, "seed") && !after.dotted(): // no transaction takes that back
		return Seeds
	case local:
		return Local | w.toDefault(l, t) | w.leads(after, name)
	}
	e := Setting | w.toDefault(l, t) | w.leads(after, name)
	if after.odd(name) || w.piece && after.goesOn(name) {
		e |= AnyChange | Nameless
	}
	return e
}

// leads says whether the setting that a SET names by this token, in a text that is not all known, may be search_path, which SCHEMA
// stands for.
func (w *walk) leads(l lexer, name token) Effect {
	if w.open && (l.named(name, "search_path") || l.keyword(name, "schema") || bytes.IndexByte(w.sql[name.from:name.to], aName) >= 0) {
		return leads
	}
	return 0
}

// keyword reports whether a token, which is the last that was read, is this keyword and not the first part of a name that has that
// for one: SET session.x sets session.x.
func (l lexer) keyword(t token, word string) bool { return l.is(t, word) && !l.dotted() }

// dotted reports whether a dot comes next.
func (l lexer) dotted() bool { return l.isMark(l.next(), '.') }

// goesOn reports whether the name of what a SET sets, of which t is the first word, may be put together: the
// text, or a format's constant part, ends with it.
func (l lexer) goesOn(t token) bool {
	for _, keyword := range []string{"role", "time", "schema", "names", "xml", "authorization", "characteristics"} {
		if l.keyword(t, keyword) {
			return false
		}
	}
	for t.kind == word || t.kind == quoted {
		if t = l.next(); l.isMark(t, '.') {
			t = l.next()
		} else if t.kind != mark || l.isMark(t, '=') {
			return t.kind == end
		}
	}
	return true
}

// odd reports whether PostgreSQL has the setting that a SET or RESET names, of which t is the first word, under another name than
// can be told here: see strange. In U&"…" it may be written in any way.
func (l lexer) odd(t token) bool {
	for t.kind == word || t.kind == quoted {
		name, ok := l.value(t)
		if w := (walk{lexer: l}); !ok || strange(name) || w.spelled(t) {
			return true
		}
		if !l.isMark(l.next(), '.') {
			return false
		}
		t = l.next()
	}
	return false
}

// strange reports whether a name, or a part of one, is longer than PostgreSQL lets it be, or has letters whose lower case depends
// on the database.
func strange[T string | []byte](name T) bool { return len(name) > maxName || !ascii(name) }

func ascii[T string | []byte](s T) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// toDefault says whether the SET that l has read up to t leads back. Where statements begin within others, as
// those of a procedural language do, many may have one end: it is looked for once, and told once.
func (w *walk) toDefault(l lexer, t token) (e Effect) {
	if l.at >= w.settled {
		e = l.toDefault(t)
		w.settled = l.at
	}
	return e
}

// toDefault says whether a SET, of which t is a word behind the first, leads back: SET name
// { = | TO } DEFAULT, SET TIME ZONE LOCAL. It reads the statement to its end.
func (l *lexer) toDefault(t token) Effect {
	last := t
	for t = l.next(); t.kind != end && !l.isMark(t, ';'); t = l.next() {
		last = t
	}
	if l.is(last, "default") || l.is(last, "local") {
		return Back
	}
	return 0
}
