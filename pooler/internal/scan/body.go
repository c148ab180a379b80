package scan

import (
	"bytes"
	"strings"
)

// Body says what a function's source may do, in SQL or a language like it, and which
// settings it names. What it executes as text is looked into where that begins with a
// constant, and taken for anything if the rest may be anything.
func Body(source []byte) (e Effect, m Mentions) {
	for i, backslash := range Modes(source, false, false) { // the server's default may be either
		one := body(code{sql: source, backslash: backslash}, 0, false)
		if i > 0 {
			one = one.Unlikely()
		}
		e |= one
		m.find(source, backslash, false, 1)
	}
	if e&Catalog != 0 {
		e |= anything // what it makes may be used in the same transaction
	}
	return e & (hinted | Advances | Executes), m
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
}

// body is Body without names. tables is whether it tells that tables are made, too.
func body(source code, nested int, tables bool) (e Effect) {
	w := walk{lexer: lexer{sql: source.sql, backslash: source.backslash}, piece: true, began: source.later}
	dynamic := 0 // so many constants of a text that the statement executes have been read, and one more
	clear := 0   // up to here, no statement touches what is worth a hint
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
			if m := w.made(); remakes[m] || m == aTable && (tables || e&Catalog == 0 && w.touches(&clear)) {
				e |= Catalog
			}
		case w.isMark(t, ';'), w.opens(t):
			w.first, w.second, w.began, dynamic = wordNone, wordNone, false, 0
		case w.is(t, "execute") && !w.privilege():
			w.began, dynamic = true, 1
			e |= w.executes()
		case dynamic > 0 && t.kind == text && nested < maxNested:
			e |= body(code{w.code(t), w.backslash, dynamic > 1}, nested+1, tables)
			dynamic++
		case t.kind == word:
			e |= w.word(t)
			w.began = true
		case t.kind == quoted && w.began:
			e |= w.word(t)
		default:
			w.began = true
		}
	}
}

// executes says what an EXECUTE may do beyond what its own constants say; the word itself has been read. A text that is
// put together is known if it begins with a command, and what follows is quoted as names or values. That is Executes: by
// names that are not known.
func (l lexer) executes() Effect {
	t, formats := l.next(), false
	if l.is(t, "format") {
		if formats = true; !l.isMark(l.next(), '(') {
			return anything
		}
		t = l.next()
	}
	if t.kind != text || !l.legible(t) {
		return anything
	}
	made := l.sql[t.from:t.to]
	after := l
	switch next := after.next(); {
	case formats && !after.isMark(next, ',') && !after.isMark(next, ')'):
		return anything
	case !formats && !after.isMark(next, '|'):
		return 0
	}
	inner := lexer{sql: made}
	first, second := inner.next(), inner.next()
	name, _ := inner.value(first)
	tables := 0 // names behind which a bracket is no call: INSERT INTO a.b (c)
	switch name {
	case "insert", "create", "copy", "grant", "analyze", "vacuum":
		tables = 2
	}
	switch {
	case first.kind != word || inner.at >= len(made) && second.kind == end && !bytes.ContainsAny(made[first.to:], " \t\r\n"),
		formats && !quotes(made, tables), !formats && !l.quoted(tables):
		return anything
	case name == "set", name == "reset":
		return 0
	case name == "create" && second.kind == word && inner.at < len(made):
		return Executes | Temporary // by its schema, maybe
	case composed[name]:
		return Executes
	}
	return anything
}

// composed are the first words of commands that are put together.
var composed = func() map[string]bool {
	m := map[string]bool{}
	for name := range strings.FieldsSeq("select with values table explain insert update delete merge truncate analyze vacuum reindex cluster refresh lock copy grant revoke comment alter drop") {
		m[name] = true
	}
	return m
}()

// quotes reports whether all that a format takes in is quoted as a name or value, and no name is that of a function; the
// first are those of tables.
func quotes(format []byte, tables int) bool {
	for i := bytes.IndexByte(format, '%'); i >= 0; i = bytes.IndexByte(format, '%') {
		format = format[i+1:]
		n := 0
		for n < len(format) && (isDigit(format[n]) || bytes.IndexByte([]byte("$-*"), format[n]) >= 0) {
			n++
		}
		if n == len(format) || bytes.IndexByte([]byte("IL%"), format[n]) < 0 {
			return false
		}
		if format = format[n+1:]; tables <= 0 && calledBy(format) {
			return false
		}
		tables--
	}
	return true
}

// calledBy reports whether a name is that of a function by what comes behind it.
func calledBy(rest []byte) bool {
	l := lexer{sql: bytes.TrimLeft(rest, `"`)}
	return l.calls()
}

// maxPieces bounds how many tokens of a text that is put together are looked at: there may be such in each of them.
const maxPieces = 100

// quoted reports whether all that follows the first constant of a text that is put together is constants, and what
// is quoted as a name or value, and no name is that of a function; the first are those of tables.
func (l lexer) quoted(tables int) bool {
	name := false // the piece before was one
	for range maxPieces {
		t := l.next()
		switch {
		case t.kind == end, l.isMark(t, ';'), l.is(t, "using"), l.is(t, "into"), l.is(t, "loop"):
			return true
		case l.isMark(t, '|'):
		case t.kind == text && l.legible(t):
			if name && tables < 0 && calledBy(l.sql[t.from:t.to]) {
				return false
			}
			name = name && t.from == t.to
		case l.is(t, "tg_table_name"), l.is(t, "tg_table_schema"): // which nobody gives
			name = false
		case l.is(t, "quote_ident"), l.is(t, "quote_literal"), l.is(t, "quote_nullable"):
			tables--
			if name = l.is(t, "quote_ident"); !l.isMark(l.next(), '(') || !l.skipBrackets() {
				return false
			}
		default:
			return false
		}
	}
	return false
}

// skipBrackets passes what follows a bracket up to the one that closes it, if that is not far.
func (l *lexer) skipBrackets() bool {
	for depth, n := 1, 0; depth > 0; n++ {
		switch t := l.next(); {
		case t.kind == end || n == maxPieces:
			return false
		case l.isMark(t, '('):
			depth++
		case l.isMark(t, ')'):
			depth--
		}
	}
	return true
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

// Builtins are the functions of PostgreSQL's own that may stay in a session when others call them: views, defaults, rules.
var Builtins = strings.Fields("set_config setseed currval lastval pg_listening_channels " +
	"pg_advisory_lock pg_advisory_lock_shared pg_try_advisory_lock pg_try_advisory_lock_shared pg_advisory_unlock pg_advisory_unlock_shared pg_advisory_unlock_all " +
	"query_to_xml query_to_xmlschema query_to_xml_and_xmlschema cursor_to_xml cursor_to_xmlschema table_to_xml table_to_xml_and_xmlschema schema_to_xml " +
	"schema_to_xml_and_xmlschema database_to_xml database_to_xml_and_xmlschema ts_stat ts_rewrite pg_create_physical_replication_slot " +
	"pg_create_logical_replication_slot pg_copy_physical_replication_slot pg_copy_logical_replication_slot pg_backup_start pg_start_backup " +
	"pg_replication_origin_session_setup")

// privilege reports whether an EXECUTE that was read is that of GRANT or CREATE TRIGGER.
func (l lexer) privilege() bool {
	t := l.next()
	return l.is(t, "on") || l.is(t, "function") || l.is(t, "procedure")
}

// opens reports whether a statement may begin behind a word of a procedural language.
func (l *lexer) opens(t token) bool {
	for _, keyword := range []string{"begin", "then", "else", "loop"} {
		if l.is(t, keyword) {
			return true
		}
	}
	return false
}
