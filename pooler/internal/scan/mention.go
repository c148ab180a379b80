package scan

import (
	"slices"
	"strings"
)

// Mentions are the names in a text whose meaning in the session it may change; "all" is RESET ALL's.
type Mentions struct {
	Settings []string // in lower case; some may be no settings at all
	Odd      bool     // there may be one that cannot be asked for by its name
}

// MaxMentions bounds how many names are taken from one text.
const MaxMentions = 200

// maxNested bounds how deep strings that hold code are looked into.
const maxNested = 3

// Find adds what a text mentions. It is for texts whose effects hold Setting or
// AnyChange.
func (m *Mentions) Find(sql []byte, backslash bool) { m.find(sql, backslash, 0) }

func (m *Mentions) find(sql []byte, backslash bool, nested int) {
	l := lexer{sql: sql, backslash: backslash}
	first, code := true, false
	for {
		t := l.next()
		switch {
		case t.kind == end:
			return
		case l.isMark(t, ';'):
			first, code = true, false
			continue
		case l.is(t, "set_config"):
			m.setConfig(l)
		case (first || nested > 0) && l.is(t, "set"):
			m.set(l)
		case (first || nested > 0) && l.is(t, "reset"):
			m.setting(&l, l.next())
		case first && (l.is(t, "do") || l.is(t, "call")):
			code = true
		case (code || nested > 0) && t.kind == text && nested < maxNested:
			m.find(sql[t.from:t.to], backslash, nested+1)
		}
		if t.kind == text {
			m.guess(sql[t.from:t.to])
		}
		first = false
	}
}

// Join adds what another mentions.
func (m *Mentions) Join(o *Mentions) {
	for _, name := range o.Settings {
		m.add(name)
	}
	m.Odd = m.Odd || o.Odd
}

// Reset forgets all.
func (m *Mentions) Reset() { m.Settings, m.Odd = m.Settings[:0], false }

// Add adds a setting's name.
func (m *Mentions) Add(name string) { m.add(strings.ToLower(name)) }

// Guess adds a value that may be the name of a setting, as of a parameter that
// set_config is called with.
func (m *Mentions) Guess(value []byte) { m.guess(value) }

// guess takes a string for a setting's name if it looks like one of the settings
// that applications make up, which have a dot.
func (m *Mentions) guess(value []byte) {
	if len(value) < 3 {
		return
	}
	if len(value) == len("seed") && strings.EqualFold(string(value), "seed") { // it shows nowhere what that is
		m.Odd = true
		return
	}
	dot := false
	for i, c := range value {
		switch {
		case c == '.':
			dot = i > 0
		case !isWord(c) && (i == 0 || !isDigit(c) && c != '$'):
			return
		}
	}
	switch odd := strange(value); {
	case dot && odd:
		m.Odd = true
	case dot:
		m.add(strings.ToLower(string(value)))
	}
}

func (m *Mentions) add(name string) {
	if len(m.Settings) < MaxMentions && !slices.Contains(m.Settings, name) {
		m.Settings = append(m.Settings, name)
	}
}

// set reads what SET names; the word itself has been read.
func (m *Mentions) set(l lexer) {
	t := l.next()
	if l.is(t, "local") {
		return
	}
	if l.is(t, "session") {
		if t = l.next(); l.is(t, "characteristics") {
			for _, name := range []string{"isolation", "read_only", "deferrable"} {
				m.add("default_transaction_" + name)
			}
			return
		}
		if l.is(t, "authorization") {
			m.add("session_authorization")
			return
		}
	}
	m.setting(&l, t)
}

// setting reads a setting's name, which may be a keyword that stands for one.
func (m *Mentions) setting(l *lexer, t token) {
	m.Odd = m.Odd || l.odd(t)
	name, ok := l.value(t)
	if !ok || t.kind == text {
		return
	}
	switch name {
	case "time":
		name = "timezone"
	case "names":
		name = "client_encoding"
	case "schema":
		name = "search_path"
	case "xml":
		name = "xmloption"
	case "session":
		name = "session_authorization"
	case "transaction", "constraints", "seed":
		return
	}
	all := []byte(name) // there may be very many parts
	for {
		after := *l
		if !after.isMark(after.next(), '.') {
			break
		}
		part, ok := after.value(after.next())
		if !ok {
			break
		}
		all = append(append(all, '.'), part...)
		*l = after
	}
	m.add(strings.ToLower(string(all)))
}

// setConfig reads the name that set_config is given, if it is a constant.
func (m *Mentions) setConfig(l lexer) {
	if !l.isMark(l.next(), '(') {
		return
	}
	if t := l.next(); t.kind == text {
		switch name, ok := l.value(t); {
		case !ok, strange(name):
			m.Odd = true
		case name != "":
			m.add(strings.ToLower(name))
		}
	}
}
