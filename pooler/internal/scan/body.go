package scan

import "strings"

// Body says what a function's source may do, in SQL or a language like it, and which
// settings it names. What it executes as text is looked into where that begins with a
// constant, and taken for anything if the rest may be anything.
func Body(source []byte) (e Effect, m Mentions) {
	for i, backslash := range Modes(source, false, false) { // the server's default may be either
		one := body(code{sql: source, backslash: backslash}, 1, false)
		if i > 0 {
			one = one.Unlikely()
		}
		e |= one
		m.find(source, backslash, false, 1)
	}
	if e&Catalog != 0 {
		e |= anything // what it makes may be used in the same transaction
	}
	return e & (hinted | Advances | Executes | tables | alters), m
}

// remakes says of what a routine makes whether the catalog is to be read again behind it: of tables it is not,
// which some make all the time, unless they call what is worth a hint.
var remakes = [...]bool{another: false, aRoutine: true, anExtension: true, aCaller: true, aTable: false}

// free is what code may do that can be read, and anything what code may do that cannot.
const (
	free     = AnyChange | Temporary | Locks | Hold | Listens | Prepares | Advances
	anything = free | Opaque
)

// code is a text that is executed. One that comes later than the first constant of a text that is put together goes on with
// a statement.
type code struct {
	sql              []byte
	backslash, later bool
	open             bool // it holds what stands for what is not known
}

// body is Body without names. all is whether tables that are made are Catalog, too.
func body(source code, nested int, all bool) (e Effect) {
	w := walk{lexer: lexer{sql: source.sql, backslash: source.backslash}, piece: true, open: source.open, nested: nested, began: source.later}
	dynamic := 0    // so many constants of a text that the statement executes have been read, and one more
	making := false // a table
	clear := 0      // up to here, no statement touches what is worth a hint
	for {
		t := w.next()
		if w.calling {
			e |= w.argument(t)
		}
		switch {
		case t.kind == end:
			return e | w.toTemporary(e)
		case !w.began && (w.is(t, "create") || w.is(t, "alter") || w.is(t, "drop")):
			e |= w.word(t)
			w.began = true
			if m := w.made(); remakes[m] || m == aTable && (all || e&Catalog == 0 && w.touches(&clear)) {
				e |= Catalog
			} else if m == aTable && w.first == wordCreate {
				e, making = e|tables, true
			} else if m == aTable && w.is(t, "alter") {
				e |= alters
			}
		case w.isMark(t, ';'), w.opens(t):
			w.first, w.second, w.began, dynamic = wordNone, wordNone, false, 0
			making = false
		case w.is(t, "execute") && !w.privilege():
			w.began, dynamic = true, 1
			e |= w.executes(nested, all)
		case dynamic > 0 && t.kind == text && nested == maxNested:
			e |= anything
		case dynamic > 0 && t.kind == text:
			e |= body(code{sql: w.code(t), backslash: w.backslash, later: dynamic > 1}, nested+1, all)
			dynamic++
		case t.kind == word:
			e |= w.word(t)
			w.began = true
			if making && (w.is(t, "like") || w.is(t, "inherits") || w.is(t, "of")) { // LIKE another, PARTITION OF another, OF a type
				e |= alters
			}
		case t.kind == quoted && w.began:
			e |= w.word(t)
		default:
			w.began = true
		}
	}
}

// touches reports whether the statement, up to its end, names a function of PostgreSQL's that is worth a hint. Up to clear
// it is known that none does.
func (l lexer) touches(clear *int) bool {
	if l.at < *clear {
		return false
	}
	w, depth := walk{lexer: l}, 0
	var buf [40]byte
	for t := w.next(); t.kind != end && (depth > 0 || !w.isMark(t, ';')); t = w.next() {
		switch {
		case w.isMark(t, '('):
			depth++
		case w.isMark(t, ')'):
			depth--
		case t.kind == word || t.kind == quoted:
			if name := buf[:w.fold(t, &buf)]; w.spelled(t) || builtin(name)&hinted != 0 {
				return true
			}
		}
	}
	*clear = w.at
	return false
}

// builtin says what a function of PostgreSQL's may do, whatever its arguments are.
func builtin(name []byte) Effect {
	if string(name) == "set_config" {
		return AnyChange | Nameless
	}
	return (&walk{}).call(name) | named(name)
}

// Builtins are the functions of PostgreSQL's own that matter when others call them: views, defaults, rules.
var Builtins = strings.Fields("set_config setseed currval lastval pg_listening_channels pg_notify " +
	"pg_advisory_lock pg_advisory_lock_shared pg_try_advisory_lock pg_try_advisory_lock_shared pg_advisory_unlock pg_advisory_unlock_shared pg_advisory_unlock_all " +
	"query_to_xml query_to_xmlschema query_to_xml_and_xmlschema cursor_to_xml cursor_to_xmlschema table_to_xml table_to_xml_and_xmlschema schema_to_xml " +
	"schema_to_xml_and_xmlschema database_to_xml database_to_xml_and_xmlschema ts_stat ts_rewrite pg_create_physical_replication_slot " +
	"pg_create_logical_replication_slot pg_copy_physical_replication_slot pg_copy_logical_replication_slot pg_backup_start pg_start_backup " +
	"pg_replication_origin_session_setup")

// opens reports whether a statement may begin behind a word of a procedural language.
func (l *lexer) opens(t token) bool {
	for _, keyword := range []string{"begin", "then", "else", "loop"} {
		if l.is(t, keyword) {
			return true
		}
	}
	return false
}
