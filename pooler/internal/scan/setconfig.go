package scan

import "strings"

// A call is one of set_config(name, value, is_local) that has not been read to its last argument.
type call struct {
	name   kind // of its first argument: number if that is an expression
	commas uint8
	path   bool // it may be search_path
	back   Effect
	depth  int // of its arguments
}

// setConfig begins a call of set_config; the word itself has been read. What it does is said by
// [walk.argument], as the walk comes to its arguments: calls may stand in calls, and would be read ahead
// time and again.
func (w *walk) setConfig() Effect {
	l := w.lexer
	if !l.isMark(l.next(), '(') {
		return 0
	}
	first := l.next()
	if l.isMark(first, '(') || l.isMark(first, '[') {
		return AnyChange | Nameless // it is computed
	}
	name := first.kind
	value, ok := l.value(first)
	value = strings.TrimRight(value, " ") // as a cast to bpchar does
	if name == text && strings.EqualFold(value, "seed") {
		return Seeds // even if it is local
	}
	if !l.constant() || name == text && (!ok || strange(value)) {
		name = number // an expression that begins with a constant, or as good as one
	}
	if w.calling {
		w.outer = append(w.outer, w.inner)
	}
	w.calling, w.inner = true, call{name: name, path: name != text || strings.EqualFold(value, "search_path"), depth: w.depth + 1}
	return 0
}

// argument takes the next token of the innermost call's arguments, and says what it does if that is known now.
func (w *walk) argument(t token) (e Effect) {
	c := &w.inner
	switch {
	case t.kind == end:
		return AnyChange | Nameless
	case w.isMark(t, '(') || w.isMark(t, '['):
		w.depth++
		return 0
	case w.isMark(t, ')') || w.isMark(t, ']'):
		if w.depth--; w.depth >= c.depth {
			return 0
		}
		e = AnyChange | Nameless
	case !w.isMark(t, ',') || w.depth != c.depth:
		return 0
	case c.commas == 0:
		c.commas = 1
		value := w.lexer
		t := value.next()
		if value.is(t, "null") { // PostgreSQL leads it back then
			c.back = Back
		} else if w.piece && c.path && (t.kind != text || !value.constant()) {
			return leads
		}
		return 0
	default:
		if e = w.lexer.scope(c.name); e != Local {
			e |= c.back
		}
		if w.piece && e&AnyChange != 0 {
			e |= Nameless
		}
	}
	last := len(w.outer) - 1
	if w.calling = last >= 0; w.calling {
		w.inner, w.outer = w.outer[last], w.outer[:last]
	}
	return e
}

// constant reports whether an argument that began with the token that was read is that
// token alone, but for a cast.
func (l lexer) constant() bool {
	t := l.next()
	if l.isMark(t, ':') && l.isMark(l.next(), ':') && l.next().kind == word {
		t = l.next()
	}
	return l.isMark(t, ',')
}

// scope looks at set_config's last argument.
func (l lexer) scope(name kind) Effect {
	value, closing := l.next(), l.next()
	switch {
	case l.isMark(closing, ')') && (l.is(value, "true") || value.kind == text && string(l.sql[value.from:value.to]) == "t"):
		return Local
	case name == text && (l.is(value, "false") || value.kind == text && string(l.sql[value.from:value.to]) == "f"):
		return Setting
	case name == text: // it is computed
		return Setting | Local
	case name == param:
		return AnyChange
	}
	return AnyChange | Nameless
}
