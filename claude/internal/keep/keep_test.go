package keep

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

func rules(t testing.TB, edit func(*Config)) Rules {
	t.Helper()
	var c Config
	c.SetDefaults()
	c.Requests = "all"
	if edit != nil {
		edit(&c)
	}
	var ps setting.Problems
	if c.Validate(&ps); len(ps) > 0 {
		t.Fatal(ps)
	}
	return Compile(c)
}

func apply(t *testing.T, text string, list ...string) (string, int) {
	t.Helper()
	r := ParseRedaction(list, func(i int, what, _ string) { t.Fatal(list[i], what) })
	out, n, err := r.Apply([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return string(out), n
}

func TestWhatLooksLikeASecretIsTakenOutOfEveryText(t *testing.T) {
	for name, secret := range map[string]string{
		"a Claude key":  "sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123456789",
		"an AWS key":    "AKIAIOSFODNN7EXAMPLE",
		"a GitHub key":  "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
		"a Slack key":   "xoxb-123456789012-abcdefghijkl",
		"a Stripe key":  "sk_live_abcdefghijklmnop1234",
		"a Google key":  "AIzaSyA1234567890abcdefghijklmnopqrstuv",
		"a JWT":         "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
		"a private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\nabc/+=\n-----END RSA PRIVATE KEY-----",
		"half of one":   "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7",
		"a bearer":      "Authorization: Bearer abcdef0123456789abcdef",
		"a URL":         "postgres://app:hunter2secretly@",
		"a password":    "PASSWORD=hunter2hunter2",
		"in YAML":       "client_secret: 'abcdef123456'",
	} {
		var body strings.Builder
		_ = json.NewEncoder(&body).Encode(map[string]any{"messages": []any{map[string]any{"role": "user", "content": []any{map[string]any{"type": "text", "text": "before " + secret + " after"}}}}})
		out, n := apply(t, body.String())
		core := secret[max(0, len(secret)-14):]
		if n == 0 || strings.Contains(out, core) || strings.Contains(out, strings.ReplaceAll(core, "\n", `\n`)) || !strings.Contains(out, "before ") || !json.Valid([]byte(out)) {
			t.Errorf("%s: %s", name, out)
		}
	}
	// Nothing else is: not the words themselves, nor what only looks alike.
	for _, text := range []string{
		`{"model":"claude-sonnet-5", "max_tokens" : 64 ,"messages":[ {"role":"user","content":"what is a bearer token? sk-8, a password, https://a.example/b:c@d"} ]}` + "\n",
		`{"tools":[{"name":"login","input_schema":{"type":"object","properties":{"password":{"type":"string"},"api_key":{"type":"string"}}}}]}`,
		`[1, 2.50, true, null, {}, [], "\u00e9\n<&>"]`, `  "x"  `,
	} {
		if out, n := apply(t, text); out != text || n != 0 {
			t.Errorf("%s became %s", text, out)
		}
	}
}

func TestPathsAndPatternsOfTheFileAreTakenOut(t *testing.T) {
	const text = `{"metadata": {"user_id": "ann"}, "mcp_servers":[{"url":"https://x","authorization_token":"t0ken"}],"messages":[{"role":"user","content":"call ACME-17 and ACME-18"},{"role":"assistant","content":[{"type":"image","source":{"data":"AAAA"}}]}]}`
	for list, want := range map[string]string{
		"":                              `{"metadata": {"user_id": "ann"}, "mcp_servers":[{"url":"https://x","authorization_token":"[redacted]"}],"messages":[{"role":"user","content":"call ACME-17 and ACME-18"},{"role":"assistant","content":[{"type":"image","source":{"data":"AAAA"}}]}]}`,
		`metadata.user_id`:              `{"metadata": {"user_id": "[redacted]"}, "mcp_servers":[{"url":"https://x","authorization_token":"[redacted]"}],"messages":[{"role":"user","content":"call ACME-17 and ACME-18"},{"role":"assistant","content":[{"type":"image","source":{"data":"AAAA"}}]}]}`,
		`$.messages.*.content|metadata`: `{"metadata": "[redacted]", "mcp_servers":[{"url":"https://x","authorization_token":"[redacted]"}],"messages":[{"role":"user","content":"[redacted]"},{"role":"assistant","content":"[redacted]"}]}`,
		`/ACME-\d+/|messages.1`:         `{"metadata": {"user_id": "ann"}, "mcp_servers":[{"url":"https://x","authorization_token":"[redacted]"}],"messages":[{"role":"user","content":"call [redacted] and [redacted]"},"[redacted]"]}`,
	} {
		var entries []string
		if list != "" {
			entries = strings.Split(list, "|")
		}
		if out, n := apply(t, text, entries...); out != want || n != strings.Count(want, redacted) {
			t.Errorf("%s: %d places\n%s\n%s", list, n, out, want)
		}
	}
}

func TestWhatIsWrongWithTheSettingsIsSaidAllAtOnce(t *testing.T) {
	var ps setting.Problems
	Config{Requests: "some", Redact: []string{"/(/", "a..b", "", "/x", "fine.*"}}.Validate(&ps)
	var paths []string
	for _, p := range ps {
		paths = append(paths, p.Path)
	}
	if got := strings.Join(paths, " "); got != "requests calls size age redact[0] redact[1] redact[2] redact[3]" {
		t.Errorf("%s", got)
	}
}

func TestWhatIsKeptStaysWithinItsBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Store{}
		add := func(id string, size int, r Rules) error {
			_, err := s.Add(Request{ID: id, At: time.Now(), Body: fmt.Appendf(nil, "%q", strings.Repeat("x", size))}, r)
			return err
		}
		if _, err := s.Find("a"); !errors.Is(err, ErrOff) {
			t.Error(err)
		}
		r := rules(t, func(c *Config) { c.Calls, c.Size, c.Age = 3, 10_000, time.Hour })
		if err := add("early", 1, r); !errors.Is(err, ErrOff) {
			t.Error(err)
		}
		s.Obey(r)
		for _, id := range []string{"a", "b", "c", "d"} {
			if err := add(id, 1, r); err != nil {
				t.Error(err)
			}
		}
		if _, err := s.Find("a"); !errors.Is(err, ErrUnknown) {
			t.Error("the oldest of too many is still there")
		}
		if q, err := s.Find("d"); err != nil || string(q.Body) != `"x"` {
			t.Error(q, err)
		}
		if err := add("big", 8000, r); err != nil || func() int { n, _ := s.Len(); return n }() != 1 {
			t.Error("too much is kept", err)
		}
		if err := add("too big", 11_000, r); err == nil {
			t.Error("a request beyond all bounds is kept")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n, size := s.Len(); n != 0 || size != 0 {
			t.Errorf("%d requests, %d bytes after their time", n, size)
		}
		_ = add("last", 1, r)
		s.Obey(rules(t, func(c *Config) { c.Requests = "none" }))
		if n, _ := s.Len(); n != 0 {
			t.Error("what was kept outlives the wish to keep it")
		}
		s.Obey(r)
		_ = add("end", 1, r)
		s.Close()
		if n, _ := s.Len(); n != 0 {
			t.Error("something is left at the end")
		}
	})
}

func TestOnlyWhatIsJSONIsKept(t *testing.T) {
	s := &Store{}
	r := rules(t, nil)
	s.Obey(r)
	defer s.Close()
	for _, body := range []string{"", "{", "no", `{"a":1}{"b":2}`, strings.Repeat("[", 1000) + strings.Repeat("]", 1000)} {
		if _, err := s.Add(Request{At: time.Now(), Body: []byte(body)}, r); err == nil {
			t.Errorf("%.20s is kept", body)
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add(`{"a": [1, {"password": "x"}, "sk-aaaaaaaaaaaaaaaaaaaaaaaa"], "b\u0041": null}`, "a.*.password")
	f.Add(" [ [] , {} ] ", "*")
	f.Add(`{"":{"":"://a:b@"}}`, "/b/")
	f.Fuzz(func(t *testing.T, text, entry string) {
		bad := false
		r := ParseRedaction([]string{entry}, func(int, string, string) { bad = true })
		out, n, err := r.Apply([]byte(text))
		if bad || err != nil {
			return
		}
		if !json.Valid(out) || n == 0 && string(out) != text {
			t.Errorf("%q became %q, %d places", text, out, n)
		}
		if again, _, err := r.Apply(out); err != nil || !json.Valid(again) {
			t.Errorf("%q: %v", out, err)
		}
	})
}
