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
	"mainstay.dev/mainstay/internal/setting"
)

var signed = claudetest.AWS{ID: "AKIDEXAMPLE", Secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", Region: "us-east-1"}

const bedrockModel = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"

// bedrockBehind is a plane whose claude.upstream is down, with a route to Amazon Bedrock.
func bedrockBehind(t *testing.T, in func() claudetest.AWS, edit func(*claude.Config), test func(t *testing.T, st *stage, fake *claudetest.Server)) {
	t.Helper()
	fake := claudetest.New(claudetest.Options{Keep: 10})
	amazon := fake.Bedrock(in)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "bedrock-runtime.us-east-1.amazonaws.test" {
			amazon.ServeHTTP(w, r)
			return
		}
		says(529, `{"type":"error","error":{"type":"overloaded_error","message":"m"}}`, "X-Should-Retry", "false")(w, r)
	})
	inBubble(t, h, func(c *claude.Config) {
		patient(c)
		key := claude.KeyConfig{Name: "a"}
		auth := "sigv4"
		if who := in(); who.Bearer != "" {
			key.Key, auth = setting.Secret(who.Bearer), "bearer"
		} else {
			key.Key = setting.Secret(strings.TrimSuffix(who.ID+":"+who.Secret+":"+who.Session, ":"))
		}
		c.Routes = []claude.RouteConfig{{
			Name: "bedrock", Kind: "bedrock", Upstream: "http://bedrock-runtime.us-east-1.amazonaws.test", Auth: auth, Keys: []claude.KeyConfig{key},
			Models: map[string]string{"claude-sonnet-4-5": bedrockModel, "*": "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-haiku-4-5-20251001-v1:0"},
		}}
		if edit != nil {
			edit(c)
		}
	}, func(t *testing.T, st *stage) { test(t, st, fake) })
}

func TestBedrockAnswersInClaudesPlace(t *testing.T) {
	session := signed
	session.Session = "FwoGZXIvYXdzEXAMPLE//"
	for name, who := range map[string]claudetest.AWS{"signed": signed, "temporary": session, "bearer": {Bearer: "bedrock-api-key-1"}} {
		t.Run(name, func(t *testing.T) {
			bedrockBehind(t, func() claudetest.AWS { return who }, nil, func(t *testing.T, st *stage, fake *claudetest.Server) {
				for _, model := range []string{"sonnet-4-5", "sonnet-5"} {
					for _, streams := range []bool{false, true} {
						for _, gathers := range []string{"on", "off"} {
							body := strings.Replace(map[bool]string{true: helloS, false: hello}[streams], "sonnet-5", model, 1)
							r := st.send("POST", "/v1/messages?beta=true", body, func(r *http.Request) {
								r.Header.Set("Mainstay-Aggregate", gathers)
								r.Header.Set("Anthropic-Beta", "some-beta-2026-01-01, other-beta")
							})
							if streams {
								if m, err := read(r.body); err != nil || m.stop != "end_turn" {
									t.Errorf("%v %+v", err, m)
								}
							} else if r.status != 200 || !strings.Contains(r.body, `"stop_reason":"end_turn"`) {
								t.Errorf("%d %s", r.status, r.body)
							}
							if r.head.Get("Mainstay-Claude-Route") != "bedrock" || r.head.Get("Request-Id") == "" {
								t.Errorf("%v", r.head)
							}
						}
					}
				}
				for i, came := range fake.Requests() {
					want := []string{`"claude-sonnet-4-5-20250929"`, `"claude-haiku-4-5-20251001"`}[i/4]
					if came.Header.Get("Anthropic-Beta") != "some-beta-2026-01-01,other-beta" || !strings.Contains(string(came.Body), want) {
						t.Errorf("%v %s", came.Header, came.Body)
					}
				}
				if x := newest(t, st); x.Via != "bedrock/a" || x.OutputTokens == 0 || x.CostNanoUSD == 0 {
					t.Errorf("%+v", x)
				}
				if out := st.logs.String(); strings.Contains(out, "EXAMPLE") || strings.Contains(out, "bedrock-api-key") {
					t.Error("a key is in the log")
				}
			})
		})
	}
}

func TestStreamsOfBedrockAreMadeWhole(t *testing.T) {
	for _, fault := range []claudetest.Fault{
		claudetest.Cut, claudetest.CutBetween, claudetest.ErrorFirst, claudetest.ErrorAfterStart, claudetest.ErrorMiddle, claudetest.Stall, claudetest.EndEarly, claudetest.Overloaded,
	} {
		for _, body := range []string{hello, helloS} {
			bedrockBehind(t, func() claudetest.AWS { return signed }, nil, func(t *testing.T, st *stage, fake *claudetest.Server) {
				fake.Next(fault)
				r := st.post(body)
				if m, err := read(r.body); body == helloS && (err != nil || m.stop != "end_turn") || r.status != 200 || !strings.Contains(r.body, "end_turn") {
					t.Errorf("%s: %d %v %s", fault, r.status, err, r.body)
				}
				if n := fake.Counts().Requests; n < 2 || n > 3 {
					t.Errorf("%s: %d requests", fault, n)
				}
			})
		}
	}
}

// What Bedrock calls an error is told in the Claude API's words, also what it says of
// credentials that are not good.
func TestErrorsOfBedrockAreToldAsClaudes(t *testing.T) {
	for name, c := range map[string]struct {
		key    string
		status int
		kind   string
	}{
		"another secret": {"AKIDEXAMPLE:wrong", 401, "authentication_error"},
		"another id":     {"AKIDOTHER:wrong", 401, "authentication_error"},
		"a session":      {"AKIDEXAMPLE:" + signed.Secret + ":x", 401, "authentication_error"},
	} {
		t.Run(name, func(t *testing.T) {
			bedrockBehind(t, func() claudetest.AWS { return signed }, func(cfg *claude.Config) { cfg.Routes[0].Keys[0].Key = setting.Secret(c.key) }, func(t *testing.T, st *stage, fake *claudetest.Server) {
				r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "10s") })
				if e := parseError(t, r.body); r.status != c.status || e.Error.Type != c.kind || fake.Counts().Requests != 0 {
					t.Errorf("%d %s", r.status, r.body)
				}
			})
		})
	}
	bedrockBehind(t, func() claudetest.AWS { return signed }, nil, func(t *testing.T, st *stage, _ *claudetest.Server) {
		body := strings.Replace(hello, `"max_tokens":`, `"max_tokens":-`, 1)
		r := st.send("POST", "/v1/messages", body, nil)
		if e := parseError(t, r.body); r.status != 400 || e.Error.Type != "invalid_request_error" || !strings.HasPrefix(e.Error.Message, "ValidationException: ") {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
	bedrockBehind(t, func() claudetest.AWS { return signed }, func(c *claude.Config) { c.Routes[0].Models = nil }, func(t *testing.T, st *stage, fake *claudetest.Server) {
		for _, model := range []string{"../../x", "", "..", "x?y", "a//b", "x%2Fy"} {
			r := st.send("POST", "/v1/messages", strings.Replace(hello, "claude-sonnet-5", model, 1), func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "5s") })
			if r.status != 529 || fake.Counts().Requests != 0 {
				t.Errorf("%q was sent on: %d %s", model, r.status, r.body)
			}
		}
	})
}

// Bedrock's streams are not known to say that they are alive: silence that is a fault of
// Claude's own is none of Bedrock's.
func TestBedrockMayBeSilentWhileItThinks(t *testing.T) {
	fake := claudetest.New(claudetest.Options{})
	amazon := fake.Bedrock(func() claudetest.AWS { return signed })
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "bedrock-runtime.us-east-1.amazonaws.test" {
			says(529, `{"type":"error","error":{"type":"overloaded_error","message":"m"}}`, "X-Should-Retry", "false")(w, r)
			return
		}
		time.Sleep(100 * time.Second)
		amazon.ServeHTTP(w, r)
	})
	inBubble(t, h, func(c *claude.Config) {
		patient(c)
		c.Retry.Deadline = 5 * time.Minute
		c.Routes = []claude.RouteConfig{{
			Name: "bedrock", Kind: "bedrock", Upstream: "http://bedrock-runtime.us-east-1.amazonaws.test", Auth: "sigv4",
			Keys: []claude.KeyConfig{{Name: "a", Key: setting.Secret(signed.ID + ":" + signed.Secret)}}, Models: map[string]string{"*": bedrockModel},
		}}
	}, func(t *testing.T, st *stage) {
		if r := st.post(helloS); r.status != 200 || !strings.Contains(r.body, "message_stop") || fake.Counts().Requests != 1 {
			t.Errorf("%d after %d requests: %s", r.status, fake.Counts().Requests, r.body)
		}
	})
}

func TestCredentialsThatAreRenewedInTheirFileAreUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "credentials")
	write := func(secret string, at time.Time) {
		text := `{"Version": 1, "AccessKeyId": "AKIDEXAMPLE", "SecretAccessKey": "` + secret + `",` + "\n" + ` "SessionToken": "s"}`
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	write("one", begun)
	now := claudetest.AWS{ID: "AKIDEXAMPLE", Secret: "one", Session: "s", Region: "us-east-1"}
	bedrockBehind(t, func() claudetest.AWS { return now }, func(c *claude.Config) { c.Routes[0].Keys[0] = claude.KeyConfig{Name: "a", File: path} }, func(t *testing.T, st *stage, _ *claudetest.Server) {
		if r := st.post(hello); r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		now.Secret = "two"
		if r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "5s") }); r.status != 401 {
			t.Errorf("%d %s", r.status, r.body)
		}
		write("two", begun.Add(2*time.Second))
		time.Sleep(2 * time.Second)
		if r := st.post(hello); r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
}
