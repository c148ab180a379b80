package prepared

import "testing"

func body(sql string, types string) []byte {
	return []byte(sql + "\x00\x00" + string(rune(len(types)/4)) + types)
}

const int4 = "\x00\x00\x00\x17"

func TestWhetherABindFitsIsKnown(t *testing.T) {
	none, one, twoFormats := "\x00\x00\x00\x00", "\x00\x00\x00\x01\xff\xff\xff\xff", "\x00\x02\x00\x00\x00\x01\x00\x02"
	for what, c := range map[string]struct {
		body []byte
		rest string
		want bool
	}{
		"none":            {body("select 1", ""), none, false},
		"too many":        {body("select 1", ""), one, true},
		"too few":         {body("select $1", ""), none, true},
		"declared":        {body("select 1", int4), one, false},
		"formats":         {body("select $1, $2", ""), twoFormats, false},
		"not certain":     {body("call f($1)", ""), none, false},
		"declared a call": {body("call f($1)", int4), none, true},
		"cut short":       {body("select $1", ""), "\x00", false},
	} {
		if got := Misfits(c.body, []byte(c.rest)); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}

func TestAnEmptyStatementHasTheSameParameters(t *testing.T) {
	const text, unknown = "\x00\x00\x00\x19", "\x00\x00\x00\x00"
	if got, want := string(Empty(body("select $1, $2, $3", int4+unknown), false)), "\x00\x00\x03"+int4+text+text; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWhatIsKnownOfAStatementWithoutAskingIsKnown(t *testing.T) {
	for _, c := range []struct {
		body []byte
		want bool
	}{
		{body("insert into t values ($1)", int4), true}, {body("insert into t values ($1)", ""), false},
		{body("insert into t values ($1)", "\x00\x00\x00\x00"), false}, {body("select 1", ""), false},
	} {
		if got := Describable(c.body); got != c.want {
			t.Errorf("%q: %v", c.body, got)
		}
	}
}
