package prepared

import (
	"strings"
	"testing"
)

func TestOnlyWhatUsesOurNamesGetsOthers(t *testing.T) {
	for sql, want := range map[string]string{
		"deallocate OURS1": "deallocate THEIRS1", `Execute "OURS1" (1)`: `Execute "THEIRS1" (1)`, "select 1; prepare OURS_decoy as select 'OURS1'": "select 1; prepare THEIRS_decoy as select 'OURS1'",
		"explain execute OURS": "explain execute THEIRS", "select 'deallocate OURS1'": "", `execute "xOURS1"`: "", "select OURS1": "", "deallocate all -- OURS": "",
	} {
		for _, how := range []func(string) string{func(s string) string { return s }, strings.ToUpper} {
			own := how(Prefix)
			theirs := own[:1] + "x" + own[2:]
			if strings.Contains(sql, `"`) && own != Prefix {
				continue // in quotes it is another name
			}
			text := []byte(strings.ReplaceAll(sql, "OURS", own))
			expect := strings.NewReplacer("OURS", own, "THEIRS", theirs).Replace(want)
			if want == "" {
				expect = string(text)
			}
			Disown(text, false)
			if string(text) != expect {
				t.Errorf("%s: %s, want %s", sql, text, expect)
			}
		}
	}
	for message, at := range map[string]int{"POURS1\x00select 1\x00": 1, "Bportal\x00OURS1\x00": 8, "B\x00OURS\x00": 2, "DSOURS1\x00": 2, "CSOURS1\x00": 2, "DPOURS1\x00": 0, "BOURS1\x00x\x00": 0, "QOURS1\x00": 0, "B": 0, "D": 0, "Pq\x00": 0} {
		text := strings.ReplaceAll(message, "OURS", Prefix)
		expect := []byte(text)
		if at > 0 {
			expect[at+1] = 'x'
		}
		body := []byte(text)
		if DisownName(body[0], body[1:]); string(body) != string(expect) {
			t.Errorf("%s: %q", message, body)
		}
	}
	body := []byte(`Mprepared statement "` + Apart(Prefix+"1") + `" and "` + Apart(Prefix+"2") + `" and "` + Apart("q") + `"`)
	if Tell(body); string(body) != `Mprepared statement "`+Prefix+`1" and "`+Prefix+`2" and "q"` {
		t.Errorf("%s", body)
	}
	if !Shared([]byte(Prefix+"1")) || Shared([]byte(Prefix+"_settings")) || Shared([]byte("q")) || !Borrows([]byte("execute "+strings.ToUpper(Prefix))) || Borrows([]byte("execute q")) {
		t.Error("what is ours is not known")
	}
}
