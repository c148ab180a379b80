package claude_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

// tsDir is where the client in TypeScript lives.
const tsDir = "../test/clients/anthropic-ts"

// install gets the official TypeScript SDK, once per run of the tests, unless it is
// there already. It returns what is missing.
var install = sync.OnceValue(func() string {
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			return tool + " is not installed; the official TypeScript SDK needs Node 20 or newer (apt-get install nodejs npm)"
		}
	}
	want, err := os.Stat(filepath.Join(tsDir, "package-lock.json"))
	if err != nil {
		return err.Error()
	}
	got, err := os.Stat(filepath.Join(tsDir, "node_modules", ".package-lock.json"))
	if err == nil && !got.ModTime().Before(want.ModTime()) {
		return ""
	}
	cmd := exec.Command("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	cmd.Dir = tsDir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "npm ci of the official TypeScript SDK: " + err.Error() + "\n" + string(out)
	}
	return ""
})

// typescript runs the client in TypeScript against url and reads what it printed
// into v.
func typescript(t *testing.T, url string, v any, args ...string) {
	t.Helper()
	if missing := install(); missing != "" {
		if os.Getenv("CI") == "true" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	cmd := exec.CommandContext(t.Context(), "node", append([]string{"client.mjs"}, args...)...)
	cmd.Dir = tsDir
	cmd.Env = append(os.Environ(), "BASE_URL="+url, "API_KEY="+key)
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := json.Unmarshal(out, v); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestWithFivePercentFaultsTheOfficialTypeScriptClientSeesNone(t *testing.T) {
	st, fake := over(t, claudetest.Options{Seed: 11, FaultRate: 0.05, RetryAfter: "0.002", Gzip: true}, sevenTries)
	var got struct {
		Calls, Failed int
		Failures      []any
	}
	typescript(t, st.url, &got, "crowd", "1000")
	s := st.Stats()
	if got.Calls != 1000 || got.Failed != 0 || s.Retries < 20 || s.Failed != 0 {
		t.Errorf("%+v; %+v", got, s)
	}
	t.Logf("%d calls, faults %v, %d errors seen", got.Calls, fake.Counts().Faults, got.Failed)
}

func TestTheOfficialTypeScriptClientSeesEveryEndForWhatItIs(t *testing.T) {
	type result struct {
		Kind    string
		OK      bool
		Status  int
		Type    string
		Message string
	}
	st, fake := over(t, claudetest.Options{RetryAfter: "0.001"}, nil)
	faults := append(claudetest.StreamFaults()[:6], claudetest.HTTPFaults()...)
	var kinds, want []string
	for _, f := range faults {
		fake.Next(f)
		switch f {
		case claudetest.ErrorFirst, claudetest.ErrorAfterStart, claudetest.ErrorMiddle:
			kinds, want = append(kinds, "stream"), append(want, "overloaded_error")
		case claudetest.Cut, claudetest.CutBetween, claudetest.EndEarly:
			kinds, want = append(kinds, "stream"), append(want, "api_error")
		default:
			fake.Next(claudetest.None) // for the retry
			kinds, want = append(kinds, "json"), append(want, "")
		}
	}
	var got []result
	typescript(t, st.url, &got, append([]string{"each"}, kinds...)...)
	for i, r := range got {
		if r.OK != (want[i] == "") || r.Type != want[i] {
			t.Errorf("%s: %+v, want %q", faults[i], r, want[i])
		}
	}
	if len(got) != len(faults) {
		t.Errorf("%d results for %d calls", len(got), len(faults))
	}
}

func TestTheOfficialTypeScriptClientTours(t *testing.T) {
	fake := claudetest.New(claudetest.Options{})
	st := start(t, setup{upstream: fake.Start(t), colors: []string{"green"}})
	var got map[string]any
	typescript(t, claude.BaseURL(st.url[len("http://"):], "green"), &got, "tour")
	want := map[string]any{
		"blocks": []any{"thinking", "text", "tool_use"}, "city": "a value for city", "counted": true, "models": 3.0,
		"results": []any{"one succeeded"}, "refused": "BadRequestError 400 req_",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, x := range st.book.pages(t, 7) { // the results of a batch too, from the URL that is told
		if x.Color != "green" || x.Route == "other" {
			t.Errorf("%s %s", x.Color, x.Route)
		}
	}
}

// Each try of the client is shorter than the answer takes: its retries find the first one
// still running, and nothing is paid for twice.
func TestRetriesOfTheOfficialTypeScriptClientAttach(t *testing.T) {
	for _, kind := range []string{"json", "stream"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const calls = 10
			st, fake := over(t, claudetest.Options{Latency: 3 * time.Second}, func(c *claude.Config) { patient(c); c.Retry.Attach = 30 * time.Second })
			var got struct {
				Calls, Failed int
				Failures      []any
			}
			typescript(t, st.url, &got, "hurried", strconv.Itoa(calls), kind, "2000")
			s := st.Stats()
			if got.Calls != calls || got.Failed != 0 || s.Calls == calls {
				t.Errorf("%+v; %d calls reached the plane", got, s.Calls)
			}
			if n := fake.Counts().Requests; n*10 > calls*12 {
				t.Errorf("%d requests reached the API for %d calls", n, calls)
			}
		})
	}
}
