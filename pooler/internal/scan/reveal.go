package scan

import (
	"bytes"
	"slices"
	"strings"
)

// A Routine is a function or procedure, and its source.
type Routine struct {
	Name, Source string
	Language     Language
}

// key is its name as in [Hints].
func (r *Routine) key() string {
	if r.Language == Expression {
		return r.Name
	}
	return r.Name + "("
}

// A Language is what a routine is written in.
type Language uint8

const (
	SQL        Language = iota // or PL/pgSQL
	Foreign                    // another procedural language
	Machine                    // C: there is no source to be read
	Expression                 // no routine, but what using a name evaluates, which is as in [Hints]: a view, a default, a rule
)

// doing is what a DO does beyond what any may: what its code says, as far as it can be read.
func (w *walk) doing() (e Effect) {
	l, seen := w.lexer, false
	for t := l.next(); t.kind != end && !l.isMark(t, ';'); t = l.next() {
		switch {
		case l.is(t, "language"):
			if name, _ := l.value(l.next()); name != "plpgsql" {
				return Unknown
			}
		case t.kind != text || seen || !l.legible(t) || w.nested == maxNested:
			return Unknown // UESCAPE, or a constant that has to be made out first
		default:
			seen = true
			e |= body(code{sql: l.code(t), backslash: l.backslash}, w.nested+1, false) & (Nameless | Seeds | Sequence | Connects | Loads | Keeps | Opaque | Executes)
		}
	}
	if e&Executes != 0 {
		e = e&^Executes | Opaque
	}
	return e
}

// A Link says that using From means using To, which both are as in [Hints].
type Link struct{ From, To string }

// brings is what To may do by itself: there are functions of known effects that have no source to be read.
func (l *Link) brings() Effect {
	if l.To == "pg_settings!" { // by the view From
		return AnyChange
	}
	if name, ok := strings.CutPrefix(l.To, Builtin); ok {
		return builtin([]byte(name))
	}
	if name, ok := strings.CutSuffix(l.To, "("); ok && name != "set_config" { // of an extension
		return builtin([]byte(name))
	}
	return 0
}

// anyTable stands for every table, view and type.
const anyTable = "\x04"

// remade stands for tables that are not what they were.
const remade = "\x05"

// Reveal makes hints of what the catalog holds.
func Reveal(routines []Routine, links []Link) Hints {
	all, makers := Hints{}, map[string]bool{} // of tables
	for _, r := range routines {
		h := all.of(r.key())
		e, m := r.does()
		if h.Effect |= e; m.Odd || m.Full {
			h.Effect |= AnyChange | Opaque
		}
		h.Settings = append(h.Settings, m.Settings...)
		if h.Effect&alters != 0 {
			links = append(links, Link{r.key(), remade})
		}
		if h.Effect&tables != 0 {
			makers[r.key()] = true
		}
		h.Effect &^= alters | tables
		if h.Effect&Executes != 0 { // it may use any table
			h.Effect &^= Executes
			links = append(links, Link{r.key(), anyTable})
		}
	}
	for _, l := range links {
		all.of(l.From)
		all.of(l.To).Effect |= l.brings()
	}
	for _, r := range routines { // what they call, and the tables that they use
		used := map[string]bool{}
		all.each([]byte(r.Source), false, true, func(name string) {
			if !used[name] {
				used[name], links = true, append(links, Link{r.key(), name})
			}
		})
	}
	for name := range all {
		if strings.HasPrefix(name, Operator) && len(name) > maxOperator+len(Operator) { // which is not looked for
			all.of(Always)
			links = append(links, Link{Always, name})
		}
	}
	all.spread(links)
	if table := all[anyTable]; table != nil { // which has what all have, as far as it can be said without knowing which is used
		for name, h := range all {
			if !strings.HasSuffix(name, "(") && !strings.HasPrefix(name, Builtin) {
				table.take(h)
			}
		}
		if table.Effect&Sequence != 0 {
			table.Effect |= Opaque // which may ask for it, too
		}
		table.Effect = table.Effect.Unlikely()
		all.spread(links)
	}
	all.remake(makers, links)
	for name, h := range all {
		if h.Effect&hinted == 0 {
			delete(all, name)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all
}

// remake has the catalog looked at behind those routines that may give tables what hides something: by a function or type that they use, or
// from others. Those that make plain tables do not, as some do all the time.
func (h Hints) remake(makers map[string]bool, links []Link) {
	for _, l := range links {
		if to := h[l.To]; makers[l.From] && l.To != l.From && l.To != anyTable && !strings.HasSuffix(l.To, "!") && to.Effect&hinted != 0 {
			h[l.From].Effect |= Catalog | anything
		}
	}
	for _, one := range h {
		if one.Effect&hinted != 0 {
			h.of(remade).Effect = Catalog | anything
			break
		}
	}
	h.spread(links)
	delete(h, remade)
}

// spread gives to all that use something what that may do, and goes on with those that this is new to: links may
// be a long way, in any order.
func (h Hints) spread(links []Link) {
	users, waiting := map[*Hint][]*Hint{}, map[*Hint]bool{}
	var queue []*Hint
	for _, l := range links {
		to := h[l.To]
		if users[to] = append(users[to], h[l.From]); !waiting[to] {
			waiting[to], queue = true, append(queue, to)
		}
	}
	for len(queue) > 0 {
		to := queue[0]
		waiting[to], queue = false, queue[1:]
		for _, from := range users[to] {
			if from.take(to) && !waiting[from] {
				waiting[from], queue = true, append(queue, from)
			}
		}
	}
}

// take adds what another hint says, and reports whether any of it is new.
func (h *Hint) take(other *Hint) (changed bool) {
	changed = h.Effect|other.Effect != h.Effect
	h.Effect |= other.Effect
	for _, name := range other.Settings {
		switch {
		case slices.Contains(h.Settings, name):
		case len(h.Settings) < MaxMentions:
			h.Settings, changed = append(h.Settings, name), true
		case h.Effect&Opaque == 0:
			h.Effect, changed = h.Effect|AnyChange|Opaque, true
		}
	}
	return changed
}

func (h Hints) of(name string) *Hint {
	if h[name] == nil {
		h[name] = &Hint{}
	}
	return h[name]
}

// does says what a routine may do, and which settings it names.
func (r *Routine) does() (e Effect, m Mentions) {
	source := []byte(r.Source)
	switch r.Language {
	case SQL:
		return Body(source)
	case Expression:
		return Body(append([]byte("SELECT "), source...))
	case Machine:
		return anything, m
	}
	// What it calls stands in strings of a kind that is not known here.
	lower := bytes.ToLower(source)
	for _, state := range []string{"_shared", "gd[", "sd[", "gd.", "sd.", "gd(", "$main::", "our $", "our @", "our %", "spi_prepare", "globalthis"} {
		if bytes.Contains(lower, []byte(state)) {
			e |= Keeps
		}
	}
	for _, name := range bytes.FieldsFunc(source, func(r rune) bool { return r >= 0x80 || r != '.' && !isWord(byte(r)) && !isDigit(byte(r)) }) {
		m.guess(name)
	}
	if m.Odd {
		e |= Nameless
	}
	return e | anything, m
}
