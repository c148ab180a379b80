package routes

import (
	"net/http"
	"testing"

	"mainstay.dev/mainstay/internal/setting"
)

func compile(t *testing.T, all ...Config) []*Route {
	t.Helper()
	var ps setting.Problems
	if Validate(all, &ps); len(ps) > 0 {
		t.Fatal(ps)
	}
	routes, err := Compile(all)
	if err != nil {
		t.Fatal(err)
	}
	return routes
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
	r := compile(t, Config{Name: "small", Models: map[string]string{"": "m\"2"}, MaxTokens: 50})[0]
	for body, want := range map[string]string{
		`{ "model" : "m1", "max_tokens":64 ,"x":{"model":"m1","max_tokens":99}}`: `{ "model" : "m\"2", "max_tokens":50 ,"x":{"model":"m1","max_tokens":99}}`,
		`{"max_tokens":5,"a":1}`: `{"max_tokens":5,"a":1}`,
		`no JSON`:                `no JSON`,
		``:                       ``,
	} {
		if got := string(r.Body([]byte(body), "m\"2")); got != want {
			t.Errorf("%s: %s", body, got)
		}
	}
}

func TestAnotherUpstreamGetsItsOwnKeyAndNothingOfTheCallers(t *testing.T) {
	req, err := http.NewRequestWithContext(t.Context(), "POST", "https://api.anthropic.com/base/v1/messages?beta=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", "callers")
	req.Header.Set("Authorization", "Bearer callers")
	req.Header.Set("Cookie", "callers")
	for auth, want := range map[string][2]string{"": {"k", ""}, "bearer": {"", "Bearer k"}} {
		out := compile(t, Config{Name: "b", Upstream: "https://b.test/x/", Key: "k", Auth: auth})[0].Aim(req, "/base")
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
}
