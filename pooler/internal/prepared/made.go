package prepared

import (
	"maps"
	"slices"
	"strings"

	"mainstay.dev/mainstay/pooler/internal/scan"
	"mainstay.dev/mainstay/pooler/internal/state"
)

// Made is what has become, since the server was asked last, of the names of SQL's PREPARE. Which settings one was prepared under
// shows nowhere. The zero value is ready for use, by one goroutine at a time.
type Made struct {
	names map[string]made
	fresh []string // of which the server has not said yet that it is so
}

type made struct {
	dropped bool
	under   *state.Settings // otherwise; nil: not known
}

// Len counts the names of which something is noted.
func (m *Made) Len() int { return len(m.names) }

// Executes notes what a text with PREPARE or DEALLOCATE does that is about to be executed under these settings; nil: they are not
// known. had is what there was when the server was asked last, as Carried has returned it.
func (m *Made) Executes(text []byte, backslash bool, had, under *state.Settings) {
	for _, u := range scan.Uses(text, backslash) {
		was, noted := m.names[u.Name]
		_, there := had.Get(u.Name)
		switch {
		case u.Drops && u.Name == "":
			for _, p := range had.All() {
				m.note(p.Name, made{dropped: true})
			}
			for name := range m.names {
				m.note(name, made{dropped: true})
			}
		case u.Drops:
			m.note(u.Name, made{dropped: true})
		case u.Makes && (noted && was.dropped || !noted && !there): // otherwise it is refused
			m.note(u.Name, made{under: under})
		}
	}
}

func (m *Made) note(name string, is made) {
	if m.names == nil {
		m.names = map[string]made{}
	}
	m.names[name], m.fresh = is, append(m.fresh, name)
}

// Doubt notes that something of what has been noted since Settled may not have been carried out.
func (m *Made) Doubt() {
	for _, name := range m.fresh {
		if one, noted := m.names[name]; noted {
			m.names[name] = made{dropped: one.dropped}
		}
	}
	m.fresh = m.fresh[:0]
}

// Settled notes that all has been carried out.
func (m *Made) Settled() { m.fresh = m.fresh[:0] }

// Carried adds to what SQL's PREPARE has made, as the server shows it, under which settings, and begins anew, but for what is stuck. Of
// what is vague that is not known, and matters: of what a function has made, for one. own is without what the client has lost by an
// error, missing, and the server has all the same, by that error: it may not be as it was.
func (m *Made) Carried(found, had, missing *state.Settings, stuck []string) (all, own *state.Settings, vague []string) {
	list := slices.Clone(found.All())
	var lost []string
	for i, p := range list {
		was, _ := had.Get(p.Name)
		text, under := state.OfCarried(was)
		if one, ok := m.names[p.Name]; ok || text != p.Value {
			under = one.under
		}
		list[i].Value = state.Carried(p.Value, under)
		if under != nil || strings.HasPrefix(p.Name, Prefix) { // which is to go
			continue
		}
		gone, _ := missing.Get(p.Name)
		if text, _ := state.OfCarried(gone); text == p.Value {
			lost = append(lost, p.Name)
		} else if scan.HasConstants([]byte(p.Value)) {
			vague = append(vague, p.Name)
		}
	}
	maps.DeleteFunc(m.names, func(name string, _ made) bool { return !slices.Contains(stuck, name) })
	for _, name := range stuck {
		if value, ok := had.Get(name); ok { // one more than are carried
			_, under := state.OfCarried(value)
			m.note(name, made{under: under})
		}
	}
	m.fresh = m.fresh[:0]
	all = state.Of(list)
	own = all
	for _, name := range lost {
		own = own.Without(name)
	}
	return all, own, vague
}
