package state

import (
	"strings"
	"testing"

	"mainstay.dev/mainstay/pooler/internal/pgwire"
)

func TestOnlySomeSettingsDecideWhatATextMeans(t *testing.T) {
	s := None.With("search_path", "a").With("work_mem", "4MB").With("my.x", "1")
	for _, o := range []*Settings{s, None.With("search_path", "a"), s.With("application_name", "x"), s.With("my.x", "2")} {
		if !s.MeansSame(o) || !o.MeansSame(s) {
			t.Errorf("%q differs", o.Key())
		}
	}
	for _, o := range []*Settings{None, s.With("search_path", "b"), s.With("datestyle", "German"), s.With("role", "r"), s.With("client_encoding", "LATIN1"), s.With("standard_conforming_strings", "off")} {
		if s.MeansSame(o) || o.MeansSame(s) {
			t.Errorf("%q means the same", o.Key())
		}
	}
}

func TestConstantsAreTheSameHoweverSettingsAreWritten(t *testing.T) {
	usual := Of([]pgwire.Param{{Name: "DateStyle", Value: "ISO, MDY"}, {Name: "TimeZone", Value: "Etc/UTC"}})
	for _, o := range []*Settings{None.With("timezone", "UTC"), None.With("datestyle", "iso"), None.With("datestyle", "SQL, US"), None.With("datestyle", "mdy,postgres"), None.With("work_mem", "1MB"), None.With("search_path", "a"), None.With("extra_float_digits", "3")} {
		if o.Constants(usual) != None.Constants(usual) {
			t.Errorf("%q differs", o.Key())
		}
	}
	for _, o := range []*Settings{None.With("timezone", "Asia/Tokyo"), None.With("datestyle", "German"), None.With("datestyle", "ISO,YMD"), None.With("datestyle", "Euro"), None.With("intervalstyle", "sql_standard"), None.With("array_nulls", "off"), None.With("extra_float_digits", "0"), None.With("bytea_output", "escape"), None.With("quote_all_identifiers", "on")} {
		if o.Constants(usual) == None.Constants(usual) {
			t.Errorf("%q means the same", o.Key())
		}
	}
	if o := None.With("datestyle", "German, MDY"); o.Constants(usual) != None.Constants(usual) {
		t.Error("the order of a German DateStyle is not heeded")
	}
	if german := usual.With("DateStyle", "German, DMY"); None.With("datestyle", "ISO").Constants(german) != None.With("datestyle", "DMY").Constants(usual) {
		t.Error("the server's own order is not heeded")
	}
}

func TestMeaningGivesEachSettingAValueOrItsDefault(t *testing.T) {
	sql := None.With("role", "it's").With("datestyle", "German").With("work_mem", "4MB").Meaning()
	first, others := sql[0], strings.Join(sql[1:], "")
	if want := `SET LOCAL SESSION AUTHORIZATION DEFAULT;SELECT pg_catalog.set_config('role',$_ms$it's$_ms$,true) IS NULL;SET LOCAL client_encoding TO DEFAULT;`; first != want {
		t.Errorf("got %s\nwant %s", first, want)
	}
	if !strings.Contains(others, `set_config('datestyle','German',true)`) || !strings.Contains(others, "SET LOCAL search_path TO DEFAULT;") || strings.Contains(others, "work_mem") {
		t.Error(others)
	}
}

func TestWhatIsCarriedIsTakenApart(t *testing.T) {
	under := None.With("search_path", "a, b").With("my.x", "1").With("datestyle", "").With("role", "r")
	for _, c := range []struct{ under, want *Settings }{
		{under, None.With("search_path", "a, b").With("datestyle", "").With("role", "r")}, {None, None}, {None.With("work_mem", "1MB"), None}, {None.With("search_path", "a\x01b"), nil}, {nil, nil},
	} {
		text, got := OfCarried(Carried("prepare q as select 1", c.under))
		if text != "prepare q as select 1" || (got == nil) != (c.want == nil) || got != nil && !got.Equal(c.want) {
			t.Errorf("%v: %q, %v", c.under, text, got)
		}
	}
}

func TestTheQuestionForWhatDecidesAMeaningLeavesNothing(t *testing.T) {
	sql := Present()
	for _, name := range append(meaning[:], "role", "session_authorization", "client_encoding") {
		if !strings.Contains(sql, "'"+name+"'") {
			t.Errorf("%s is not asked for", name)
		}
	}
	if strings.ContainsAny(sql, ";\"") {
		t.Error(sql)
	}
}
