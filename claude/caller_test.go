package claude_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/telemetry"
)

// gated starts a plane that asks a gate of these limits, and seals callers for it.
func gated(t *testing.T, change func(*limits.Config), edit func(*claude.Config)) (st *stage, fake *claudetest.Server, gate *limits.Gate, as func(user, workspace string) func(*http.Request)) {
	t.Helper()
	var ic identity.Config
	ic.SetDefaults()
	desk, err := identity.New(ic, identity.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	var lc limits.Config
	lc.SetDefaults()
	change(&lc)
	if gate, err = limits.NewGate(lc, limits.Deps{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- gate.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ran })
	fake = claudetest.New(claudetest.Options{Keep: 10})
	st = start(t, setup{upstream: fake.Start(t), who: desk, limits: gate, edit: edit})
	return st, fake, gate, func(user, workspace string) func(*http.Request) {
		sealed := desk.Seal(&identity.Who{User: user, Workspace: workspace, Tier: "free", By: identity.ByToken}, "")
		return func(r *http.Request) { r.Header.Set("Mainstay-Identity", sealed) }
	}
}

func TestACallerOverItsLimitIsAnsweredAsClaudeWould(t *testing.T) {
	for _, tc := range []struct {
		window time.Duration
		policy string
		again  string // X-Should-Retry
	}{
		{time.Hour, "compatible", "false"}, {time.Hour, "deadline", "false"},
		{20 * time.Second, "compatible", ""}, {20 * time.Second, "deadline", ""},
	} {
		st, fake, _, as := gated(t, func(c *limits.Config) { c.Claude.Limit = limits.Tier{Requests: 2, Window: tc.window} },
			func(c *claude.Config) { c.Retry.Policy = tc.policy })
		for i := range 2 {
			if r := st.send("POST", "/v1/messages", hello, as("ann", "")); r.status != 200 || r.head.Get("RateLimit") != "" {
				t.Fatalf("call %d: %+v", i, r)
			}
		}
		r := st.send("POST", "/v1/messages", hello, as("ann", ""))
		var said struct {
			Error struct{ Type, Message string }
		}
		if err := json.Unmarshal([]byte(r.body), &said); err != nil {
			t.Fatal(err)
		}
		if r.status != 429 || said.Error.Type != "rate_limit_error" || r.head.Get("Mainstay-Code") != "limited" {
			t.Errorf("got %d %s %v", r.status, r.body, r.head)
		}
		wait, _ := strconv.ParseFloat(r.head.Get("Retry-After"), 64)
		if most := tc.window.Seconds(); wait <= most/2 || wait > most || r.head.Get("X-Should-Retry") != tc.again {
			t.Errorf("%v: Retry-After %v, X-Should-Retry %q", tc.window, wait, r.head.Get("X-Should-Retry"))
		}
		// Others, and what costs nothing, are not held back by it; nor is a caller whom
		// the app does not name.
		if r := st.send("POST", "/v1/messages", hello, as("bob", "")); r.status != 200 {
			t.Errorf("bob: %+v", r)
		}
		if r := st.send("POST", "/v1/messages/count_tokens", `{"model":"claude-sonnet-5","messages":[{"role":"user","content":"hello"}]}`, as("ann", "")); r.status != 200 {
			t.Errorf("a count: %+v", r)
		}
		if r := st.post(hello); r.status != 200 {
			t.Errorf("nobody: %+v", r)
		}
		if x := st.book.pages(t, 6)[2]; x.Code != "limited" || x.Blame != telemetry.BlameClient || x.Tries != 0 || x.Err == nil {
			t.Errorf("recorded %s %v %d %v", x.Code, x.Blame, x.Tries, x.Err)
		}
		if n := len(fake.Requests()); n != 5 {
			t.Errorf("Claude had %d calls", n)
		}
	}
}

func TestWithoutASectionNobodyIsChargedTwice(t *testing.T) {
	st, _, gate, as := gated(t, func(c *limits.Config) { c.Tiers["free"] = limits.Tier{Requests: 1, Window: time.Hour} }, nil)
	for range 3 {
		if r := st.send("POST", "/v1/messages", hello, as("ann", "w")); r.status != 200 {
			t.Fatalf("%+v", r)
		}
	}
	if s, err := gate.Show(t.Context(), limits.Inquiry{Key: "user:ann"}); err != nil || s.Rules[0].Remaining != 1 {
		t.Errorf("ann was charged: %+v %v", s, err)
	}
}

func TestTokensAreChargedAsClaudeCountsThem(t *testing.T) {
	st, _, gate, as := gated(t, func(c *limits.Config) {
		c.Claude.Cost, c.Claude.Tiers = "tokens", map[string]limits.Tier{"free": {Requests: 1000, Window: time.Hour}}
	}, nil)
	if r := st.send("POST", "/v1/messages", hello, as("ann", "w")); r.status != 200 {
		t.Fatalf("%+v", r)
	}
	g := st.book.last(t, 1).GenAI
	took := g.InputTokens + g.CacheWriteTokens + g.OutputTokens
	if took < 2 || took >= 1000 {
		t.Fatalf("the fake counted %d tokens", took)
	}
	left := func(key string) (n int64) {
		s, err := gate.Show(t.Context(), limits.Inquiry{Key: key, Workspace: "w", Tier: "free"})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range s.Rules {
			if r.Name == "claude-user" || r.Name == "claude-workspace" {
				n = r.Remaining
			}
		}
		return n
	}
	for _, key := range []string{"user:ann", "workspace:w"} {
		waitFor(t, func() bool { return left(key) == 1000-took })
	}
	// What has cost nothing is given back.
	if r := st.send("POST", "/v1/messages", `{"model":"claude-sonnet-5","max_tokens":-1}`, as("bob", "w")); r.status == 200 {
		t.Fatalf("%+v", r)
	}
	waitFor(t, func() bool { return left("user:bob") == 1000 && left("workspace:w") == 1000-took })
	if err := gate.Reset(t.Context(), limits.Inquiry{Key: "user:ann", Workspace: "w", Tier: "free"}); err != nil || left("user:ann") != 1000 {
		t.Errorf("after the reset ann has %d left, %v", left("user:ann"), err)
	}
}

func TestACallTakesWhatItMayNeedWhileItRuns(t *testing.T) {
	st, _, gate, as := gated(t, func(c *limits.Config) {
		c.Claude.Cost, c.Claude.Limit = "tokens", limits.Tier{Requests: 5000, Window: time.Hour}
	}, nil)
	big := func(n int64) string {
		return `{"model":"claude-sonnet-5","max_tokens":` + strconv.FormatInt(n, 10) + `,"messages":[{"role":"user","content":"hello"}]}`
	}
	// While one call that may need nearly all runs, another begins with what is left,
	// and a third not at all.
	v, err := gate.Admit(t.Context(), limits.Ask{User: "ann", Tier: "free", Claude: true, Cost: 4900})
	if err != nil || !v.Allowed {
		t.Fatalf("%+v %v", v, err)
	}
	rest, err := gate.Admit(t.Context(), limits.Ask{User: "ann", Tier: "free", Claude: true, Cost: 4900})
	if err != nil || !rest.Allowed || rest.Nearest().Remaining != 0 {
		t.Fatalf("%+v %v", rest, err)
	}
	if r := st.send("POST", "/v1/messages", big(4900), as("ann", "")); r.status != 429 {
		t.Errorf("all is taken: %+v", r)
	}
	gate.Refund(&v)
	waitFor(t, func() bool {
		r := st.send("POST", "/v1/messages", big(1<<60), as("ann", ""))
		return r.status == 200 || r.status == 400 // of the API, which has a limit of its own
	})
}

func TestADeniedCallerMayNotCall(t *testing.T) {
	st, fake, _, as := gated(t, func(c *limits.Config) { c.Deny = []string{"workspace:abuser"} }, nil)
	r := st.send("POST", "/v1/messages", hello, as("ann", "abuser"))
	if r.status != 403 || r.head.Get("Mainstay-Code") != "denied" || r.head.Get("X-Should-Retry") != "false" || len(fake.Requests()) != 0 {
		t.Errorf("got %+v", r)
	}
}
