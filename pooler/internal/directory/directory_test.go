package directory

import (
	"strings"
	"testing"
	"time"
)

func TestAUserListIsReadAsPgBouncerReadsIt(t *testing.T) {
	users, err := parseList("; comment\n\"ann\" \"pen\"\"cil\"\n\n# more\n\"b c\"\t\"md5abc\" \"ignored\"\n")
	if err != nil || len(users) != 2 || users["ann"] != `pen"cil` || users["b c"] != "md5abc" {
		t.Errorf("%v, %v", users, err)
	}
	for _, text := range []string{"ann pencil", `"ann"`, `"ann" "x`, `"" "x"`, `"ann" ""`} {
		if _, err := parseList("\n" + text); err == nil || !strings.Contains(err.Error(), "line 2") || strings.Contains(err.Error(), "pencil") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestValidUntilIsReadAsPostgreSQLWritesIt(t *testing.T) {
	for text, want := range map[string]time.Time{
		"": {}, "infinity": {}, "2026-01-02 03:04:05+00": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		"2026-01-02 03:04:05.123456+00": time.Date(2026, 1, 2, 3, 4, 5, 123456000, time.UTC),
	} {
		if got, err := validUntil(text); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if got, err := validUntil("-infinity"); err != nil || got.After(time.Now()) {
		t.Error(got, err)
	}
	if _, err := validUntil("soon"); err == nil {
		t.Error("soon is no time")
	}
}

func FuzzColumns(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x00\x00\x01a"))
	f.Add([]byte("\x00\x02\xff\xff\xff\xff\x7f\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if row, err := columns(body); err == nil && len(strings.Join(row, "")) > len(body) {
			t.Fatal("more came out than went in")
		}
	})
}
