package scan

import (
	"strings"
	"testing"
)

func TestWhatATextLeadsBackIsKnown(t *testing.T) {
	for sql, want := range map[string]string{
		"reset TimeZone": "timezone", "/* x */ RESET all ;": "all", "reset time zone": "timezone", "discard all": "all", "discard all;": "all",
		"set timezone to default": "timezone", "set session datestyle = default;": "datestyle", "set time zone local": "timezone", "set time zone default": "timezone",
		"set local timezone to default": "timezone local", "reset my.word": "my.word", "reset session authorization": "session_authorization",
		"discard plans": "", "set timezone = 'UTC'": "", "set timezone to default; select 1": "", "reset timezone; set timezone = 'UTC'": "", "select 1": "", "": "", "reset": "", "set": "",
		"set a to default, b": "", "set local": "", "reset a" + strings.Repeat(".B", 1000): "a" + strings.Repeat(".b", 1000),
	} {
		got, local := LeadsBack([]byte(sql))
		if local && got != "" {
			got += " local"
		}
		if got != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
}

func TestTheFirstStatementOfSeveralIsFound(t *testing.T) {
	for text, want := range map[string]string{
		"rollback; execute p":                "rollback;",
		" ;; /* ; */ rollback ;; execute p;": " ;; /* ; */ rollback ;",
		"rollback":                           "",
		"rollback;":                          "",
		"rollback; ; -- nothing":             "",
		"; rollback ;":                       "",
		"select ';'; select 2":               "select ';';",
		"":                                   "",
	} {
		if got := string(First([]byte(text), false)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
