package scan

// A Reset is a statement that leads settings back to what they were at login.
type Reset struct {
	Name  string // in lower case; "all" is RESET ALL's, "discard" DISCARD ALL's
	Local bool   // until the transaction's end
	End   int    // of the statement in its text, behind its last token
	Nth   int    // which statement of its text it is, from 0
	Last  bool   // nothing follows
}

// Resets lists those of a text. ok is false if its statements cannot be told apart.
func Resets(sql []byte, backslash bool) (list []Reset, ok bool) {
	l := lexer{sql: sql, backslash: backslash}
	for n := 0; ; n++ {
		statement := l
		last := token{kind: end}
		t := l.next()
		for ; t.kind != end && !l.isMark(t, ';'); t = l.next() {
			if l.is(t, "atomic") || l.is(t, "rule") { // which may hold statements themselves
				return nil, false
			}
			last = t
		}
		if last.kind == end { // it is empty
			n--
		} else {
			if len(list) > 0 {
				list[len(list)-1].Last = false
			}
			if b, ok := statement.back(); ok {
				b.End, b.Nth, b.Last = last.to, n, true
				if last.kind == quoted {
					b.End++
				}
				list = append(list, b)
			}
		}
		if t.kind == end {
			return list, true
		}
	}
}

// back reads a statement that leads back.
func (l *lexer) back() (b Reset, ok bool) {
	t := l.next()
	switch {
	case l.is(t, "discard"):
		return Reset{Name: "discard"}, l.is(l.next(), "all")
	case l.is(t, "reset"):
		b.Name = l.setting(l.next())
		return b, b.Name != ""
	case !l.is(t, "set"):
		return b, false
	}
	t = l.next()
	after := *l
	next := after.next()
	if b.Local = l.is(t, "local"); b.Local || l.is(t, "session") && !l.is(next, "authorization") {
		t, *l = next, after
	}
	if after = *l; after.toDefault(t)&Back == 0 {
		return b, false
	}
	b.Name = l.setting(t)
	return b, b.Name != ""
}

// setting reads a setting's name, which begins with this token; "" if it is none.
func (l *lexer) setting(t token) string {
	var m Mentions
	m.setting(l, t)
	if len(m.Settings) == 0 {
		return ""
	}
	return m.Settings[0]
}
