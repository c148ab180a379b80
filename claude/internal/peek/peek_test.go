package peek

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func members(data string) (map[string]string, bool) {
	m := map[string]string{}
	ok := Members([]byte(data), func(k, v []byte) { m[string(k)] = string(v) })
	return m, ok
}

func TestMembersAreFoundAsWritten(t *testing.T) {
	for data, want := range map[string]map[string]string{
		`{}`:                                   {},
		" {\n } ":                              {},
		`{"a":1}`:                              {"a": "1"},
		`{ "a" : "x\"}" , "b":[1,{"c":"]"}] }`: {"a": `"x\"}"`, "b": `[1,{"c":"]"}]`},
		`{"a":{"b":{"c":"\\"}},"d":null}`:      {"a": `{"b":{"c":"\\"}}`, "d": "null"},
		`{"a":"\\\\","b":true }`:               {"a": `"\\\\"`, "b": "true"},
		`{"é\u00e9":-1.5e3}`:                   {`é\u00e9`: "-1.5e3"},
	} {
		if got, ok := members(data); !ok || !cmp.Equal(want, got) {
			t.Errorf("%s: %v %s", data, ok, cmp.Diff(want, got))
		}
	}
	for _, data := range []string{"", "1", "[]", "{", `{"a`, `{"a"`, `{"a":`, `{"a":}`, `{"a":1`, `{"a":1,`, `{"a":"\"}`, `{"a":[1}`, `{a:1}`} {
		if _, ok := members(data); ok {
			t.Errorf("%s was taken for an object", data)
		}
	}
}

func TestValuesAreRead(t *testing.T) {
	for v, want := range map[string]string{`"a"`: "a", `"\u00e9\n"`: "é\n", `"é"`: "é", `1`: "", `"`: "", ``: "", `"\x"`: ""} {
		if got := Text([]byte(v)); got != want {
			t.Errorf("%s: %q", v, got)
		}
	}
	for v, want := range map[string]int64{"0": 0, "12": 12, "-1": -1, "1.5": -1, "null": -1, "": -1, "99999999999999999999": -1} {
		got, ok := Count([]byte(v))
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%s: %d", v, got)
		}
	}
}

func FuzzMembers(f *testing.F) {
	f.Add([]byte(`{"a":{"b":[1,"}"]},"c":"\\\"","d":null}`))
	f.Add([]byte(`{"type":"message","content":[{"text":"é"}],"usage":{"input_tokens":3}} `))
	f.Fuzz(func(t *testing.T, data []byte) {
		got := map[string][]byte{}
		ok := Members(data, func(k, v []byte) {
			if name := Text(bytes.Join([][]byte{nil, k, nil}, []byte(`"`))); true {
				got[name] = v
			}
			Text(v)
			Count(v)
			Members(v, func(_, _ []byte) {})
		})
		var want map[string]json.RawMessage
		if json.Unmarshal(data, &want) != nil || want == nil || strings.ContainsRune(string(data), '\uFFFD') {
			return // what is no JSON must only do no harm
		}
		if !ok || len(got) != len(want) {
			t.Fatalf("%v: %q, want %q", ok, got, want)
		}
		for k, v := range want {
			if !bytes.Equal(v, got[k]) {
				t.Errorf("%q: %q, want %q", k, got[k], v)
			}
		}
	})
}

func BenchmarkMembers(b *testing.B) {
	data := []byte(`{"id":"m","content":[{"type":"text","text":"` + strings.Repeat("word ", 180) + `"}],"usage":{"input_tokens":3,"output_tokens":5}}`)
	b.ReportAllocs()
	for b.Loop() {
		Members(data, func(_, _ []byte) {})
	}
}
