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

func TestWhatChangesHowConstantsAreReadLoosens(t *testing.T) {
	for text, want := range map[string]bool{
		"set local timezone = 'UTC'": true, "SET TIME ZONE 7": true, "set names 'latin1'": true, "select set_config('DateStyle', $1, true)": true, `set local my.x = e'\x41'`: true,
		"set local work_mem = '5MB'": false, "set search_path = a": false, "select set_config('my.x', $1, true)": false, "set role r": false, "select 1": false,
		"select set_config($1, $2, true)": true, "select Set_Config('date' || 'style', $1, true)": true, "do $$ begin perform 1; end $$": true, "reset all": true,
	} {
		var s Stains[string]
		if s.Loosen(scan.Effects([]byte(text), false)&(scan.Setting|scan.AnyChange|scan.Back|scan.Discards|scan.Nameless|scan.Unseen|scan.Local), []byte(text), false); s.Loose != want {
			t.Errorf("%s: %v", text, s.Loose)
		}
	}
	var s Stains[string]
	if s.Loosen(scan.Setting, []byte("select f()"), false); !s.Loose {
		t.Error("what a function sets does not loosen")
	}
}
