package scan

import (
	"bytes"
	"strings"
)

// Body says what a function's source may do, in SQL or a language like it, and which
// settings it names. What it executes as text is looked into where that begins with a
// constant, and taken for anything otherwise.
func Body(source []byte) (e Effect, m Mentions) {
	if e = body(source, 0, false); e&Catalog != 0 {
		e |= anything // what it makes may be used in the same transaction
	}
	m.find(source, false, 1)
	if e&Setting != 0 && len(m.Settings) == 0 {
		e |= AnyChange | Nameless
	}
	return e & (hinted | Advances), m
}

// remakes says of what a routine makes whether the catalog is to be read again behind it: of tables it is not,
// which some make all the time, unless they call what is worth a hint.
var remakes = [...]bool{another: false, aRoutine: true, anExtension: true, aCaller: true, aTable: false}

// anything is what a text may do that nobody knows.
const anything = AnyChange | Temporary | Locks | Hold | Listens | Prepares | Advances

// body is Body without names. tables is whether it tells that tables are made, too.
func body(source []byte, nested int, tables bool) (e Effect) {
	w := walk{lexer: lexer{sql: source}, piece: true}
	dynamic := false // the statement executes a text
	clear := 0       // up to here, no statement touches what is worth a hint
	var executed variables
	for {
		t := w.next()
		if w.calling {
			e |= w.argument(t)
		}
		switch {
		case t.kind == end:
			return e | w.toTemporary(e) | executed.hold(source, nested, tables)
		case !w.began && (w.is(t, "create") || w.is(t, "alter") || w.is(t, "drop")):
			e |= w.word(t)
			w.began = true
			if m := w.made(); remakes[m] || m == aTable && (tables || e&Catalog == 0 && w.touches(&clear)) {
				e |= Catalog
			}
		case w.isMark(t, ';'), w.opens(t):
			w.first, w.second, w.began, dynamic = wordNone, wordNone, false, false
		case w.is(t, "execute") && !w.privilege():
			w.began, dynamic = true, true
			e |= w.executes(&executed)
		case dynamic && t.kind == text && nested < maxNested:
			e |= body(w.code(t), nested+1, tables)
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

// executes says what an EXECUTE may do beyond what its own constants say; the word itself has been read. A
// variable is added to those that are executed.
func (l lexer) executes(executed *variables) Effect {
	if after := l; after.constantText() {
		return 0
	}
	t, after := l.next(), l
	switch {
	case l.isMark(t, '('), t.kind == word && after.isMark(after.next(), '('):
		if l.composes() {
			return anything
		}
	case t.kind == word || t.kind == quoted:
		executed.add(l, t)
		return anything
	}
	return anything | Nameless
}

// maxArguments bounds how many tokens are looked at for the first constant among arguments: there may be such in each of them.
const maxArguments = 100

// composes reports whether the first constant in what comes next, as in the arguments of concat or format, begins with a
// command: then what is put together is known to be no other.
func (l *lexer) composes() bool {
	for range maxArguments {
		switch t := l.next(); {
		case t.kind == end, l.isMark(t, ';'):
			return false
		case t.kind == text:
			word, rest := l.command(t)
			return word && rest
		}
	}
	return false
}

// command reports whether a constant begins with the word of a command, and whether there is more of it. What a SET sets
// is looked for elsewhere.
func (l *lexer) command(t token) (is, more bool) {
	inner := lexer{sql: l.sql[t.from:t.to]}
	first := inner.next()
	for inner.isMark(first, '(') {
		first = inner.next()
	}
	if first.kind != word {
		return false, false
	}
	name, _ := inner.value(first)
	return commands[name], inner.at < len(inner.sql)
}

// commands are those that routines put together.
var commands = func() map[string]bool {
	m := map[string]bool{}
	for name := range strings.FieldsSeq("select insert update delete merge with values table create alter drop truncate grant revoke comment " +
		"analyze vacuum reindex cluster refresh copy lock explain call security import set reset listen unlisten notify") {
		m[name] = true
	}
	return m
}()

// variables are those that a source executes as texts, by name, and whether what they hold is put together there.
type variables map[string]bool

func (v *variables) add(l lexer, t token) {
	if name, ok := l.value(t); ok && !(*v)[name] {
		if *v == nil {
			*v = variables{}
		}
		(*v)[name] = false
	}
}

// hold looks for where the variables get their texts, and says what those do. If a source executes what it was given, it may
// set what nobody can name.
func (v variables) hold(source []byte, nested int, tables bool) (e Effect) {
	if len(v) == 0 {
		return 0
	}
	l := lexer{sql: source}
	for more := true; more; {
		var targets []string
		var texts []token
		targets, texts, more = l.assignment(v)
		for _, t := range texts {
			if nested < maxNested {
				e |= body(l.code(t), nested+1, tables)
			}
			is, _ := l.command(t)
			for _, name := range targets {
				v[name] = v[name] || is
			}
		}
	}
	for _, held := range v {
		if !held {
			return e | Nameless
		}
	}
	return e
}

// assignment reads a statement to its end. It returns to which of the variables it gives something, and its constants if there
// are any: v := …; declare v text := …; for v in …; select … into v. What EXECUTE brings comes from elsewhere.
func (l *lexer) assignment(v variables) (targets []string, texts []token, more bool) {
	named := func(t token) {
		if name, ok := l.value(t); ok && t.kind != text {
			if _, ok := v[name]; ok {
				targets = append(targets, name)
			}
		}
	}
	begins, into, elsewhere := true, false, false
	for t := l.next(); ; t = l.next() {
		switch {
		case t.kind == end, l.isMark(t, ';'), l.opens(t), l.is(t, "declare"):
			if elsewhere || len(targets) == 0 {
				texts = nil
			}
			return targets, texts, t.kind != end
		case t.kind == text:
			texts = append(texts, t)
		case begins && (l.is(t, "for") || l.is(t, "foreach")), into && (l.is(t, "strict") || l.isMark(t, ',')):
			continue
		case l.is(t, "into"):
			begins, into = false, true
			continue
		case begins && l.is(t, "execute"):
			elsewhere = true
		case begins || into:
			named(t)
			if after := *l; into && after.isMark(after.next(), ',') {
				continue
			}
		}
		begins, into = false, false
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

// constantText reports whether what comes next is a string constant, or made from one by
// format, of which at least the command can be read.
func (l *lexer) constantText() bool {
	t := l.next()
	formats := l.is(t, "format")
	if formats {
		if !l.isMark(l.next(), '(') {
			return false
		}
		t = l.next()
	}
	if t.kind != text || !l.legible(t) {
		return false
	}
	made := l.sql[t.from:t.to]
	if after := *l; formats || after.isMark(after.next(), '|') { // to be continued
		made = bytes.TrimLeft(made, " \t\r\n")
		return bytes.IndexAny(made, " \t\r\n(") > 0 && (!formats || !bytes.Contains(made, []byte("%s")))
	}
	return true
}
