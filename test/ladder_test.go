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
	"mainstay.dev/mainstay/ratelimit/redistest"
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

// The ladder's last step, with two nodes on one Redis: who is over its limit, or finds
// the app broken, gets what another caller was given before, where that may be shared
// and the node has it.
func TestACallerOverItsLimitGetsAKeptAnswerInPlaceOf429(t *testing.T) {
	var keys []string
	for _, name := range []string{"ann", "bob"} {
		sum := sha256.Sum256([]byte("the key of " + name + " and no other"))
		keys = append(keys, fmt.Sprintf("%s: {sha256: %s, user: %s, tier: %s}", name, hex.EncodeToString(sum[:]), name, map[string]string{"ann": "free", "bob": "pro"}[name]))
	}
	more := fmt.Sprintf(`redis: redis://%s
identity: {keys: {%s}}
limits:
  tiers: {free: {requests: 3, window: 1h}, pro: {requests: 1000, window: 1h}}
  degrade: {stale: {for: 1h, if_error: true}}
  store_timeout: 1s
`, redistest.Start(t).Addr, strings.Join(keys, ", "))
	nodes := []*mainstay{setup(t, more).start(testapp()), setup(t, more).start(testapp())}
	as := func(node int, name, method, path string, headers ...string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequest(method, nodes[node].edge+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Api-Key", "the key of "+name+" and no other")
		for i := 0; i+1 < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp, string(b)
	}
	const public, private = "/page?cache=public,max-age=60", "/page?cache=private,max-age=60"
	_, kept := as(0, "bob", "GET", public)
	as(0, "bob", "GET", private)
	for i := range 3 {
		if resp, _ := as(i%2, "ann", "GET", "/version"); resp.StatusCode != 200 {
			t.Fatalf("ann's request %d: %s", i, resp.Status)
		}
	}
	resp, body := as(0, "ann", "GET", public)
	if resp.StatusCode != 200 || body != kept || resp.Header.Get("Age") == "" || !strings.HasSuffix(resp.Header.Get("Cache-Status"), "; detail=limited") ||
		resp.Header.Get("X-RateLimit-Remaining") != "0" || resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("Mainstay-Code") != "" {
		t.Errorf("%s %q, want %q; %v", resp.Status, body, kept, resp.Header)
	}
	for name, tc := range map[string]struct {
		node   int
		path   string
		header []string
		want   int
	}{
		"a client that has it":      {0, public, []string{"If-None-Match", `"page"`}, 304},
		"on the node that has not":  {1, public, nil, 429},
		"bob's own":                 {0, private, nil, 429},
		"what nobody has asked for": {0, "/page?cache=public", nil, 429},
		"what may not be kept":      {0, "/version", nil, 429},
		"who wants it from the app": {0, public, []string{"Cache-Control", "no-cache"}, 429},
		"a part of a page":          {0, public, []string{"Rsc", "1"}, 429},
	} {
		if resp, body := as(tc.node, "ann", "GET", tc.path, tc.header...); resp.StatusCode != tc.want {
			t.Errorf("%s: %s %s", name, resp.Status, body)
		}
	}
	for series, want := range map[string]float64{
		`mainstay_edge_cache_stale_total{reason="limited"}`: 2, `mainstay_edge_cache_stored_total`: 1, `mainstay_edge_cache_entries`: 1,
		`mainstay_edge_cache_stale_missed_total{reason="limited"}`: 5,
	} {
		if got := nodes[0].metrics()[series]; got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	nodes[0].get("/hurt?with=500", "X-Api-Key", "the key of bob and no other")
	if resp, body := as(0, "bob", "GET", public); resp.StatusCode != 200 || body != kept || !strings.HasSuffix(resp.Header.Get("Cache-Status"), "; detail=failed") {
		t.Errorf("from a broken app: %s %q %v", resp.Status, body, resp.Header)
	}
	if resp, _ := as(0, "bob", "GET", "/version"); resp.StatusCode != 500 {
		t.Errorf("from a broken app, of which nothing is kept: %s", resp.Status)
	}
	nodes[0].get("/hurt?with=", "X-Api-Key", "the key of bob and no other")
	eventually(t, "the log tells of it", func() (bool, string) {
		log := nodes[0].log.String()
		return strings.Contains(log, "cache=stale") || strings.Contains(log, `"cache":"stale"`), tail(log, 5)
	})
	if resp, _ := as(0, "bob", "POST", public); resp.StatusCode != 200 {
		t.Errorf("bob's change: %s", resp.Status)
	}
	if resp, body := as(0, "ann", "GET", public); resp.StatusCode != 429 {
		t.Errorf("after a change: %s %q", resp.Status, body)
	}
	as(0, "bob", "GET", public)
	if code, out := nodes[0].verb("deploy"); code != 0 {
		t.Fatalf("deploy: %d %s", code, out)
	}
	if resp, body := as(0, "ann", "GET", public); resp.StatusCode != 429 {
		t.Errorf("after a deploy: %s %q", resp.Status, body)
	}
	as(0, "bob", "GET", public)
	if resp, _ := as(0, "ann", "GET", public); resp.StatusCode != 200 {
		t.Errorf("of the new color: %s", resp.Status)
	}
}
