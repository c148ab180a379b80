package setting

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestASecretShowsItselfInNoWayOfPrinting(t *testing.T) {
	s := Secret("hunter2")
	held := struct {
		Password Secret
		All      []Secret
		Named    map[string]Secret
	}{s, []Secret{s}, map[string]Secret{"a": s}}
	for _, verb := range []string{"%s", "%v", "%+v", "%#v", "%q", "%x", "%X", "%d", "%t", "%10s"} {
		for _, v := range []any{s, &s, held, &held} {
			if got := fmt.Sprintf(verb, v); strings.Contains(got, "hunter2") || strings.Contains(got, "68756e746572") {
				t.Errorf("%s of %T shows %q", verb, v, got)
			}
		}
	}
	if b, err := json.Marshal(held); err != nil || strings.Contains(string(b), "hunter2") {
		t.Errorf("JSON: %s %v", b, err)
	}
	if got := s.Reveal(); got != "hunter2" {
		t.Errorf("revealed %q", got)
	}
}

func TestSizesAreReadAndNonsenseIsNot(t *testing.T) {
	for text, want := range map[string]Bytes{"0": 0, "64KB": 64000, "1.5MB": 1500000, "32 MiB": 32 << 20, "1GiB": 1 << 30, "7": 7, "9B": 9} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
	for _, text := range []string{"", "NaN", "nanMB", "Inf", "-1", "1e400", "9e18MB", "0.5", "1XB", "KB"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("%q was read as %d", text, got)
		}
	}
}

func TestSharesAreReadAndNonsenseIsNot(t *testing.T) {
	for text, want := range map[string]Percent{"0": 0, "5%": 0.05, "0.05": 0.05, "100%": 1} {
		if got, err := ParsePercent(text); err != nil || got != want {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
	for _, text := range []string{"", "NaN", "nan%", "Inf", "-1%", "101%", "2"} {
		if got, err := ParsePercent(text); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}
