package scan

// LeadsBack returns the setting that a text leads back to what it was at login, or "all", if that is all that it does: a
// single RESET, SET to DEFAULT or DISCARD ALL. local is whether that is over with the transaction.
func LeadsBack(sql []byte) (name string, local bool) {
	l := lexer{sql: sql}
	var m Mentions
	switch t := l.next(); {
	case l.is(t, "discard"):
		if l.is(l.next(), "all") && l.last(true) {
			return "all", false
		}
		return "", false
	case l.is(t, "reset"):
		m.setting(&l, l.next())
	case l.is(t, "set"):
		t = l.next()
		if local = l.is(t, "local"); local || l.is(t, "session") {
			t = l.next()
		}
		m.setting(&l, t)
		if t = l.next(); l.isMark(t, '=') || l.is(t, "to") || l.is(t, "zone") {
			t = l.next()
		}
		if !l.is(t, "default") && !l.is(t, "local") {
			return "", false
		}
	default:
		return "", false
	}
	if len(m.Settings) != 1 || !l.ends() {
		return "", false
	}
	return m.Settings[0], local
}

// ends reports whether nothing more follows, but for a semicolon and perhaps the rest of a name that is a word or two long.
func (l *lexer) ends() bool {
	for range 3 {
		t := l.next()
		if t.kind == end {
			return true
		}
		if l.isMark(t, ';') {
			return l.next().kind == end
		}
		if t.kind != word {
			return false
		}
	}
	return false
}
