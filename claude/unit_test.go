package claude

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

func TestAllMistakesOfAConfigAreToldAtOnce(t *testing.T) {
	var c Config
	c.SetDefaults()
	if _, err := Compile(c); err != nil {
		t.Fatalf("the defaults are wrong: %v", err)
	}
	bad := Config{
		Listen: "nowhere", Upstream: "ftp://x", Drain: -1,
		Retry:  RetryConfig{Policy: "patient", Hold: -1, Budget: 2, MaxRetries: 99, Jitter: 2},
		Limits: LimitConfig{Replay: 5, ReplayMemory: 4},
	}
	_, err := Compile(bad)
	var paths []string
	for _, p := range setting.Of(err) {
		paths = append(paths, p.Path)
		if p.What == "" || p.Mend == "" {
			t.Errorf("%s: no mend", p.Path)
		}
	}
	want := []string{
		"listen", "upstream", "retry.policy", "retry.deadline", "retry.hold", "retry.budget", "retry.max_retries", "retry.base", "retry.jitter", "retry.max_retry_after",
		"recovery.max_answer", "recovery.stall", "pacing.queue", "spend.reserve", "spend.on_reach", "keep.requests", "keep.calls", "keep.size", "keep.age", "batches.results",
		"timeouts.first_byte", "timeouts.idle", "timeouts.client", "limits.body", "limits.replay_memory", "drain",
	}
	if d := cmp.Diff(want, paths); d != "" {
		t.Error(d)
	}
	if !strings.Contains(err.Error(), "retry.policy: must be deadline or compatible; use deadline") {
		t.Error(err)
	}
	for upstream, ok := range map[string]bool{
		"https://api.anthropic.com": true, "https://gateway.test/anthropic/": true, "http://10.0.0.1:8080": true,
		"": false, "api.anthropic.com": false, "https://user:secret@x": false, "https://x?key=1": false, "https://x#f": false,
		"http://127.0.0.1:8700": false, // the plane itself
	} {
		c.Upstream = upstream
		if _, err := Compile(c); (err == nil) != ok {
			t.Errorf("%q: %v", upstream, err)
		} else if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%v", err)
		}
	}
}

func TestEveryCodeBlamesSomeoneAndIsSaidInOneSentence(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "code.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var consts, meant []string
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && v.Type != nil {
			if id, _ := v.Type.(*ast.Ident); id != nil && id.Name == "Code" {
				consts = append(consts, strings.Trim(v.Values[0].(*ast.BasicLit).Value, `"`))
			}
		}
		return true
	})
	for _, m := range Meanings {
		meant = append(meant, string(m.Code))
		if !strings.HasSuffix(m.Text, ".") || (m.Code == OK) != (m.Blame == telemetry.BlameNone) || blames[m.Code] != m.Blame {
			t.Errorf("%+v", m)
		}
	}
	if d := cmp.Diff(consts, meant); d != "" || len(consts) == 0 {
		t.Error(d)
	}
	for code := range replies {
		if _, message := explain(verdict{code: code}, "host", 2); message == "" || blames[code] == 0 {
			t.Errorf("%s is answered with nothing to read", code)
		}
	}
}

func TestRoutesHaveFewNames(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/messages": "/v1/messages", "/v1/messages/": "other", "/v1/messages/count_tokens": "/v1/messages/count_tokens",
		"/v1/messages/batches/msgbatch_1": "/v1/messages/batches/{id}", "/v1/messages/batches/b/results": "/v1/messages/batches/{id}/results",
		"/v1/messages/batches//results": "other", "/v1/models/claude-x": "/v1/models/{id}", "/v1/files/f/content": "/v1/files/{id}/content",
		"/v1/files/f/content/more": "other", "/": "other", "": "other", "/v1/sessions/s/events/stream": "other", "*": "other", "x": "other",
	} {
		if got := template(path); got != want {
			t.Errorf("%q: %s, want %s", path, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { template("/v1/files/f/content") }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "1", "0.5", "-1", "1e300", "NaN", "Inf", "0x1p4", "soon", "Sat, 01 Jan 2000 00:00:05 GMT", "Saturday, 01-Jan-00 00:00:05 GMT"} {
		f.Add(s, s)
	}
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, ms, s string) {
		d := retryAfter(http.Header{"Retry-After-Ms": {ms}, "Retry-After": {s}}, func() time.Time { return now })
		if d < 0 {
			t.Errorf("%q, %q: %d", ms, s, d)
		}
	})
}

func FuzzThePathIsSplitWithoutLoss(f *testing.F) {
	f.Add("/@blue/v1/messages")
	f.Add("/%40blue/v1/a%2Fb")
	f.Add("/@blue")
	f.Add("//@blue//")
	colors := map[string]bool{"blue": true}
	f.Fuzz(func(t *testing.T, raw string) {
		r, err := http.NewRequest("GET", "http://host"+raw, nil)
		if err != nil || !strings.HasPrefix(raw, "/") || strings.ContainsAny(raw, "?#") {
			t.Skip("no path")
		}
		color, path, escaped := uncolor(r.URL.Path, raw, colors)
		if color == "blue" && !strings.HasPrefix(path, "/") || color != "blue" && (path != r.URL.Path || escaped != raw) {
			t.Errorf("%q: %s, %q, %q", raw, color, path, escaped)
		}
		u := target{scheme: "https", host: "up", path: "/b", base: "/b"}.url(path, escaped, r.URL)
		if got := u.RequestURI(); got != "/b"+escaped {
			t.Errorf("%q goes as %q", raw, got)
		}
		template(path)
	})
}
