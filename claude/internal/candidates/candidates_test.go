package candidates

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/setting"
)

func two(a, b int) *Table {
	return New([]Route{{Name: "main", Keys: []Key{{Name: "a", Key: "sk-a", Weight: a}, {Name: "b", Key: "sk-b", Weight: b}}}}, nil)
}

func TestAPromptKeepsItsKeyAndPromptsAreSpreadByWeight(t *testing.T) {
	table := two(3, 1)
	const n = 20_000
	first := map[string]int{}
	for i := range n {
		prefix := hash(fmt.Sprint(i))
		k := table.Keys(0, prefix, false)
		if again := table.Keys(0, prefix, false); again[0] != k[0] {
			t.Fatal("the same prompt went elsewhere")
		}
		first[k[0].Name()]++
	}
	if share := float64(first["main/a"]) / n; math.Abs(share-0.75) > 0.02 {
		t.Errorf("%v", first)
	}
}

func TestAKeyThatIsOutMovesOnlyItsOwnPrompts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New([]Route{{Name: "r", Keys: []Key{{Name: "a", Key: "1"}, {Name: "b", Key: "2"}, {Name: "c", Key: "3"}}}}, nil)
		before := map[uint64]*Choice{}
		for i := range uint64(300) {
			before[i] = table.Keys(0, i, false)[0]
		}
		out := &table.routes[0].all[1]
		if !out.Refused(401) || out.Refused(401) {
			t.Error("only the first refusal is news")
		}
		for i, was := range before {
			if now := table.Keys(0, i, false)[0]; now == out || was != out && now != was {
				t.Fatalf("%s went to %s", was.Name(), now.Name())
			}
		}
		if s := table.Standings()[1]; s.State != "refused" {
			t.Error(s)
		}
		time.Sleep(outFor)
		if len(table.Keys(0, 0, false)) != 3 || !out.Served() || out.Served() || table.Standings()[1].State != "fit" {
			t.Error("it did not come back")
		}
		out.Rest(0)
		if len(table.Keys(0, 0, false)) != 2 || !table.Fit(0, nil) {
			t.Error("it does not rest")
		}
		for i := range table.routes[0].all {
			table.routes[0].all[i].Refused(401)
		}
		if table.Fit(0, nil) || len(table.Keys(0, 0, false)) != 0 || len(table.Keys(0, 0, true)) != 3 {
			t.Error("none is fit, and one must be asked all the same")
		}
	})
}

func TestCountsGoOnOverAReload(t *testing.T) {
	table := two(1, 1)
	table.routes[0].all[0].Served()
	table.routes[0].all[0].Failed()
	next := New([]Route{{Name: "main", Keys: []Key{{Name: "b", Key: "x"}, {Name: "a", Key: "sk-a"}}}}, table)
	if s := next.Standings()[1]; s.Served != 1 || s.Failed != 1 {
		t.Error(s)
	}
	if New(nil, table) != nil || (*Table)(nil).Len() != 0 || (*Table)(nil).Standings() != nil {
		t.Error("no routes are no table")
	}
}

func TestTheKeyGoesInItsHeaderInPlaceOfTheCallers(t *testing.T) {
	for auth, want := range map[string]http.Header{
		"":          {"X-Api-Key": {"sk"}},
		"x-api-key": {"X-Api-Key": {"sk"}},
		"Bearer":    {"Authorization": {"Bearer sk"}},
		"api-key":   {"Api-Key": {"sk"}},
	} {
		table := New([]Route{{Name: "r", Auth: auth, Keys: []Key{{Name: "k", Key: "sk"}}}}, nil)
		h := http.Header{"X-Api-Key": {"theirs"}, "Authorization": {"Bearer theirs"}}
		table.Keys(0, 0, false)[0].Sign(h)
		if d := cmp.Diff(want, h); d != "" {
			t.Errorf("%s: %s", auth, d)
		}
	}
	h := http.Header{"X-Api-Key": {"theirs"}}
	own := New([]Route{{Name: "r"}}, nil).Keys(0, 0, false)[0]
	if own.Sign(h); h.Get("X-Api-Key") != "theirs" || own.Own() || own.Name() != "r" {
		t.Error(h, own.Name())
	}
}

func TestARequestIsChangedWhereItMustBeAndNowhereElse(t *testing.T) {
	const in = "{ \"model\" : \"claude-opus-5\",\n\"max_tokens\":4096 ,\"x\":{\"model\":\"inner\"} }"
	if got, want := string(WithModel([]byte(in), "claude-haiku-4-5")), strings.Replace(in, "claude-opus-5", "claude-haiku-4-5", 1); got != want {
		t.Error(got)
	}
	if got, n := Within([]byte(in), 100); string(got) != strings.Replace(in, "4096", "100", 1) || n != 100 {
		t.Error(string(got), n)
	}
	if got, n := Within([]byte(in), 5000); string(got) != in || n != 0 {
		t.Error(string(got), n)
	}
	thinking := `{"max_tokens":9000,"thinking":{"type":"enabled","budget_tokens":2000}}`
	if got, n := Within([]byte(thinking), 500); n != 2500 || !strings.Contains(string(got), "2500") {
		t.Error(string(got), n)
	}
	if got := WithModel([]byte(`{"model":"a","model":"b"}`), "c"); string(got) != `{"model":"c","model":"c"}` {
		t.Error(string(got))
	}
	for _, same := range []string{"", "[]", `{"messages":[]}`, `{"model":"m"`} {
		if got := WithModel([]byte(same), "m"); string(got) != same {
			t.Error(string(got))
		}
	}
}

func TestTheSamePromptIsToldByWhatTheCacheMayKnow(t *testing.T) {
	of := func(s string) uint64 { p, _ := Prefix([]byte(s)); return p }
	a := of(`{"model":"m","system":"you are","messages":[{"role":"user","content":"a"}]}`)
	if a != of(`{"system":"you are","messages":[{"role":"user","content":"b"}],"model":"m"}`) {
		t.Error("the last message changes the key")
	}
	if a == of(`{"model":"n","system":"you are"}`) || a == of(`{"model":"m","system":"you"}`) {
		t.Error("model and system must count")
	}
	if of(`{"model":"m","messages":[1]}`) == of(`{"model":"m","messages":[2]}`) {
		t.Error("without system and tools the messages must count")
	}
	for body, want := range map[string]bool{
		`{"messages":[{"content":[{"type":"document","source":{"type":"file","file_id":"f"}}]}]}`: true,
		`{"container":"c_1"}`: true, `{"container":null}`: false, `{}`: false,
	} {
		if _, pinned := Prefix([]byte(body)); pinned != want {
			t.Errorf("%s: %v", body, pinned)
		}
	}
}

func TestTheLongestBeginningOfANameCounts(t *testing.T) {
	models := map[string]string{"claude-opus": "o", "claude-opus-5": "o5", "*": "any"}
	for model, want := range map[string]string{"claude-opus-4-1": "o", "claude-opus-5-1": "o5", "gpt": "any", "": ""} {
		if got := Rename(models, model); got != want {
			t.Errorf("%s: %s", model, got)
		}
	}
}

func TestTheFirstRuleForTierAndStepCounts(t *testing.T) {
	rules := []Rule{{Tiers: []string{"pro"}, Step: "cheaper", MaxTokens: 1}, {Tiers: []string{"free"}, MaxTokens: 2}, {Step: "cheaper", MaxTokens: 3}}
	for _, c := range []struct {
		tier, step string
		want       int64
	}{{"pro", "", 0}, {"pro", "cheaper", 1}, {"free", "", 2}, {"free", "cheaper", 2}, {"", "cheaper", 3}, {"", "", 0}} {
		got := int64(0)
		if r := Degrade(rules, c.tier, c.step); r != nil {
			got = r.MaxTokens
		}
		if got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

func TestEveryMistakeIsToldAndNoKey(t *testing.T) {
	const secret = "sk-secret with a blank"
	var ps setting.Problems
	Validate([]Route{
		{Name: "main", Keys: []Key{{Name: "a", Key: secret, Weight: -1}, {Name: "a"}}},
		{Name: "main", BaseURL: "https://u:p@x.example", Auth: "a b", Tries: 11, Models: map[string]string{"a": ""}},
		{Name: "so/so", BaseURL: "ftp://x"},
	}, "https://api.anthropic.com", &ps)
	ValidateRules([]Rule{{Step: "warn", MaxTokens: -1}, {}}, &ps)
	var paths []string
	for _, p := range ps {
		paths = append(paths, p.Path)
	}
	want := []string{
		"routes[0].keys[0].key", "routes[0].keys[0].weight", "routes[0].keys[1].name", "routes[0].keys[1].key",
		"routes[1].name", "routes[1].base_url", "routes[1].keys", "routes[1].auth", "routes[1].tries", "routes[1].models.a",
		"routes[2].name", "routes[2].base_url", "routes[2].keys",
		"degrade[0].step", "degrade[0].max_tokens", "degrade[1]", "degrade[1]",
	}
	if d := cmp.Diff(want, paths); d != "" {
		t.Error(d)
	}
	if strings.Contains(ps.Error(), "sk-secret") {
		t.Error("the key stands in an error")
	}
}

func FuzzChange(f *testing.F) {
	f.Add([]byte(`{"model":"a","max_tokens":5,"system":[],"thinking":{"budget_tokens":3}}`))
	f.Add([]byte(`{"model":"\u0061","model":1}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		Prefix(in)
		got := WithModel(in, "m")
		Within(in, 2)
		if json.Valid(in) != json.Valid(got) && json.Valid(in) {
			t.Errorf("%q became %q", in, got)
		}
	})
}
