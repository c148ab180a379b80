package routes

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// compile makes routes beside claude.upstream's.
func compile(t *testing.T, all ...Config) []*Route {
	t.Helper()
	var ps setting.Problems
	if Validate(all, nil, "127.0.0.1:8700", &ps); len(ps) > 0 {
		t.Fatal(ps)
	}
	routes, err := Compile(all, nil)
	if err != nil {
		t.Fatal(err)
	}
	return routes[1:]
}

// first makes claude.upstream's route with keys.
func first(t *testing.T, keys ...Key) *Route {
	t.Helper()
	routes, err := Compile(nil, keys)
	if err != nil {
		t.Fatal(err)
	}
	return routes[0]
}

func TestARouteTakesWhatItNames(t *testing.T) {
	r := compile(t, Config{Name: "small", Models: map[string]string{"claude-opus": "claude-sonnet-5", "claude-opus-4": "claude-haiku-4-5", "claude-haiku-4-5": "claude-haiku-4-5"}, Tiers: []string{"free", "pro"}})[0]
	for _, c := range []struct {
		tier, model, want string
		ok                bool
	}{
		{"free", "claude-opus-5", "claude-sonnet-5", true}, {"pro", "claude-opus-4-1", "claude-haiku-4-5", true},
		{"", "claude-opus-5", "", false}, {"free", "claude-fable-5", "", false}, {"free", "claude-haiku-4-5", "claude-haiku-4-5", false},
	} {
		if got, ok := r.Takes(c.tier, c.model); ok != c.ok || got != c.want {
			t.Errorf("%+v: %q %v", c, got, ok)
		}
	}
}

func TestTheBodyIsChangedWhereItMustBeAndNowhereElse(t *testing.T) {
	for body, want := range map[string]string{
		`{ "model" : "m1", "max_tokens":64 ,"x":{"model":"m1","max_tokens":99}}`: `{ "model" : "m\"\u00012", "max_tokens":50 ,"x":{"model":"m1","max_tokens":99}}`,
		`{"max_tokens":5,"a":1}`:                                            `{"max_tokens":5,"a":1}`,
		`{"max_tokens":9000,"thinking":{"budget_tokens":2000}}`:             `{"max_tokens":2050,"thinking":{"budget_tokens":2000}}`,
		`{"max_tokens":2040,"thinking":{"budget_tokens":2000}}`:             `{"max_tokens":2040,"thinking":{"budget_tokens":2000}}`,
		`{"max_tokens":9,"thinking":{"budget_tokens":9223372036854775807}}`: `{"max_tokens":9,"thinking":{"budget_tokens":9223372036854775807}}`,
		`{"model":"a","model":"b"}`:                                         `{"model":"m\"\u00012","model":"m\"\u00012"}`,
		`{"model":"a"`:                                                      `{"model":"a"`,
		`no JSON`:                                                           `no JSON`,
		``:                                                                  ``,
	} {
		if got, _ := Change([]byte(body), "m\"\x012", 50); string(got) != want {
			t.Errorf("%s: %s", body, got)
		}
	}
	same := []byte(hello)
	if got, tokens := Change(same, "claude-sonnet-5", 64); &got[0] != &same[0] || tokens != 0 {
		t.Error("copied for nothing")
	}
}

const hello = `{"model":"claude-sonnet-5","max_tokens":64,"messages":[{"role":"user","content":"hello"}]}`

func TestAnotherUpstreamGetsItsOwnKeyAndNothingOfTheCallers(t *testing.T) {
	req, err := http.NewRequestWithContext(t.Context(), "POST", "https://api.anthropic.com/base/v1/messages?beta=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", "callers")
	req.Header.Set("Authorization", "Bearer callers")
	req.Header.Set("Cookie", "callers")
	for auth, want := range map[string][2]string{"": {"k", ""}, "bearer": {"", "Bearer k"}} {
		r := compile(t, Config{Name: "b", Upstream: "https://b.test/x/", Keys: []Key{{Name: "a", Key: "k"}}, Auth: auth})[0]
		key, _ := r.Key(0, nil, false)
		out := r.Aim(req, Aim{Base: "/base"}, key)
		if out.URL.String() != "https://b.test/x/v1/messages?beta=true" || out.Host != "b.test" || out.Header.Get("Cookie") != "" {
			t.Errorf("%s %s", out.URL, out.Host)
		}
		if got := [2]string{out.Header.Get("X-Api-Key"), out.Header.Get("Authorization")}; got != want {
			t.Errorf("%v", got)
		}
	}
	if req.Header.Get("X-Api-Key") != "callers" {
		t.Error("the call's own request was changed")
	}
	if own := first(t); own.Aim(req, Aim{Base: "/base"}, nil) != req {
		t.Error("a call in its own name was copied")
	}
}

func TestAPromptKeepsItsKeyAndPromptsAreSpreadByWeight(t *testing.T) {
	r := first(t, Key{Name: "a", Key: "1", Weight: 3}, Key{Name: "b", Key: "2"})
	const n = 20_000
	came := map[string]int{}
	for i := range n {
		prefix := hash(fmt.Sprint(i))
		k, _ := r.Key(prefix, nil, false)
		if again, _ := r.Key(prefix, nil, false); again != k {
			t.Fatal("the same prompt went elsewhere")
		}
		came[k.Name]++
	}
	if share := float64(came["claude/a"]) / n; math.Abs(share-0.75) > 0.02 {
		t.Errorf("%v", came)
	}
}

func TestAKeyThatIsOutMovesOnlyItsOwnPrompts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := first(t, Key{Name: "a", Key: "1"}, Key{Name: "b", Key: "2"}, Key{Name: "c", Key: "3"})
		at := func(prefix uint64) *Access { k, _ := r.Key(prefix, nil, false); return k }
		before := map[uint64]*Access{}
		for i := range uint64(300) {
			before[i] = at(i)
		}
		out := r.keys[1]
		if !out.Refused(401) || out.Refused(401) {
			t.Error("only the first refusal is news")
		}
		for i, was := range before {
			if now := at(i); now == out || was != out && now != was {
				t.Fatalf("%s went to %s", was.Name, now.Name)
			}
		}
		if s := r.Standings()[1]; s.State != "refused" {
			t.Error(s)
		}
		time.Sleep(outFor)
		if !out.fit(time.Now().UnixNano()) || !out.Served() || out.Served() || r.Standings()[1].State != "fit" {
			t.Error("it did not come back")
		}
		for _, k := range r.keys {
			k.Rest(0)
		}
		if _, ok := r.Key(0, nil, false); ok {
			t.Error("one that rests is fit")
		}
		if k, ok := r.Key(0, nil, true); !ok || k == nil {
			t.Error("one must be asked all the same")
		}
	})
}

func TestCountsGoOnOverAReload(t *testing.T) {
	before, _ := Compile(nil, []Key{{Name: "a", Key: "1"}})
	before[0].keys[0].Served()
	before[0].Answered()
	now, _ := Compile(nil, []Key{{Name: "b", Key: "1"}, {Name: "a", Key: "2"}})
	Continue(now, before)
	if s := now[0].Standings()[1]; s.Served != 1 || now[0].Calls() != 1 {
		t.Error(s)
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
		if _, filed := Prefix([]byte(body)); filed != want {
			t.Errorf("%s: %v", body, filed)
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

func TestAnUpstreamThatIsThePlaneItselfIsRefused(t *testing.T) {
	for _, c := range []struct {
		upstream, listen string
		back             bool
	}{
		{"http://127.0.0.1:8700", "127.0.0.1:8700", true}, {"http://localhost:8700/x", ":8700", true}, {"http://[::1]:8700", "0.0.0.0:8700", true},
		{"http://localhost", "127.0.0.1:80", true}, {"http://127.0.0.1:8701", "127.0.0.1:8700", false}, {"https://gateway.test:8700", "127.0.0.1:8700", false},
		{"http://gateway.test:8700", "gateway.test:8700", true},
	} {
		var ps setting.Problems
		CheckUpstream(c.upstream, "upstream", c.listen, &ps)
		if back := strings.Contains(ps.Error(), "leads back"); back != c.back {
			t.Errorf("%+v: %v", c, ps)
		}
	}
}

func FuzzChange(f *testing.F) {
	f.Add([]byte(`{"model":"a","max_tokens":5,"system":[],"thinking":{"budget_tokens":3}}`))
	f.Add([]byte(`{"model":"\u0061","model":1}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		Prefix(in)
		got, _ := Change(in, "m", 2)
		if json.Valid(in) && !json.Valid(got) {
			t.Errorf("%q became %q", in, got)
		}
	})
}
