package scan

import (
	"bytes"
	"slices"
	"strings"
)

// Mentions are the names in a text whose meaning in the session it may change; "all" is RESET ALL's.
type Mentions struct {
	Settings []string // in lower case; some may be no settings at all
	Odd      bool     // there may be one that cannot be asked for by its name
	Full     bool     // there are more
}

// MaxMentions bounds how many names are taken from one text.
const MaxMentions = 200

// maxNested bounds how deep strings that hold code are looked into.
const maxNested = 3

// Find adds what a text with these effects mentions, which hold Setting or AnyChange. If they hold Opaque, its constants may be
// code, as those of DO are.
func (m *Mentions) Find(sql []byte, backslash bool, e Effect) {
	m.find(sql, backslash, e&Opaque != 0, 0)
}

// Code adds what a value mentions that may be executed.
func (m *Mentions) Code(value []byte) { m.find(value, false, true, 1) }

func (m *Mentions) find(sql []byte, backslash, all bool, nested int) {
	l := lexer{sql: sql, backslash: backslash}
	first, code := true, all
	for {
		t := l.next()
		switch {
		case t.kind == end:
			return
		case l.isMark(t, ';'):
			first, code = true, all
			continue
		case l.named(t, "set_config"):
			m.setConfig(l)
		case l.named(t, "set_limit"): // of pg_trgm
			m.add("pg_trgm.similarity_threshold")
		case l.is(t, "update") && l.updates() != 0: // which are not told: that is no setting, so that all are listed
			m.add("pg_settings")
		case (first || nested > 0) && l.is(t, "set"):
			m.set(l)
		case (first || nested > 0) && l.is(t, "reset"):
			m.setting(&l, l.next())
		case first && (l.is(t, "do") || l.is(t, "call")):
			code = true
		case nested > 0 && nested < maxNested && l.is(t, "execute"):
			m.executed(l, nested)
		case (code || nested > 0) && t.kind == text && nested < maxNested:
			m.find(l.code(t), backslash, all, nested+1)
		}
		if t.kind == text {
			m.guess(sql[t.from:t.to])
		}
		first = false
	}
}

// executed adds what a text mentions that an EXECUTE, whose word has been read, puts together, but for names that are not all known,
// or odd: whatever sets these says so by its effects.
func (m *Mentions) executed(l lexer, nested int) {
	made, pieces, ok := l.assembled()
	if !ok || pieces == 1 {
		return
	}
	var one Mentions
	one.find(made, l.backslash, false, nested+1)
	for _, name := range one.Settings {
		if !strange(name) {
			m.add(name)
		}
	}
	m.Full = m.Full || one.Full
}

// Join adds what another mentions.
func (m *Mentions) Join(o *Mentions) {
	for _, name := range o.Settings {
		m.add(name)
	}
	m.Odd, m.Full = m.Odd || o.Odd, m.Full || o.Full
}

// Reset forgets all.
func (m *Mentions) Reset() { *m = Mentions{Settings: m.Settings[:0]} }

// Add adds a setting's name.
func (m *Mentions) Add(name string) { m.add(strings.ToLower(name)) }

// Guess adds a value that may be the name of a setting, as of a parameter that
// set_config is called with.
func (m *Mentions) Guess(value []byte) {
	value = bytes.TrimRight(value, " ")                                        // as a cast to bpchar does
	if len(value) == len("seed") && strings.EqualFold(string(value), "seed") { // what that is shows nowhere
		m.Odd = true
	}
	m.guess(value)
}

// guess takes a string for a setting's name if it looks like one of the settings
// that applications make up, which have a dot.
func (m *Mentions) guess(value []byte) {
	value = bytes.TrimRight(value, " ")
	if len(value) < 3 {
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
	switch {
	case slices.Contains(m.Settings, name):
	case len(m.Settings) < MaxMentions:
		m.Settings = append(m.Settings, name)
	default:
		m.Full = true
	}
}

// set reads what SET names; the word itself has been read.
func (m *Mentions) set(l lexer) {
	t := l.next()
	if l.keyword(t, "local") {
		return
	}
	if l.keyword(t, "session") {
		if t = l.next(); l.keyword(t, "session") { // SET SESSION SESSION CHARACTERISTICS is right too
			t = l.next()
		}
		if l.keyword(t, "characteristics") {
			for _, name := range []string{"isolation", "read_only", "deferrable"} {
				m.add("default_transaction_" + name)
			}
			return
		}
		if l.keyword(t, "authorization") {
			m.add("session_authorization")
			return
		}
	}
	m.setting(&l, t)
}

// stand are the keywords that stand for settings, for which SET has a syntax of its own.
var stand = map[string]string{
	"time": "timezone", "names": "client_encoding", "schema": "search_path", "xml": "xmloption", "session": "session_authorization",
	"transaction": "", "constraints": "", "seed": "",
}

// setting reads a setting's name, which may be a keyword that stands for one.
func (m *Mentions) setting(l *lexer, t token) {
	m.Odd = m.Odd || l.odd(t)
	name, ok := l.value(t)
	if !ok || t.kind == text {
		return
	}
	if is, ok := stand[name]; ok && t.kind == word && !l.dotted() {
		if is != "" {
			m.add(is)
		}
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
		name, ok := l.value(t)
		switch name = strings.TrimRight(name, " "); {
		case !ok, strange(name):
			m.Odd = true
		case name != "":
			m.add(strings.ToLower(name))
		}
	}
}
