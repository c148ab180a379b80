// Package again gives a client's settings again what it chose at login, right behind a statement that leads them back. For
// PostgreSQL, whose connection has served others, they go back to its own defaults there; with a connection
// of its own the client would see what it chose.
//
// Only the pooler imports it. It is pure.
package again

import (
	"slices"
	"unicode/utf8"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
)

// Added are the statements of ours in a text of several. Its methods may be called on nil.
type Added struct {
	nth  []int // which of its statements they are, in order
	done int   // how many are carried out
}

// Ours reports whether what the server says is of a statement of ours. ends is whether it ends one.
func (a *Added) Ours(ends bool) bool {
	if a == nil {
		return false
	}
	ours := len(a.nth) > 0 && a.nth[0] == a.done
	if ends {
		a.done++
		if ours {
			a.nth = a.nth[1:]
		}
	}
	return ours
}

// Text is the text with statements of ours behind those that lead back; nil if there are none. moved is told each
// place, in characters from 1, from which on all is so many further than it was. block is whether a transaction is open.
func Text(text []byte, backslash, block bool, login *state.Settings, moved func(from, by int)) (longer []byte, ours *Added) {
	resets, _ := scan.Resets(text, backslash)
	ours = &Added{}
	at := 0
	for _, r := range resets {
		if r.Last && (r.Local && !block || r.Name == "discard") {
			break // which mean something else beside others; nothing sees what they lead back
		}
		for _, sql := range login.Again(r.Name, r.Local) {
			longer = slices.Concat(longer, text[at:r.End], []byte{';'}, []byte(sql))
			at = r.End
			ours.nth = append(ours.nth, r.Nth+len(ours.nth)+1)
			moved(utf8.RuneCount(longer)+1, utf8.RuneCountInString(sql)+1)
		}
	}
	if longer == nil {
		return nil, nil
	}
	return append(longer, text[at:]...), ours
}

// Statements are of ours, to be carried out behind one of the client's.
type Statements struct{ SQL []string }

// Behind are those that belong behind a statement; nil if there are none.
func Behind(text []byte, backslash bool, login *state.Settings) *Statements {
	var sql []string
	resets, _ := scan.Resets(text, backslash)
	for _, r := range resets {
		sql = append(sql, login.Again(r.Name, r.Local)...)
	}
	if sql == nil {
		return nil
	}
	return &Statements{sql}
}

// Append adds to what goes to the server what carries a statement out under this name, which leaves the client's unnamed ones
// alone. The answers are, in this order: CloseComplete, ParseComplete, BindComplete, CommandComplete, CloseComplete.
func Append(out []byte, name, sql string) []byte {
	nul := []byte{0}
	out = pgwire.Append(out, pgwire.Close, []byte{'S'}, []byte(name), nul)
	out = pgwire.Append(out, pgwire.Parse, []byte(name), nul, []byte(sql), nul, nul, nul)
	out = pgwire.Append(out, pgwire.Bind, []byte(name), nul, []byte(name), make([]byte, 7))
	out = pgwire.Append(out, pgwire.Execute, []byte(name), make([]byte, 5))
	return pgwire.Append(out, pgwire.Close, []byte{'P'}, []byte(name), nul)
}
