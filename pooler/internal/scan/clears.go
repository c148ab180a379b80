package scan

// Clears says what is surely gone behind a text that PostgreSQL has carried out outside of a transaction block, if it does
// nothing but clear, as drivers do between two users of a connection: Setting stands for every setting but the role,
// Discards for who the session is, its role too, and Locks, Hold, Listens, Prepares and Temporary for what they are. 0: it may
// do something else, or clears nothing.
func Clears(sql []byte, backslash bool) (e Effect) {
	l := lexer{sql: sql, backslash: backslash}
	for {
		t := l.next()
		if t.kind == end {
			return e
		}
		if l.isMark(t, ';') {
			continue
		}
		one, ok := l.clears(t)
		if t = l.next(); !ok || t.kind != end && !l.isMark(t, ';') {
			return 0
		}
		e |= one
	}
}

// clears reads a statement that begins with this token. ok is whether that clears.
func (l *lexer) clears(t token) (e Effect, ok bool) {
	switch {
	case l.is(t, "discard"):
		switch t = l.next(); {
		case l.is(t, "all"):
			return Setting | Discards | Temporary | Locks | Hold | Listens | Prepares, true
		case l.is(t, "temp"), l.is(t, "temporary"):
			return Temporary, true
		case l.is(t, "plans"), l.is(t, "sequences"):
			return 0, true // nothing that is known of
		}
	case l.is(t, "reset"):
		if l.is(l.next(), "all") {
			return Setting, true
		}
	case l.is(t, "close"):
		if l.is(l.next(), "all") {
			return Hold, true
		}
	case l.is(t, "deallocate"):
		if l.is(l.next(), "all") {
			return Prepares, true
		}
	case l.is(t, "unlisten"):
		if l.isMark(l.next(), '*') {
			return Listens, true
		}
	case l.is(t, "set"):
		if l.is(l.next(), "session") && l.is(l.next(), "authorization") && l.is(l.next(), "default") {
			return Discards, true
		}
	case l.is(t, "select"):
		if t = l.next(); l.is(t, "pg_catalog") && l.isMark(l.next(), '.') {
			t = l.next()
		}
		if l.is(t, "pg_advisory_unlock_all") && l.isMark(l.next(), '(') && l.isMark(l.next(), ')') {
			return Locks, true
		}
	}
	return 0, false
}
