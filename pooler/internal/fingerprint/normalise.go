// Package fingerprint knows statements by their shape: the text without its
// literals, and a number that stands for it; and it keeps, for a bounded number of
// shapes and users, how long they take.
//
// Only the pooler imports it. Everything may be used from many goroutines at once.
package fingerprint

import (
	"bytes"

	"mainstay.dev/mainstay/pooler/internal/scan"
)

// maxText bounds what is looked at of a statement, and what is kept of its shape.
const maxText = 4 << 10

// A Reading says what a backslash in a string means: the same text has other literals.
type Reading uint8

const (
	Standard Reading = iota // nothing, but in E'…'
	Escapes                 // an escape in every string: standard_conforming_strings is off
	Unsure                  // it is not known where a string ends that has one
)

// Normalise appends to out the shape of a statement: literals and parameters are ?,
// lists of them one ?, comments are gone, white space is one space, and what is not
// quoted is in lower case. literals reports whether there was anything of its own in
// it. No literal is ever part of the shape; a text that ends within one is cut there, and so
// is one of which it is not sure where that ends.
func Normalise(out, sql []byte, how Reading) (shape []byte, literals bool) {
	sql = sql[:min(len(sql), maxText)]
	n := normaliser{sql: sql, out: out, begin: len(out), how: how}
	for n.at < len(sql) {
		n.step()
	}
	return bytes.TrimRight(n.out, " ;"), n.literals
}

type normaliser struct {
	sql, out  []byte
	at, begin int
	how       Reading
	literals  bool
}

func (n *normaliser) peek(i int) byte {
	if n.at+i < len(n.sql) {
		return n.sql[n.at+i]
	}
	return 0
}

// step takes one token.
func (n *normaliser) step() {
	c := n.sql[n.at]
	switch {
	case c <= ' ':
		n.at++
		n.space()
	case c == '-' && n.peek(1) == '-':
		n.until("\r\n")
		n.space()
	case c == '/' && n.peek(1) == '*':
		n.comment()
		n.space()
	case c == '\'':
		n.text(n.how == Escapes)
	case c == '"':
		n.quoted()
	case c == '$':
		n.dollar()
	case '0' <= c && c <= '9', c == '.' && digit(n.peek(1)):
		n.number()
	case letter(c):
		n.word()
	case c == ')':
		n.at++
		n.out = bytes.TrimRight(n.out, " ")
		if bytes.HasSuffix(n.out, []byte("(?), (?")) || bytes.HasSuffix(n.out, []byte("(?),(?")) {
			n.out = n.out[:bytes.LastIndexByte(n.out, ')')] // rows of VALUES are one row
		}
		n.out = append(n.out, ')')
	default:
		n.at++
		n.out = append(n.out, c)
	}
}

func (n *normaliser) space() {
	if len(n.out) > n.begin && n.out[len(n.out)-1] != ' ' {
		n.out = append(n.out, ' ')
	}
}

// until goes behind the first of these bytes.
func (n *normaliser) until(any string) {
	if i := bytes.IndexAny(n.sql[n.at:], any); i >= 0 {
		n.at += i + 1
		return
	}
	n.at = len(n.sql)
}

// comment skips one with those inside it.
func (n *normaliser) comment() {
	depth := 0
	for n.at < len(n.sql) {
		switch {
		case n.sql[n.at] == '/' && n.peek(1) == '*':
			depth++
			n.at += 2
		case n.sql[n.at] == '*' && n.peek(1) == '/':
			depth--
			n.at += 2
			if depth == 0 {
				return
			}
		default:
			n.at++
		}
	}
	n.at = min(n.at, len(n.sql))
}

// literal puts a ? for one, unless it only makes a list of them longer.
func (n *normaliser) literal() {
	list := bytes.TrimRight(n.out[n.begin:], " ")
	if cut, ok := bytes.CutSuffix(list, []byte(",")); ok && bytes.HasSuffix(bytes.TrimRight(cut, " "), []byte("?")) {
		n.out = append(n.out[:n.begin], bytes.TrimRight(cut, " ")...)
		return
	}
	n.out = append(n.out, '?')
}

func (n *normaliser) text(escapes bool) {
	n.literals = true
	for n.at++; n.at < len(n.sql); n.at++ {
		switch c := n.sql[n.at]; {
		case c == '\\' && n.how == Unsure:
			n.at = len(n.sql)
		case escapes && c == '\\':
			n.at++
		case c == '\'' && n.peek(1) == '\'':
			n.at++
		case c == '\'':
			again := scan.Resumes(n.sql, n.at+1)
			if again < 0 {
				n.at++
				n.literal()
				return
			}
			n.at = again
		}
	}
	n.at = len(n.sql)
	n.literal()
}

func (n *normaliser) quoted() {
	begin := n.at
	n.at++
	n.until(`"`)
	n.out = append(n.out, n.sql[begin:n.at]...)
}

// dollar takes a parameter or a dollar-quoted text.
func (n *normaliser) dollar() {
	if digit(n.peek(1)) {
		for n.at++; n.at < len(n.sql) && digit(n.sql[n.at]); n.at++ {
		}
		n.literal()
		return
	}
	end := n.at + 1
	for end < len(n.sql) && (letter(n.sql[end]) || digit(n.sql[end])) {
		end++
	}
	if end >= len(n.sql) || n.sql[end] != '$' {
		n.out = append(n.out, '$')
		n.at++
		return
	}
	tag := n.sql[n.at : end+1]
	n.literals = true
	n.at = end + 1
	if i := bytes.Index(n.sql[n.at:], tag); i >= 0 {
		n.at += i + len(tag)
	} else {
		n.at = len(n.sql)
	}
	n.literal()
}

func (n *normaliser) number() {
	n.literals = true
	for n.at < len(n.sql) {
		c := n.sql[n.at]
		sign := (c == '+' || c == '-') && n.sql[n.at-1]|0x20 == 'e' && digit(n.peek(1))
		if !digit(c) && !letter(c) && c != '.' && !sign {
			break
		}
		if c|0x20 == 'e' && n.peek(1) == '\'' && !letter(n.sql[n.at-1]) {
			break // the prefix of a string, up to PostgreSQL 14
		}
		n.at++
	}
	n.literal()
}

// word takes a keyword or name, or the prefix of a text: e”, b”, x”, n”, u&”.
func (n *normaliser) word() {
	begin := n.at
	for n.at < len(n.sql) && (letter(n.sql[n.at]) || digit(n.sql[n.at]) || n.sql[n.at] == '$') {
		n.at++
	}
	word := n.sql[begin:n.at]
	if len(word) == 1 {
		switch prefix := word[0] | 0x20; {
		case n.peek(0) == '\'' && bytes.IndexByte([]byte("ebxn"), prefix) >= 0:
			n.text(prefix == 'e' || prefix == 'n' && n.how == Escapes)
			return
		case prefix == 'u' && n.peek(0) == '&' && n.peek(1) == '\'':
			n.at++
			n.text(false)
			return
		}
	}
	for _, c := range word {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		n.out = append(n.out, c)
	}
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

func letter(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || c == '_' || c >= 0x80
}
