package scan

import (
	"bytes"
	"strings"
)

// What stands in a text that is put together for what is not known of it. No text in UTF-8 has such bytes.
const (
	aName  = 0xff // quoted as a name, or PostgreSQL's own: a letter of whatever word it stands in
	aValue = 0xfe // quoted as a value: all of a constant
)

// maxPieces bounds how many tokens of what puts a text together are looked at: there may be such in each of them.
const maxPieces = 100

// executes says what an EXECUTE may do beyond what its own constants say; the word itself has been read. A text that is
// put together is known if it begins with a command, and what follows is quoted as names or values. That is Executes: by
// names that are not known.
func (l lexer) executes(nested int, all bool) Effect {
	made, pieces, ok := l.assembled()
	open := bytes.IndexByte(made, aName) >= 0 || bytes.IndexByte(made, aValue) >= 0
	switch {
	case !ok:
		return anything
	case pieces == 1 && !open: // it is read anyway
		return 0
	case nested == maxNested:
		return anything
	}
	e := body(code{sql: made, backslash: l.backslash, open: open}, nested+1, all)
	switch named, ok := l.takesIn(made); {
	case !ok:
		return e | anything
	case named && e&Makes != 0:
		return e | Executes | Temporary // by its schema, maybe
	case named:
		return e | Executes
	}
	return e
}

// assembled puts together what an EXECUTE executes, whose word has been read, and says of how many pieces it is, where a format
// counts as many. ok is false if one of them may be anything, or if it is not all that is executed.
func (l lexer) assembled() (made []byte, pieces int, ok bool) {
	for pieces < maxPieces/3 {
		t := l.next()
		pieces++
		switch {
		case t.kind == text && l.legible(t):
			made = append(made, l.code(t)...)
		case l.is(t, "tg_table_name"), l.is(t, "tg_table_schema"): // which nobody gives
			made = append(made, aName)
		case !l.is(t, "format") && !l.is(t, "quote_ident") && !l.is(t, "quote_literal") && !l.is(t, "quote_nullable"), !l.isMark(l.next(), '('):
			return nil, 0, false
		case l.is(t, "format"):
			if made, ok = l.format(made); !ok {
				return nil, 0, false
			}
			pieces++
		default:
			if made = open(made, l.is(t, "quote_ident")); !l.skipBrackets() {
				return nil, 0, false
			}
		}
		switch t = l.next(); {
		case t.kind == end, l.isMark(t, ';'), l.is(t, "using"), l.is(t, "into"), l.is(t, "loop"):
			return made, pieces, true
		case !l.isMark(t, '|') || !l.isMark(l.next(), '|'):
			return nil, 0, false
		}
	}
	return nil, 0, false
}

// open appends what stands for a name or value.
func open(made []byte, name bool) []byte {
	if name {
		return append(made, aName)
	}
	return append(made, '\'', aValue, '\'')
}

// format appends what a format makes, whose bracket has been read, up to the one that closes it. ok is false if that takes in what
// it does not quote.
func (l *lexer) format(made []byte) (_ []byte, ok bool) {
	t := l.next()
	if t.kind != text || !l.legible(t) {
		return nil, false
	}
	for rest := l.code(t); ; rest = rest[1:] {
		i := bytes.IndexByte(rest, '%')
		if i < 0 {
			made = append(made, rest...)
			break
		}
		made = append(made, rest[:i]...)
		switch rest = bytes.TrimLeft(rest[i+1:], "0123456789$-*"); {
		case len(rest) > 0 && (rest[0] == 'I' || rest[0] == 'L'):
			made = open(made, rest[0] == 'I')
		case len(rest) > 0 && rest[0] == '%':
			made = append(made, '%')
		default:
			return nil, false
		}
	}
	t = l.next()
	return made, l.isMark(t, ')') || l.isMark(t, ',') && l.skipBrackets()
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

// composed are the first words of commands that are put together.
var composed = func() map[string]bool {
	m := map[string]bool{}
	for name := range strings.FieldsSeq("select with values table explain insert update delete merge truncate analyze vacuum reindex cluster refresh lock copy grant revoke comment alter drop set reset create") {
		m[name] = true
	}
	return m
}()

// takesIn reports whether commands but for SET and RESET take in names or values that are not known. ok is false if one of these may
// be more than that: a command, a function, or what goes on behind the quote or comment that it is in.
func (l lexer) takesIn(made []byte) (named, ok bool) {
	left := bytes.Count(made, []byte{aName}) + bytes.Count(made, []byte{aValue})
	i := lexer{sql: made, backslash: l.backslash}
	command, before, last := "", "", ""
	plain, dotted := true, false // no query and no bracket so far; a dot was the last
	for t := i.next(); t.kind != end && left > 0; t = i.next() {
		name, unknown := "", 0
		switch {
		case i.isMark(t, ';'):
			command, last, plain, dotted = "", "", true, false
			continue
		case i.isMark(t, '.'):
			dotted = true
			continue
		case t.kind == word:
			name, _ = i.value(t)
			unknown = bytes.Count(made[t.from:t.to], []byte{aName})
		case t.kind == quoted:
			name, unknown = `"`, bytes.Count(made[t.from:t.to], []byte{aName})
		case t.kind == text && t.from < t.to && made[t.from] == aValue && made[t.to-1] == aValue: // two may be one constant: 'a''b'
			if n := bytes.Count(made[t.from:t.to], []byte{aValue}); n+bytes.Count(made[t.from:t.to], []byte{'\''}) == t.to-t.from {
				unknown = n
			}
		}
		if !dotted {
			before, last = last, name
		}
		dotted = false
		if command == "" || command == "explain" && composed[name] && name != "analyze" {
			if command = name; !composed[name] {
				return named, false
			}
		}
		if left -= unknown; unknown > 0 {
			named = named || command != "set" && command != "reset"
			indexed := before == "on" && command == "create" && plain
			if t.kind != text && (commands[before] || i.calls() && !relation[before] && !indexed) {
				return named, false
			}
		}
		plain = plain && !i.isMark(t, '(') && name != "select" && name != "with" && name != "values" && name != "as"
	}
	return named, left == 0
}

// commands are words behind which another may say what they do, and relation those behind which a bracket does not make a call
// of a name: INSERT INTO a.b (c).
var (
	commands = map[string]bool{"create": true, "alter": true, "drop": true, "replace": true, "explain": true}
	relation = map[string]bool{"into": true, "table": true, "exists": true, "copy": true, "vacuum": true, "analyze": true, "references": true, "function": true, "procedure": true, "routine": true}
)

// privilege reports whether an EXECUTE that was read is that of GRANT or CREATE TRIGGER. PL/pgSQL has variables that are
// called function.
func (l lexer) privilege() bool {
	t := l.next()
	if l.is(t, "on") {
		return true
	}
	if !l.is(t, "function") && !l.is(t, "procedure") {
		return false
	}
	for t = l.next(); (t.kind == word || t.kind == quoted) && !l.is(t, "operator"); t = l.next() {
		if t = l.next(); !l.isMark(t, '.') {
			return l.isMark(t, '(')
		}
	}
	return false
}
