package scan

import "unicode/utf8"

// A Renaming is a client's text with other names for prepared statements, or with statements of ours among its own, and knows
// what of it stands where.
type Renaming struct {
	sql   []byte // the client's
	taken int    // how much of it is in text
	text  []byte
	moves []move
	runs  []run

	counted, characters int // of text: so many bytes of it are so many characters

	backslash bool
}

// A move is a place in a text, in characters from 1, from which on all is so many further than in the
// client's, by what was put in.
type move struct{ from, by int }

// A run is a statement of the text that executes another one, and where its arguments are: in bytes.
type run struct{ index, from, until int }

// Rename begins with a client's text.
func Rename(sql []byte, backslash bool) *Renaming { return &Renaming{sql: sql, backslash: backslash} }

// Use takes the next use; it is renamed to as, unless that is "".
func (r *Renaming) Use(u Use, as string) {
	if as != "" {
		r.text = append(append(r.text, r.sql[r.taken:u.From]...), as...)
		r.taken = u.To
		r.moves = append(r.moves, move{r.length() + 1, utf8.RuneCountInString(as) - utf8.RuneCount(r.sql[u.From:u.To])})
	}
	if further := len(r.text) - r.taken; !u.Drops && !u.Makes {
		r.runs = append(r.runs, run{u.Index, u.Args + further, u.Until + further})
	}
}

// Insert puts something in at this place of the client's text, in bytes, behind all that has been taken before. It is no
// statement that [Renaming.Place] is to count.
func (r *Renaming) Insert(at int, sql string) {
	r.text = append(append(r.text, r.sql[r.taken:at]...), sql...)
	r.taken = at
	r.moves = append(r.moves, move{r.length() + 1, utf8.RuneCountInString(sql)})
}

// length is how many characters the text has so far. Those that were there the last time are not counted again: there
// may be very many uses. No character is in two of the pieces that the text is made of.
func (r *Renaming) length() int {
	r.characters += utf8.RuneCount(r.text[r.counted:])
	r.counted = len(r.text)
	return r.characters
}

// Renames reports whether there is anything in the text that is not the client's.
func (r *Renaming) Renames() bool { return len(r.moves) > 0 }

// Text ends the text and returns it.
func (r *Renaming) Text() string {
	r.text = append(r.text, r.sql[r.taken:]...)
	r.taken = len(r.sql)
	return string(r.text)
}

// Place is where in the client's text an error or notice points to that PostgreSQL gives this place in the text, when it
// has carried out so many statements of it. What is wrong with the text of a statement that is executed
// points into that one, which PostgreSQL does not say: there it stays.
func (r *Renaming) Place(at, done int, sqlstate, routine string) int {
	for _, one := range r.runs {
		if one.index == done && !r.own(one, at, sqlstate, routine) {
			return at
		}
	}
	to := at
	for _, m := range r.moves {
		if at >= m.from {
			to -= m.by
		}
	}
	return to
}

// own reports whether the place is in the text itself, while it executes another: a syntax error, which the other had shown
// when it was prepared, or something in the arguments, in which no tables can be named.
func (r *Renaming) own(one run, at int, sqlstate, routine string) bool {
	if sqlstate == "42601" {
		return true
	}
	place, counted := 1, 0
	for l := (lexer{sql: r.text[:one.until], at: one.from, backslash: r.backslash}); routine != "parserOpenTable"; {
		l.skip()
		place += utf8.RuneCount(r.text[counted:l.at])
		counted = l.at
		if l.next().kind == end {
			break
		}
		if place == at {
			return true
		}
	}
	return false
}
