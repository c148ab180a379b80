package claude_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"strings"
	"testing"

	"mainstay.dev/mainstay/claude"
)

func TestWhatIsNoErrorOfTheAPIReachesTheClientAsOne(t *testing.T) {
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = io.WriteString(z, "<html><title>Bad gateway</title>")
	_ = z.Close()
	const api = `{"type":"error","error":{"type":"invalid_request_error","message":"no"}}`
	for _, c := range []struct {
		name, kind, body, encoding string
		status, want               int
		wantKind, says             string
	}{
		{"a page", "text/html", "<html><TITLE>Bad  gateway\n</TITLE>", "", 502, 502, "api_error", "Bad gateway"},
		{"a compressed page", "text/html", zipped.String(), "gzip", 502, 502, "api_error", "Bad gateway"},
		{"an encoding that is not read", "text/html", "\x8b\x03", "br", 502, 502, "api_error", "no error of the Claude API"},
		{"an encoded error of the API", "application/json", "\x8b\x03", "br", 500, 500, "", ""},
		{"Cloudflare's own status", "text/html", "<title>a timeout</title>", "", 524, 504, "timeout_error", "a timeout"},
		{"an empty answer", "", "", "", 503, 503, "overloaded_error", "answered 503"},
		{"a gateway's JSON", "application/json", `{"message":"upstream connect error"}`, "", 503, 503, "overloaded_error", "upstream connect error"},
		{"a text", "text/plain", "forbidden by\x00 policy", "", 403, 403, "permission_error", "forbidden by policy"},
		{"an odd status", "text/html", "<b>teapot</b>", "", 418, 418, "invalid_request_error", "answered 418"},
		{"more than is kept", "text/html", strings.Repeat("x", 100_000), "", 502, 502, "api_error", "answered 502"},
		{"a page in place of a message", "text/html; charset=utf-8", "<title>Sign in</title>", "", 200, 502, "api_error", "Sign in"},
		{"an error of the API", "application/json", api, "", 400, 400, "invalid_request_error", "no"},
	} {
		for _, policy := range []func(*claude.Config){func(c *claude.Config) { c.Retry.MaxRetries = 0 }, func(c *claude.Config) {
			patient(c)
			c.Retry.Hold = 0
		}} {
			head := []string{"Content-Type", c.kind, "Cf-Ray", "7", "Etag", "x"}
			if c.encoding != "" {
				head = append(head, "Content-Encoding", c.encoding)
			}
			inBubble(t, answers(says(c.status, c.body, head...)), policy, func(t *testing.T, st *stage) {
				for _, ask := range []string{hello, helloS} {
					r := st.post(ask)
					if c.wantKind == "" { // as it came
						if r.status != c.status || r.body != c.body {
							t.Errorf("%s: %+v", c.name, r)
						}
						continue
					}
					e := parseError(t, r.body)
					if r.status != c.want || e.Error.Type != c.wantKind || !strings.Contains(e.Error.Message, c.says) || r.err != nil {
						t.Errorf("%s: %+v", c.name, r)
					}
					if r.head.Get("Request-Id") == "" && c.body != api || r.head.Get("Cf-Ray") != "7" || r.head.Get("Content-Type") != "application/json" || r.head.Get("Content-Encoding") != "" {
						t.Errorf("%s: %v", c.name, r.head)
					}
				}
				if c.name == "a page in place of a message" {
					return
				}
				if r := st.send("POST", "/v1/echo/raw", "{}", nil); r.status != c.status || r.body != c.body {
					t.Errorf("%s, where Mainstay does not know the path: %+v", c.name, r)
				}
				if r := st.send("HEAD", "/v1/models", "", nil); r.status != c.status {
					t.Errorf("%s, asked by HEAD: %+v", c.name, r)
				}
			})
		}
	}
}

func TestAnAnswerInJSONThatSeemsWholeAndIsNotIsTriedAgain(t *testing.T) {
	half := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"type":"message","content":[{"type":"te`)
	}
	inBubble(t, answers(half, fine), nil, func(t *testing.T, st *stage) {
		if r := st.post(hello); r.status != 200 || !strings.Contains(r.body, "usage") {
			t.Errorf("%+v", r)
		}
	})
}
