package test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"mainstay.dev/mainstay/claude/claudetest"
	"mainstay.dev/mainstay/internal/calls"
)

func TestTheLatestCallsToClaudeAreListedAndTellNothingThatWasSaid(t *testing.T) {
	const canary = "hunter2canary"
	api := claudetest.New(claudetest.Options{Seed: 1})
	m := setup(t, "", "ANTHROPIC_BASE_URL="+api.Start(t)).start(testapp())
	_, _, base := m.get("/env?name=ANTHROPIC_BASE_URL")
	api.Next(claudetest.Overloaded)
	for _, body := range []string{
		`{"model":"claude-sonnet-5","max_tokens":64,"messages":[{"role":"user","content":"` + canary + `"}]}`,
		`{"model":"claude-sonnet-5","messages":"` + canary + `"}`,
	} {
		req, err := http.NewRequest("POST", base+"/v1/messages", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"X-Api-Key": {"sk-" + canary}, "Anthropic-Version": {"2023-06-01"}, "Content-Type": {"application/json"}}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	list := func(flags ...string) (all []calls.Call, text string) {
		_, text = m.verb(append([]string{"claude", "calls", "--json"}, flags...)...)
		for line := range strings.Lines(text) {
			var c calls.Call
			if err := json.Unmarshal([]byte(line), &c); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			all = append(all, c)
		}
		return all, text
	}
	var text string
	eventually(t, "both calls", func() (bool, string) {
		var all []calls.Call
		all, text = list()
		return len(all) == 2 && all[0].Code == "ok" && all[0].SavedBy == "retry" && all[0].Tries == 2 && all[0].Attempts[0].UpstreamID != "" &&
			all[0].Dollars > 0 && all[1].Code == "rejected", text
	})
	if all, _ := list("--failed"); len(all) != 1 || all[0].Code != "rejected" {
		t.Errorf("%+v", all)
	}
	_, table := m.verb("claude", "calls")
	if strings.Contains(text+table+m.log.String(), canary) || !strings.Contains(table, "overloaded") {
		t.Errorf("%s\n%s", text, table)
	}
}

func TestACallIsSentAgainWhenThatIsAllowedAndMeant(t *testing.T) {
	const canary, secret = "hunter2canary", "sk-ant-api03-0123456789abcdefghijklmnop"
	api := claudetest.New(claudetest.Options{Seed: 1, Keep: 8})
	m := setup(t, fmt.Sprintf("claude: {listen: \"127.0.0.1:%d\", keep: {requests: all}}\n", ports(t, 1)[0]), "ANTHROPIC_BASE_URL="+api.Start(t), "ANTHROPIC_API_KEY=sk-of-the-operator").start(testapp())
	_, _, base := m.get("/env?name=ANTHROPIC_BASE_URL")
	for _, text := range []string{canary, secret} {
		req, err := http.NewRequest("POST", base+"/v1/messages", strings.NewReader(`{"model":"claude-sonnet-5","max_tokens":64,"messages":[{"role":"user","content":"`+text+`"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"X-Api-Key": {"sk-of-the-app"}, "Anthropic-Version": {"2023-06-01"}, "Content-Type": {"application/json"}, "X-Request-Id": {"id-" + text[:4]}}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	eventually(t, "both calls", func() (bool, string) {
		_, text := m.verb("claude", "calls")
		return strings.Contains(text, "id-hunt") && strings.Contains(text, "id-sk-a"), text
	})
	sent := api.Counts().Requests
	for want, args := range map[string][]string{
		"say which call":      {},
		"there is no call":    {"--yes", "never"},
		"nobody said yes":     {"id-hunt"}, // there is nobody at the keyboard
		"something was taken": {"--yes", "id-sk-a"},
	} {
		if code, out := m.verb(append([]string{"claude", "replay"}, args...)...); code == 0 || !strings.Contains(out, want) {
			t.Errorf("%v: %d %s", args, code, out)
		}
	}
	if n := api.Counts().Requests; n != sent {
		t.Errorf("%d calls were sent again", n-sent)
	}
	code, out := m.verb("claude", "replay", "--yes", "id-hunt")
	if code != 0 || !strings.Contains(out, `"role":"assistant"`) || !strings.Contains(out, ": ok, status 200") {
		t.Errorf("%d %s", code, out)
	}
	if code, out := m.verb("claude", "replay", "--yes", "--redacted", "--json", "id-sk-a"); code != 0 || !strings.Contains(out, `"of":"id-sk-a"`) {
		t.Errorf("%d %s", code, out)
	}
	last := api.Requests()
	if again := last[len(last)-1]; again.Header.Get("X-Api-Key") != "sk-of-the-operator" || strings.Contains(string(again.Body), secret) || !strings.Contains(string(again.Body), "[redacted]") {
		t.Errorf("%v %s", again.Header, again.Body)
	}
	if _, table := m.verb("claude", "calls"); !strings.Contains(table, "(replay of id-hunt)") {
		t.Error(table)
	}
	if log := m.log.String(); strings.Contains(log, canary) || strings.Contains(log, secret) || strings.Contains(log, "sk-of-the") {
		t.Error("a prompt or a key stands in the log")
	}
}

func TestNothingIsKeptUnlessTheFileSaysSo(t *testing.T) {
	api := claudetest.New(claudetest.Options{Seed: 1})
	m := setup(t, "", "ANTHROPIC_BASE_URL="+api.Start(t), "ANTHROPIC_API_KEY=k").start(testapp())
	if code, out := m.verb("claude", "replay", "--yes", "any"); code == 0 || !strings.Contains(out, "keeping is off") || !strings.Contains(out, "claude.keep.requests") {
		t.Errorf("%d %s", code, out)
	}
}
