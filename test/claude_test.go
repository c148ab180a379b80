package test

import (
	"encoding/json"
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
