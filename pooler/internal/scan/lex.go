// Package scan reads SQL texts just far enough to say what they may leave behind in
// their session: it splits a text into tokens and statements as PostgreSQL's scanner
// does (https://www.postgresql.org/docs/current/sql-syntax-lexical.html), and knows
// the commands and functions that outlive their transaction. It builds no tree, and
// allocates nothing unless a name is asked for.
//
// Only the pooler and its own sub-packages import it. It is pure.
package scan

import "bytes"

// kind says what a token is.
type kind uint8

const (
	end    kind = iota
	word        // a keyword or unquoted name
	quoted      // a name in double quotes
	text        // a string constant, of any form
	number      //
	param       // $1
	mark        // any other single byte
)

// A token is a piece of the text.
type token struct {
	kind     kind
	from, to int // of its bytes; of a string or quoted name, those between the quotes
	how      spelling
}

// spelling says how a string or quoted name is written. It is one byte: a token of four fields stays in registers.
type spelling uint8

const (
	escaped spelling = 1 << iota // with a quote in it, or by what may be escapes
	joined                       // it goes on in another line: 'a'⏎'b' is 'ab'
)

// A lexer walks a text. With backslash, plain strings know backslash escapes too
// (standard_conforming_strings is off).
type lexer struct {
	sql       []byte
	at        int
	backslash bool
}

// next returns the next token; at the end, and from an unterminated string on, a
// token of kind end.
func (l *lexer) next() token {
	l.skip()
	if l.at >= len(l.sql) {
		return token{kind: end, from: len(l.sql), to: len(l.sql)}
	}
	from, c := l.at, l.sql[l.at]
	switch {
	case c == '\'':
		return l.string(from+1, l.backslash)
	case c == '"':
		return l.quotedName()
	case c == '$':
		return l.dollar()
	case isDigit(c): // up to PostgreSQL 14 a word may follow at once: 1then
		for l.at < len(l.sql) && (isDigit(l.sql[l.at]) || l.sql[l.at] == '.') {
			l.at++
		}
		return token{kind: number, from: from, to: l.at}
	case isWord(c):
		return l.word()
	}
	l.at++
	return token{kind: mark, from: from, to: l.at}
}

// skip passes white space and comments.
func (l *lexer) skip() {
	for l.at < len(l.sql) {
		c := l.sql[l.at]
		switch {
		case c == ' ' || '\t' <= c && c <= '\r':
			l.at++
		case c == '-' && l.follows('-'):
			i := bytes.IndexAny(l.sql[l.at:], "\r\n")
			if i < 0 {
				l.at = len(l.sql)
				return
			}
			l.at += i
		case c == '/' && l.follows('*'):
			l.comment()
		default:
			return
		}
	}
}

func (l *lexer) follows(c byte) bool { return l.at+1 < len(l.sql) && l.sql[l.at+1] == c }

// comment passes a block comment, which may hold others.
func (l *lexer) comment() {
	depth := 0
	for l.at < len(l.sql) {
		switch {
		case l.sql[l.at] == '/' && l.follows('*'):
			depth++
			l.at += 2
		case l.sql[l.at] == '*' && l.follows('/'):
			depth--
			l.at += 2
			if depth == 0 {
				return
			}
		default:
			l.at++
		}
	}
}

// word reads a keyword or name, or the string that its first letter introduces.
func (l *lexer) word() token {
	from := l.at
	if l.follows('\'') {
		switch l.sql[from] | 0x20 {
		case 'e':
			return l.string(from+2, true)
		case 'b', 'x', 'n':
			return l.string(from+2, l.backslash && l.sql[from]|0x20 == 'n')
		}
	}
	if l.sql[from]|0x20 == 'u' && l.follows('&') && from+2 < len(l.sql) {
		switch l.sql[from+2] {
		case '\'':
			t := l.string(from+3, false)
			t.how |= escaped
			return t
		case '"':
			l.at = from + 2
			t := l.quotedName()
			t.how |= escaped
			return t
		}
	}
	for l.at < len(l.sql) && (isWord(l.sql[l.at]) || isDigit(l.sql[l.at]) || l.sql[l.at] == '$') {
		l.at++
	}
	return token{kind: word, from: from, to: l.at}
}

// string reads a string whose first byte is at from. It may go on behind its closing quote, in another line, with the
// same escapes.
func (l *lexer) string(from int, backslash bool) token {
	t := token{kind: text, from: from}
	for i := from; i < len(l.sql); i++ {
		switch c := l.sql[i]; {
		case c == '\\' && backslash:
			t.how |= escaped
			i++
		case c == '\'' && i+1 < len(l.sql) && l.sql[i+1] == '\'':
			t.how |= escaped
			i++
		case c == '\'':
			t.to, l.at = i, i+1
			if i = Resumes(l.sql, l.at); i < 0 {
				return t
			}
			t.how |= joined
		}
	}
	l.at = len(l.sql)
	return token{kind: end, from: l.at, to: l.at}
}

// Resumes is where a string that has been closed right before that place is opened again; -1 if it is not: there must be
// a line's end between the quotes, and nothing else but white space and comments to the line's end.
func Resumes(sql []byte, at int) int {
	line := false
	for i := at; i < len(sql); i++ {
		switch c := sql[i]; {
		case c == '\n' || c == '\r':
			line = true
		case c == ' ' || '\t' <= c && c <= '\r':
		case c == '-' && i+1 < len(sql) && sql[i+1] == '-':
			n := bytes.IndexAny(sql[i:], "\r\n")
			if n < 0 {
				return -1
			}
			i += n - 1
		case c == '\'' && line:
			return i
		default:
			return -1
		}
	}
	return -1
}

func (l *lexer) quotedName() token {
	t := token{kind: quoted, from: l.at + 1}
	for i := l.at + 1; i < len(l.sql); i++ {
		if l.sql[i] != '"' {
			continue
		}
		if i+1 < len(l.sql) && l.sql[i+1] == '"' {
			t.how |= escaped
			i++
			continue
		}
		t.to, l.at = i, i+1
		return t
	}
	l.at = len(l.sql)
	return token{kind: end, from: l.at, to: l.at}
}

// dollar reads a parameter or a dollar-quoted string.
func (l *lexer) dollar() token {
	from, i := l.at, l.at+1
	if i < len(l.sql) && isDigit(l.sql[i]) {
		for l.at = i; l.at < len(l.sql) && isDigit(l.sql[l.at]); l.at++ {
		}
		return token{kind: param, from: from, to: l.at}
	}
	for i < len(l.sql) && (isWord(l.sql[i]) || i > from+1 && isDigit(l.sql[i])) {
		i++
	}
	if i >= len(l.sql) || l.sql[i] != '$' {
		l.at = from + 1
		return token{kind: mark, from: from, to: l.at}
	}
	tag := l.sql[from : i+1]
	body := i + 1
	n := bytes.Index(l.sql[body:], tag)
	if n < 0 {
		l.at = len(l.sql)
		return token{kind: end, from: l.at, to: l.at}
	}
	l.at = body + n + len(tag)
	return token{kind: text, from: body, to: body + n}
}

// value is a string constant's or name's value, as far as it can be told without
// knowing escapes; ok is false otherwise.
func (l *lexer) value(t token) (s string, ok bool) {
	raw := l.sql[t.from:t.to]
	switch {
	case t.kind == word:
		return string(bytes.ToLower(raw)), true
	case t.kind != text && t.kind != quoted, t.how&joined != 0:
		return "", false
	case t.how&escaped == 0:
		return string(raw), true
	case t.kind == quoted && l.sql[t.from-1] == '"' && (t.from < 3 || l.sql[t.from-2] != '&'):
		return string(bytes.ReplaceAll(raw, []byte(`""`), []byte(`"`))), true
	case bytes.IndexByte(raw, '\\') >= 0:
		return "", false
	}
	return string(bytes.ReplaceAll(raw, []byte(`''`), []byte(`'`))), true
}

// is reports whether a token is this keyword, which must be lower case.
func (l *lexer) is(t token, keyword string) bool {
	if t.kind != word || t.to-t.from != len(keyword) {
		return false
	}
	for i := range len(keyword) {
		if lower(l.sql[t.from+i]) != keyword[i] {
			return false
		}
	}
	return true
}

// named reports whether a token is this name, which must be lower case, with quotes or without.
func (l *lexer) named(t token, name string) bool {
	return l.is(t, name) || t.kind == quoted && string(l.sql[t.from:t.to]) == name
}

// isMark reports whether a token is this byte.
func (l *lexer) isMark(t token, c byte) bool { return t.kind == mark && l.sql[t.from] == c }

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || c >= 0x80
}

// Modes are the ways in which a text is to be read, each a value of what the functions of this package call backslash: both,
// if it is not sure which, and the text has a backslash; the likely one first.
func Modes(sql []byte, backslash, sure bool) []bool {
	i := 0
	if backslash {
		i = 1
	}
	if sure || bytes.IndexByte(sql, '\\') < 0 {
		return modes[i : i+1]
	}
	return modes[i : i+2]
}

var modes = []bool{false, true, false}

// Unlikely is what counts of the effects of a text that is read in the way that is not the likely one.
func (e Effect) Unlikely() Effect {
	if e &= Lasting; e&Nameless != 0 {
		e = e&^Nameless | Opaque
	}
	return e
}

// Garbled reports whether a text may be another one to PostgreSQL than it is to this package, because it comes in another encoding
// than the server's: halves is whether the second half of a character may be a backslash there, names whether names may
// be written in other bytes.
func Garbled(sql []byte, halves, names bool) bool {
	if ascii(sql) {
		return false
	}
	for i := 1; i < len(sql) && halves; i++ {
		if sql[i] == '\\' && sql[i-1] >= 0x80 {
			return true
		}
	}
	l := lexer{sql: sql}
	for t := l.next(); t.kind != end && names; t = l.next() {
		if (t.kind == word || t.kind == quoted) && !ascii(sql[t.from:t.to]) {
			return true
		}
	}
	return false
}
