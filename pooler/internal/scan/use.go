package scan

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A Use is how a statement uses a prepared statement by its name.
type Use struct {
	Name     string
	From, To int  // of the name in the text, with its quotes
	Drops    bool // DEALLOCATE
	Bare     bool // EXECUTE, and no more
	Makes    bool // PREPARE; otherwise it is an EXECUTE, or one that is explained or fills a table

	// Of those that [Uses] lists:
	Index int // of the statement among those of the text
	Args  int // where what follows the name begins, if that is a parenthesis; the same as Until otherwise
	Until int // where the statement ends
}

// UseOf finds the name in a text that is a single DEALLOCATE name, EXECUTE name or PREPARE name. ok
// is false for all others.
func UseOf(sql []byte, backslash bool) (u Use, ok bool) {
	l := lexer{sql: sql, backslash: backslash}
	if u, ok = l.use(); !ok || u.Name == "" {
		return Use{}, false
	}
	return u, l.last(u.Drops)
}

// Uses lists the uses of all statements of a text, in order. DEALLOCATE ALL has no name.
func Uses(sql []byte, backslash bool) (list []Use) {
	l := lexer{sql: sql, backslash: backslash}
	for index, last := 0, false; !last; index++ {
		statement := l
		u, ok := statement.use()
		until := len(sql)
		if last = bytes.IndexByte(sql[l.at:], ';') < 0; !last {
			l.skip()
			from := l.at
			t := l.next()
			for ; t.kind != end && !l.isMark(t, ';'); t = l.next() {
			}
			until, last = t.from, t.kind == end
			if t.from == from { // PostgreSQL does not count it
				index--
			}
		}
		if !ok {
			continue
		}
		u.Index, u.Args, u.Until = index, until, until
		if t := statement.next(); statement.isMark(t, '(') {
			u.Args = t.from
		}
		list = append(list, u)
	}
	return list
}

// use reads a statement up to the name that it uses.
func (l *lexer) use() (u Use, ok bool) {
	switch t := l.next(); {
	case l.is(t, "deallocate"):
		u.Drops = true
	case l.is(t, "prepare"):
		u.Makes = true
	case l.is(t, "execute"):
		u.Bare = true
	case l.is(t, "explain"), l.is(t, "create"):
		if !l.toExecute(l.is(t, "create")) {
			return u, false
		}
	default:
		return u, false
	}
	t := l.next()
	if u.Drops && l.is(t, "prepare") {
		after := *l
		if next := after.next(); next.kind != end && !after.isMark(next, ';') { // it is no name
			t = l.next()
		}
	}
	if u.Drops && l.is(t, "all") {
		return u, true
	}
	if u.Makes && l.is(t, "transaction") {
		after := *l
		if after.next().kind == text {
			return u, false
		}
	}
	u.From, u.To = t.from, t.to
	if t.kind == quoted {
		if u.From < 1 {
			return u, false
		}
		if u.From, u.To = u.From-1, u.To+1; u.From > 1 && l.sql[u.From-1] == '&' {
			if after := *l; bytes.ContainsAny(l.sql[t.from:t.to], `\"`) || after.is(after.next(), "uescape") {
				return u, false // its escapes are not known here
			}
			u.From -= 2
		}
	} else if t.kind != word {
		return u, false
	}
	u.Name, ok = l.value(t)
	return u, ok && u.Name != ""
}

// DropsAll reports whether a text is a single DEALLOCATE ALL or DISCARD ALL.
func DropsAll(sql []byte) bool {
	l := lexer{sql: sql}
	switch t := l.next(); {
	case l.is(t, "deallocate"):
		if t = l.next(); l.is(t, "prepare") {
			t = l.next()
		}
		return l.is(t, "all") && l.last(true)
	case l.is(t, "discard"):
		return l.is(l.next(), "all") && l.last(true)
	}
	return false
}

// toExecute reads up to EXECUTE, in a CREATE only to one that follows AS.
func (l *lexer) toExecute(create bool) bool {
	as := false
	for t := l.next(); t.kind != end && !l.isMark(t, ';'); t = l.next() {
		if l.is(t, "execute") && (as || !create) {
			return true
		}
		as = l.is(t, "as")
	}
	return false
}

// last reports whether the text ends with this statement; with bare, right here.
func (l *lexer) last(bare bool) bool {
	for t := l.next(); t.kind != end; t = l.next() {
		if l.isMark(t, ';') {
			return l.next().kind == end
		}
		if bare {
			return false
		}
	}
	return true
}

// PreparedBy returns the name that a text gives to a statement if it is a single PREPARE,
// and means the same whatever the settings are: it has no backslash. ok is false for all
// others.
func PreparedBy(sql []byte) (name string, ok bool) {
	if bytes.IndexByte(sql, '\\') >= 0 {
		return "", false
	}
	l := lexer{sql: sql}
	if !l.is(l.next(), "prepare") {
		return "", false
	}
	t := l.next()
	if t.kind != word && t.kind != quoted {
		return "", false
	}
	if name, ok = l.value(t); !ok || l.is(t, "transaction") && l.next().kind == text {
		return "", false
	}
	return name, l.last(false)
}

// Analysed reports whether PostgreSQL looks into a statement when it is prepared: which tables its
// names lead to, what its constants are.
func Analysed(sql []byte) bool {
	l := lexer{sql: sql}
	t := l.next()
	for l.isMark(t, '(') {
		t = l.next()
	}
	return slices.ContainsFunc([]string{"select", "insert", "update", "delete", "merge", "with", "values", "table", "declare", "explain", "create", "call"},
		func(keyword string) bool { return l.is(t, keyword) })
}

// Sensitive reports whether settings may decide what a text means when it is prepared, and it can be asked for these before.
func Sensitive(sql []byte) bool {
	return Analysed(sql) || !Early(sql) && bytes.ContainsFunc(sql, func(r rune) bool { return r == '\\' || r > unicode.MaxASCII })
}

// HasConstants reports whether a text may have constants that mean something else under other settings, but for which tables names lead
// to: times, intervals, money, arrays, XML; and whatever a backslash, or a character beyond ASCII, stands for.
func HasConstants(sql []byte) bool {
	l := lexer{sql: sql}
	for t := l.next(); t.kind != end; t = l.next() {
		if t.kind == text && varying(sql[t.from:t.to]) {
			return true
		}
	}
	return bytes.ContainsFunc(sql, func(r rune) bool { return r == '\\' || r > unicode.MaxASCII }) ||
		Contains(sql, "xml") || bytes.IndexByte(sql, '=') >= 0 && Contains(sql, "null") // transform_null_equals
}

// varying reports whether a constant may be such.
func varying(value []byte) bool { return bytes.ContainsAny(value, "0123456789{<") || momentary(value) }

// Momentary reports whether a text may have a constant that stands for the time at which it is read: 'now'.
func Momentary(sql []byte) bool {
	if bytes.IndexByte(sql, '\\') >= 0 {
		return momentary(sql) // where a constant ends is decided by a setting
	}
	l := lexer{sql: sql}
	for t := l.next(); t.kind != end; t = l.next() {
		if t.kind == text && momentary(sql[t.from:t.to]) {
			return true
		}
	}
	return false
}

// momentary reports whether a constant may be such: one of its words is.
func momentary(value []byte) bool {
	for word := range bytes.FieldsFuncSeq(value, func(r rune) bool { return (r|0x20) < 'a' || (r|0x20) > 'z' }) {
		for _, moment := range []string{"now", "today", "tomorrow", "yesterday"} {
			if strings.EqualFold(string(word), moment) {
				return true
			}
		}
	}
	return false
}

// interpreting are parts of the names by which settings are changed that decide what constants mean.
var interpreting = []string{"zone", "datestyle", "intervalstyle", "conforming", "backslash_quote", "xml", "array_nulls", "transform_null", "lc_monetary", "text_search", "encoding", "names", "float_digits", "bytea_output", "quote_all"}

// Reinterprets reports whether a text that changes settings may change some of those: named, by its words; else where names are computed,
// or cannot be read.
func Reinterprets(sql []byte) (may, named bool) {
	if slices.ContainsFunc(interpreting, func(part string) bool { return Contains(sql, part) }) {
		return true, true
	}
	if bytes.IndexByte(sql, '\\') >= 0 || Contains(sql, "u&") {
		return true, false
	}
	l := lexer{sql: sql}
	for t := l.next(); t.kind != end; t = l.next() {
		if l.named(t, "set_config") {
			call := l
			if open, name := call.next(), call.next(); !call.isMark(open, '(') || name.kind != text || !call.constant() {
				return true, false
			}
		}
	}
	return false, false
}

// Early reports whether a statement has to come before its transaction's snapshot, or waits for what that is to show: SET TRANSACTION, LOCK.
func Early(sql []byte) bool {
	l := lexer{sql: sql}
	t := l.next()
	if !l.is(t, "set") {
		return l.is(t, "lock")
	}
	if t = l.next(); l.keyword(t, "local") || l.keyword(t, "session") {
		t = l.next()
	}
	return !l.dotted() && slices.ContainsFunc([]string{"transaction", "transaction_isolation", "transaction_read_only", "transaction_deferrable"}, func(name string) bool { return l.named(t, name) })
}

// rowless are the commands that never return rows.
var rowless = []string{
	"set", "reset", "begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "prepare", "deallocate", "declare", "close", "move", "listen",
	"unlisten", "notify", "discard", "lock", "drop", "alter", "create", "truncate", "grant", "revoke", "comment", "do", "vacuum", "analyze", "reindex", "refresh",
	"cluster", "checkpoint", "load", "copy",
}

// Rowless reports whether a statement certainly returns no rows.
func Rowless(sql []byte) bool {
	l := lexer{sql: sql}
	t := l.next()
	is := func(keyword string) bool { return l.is(t, keyword) }
	switch {
	case t.kind == end, slices.ContainsFunc(rowless, is):
		return true
	case !slices.ContainsFunc([]string{"insert", "update", "delete", "merge"}, is):
		return false
	}
	for ; t.kind != end; t = l.next() {
		if l.is(t, "returning") {
			return false
		}
	}
	return true
}

// Parameters is the highest number of a parameter in a statement, as of $2, up to PostgreSQL's
// limit of 65535. It is 0 for those that PostgreSQL does not look into before it carries them out.
func Parameters(sql []byte, backslash bool) (highest int) {
	l := lexer{sql: sql, backslash: backslash}
	if !Analysed(sql) {
		return 0
	}
	for t := l.next(); t.kind != end; t = l.next() {
		if t.kind == param {
			if n, err := strconv.ParseUint(string(sql[t.from+1:t.to]), 10, 16); err == nil {
				highest = max(highest, int(n))
			}
		}
	}
	return highest
}

// Takes is how many parameters a statement has that was prepared with the types of so many declared; it is
// certain but for a few commands, of which it depends on what they hold.
func Takes(sql []byte, declared int) (n int, certain bool) {
	n = max(declared, Parameters(sql, false))
	if n == declared {
		return n, n >= Parameters(sql, true)
	}
	l := lexer{sql: sql}
	t := l.next()
	vague := slices.ContainsFunc([]string{"explain", "create", "call"}, func(keyword string) bool { return l.is(t, keyword) })
	return n, !vague && Parameters(sql, true) == Parameters(sql, false)
}
