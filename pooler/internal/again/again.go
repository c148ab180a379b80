// Package again gives a client's settings again what it chose at login, right behind a statement that leads them back. For
// PostgreSQL, whose connection has served others, they go back to its own defaults there; with a connection
// of its own the client would see what it chose.
//
// Only the pooler imports it. It is pure.
package again

import (
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

// Text is the text with statements of ours behind those that lead back; nil if there are none. block is whether a
// transaction is open.
func Text(text []byte, backslash, block bool, login *state.Settings) (longer *scan.Renaming, ours *Added) {
	resets, _ := scan.Resets(text, backslash)
	if len(resets) == 0 {
		return nil, nil
	}
	longer, ours = scan.Rename(text, backslash), &Added{}
	uses := scan.Uses(text, backslash) // of what SQL prepared: an error may point into that
	for _, r := range resets {
		if r.Last && (r.Local && !block || r.Name == "discard") {
			break // which mean something else beside others; nothing sees what they lead back
		}
		for len(uses) > 0 && uses[0].From < r.End {
			longer.Use(uses[0], "")
			uses = uses[1:]
		}
		for _, sql := range login.Again(r.Name, r.Local) {
			longer.Insert(r.End, ";"+sql)
			ours.nth = append(ours.nth, r.Nth+len(ours.nth)+1)
		}
	}
	if len(ours.nth) == 0 {
		return nil, nil
	}
	for _, u := range uses {
		longer.Use(u, "")
	}
	return longer, ours
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
