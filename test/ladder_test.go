package test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"mainstay.dev/mainstay/claude/claudetest"
)

// The ladder from end to end: a caller who uses up its limit is warned, delayed, served
// by a smaller model, and refused in the end; each step is told and counted.
func TestACallerWalksDownTheLadderThroughAllPlanes(t *testing.T) {
	api := claudetest.New(claudetest.Options{Seed: 1, Keep: 10})
	url := api.Start(t)
	key := strings.Repeat("k", 32)
	sum := sha256.Sum256([]byte(key))
	m := setup(t, fmt.Sprintf(`identity: {keys: {ann: {sha256: %s, user: ann}}}
limits:
  tiers: {free: {requests: 10, window: 1h}}
  degrade: {warn: 50%%, slow: 70%%, delay: 50ms, cheaper: 90%%}
claude: {listen: "127.0.0.1:%d", upstream: %q, degrade: [{tiers: [free], step: cheaper, models: {claude-sonnet: claude-haiku-4-5}, max_tokens: 16}]}
`, hex.EncodeToString(sum[:]), ports(t, 1)[0], url), "ANTHROPIC_BASE_URL="+url, "ANTHROPIC_API_KEY=sk-ant-test").start(testapp())
	get := func(path string) (resp *http.Response, body string) {
		t.Helper()
		req, err := http.NewRequest("GET", m.edge+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Api-Key", key)
		if resp, err = http.DefaultClient.Do(req); err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp, string(b)
	}
	var steps []string
	for range 8 {
		resp, told := get("/header?name=Mainstay-Degrade")
		steps = append(steps, strings.Trim(fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("X-RateLimit-Warning"), " ", told), " \n"))
	}
	if got, want := strings.Join(steps, ", "), "200, 200, 200, 200, 200 user;used=50, 200 user;used=60, 200 user;used=70, 200 user;used=80"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if resp, told := get("/header?name=Mainstay-Degrade"); resp.StatusCode != 200 || strings.TrimSpace(told) != "cheaper" {
		t.Errorf("the ninth: %d, and the app was told %q", resp.StatusCode, told)
	}
	if resp, body := get("/ask"); resp.StatusCode != 200 {
		t.Errorf("the tenth: %d %s", resp.StatusCode, body)
	}
	var asked struct {
		Model     string `json:"model"`
		MaxTokens int    `json:"max_tokens"`
	}
	if all := api.Requests(); len(all) != 1 || json.Unmarshal(all[0].Body, &asked) != nil || asked.Model != "claude-haiku-4-5" || asked.MaxTokens != 16 {
		t.Errorf("Claude was asked %d times, and of %+v", len(all), asked)
	}
	resp, body := get("/version")
	if resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" || resp.Header.Get("Cache-Control") != "no-store" || !strings.Contains(body, `"code":"limited"`) {
		t.Errorf("the eleventh: %d %v %s", resp.StatusCode, resp.Header, body)
	}
	for series, want := range map[string]float64{
		`mainstay_limits_degraded_total{step="warn"}`: 2, `mainstay_limits_degraded_total{step="slow"}`: 2, `mainstay_limits_degraded_total{step="cheaper"}`: 2,
		`mainstay_limits_decisions_total{outcome="refused",rule="user",tier="free"}`: 1,
	} {
		eventually(t, series, func() (bool, string) {
			v := m.metrics()[series]
			return v == want, fmt.Sprint(v)
		})
	}
}
