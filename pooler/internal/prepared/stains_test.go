package prepared

import (
	"testing"

	"mainstay.dev/mainstay/pooler/internal/scan"
)

func TestAStainIsForeignToOthersAlone(t *testing.T) {
	var s Stains[string]
	if s.Foreign("a", 1) {
		t.Error("foreign without a stain")
	}
	s.Add("a", 1)
	if s.Foreign("a", 1) || !s.Foreign("a", 2) || s.Foreign("b", 2) {
		t.Error("it is its maker's alone, and of one statement")
	}
	if s.Drop("a"); s.Foreign("a", 2) {
		t.Error("it stays")
	}
	s.Add("a", 1)
	if s.Clear(); s.Foreign("a", 2) {
		t.Error("it stays when all is forgotten")
	}
}

func TestWhatMayChangeHowConstantsAreReadIsDoubted(t *testing.T) {
	const no, doubted, changed = "", "doubted", "changed"
	for text, want := range map[string]string{
		"set local timezone = 'UTC'": changed, "SET TIME ZONE 7": doubted, "set names 'latin1'": doubted, "select set_config('DateStyle', $1, true)": changed, `set local my.x = e'\x41'`: doubted,
		"set local work_mem = '5MB'": no, "set search_path = a": no, "select set_config('my.x', $1, true)": no, "set role r": no, "select 1": no, "set local extra_float_digits = 0": changed, "set bytea_output = hex": doubted,
		"select set_config($1, $2, true)": doubted, "select Set_Config('date' || 'style', $1, true)": doubted, "do $$ begin perform 1; end $$": doubted, "reset all": doubted, "do $$ begin set local timezone = 'UTC'; end $$": changed,
	} {
		var s Stains[string]
		s.Doubt(scan.Effects([]byte(text), false)&(scan.Setting|scan.AnyChange|scan.Back|scan.Discards|scan.Nameless|scan.Unseen|scan.Local), []byte(text), false)
		if got := s.Doubted; got != (want != no) || s.Changed != (want == changed) {
			t.Errorf("%s: doubted %v, changed %v", text, got, s.Changed)
		}
		if got := s.Settle(); got != (want == changed) || s.Doubted || s.Settle() {
			t.Errorf("%s, settled: %v", text, got)
		}
	}
	var s Stains[string]
	if s.Doubt(scan.Setting, []byte("select f()"), false); !s.Doubted {
		t.Error("what a function sets is not doubted")
	}
	if s.Change(scan.Setting|scan.Local, []byte("TimeZone")); !s.Settle() {
		t.Error("a setting that is reported where some were changed for the transaction has not changed")
	}
	if s.Change(scan.Setting, []byte("DateStyle")); s.Settle() {
		t.Error("one that is reported where it was changed for the session has been its transaction's own")
	}
}
