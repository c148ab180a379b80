package scan

// LeadsBack returns the setting that a text leads back to what it was at login, or "all", if that is all that it does: a
// single RESET, SET to DEFAULT or DISCARD ALL. local is whether that is over with the transaction.
func LeadsBack(sql []byte) (name string, local bool) {
	list, _ := Resets(sql, false)
	if len(list) != 1 || list[0].Nth > 0 || !list[0].Last {
		return "", false
	}
	if name, local = list[0].Name, list[0].Local; name == "discard" {
		name = "all"
	}
	return name, local
}

// First returns the first statement of a text of several, with its semicolon; nil if there is one alone.
func First(sql []byte, backslash bool) []byte {
	l := lexer{sql: sql, backslash: backslash}
	until := 0
	for some := false; ; {
		switch t := l.next(); {
		case t.kind == end:
			return nil
		case until > 0 && !l.isMark(t, ';'):
			return sql[:until]
		case !l.isMark(t, ';'):
			some = true
		case some && until == 0:
			until = t.from + 1
		}
	}
}
