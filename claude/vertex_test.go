package claude_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

const vertexBase = "http://vertex.test/v1/projects/p-1/locations/us-east5/publishers/anthropic/models"

// vertexBehind is a plane whose claude.upstream is down, with a route to Vertex AI.
func vertexBehind(t *testing.T, token func() string, edit func(*claude.Config), test func(t *testing.T, st *stage, fake *claudetest.Server)) {
	t.Helper()
	fake := claudetest.New(claudetest.Options{Keep: 10})
	google := fake.Vertex("p-1", "us-east5", token)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "vertex.test" {
			google.ServeHTTP(w, r)
			return
		}
		says(529, `{"type":"error","error":{"type":"overloaded_error","message":"m"}}`, "X-Should-Retry", "false")(w, r)
	})
	inBubble(t, h, func(c *claude.Config) {
		patient(c)
		c.Routes = []claude.RouteConfig{{Name: "vertex", Kind: "vertex", Upstream: vertexBase, Keys: []claude.KeyConfig{{Name: "a", Key: "token-1"}}, Models: map[string]string{"claude-sonnet-4-5": "claude-sonnet-4-5@20250929", "*": "claude-haiku-4-5@20251001"}}}
		if edit != nil {
			edit(c)
		}
	}, func(t *testing.T, st *stage) { test(t, st, fake) })
}

func one() string { return "token-1" }

func TestVertexAnswersInClaudesPlace(t *testing.T) {
	vertexBehind(t, one, nil, func(t *testing.T, st *stage, fake *claudetest.Server) {
		for _, streams := range []bool{false, true} {
			for _, gathers := range []string{"on", "off"} {
				body := strings.Replace(map[bool]string{true: helloS, false: hello}[streams], "sonnet-5", "sonnet-4-5", 1)
				r := st.send("POST", "/v1/messages?beta=true", body, func(r *http.Request) {
					r.Header.Set("Mainstay-Aggregate", gathers)
					r.Header.Set("Anthropic-Beta", "some-beta-2026-01-01")
				})
				if streams {
					if m, err := read(r.body); err != nil || m.stop != "end_turn" {
						t.Errorf("%v %+v", err, m)
					}
				} else if r.status != 200 || !strings.Contains(r.body, `"stop_reason":"end_turn"`) {
					t.Errorf("%d %s", r.status, r.body)
				}
				if r.head.Get("Mainstay-Claude-Route") != "vertex" {
					t.Errorf("%v", r.head)
				}
			}
		}
		for _, came := range fake.Requests() {
			if came.Header.Get("Anthropic-Beta") != "some-beta-2026-01-01" || !strings.Contains(string(came.Body), `"claude-sonnet-4-5"`) {
				t.Errorf("%v %s", came.Header, came.Body)
			}
		}
		if x := newest(t, st); x.Via != "vertex/a" || x.OutputTokens == 0 || x.CostNanoUSD == 0 {
			t.Errorf("%+v", x)
		}
	})
}

func TestStreamsOfVertexAreMadeWhole(t *testing.T) {
	for _, fault := range []claudetest.Fault{claudetest.Cut, claudetest.ErrorMiddle, claudetest.Stall, claudetest.EndEarly, claudetest.Overloaded} {
		for _, body := range []string{hello, helloS} {
			vertexBehind(t, one, nil, func(t *testing.T, st *stage, fake *claudetest.Server) {
				fake.Next(fault)
				r := st.post(body)
				if m, err := read(r.body); body == helloS && (err != nil || m.stop != "end_turn") || r.status != 200 || !strings.Contains(r.body, "end_turn") {
					t.Errorf("%s: %d %s", fault, r.status, r.body)
				}
			})
		}
	}
}

func TestErrorsOfVertexAreToldAsClaudes(t *testing.T) {
	vertexBehind(t, one, func(c *claude.Config) { c.Routes[0].Keys[0].Key = "wrong" }, func(t *testing.T, st *stage, _ *claudetest.Server) {
		r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "10s") })
		if e := parseError(t, r.body); r.status != 401 || e.Error.Type != "authentication_error" || !strings.Contains(e.Error.Message, "OAuth 2 access token") {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
	vertexBehind(t, one, func(c *claude.Config) { c.Routes[0].Models = nil }, func(t *testing.T, st *stage, fake *claudetest.Server) {
		for _, model := range []string{"../../x", "a/b", "", "..", "x?y"} {
			r := st.send("POST", "/v1/messages", strings.Replace(hello, "claude-sonnet-5", model, 1), func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "5s") })
			if r.status != 529 || fake.Counts().Requests != 0 {
				t.Errorf("%q was sent on: %d %s", model, r.status, r.body)
			}
		}
	})
}

func TestATokenThatIsRenewedInItsFileIsUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write := func(text string, at time.Time) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	write("token-1\n", begun)
	valid := "token-1"
	vertexBehind(t, func() string { return valid }, func(c *claude.Config) { c.Routes[0].Keys[0] = claude.KeyConfig{Name: "a", File: path} }, func(t *testing.T, st *stage, _ *claudetest.Server) {
		if r := st.post(hello); r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		valid = "token-2"
		if r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "5s") }); r.status != 401 {
			t.Errorf("%d %s", r.status, r.body)
		}
		write("", begun.Add(time.Second)) // half written
		time.Sleep(2 * time.Second)
		st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "5s") })
		write("token-2", begun.Add(2*time.Second))
		time.Sleep(2 * time.Second)
		if r := st.post(hello); r.status != 200 { // at once, not when the old one is tried again
			t.Errorf("%d %s", r.status, r.body)
		}
		if strings.Contains(st.logs.String(), "token-") {
			t.Error("a token is in the log")
		}
	})
}
