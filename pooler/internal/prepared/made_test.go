package prepared

import (
	"slices"
	"testing"

	"mainstay.dev/mainstay/pooler/internal/state"
)

// What SQL's PREPARE has made is known under the settings of then; where these are not known that is said, if it matters.
func TestWhatIsMadeIsKnownUnderTheSettingsOfThen(t *testing.T) {
	german, iso := state.None.With("datestyle", "German"), state.None.With("datestyle", "ISO")
	const date = "prepare q as select '1.2.2026'::date"
	found := state.None.With("q", date)
	for what, c := range map[string]struct {
		do      func(m *Made)
		had     *state.Settings
		missing *state.Settings
		stuck   []string
		want    *state.Settings // nil: not known
		vague   []string
		lost    bool
	}{
		"made":              {func(m *Made) { m.Executes([]byte(date), false, state.None, german) }, state.None, state.None, nil, german, nil, false},
		"as before":         {func(*Made) {}, state.None.With("q", state.Carried(date, german)), state.None, nil, german, nil, false},
		"refused, as it is": {func(m *Made) { m.Executes([]byte(date), false, state.None.With("q", state.Carried(date, german)), iso) }, state.None.With("q", state.Carried(date, german)), state.None, nil, german, nil, false},
		"dropped, and anew": {func(m *Made) {
			had := state.None.With("q", state.Carried(date, german))
			m.Executes([]byte("deallocate all; "+date), false, had, iso)
		}, state.None.With("q", state.Carried(date, german)), state.None, nil, iso, nil, false},
		"by what was not seen": {func(*Made) {}, state.None, state.None, nil, nil, []string{"q"}, false},
		"another than before":  {func(*Made) {}, state.None.With("q", state.Carried("prepare q as select 1", german)), state.None, nil, nil, []string{"q"}, false},
		"maybe not made":       {func(m *Made) { m.Executes([]byte(date), false, state.None, german); m.Doubt() }, state.None, state.None, nil, nil, []string{"q"}, false},
		"made before a fault":  {func(m *Made) { m.Executes([]byte(date), false, state.None, german); m.Settled(); m.Doubt() }, state.None, state.None, nil, german, nil, false},
		"lost, and there":      {func(*Made) {}, state.None, state.None.With("q", state.Carried(date, german)), nil, nil, nil, true},
		"one too many before": {func(m *Made) {
			m.Carried(state.None, state.None.With("q", state.Carried(date, german)), state.None, []string{"q"})
		}, state.None, state.None, nil, german, nil, false},
	} {
		t.Run(what, func(t *testing.T) {
			var m Made
			c.do(&m)
			all, own, vague := m.Carried(found, c.had, c.missing, c.stuck)
			value, _ := all.Get("q")
			text, under := state.OfCarried(value)
			_, has := own.Get("q")
			switch {
			case text != date, !slices.Equal(vague, c.vague), has == c.lost, (under == nil) != (c.want == nil), under != nil && !under.Equal(c.want):
				t.Errorf("%q under %v, vague %q, its own: %v", text, under, vague, has)
			}
			if len(c.stuck) == 0 && m.Len() > 0 {
				t.Errorf("%d names are kept", m.Len())
			}
		})
	}
	if _, _, vague := (&Made{}).Carried(state.None.With("q", "prepare q as select 'word' from things where n = $1"), state.None, state.None, nil); vague != nil {
		t.Errorf("vague without a constant that varies: %q", vague)
	}
}
