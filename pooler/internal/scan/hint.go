package scan

import (
	"bytes"
	"maps"
	"slices"
	"unicode/utf8"
)

// What a text does may be hidden: in a function that it calls, or in a table or view
// whose trigger, rule, policy or default calls one. The catalog knows the sources of
// them; here they are read, so that texts which use the names are known.

// A Hint is what using a name may do to the session.
type Hint struct {
	Effect   Effect
	Settings []string // that are named
}

// Hints are by name: of relations and types as they are, or with "!" behind for texts that
// write; of functions with "(" behind; of operators with [Operator] before; [Schema] stands for
// whatever changes the schema, [Always] for any text. A Hints that is nil knows nothing. It is
// immutable once it is used.
type Hints map[string]*Hint

// Keys of [Hints] that are no names.
const (
	Operator = "\x01"
	Schema   = "\x02"
	Builtin  = "\x03" // before one of [Builtins]; only links lead there
	Always   = ""
)

// hinted are the effects that are worth a hint. What notifies is: who listens is told before its command ends.
const hinted = Lasting | Sequence | Notifies

// Equal reports whether two say the same.
func (h Hints) Equal(o Hints) bool {
	return maps.EqualFunc(h, o, func(a, b *Hint) bool {
		return a.Effect == b.Effect && len(a.Settings) == len(b.Settings) && !slices.ContainsFunc(a.Settings, func(s string) bool { return !slices.Contains(b.Settings, s) })
	})
}

// Foreign reports whether any name has letters beyond ASCII.
func (h Hints) Foreign() bool {
	for name := range h {
		if !ascii(name) {
			return true
		}
	}
	return false
}

// Find says what a text does by the names that it uses, and adds the settings that this
// may change. m may be nil.
func (h Hints) Find(sql []byte, backslash bool, m *Mentions) (e Effect) {
	if len(h) == 0 {
		return 0
	}
	var added map[*Hint]bool // that m has, as texts may use a name very often
	find := func(name string) {
		hint := h[name]
		e |= hint.Effect
		if m == nil || len(hint.Settings) == 0 || added[hint] {
			return
		}
		for _, s := range hint.Settings {
			m.add(s)
		}
		if added == nil {
			added = map[*Hint]bool{}
		}
		added[hint] = true
	}
	if h[Always] != nil {
		find(Always)
	}
	h.each(sql, backslash, false, find)
	return e
}

// Changes says what a text that changes the schema means for what is known: Catalog if that
// has to be read again, and what may be done in the same transaction with what it makes. varies is whether
// it would say something else if constants of the text were others.
func (h Hints) Changes(sql []byte, backslash bool) (e Effect, varies bool) {
	const most = Catalog | anything
	c := changes{lexer: lexer{sql: bytes.TrimRight(sql, "; \t\r\n"), backslash: backslash}, hints: h}
	for {
		t := c.next()
		e |= c.change(&t)
		if e == most || !c.isMark(t, ';') && bytes.IndexByte(c.sql[c.at:], ';') < 0 {
			return e, c.varies // as nearly always there is no other
		}
		for t.kind != end && !c.isMark(t, ';') {
			t = c.next()
		}
		if t.kind == end {
			return e, c.varies
		}
	}
}

// changes looks for what changes the schema.
type changes struct {
	lexer
	hints    Hints
	harmless bool // nothing from here on is worth a hint
	clear    int  // up to here, no statement touches what is
	varies   bool
}

// change says what the statement does that begins with t, and leaves the last token that it has read there.
func (c *changes) change(t *token) (e Effect) {
	switch {
	case c.is(*t, "do"):
		for *t = c.next(); t.kind != end && !c.isMark(*t, ';'); *t = c.next() {
			if t.kind != text {
				continue
			}
			c.varies = true
			if does := body(code{sql: c.code(*t), backslash: c.backslash}, 0, c.hints != nil); does&free == free || !c.legible(*t) { // also what nobody knows
				e |= Catalog
			} else {
				e |= does & Catalog
			}
		}
		return e
	case !c.is(*t, "create") && !c.is(*t, "alter") && !c.is(*t, "drop"):
		return 0
	}
	switch c.made() {
	case aRoutine:
		c.varies = true
		if c.hints == nil && !c.harmless {
			rest := c.sql[c.at:] // all of it, so that long texts are not read time and again
			c.harmless = body(code{sql: rest}, 0, false)&(hinted&^Catalog) == 0 && !executesCode(rest) && !foreign(rest)
		}
		if c.hints == nil && c.harmless {
			return 0
		}
		return Catalog | anything
	case anExtension:
		return Catalog | anything
	case aCaller, aTable:
		if c.hints != nil || c.touches(&c.clear) {
			return Catalog | anything
		}
	}
	return 0
}

// What is made, as far as it matters to what statements hide.
type made uint8

const (
	another made = iota
	aRoutine
	anExtension
	aCaller // of routines
	aTable  // or something else that may call them, and mostly does not
)

// made says what a CREATE, ALTER or DROP is about, whose word has been read: that is told by its first words.
func (l lexer) made() made {
	for range 8 {
		t := l.next()
		switch {
		case l.is(t, "schema"):
			return l.inSchema()
		case t.kind == quoted:
		case t.kind != word:
			return another
		case l.is(t, "temp"), l.is(t, "temporary"):
			return another
		case l.is(t, "extension"):
			return anExtension
		case l.is(t, "function"), l.is(t, "procedure"), l.is(t, "routine"):
			return aRoutine
		case l.is(t, "trigger"), l.is(t, "view"), l.is(t, "rule"), l.is(t, "policy"), l.is(t, "operator"), l.is(t, "cast"), l.is(t, "aggregate"), l.is(t, "domain"):
			return aCaller
		case l.is(t, "type"), l.is(t, "table"), l.is(t, "index"):
			return aTable
		}
	}
	return another
}

// inSchema is made for a CREATE SCHEMA, whose second word has been read, in which more may be made.
func (l lexer) inSchema() (m made) {
	for range maxPieces {
		t := l.next()
		if t.kind == end || l.isMark(t, ';') {
			return m
		}
		if after := l; l.is(t, "create") && !after.is(after.next(), "schema") {
			switch one := l.made(); one {
			case aCaller:
				return one
			case aTable:
				m = one
			}
		}
	}
	return aCaller
}

// code is the text that a constant stands for, as far as it matters to code.
func (l *lexer) code(t token) []byte {
	if t.how&escaped == 0 {
		return l.sql[t.from:t.to]
	}
	return bytes.ReplaceAll(l.sql[t.from:t.to], []byte("''"), []byte("'"))
}

// legible reports whether it is: it has no escapes but for quotes.
func (l *lexer) legible(t token) bool {
	return t.how&joined == 0 && (t.how&escaped == 0 || bytes.IndexByte(l.sql[t.from:t.to], '\\') < 0)
}

// executesCode reports whether a constant of a text, taken for code, does what is worth a
// hint.
func executesCode(sql []byte) bool {
	l := lexer{sql: sql}
	for t := l.next(); t.kind != end; t = l.next() {
		if t.kind == text && body(code{sql: l.code(t)}, 0, false)&hinted != 0 {
			return true
		}
	}
	return false
}

// foreign reports whether a text may name another language than those that are read.
func foreign(sql []byte) bool {
	l := lexer{sql: sql}
	for t := l.next(); t.kind != end; t = l.next() {
		if l.is(t, "language") {
			if name, _ := l.value(l.next()); name != "sql" && name != "plpgsql" {
				return true
			}
		}
	}
	return false
}

// maxName bounds a name's bytes, as PostgreSQL does.
const maxName = 63

// maxDepth bounds how deep constants in constants are looked into for names: each is read once for every one that it
// is in. Nobody writes so many.
const maxDepth = 8

// each calls yield for each name in a text that there is a hint for, in its constants too if
// they may be code, as those of DO are.
func (h Hints) each(sql []byte, backslash, code bool, yield func(name string)) {
	if h.names(sql, backslash, code, 0, yield) {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(h)) { // what was not read may use any
		yield(name)
	}
}

// names is each for a text that is so deep in constants. all is false if there are some that are too deep.
func (h Hints) names(sql []byte, backslash, code bool, depth int, yield func(name string)) (all bool) {
	all = true
	l := lexer{sql: sql, backslash: backslash}
	var buf [maxName + 1]byte
	writes, dot, begins, do := false, false, true, code
	behind := func(n int, c byte) {
		buf[n] = c
		if _, ok := h[string(buf[:n+1])]; ok {
			yield(string(buf[:n+1]))
		}
	}
	for t := l.next(); t.kind != end; t = l.next() {
		first := begins
		if begins {
			do = code || l.is(t, "do")
		}
		begins = l.isMark(t, ';')
		if t.kind == text && do {
			all = depth < maxDepth && h.names(sql[t.from:t.to], backslash, true, depth+1, yield) && all
		}
		if t.kind == mark {
			if dot = l.isMark(t, '.'); isOperator(sql[t.from]) {
				h.operators(&l, t, yield)
			}
		}
		if t.kind != word && t.kind != quoted {
			continue
		}
		name := sql[t.from:t.to]
		if t.kind == quoted && t.how&escaped != 0 {
			name = bytes.ReplaceAll(name, []byte(`""`), []byte(`"`))
		}
		n := len(cut(name))
		copy(buf[:], name[:n])
		if t.kind == word {
			for i := range n {
				buf[i] = lower(buf[i])
			}
		}
		if _, ok := h[string(buf[:n])]; ok {
			yield(string(buf[:n]))
		}
		if after := l; dot || after.isMark(after.next(), '(') { // row.f is f(row)
			behind(n, '(')
		}
		dot = false
		if code && l.is(t, "execute") {
			all = h.executed(l, depth, yield) && all
		}
		if writes {
			behind(n, '!')
		} else if t.kind == word {
			changes := false
			if writes, changes = use(buf[:n], first || code); changes && h[Schema] != nil {
				yield(Schema)
			}
		}
	}
	return all
}

// use says whether a word is that of a command that writes to tables, or evaluates the expressions of their indexes, and whether it may
// change the schema. first is whether it may be a command's first.
func use(word []byte, first bool) (writes, changes bool) {
	switch string(word) {
	case "insert", "update", "delete", "merge", "copy", "truncate":
		return true, false
	case "into":
		return true, true
	case "vacuum", "analyze", "analyse", "cluster":
		return first, false
	case "reindex", "refresh":
		return first, true
	case "create", "alter", "drop", "comment", "grant", "revoke", "security", "import":
		return false, true
	}
	return false, false
}

// executed is names for what an EXECUTE, whose word has been read, puts together: a name may be cut.
func (h Hints) executed(l lexer, depth int, yield func(name string)) (all bool) {
	made, pieces, ok := l.assembled()
	return !ok || pieces == 1 || depth < maxNested && h.names(made, l.backslash, true, depth+1, yield)
}

// isOperator reports whether operators may hold this byte.
func isOperator(c byte) bool { return bytes.IndexByte([]byte("+-*/<>=~!@#%^&|`?"), c) >= 0 }

// maxOperator bounds the bytes of an operator that is looked for.
const maxOperator = 16

// operators calls yield for each operator that a run of such bytes, of which t is the first,
// may hold.
func (h Hints) operators(l *lexer, t token, yield func(name string)) {
	run := t.from
	for l.at < len(l.sql) && isOperator(l.sql[l.at]) && l.at-run < maxOperator {
		if c := l.sql[l.at]; c == '-' && l.follows('-') || c == '/' && l.follows('*') {
			break // a comment
		}
		l.at++
	}
	buf := append(make([]byte, 0, maxOperator+1), Operator...)
	for i := run; i < l.at; i++ {
		for j := i + 1; j <= l.at; j++ {
			if key := append(buf[:len(Operator)], l.sql[i:j]...); h[string(key)] != nil {
				yield(string(key))
			}
		}
	}
}

// cut shortens a name as PostgreSQL does.
func cut(name []byte) []byte {
	if len(name) <= maxName {
		return name
	}
	n := maxName
	for n > 0 && !utf8.RuneStart(name[n]) {
		n--
	}
	return name[:n]
}
