package routes

import (
	"encoding/json"
	"strings"
	"testing"

	"mainstay.dev/mainstay/internal/setting"
)

func TestAModelIsNotAskedForWhatItCanNotTake(t *testing.T) {
	able := Able(map[string][]string{"claude-haiku-9": {"my-beta-*", "computer_2*", "max_tokens>10"}, "claude-sonnet-4-5": {}})
	long := strings.Repeat("word ", 200_000)
	for _, c := range []struct{ model, request, betas, lacks string }{
		{"claude-haiku-4-5", `{"max_tokens":64000,"thinking":{"type":"enabled","budget_tokens":1024},"tools":[{"name":"x"}]}`, "interleaved-thinking-2025-05-14", ""},
		{"claude-haiku-4-5-20251001", `{"thinking":{"type":"adaptive"}}`, "", "thinking:adaptive"},
		{"us.anthropic.claude-haiku-4-5-20251001-v1:0", `{"output_config":{"effort":"low"}}`, "", "effort:low"},
		{"claude-haiku-4-5@20251001", `{"speed":"fast"}`, "", "speed:fast"},
		{"claude-haiku-4-5", `{"max_tokens":1}`, "a-2025-01-01, context-1m-2025-08-07", "context-1m-2025-08-07"},
		{"claude-haiku-4-5", `{"max_tokens":64001}`, "", "max_tokens>64000"},
		{"claude-haiku-4-5", `{"messages":[{"role":"user","content":"` + long + `"}]}`, "", "prompt>200000"},
		{"claude-haiku-4-5", `{"messages":[{"role":"user","content":[{"type":"image","source":{"data":"` + long + `"}}]}]}`, "", ""},
		{"claude-3-haiku-20240307", `{"thinking":{"type":"enabled","budget_tokens":1024}}`, "", "thinking:enabled"},
		{"claude-3-haiku-20240307", `{"max_tokens":4096}`, "", ""},
		{"claude-3-5-haiku-20241022", `{"max_tokens":8192}`, "", ""},
		{"claude-sonnet-5", `{"thinking":{"type":"enabled","budget_tokens":1024}}`, "", "thinking:enabled"},
		{"claude-sonnet-5", `{"temperature":0.2}`, "", "sampling"},
		{"claude-sonnet-5", `{"temperature":1.0,"top_p":1,"top_k":null}`, "", ""},
		{"claude-sonnet-5", `{"messages":[{"role":"user"},{"role":"assistant","content":"{"}]}`, "", "prefill"},
		{"claude-opus-4-5", `{"messages":[{"role":"user"},{"role":"assistant","content":"{"}]}`, "", ""},
		{"claude-opus-5-5", `{"thinking":{"type":"disabled"}}`, "", "thinking:disabled"},
		{"claude-sonnet-4-20250514", `{"output_config":{"format":{"type":"json_schema"}}}`, "", "schema"},
		{"claude-sonnet-4-5", `{"thinking":{"type":"adaptive"}}`, "", ""}, // the file says so
		{"claude-haiku-9-1", `{"tools":[{"type":"computer_20251124"}]}`, "", "computer_20251124"},
		{"claude-haiku-9-1", `{"max_tokens":3}`, "my-beta-7", "my-beta-7"},
		{"claude-of-tomorrow", `{"thinking":{"type":"adaptive"},"speed":"fast"}`, "any", ""},
		{"claude-haiku-4-5", `no JSON`, "", ""},
	} {
		if got := able.Lacks(c.model, Ask([]byte(c.request), []string{c.betas}), 0); got != c.lacks {
			t.Errorf("%s %.60s %s: %q, want %q", c.model, c.request, c.betas, got, c.lacks)
		}
	}
	if got := able.Lacks("claude-haiku-4-5", Ask([]byte(`{"max_tokens":100000,"thinking":{"type":"enabled","budget_tokens":1024}}`), nil), 2048); got != "" {
		t.Errorf("the route asks for less: %q", got)
	}
}

func TestWhatIsSaidOfModelsIsChecked(t *testing.T) {
	var ps setting.Problems
	if ValidateCannot(Cannot(), &ps); len(ps) != 0 {
		t.Error(ps)
	}
	ValidateCannot(map[string][]string{"": {"a"}, "b": {"", "with blank", "max_tokens", "max_tokens>x", "words>5"}}, &ps)
	if len(ps) != 6 {
		t.Errorf("%d: %v", len(ps), ps)
	}
}

func FuzzAsk(f *testing.F) {
	f.Add([]byte(`{"tools":[{"type":"x"},[],1],"thinking":{"type":"adaptive"},"messages":[{"role":"assistant"}]}`))
	f.Add([]byte(`{"data":"","data":"x`))
	f.Fuzz(func(t *testing.T, request []byte) {
		n := Ask(request, []string{string(request)})
		if len(n.words) > mostWords || n.input < 0 || n.input > int64(len(request)) {
			t.Errorf("%+v", n)
		}
		Able(nil).Lacks("claude-haiku-4-5", n, 1)
	})
}

func TestARouteToVertexIsChecked(t *testing.T) {
	const base = "https://us-east5-aiplatform.googleapis.com/v1/projects/p/locations/us-east5/publishers/anthropic/models"
	key := []Key{{Name: "a", File: "/run/token"}}
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Name: "v", Kind: "vertex", Upstream: base, Keys: key}, ""},
		{Config{Name: "v", Kind: "vertex", Upstream: base + "/", Keys: key, Auth: "bearer"}, ""},
		{Config{Name: "v", Kind: "google", Upstream: base, Keys: key}, "routes[0].kind"},
		{Config{Name: "v", Kind: "vertex", Upstream: "https://us-east5-aiplatform.googleapis.com", Keys: key}, "routes[0].upstream"},
		{Config{Name: "v", Kind: "vertex", Models: map[string]string{"a": "b"}}, "routes[0].kind"},
		{Config{Name: "v", Kind: "vertex", Upstream: base, Keys: key, Auth: "x-api-key"}, "routes[0].auth"},
		{Config{Name: "v", Kind: "vertex", Upstream: base, Keys: []Key{{Name: "a", File: "f", Key: "k"}}}, "routes[0].keys[0].file"},
	} {
		var ps setting.Problems
		Validate([]Config{c.cfg}, nil, "127.0.0.1:8700", &ps)
		if c.want == "" && len(ps) > 0 || c.want != "" && (len(ps) != 1 || ps[0].Path != c.want) {
			t.Errorf("%+v: %v", c.cfg, ps)
		}
	}
}

func TestARouteToBedrockIsChecked(t *testing.T) {
	const base = "https://bedrock-runtime.us-east-1.amazonaws.com"
	signed, key := []Key{{Name: "a", Key: "AKID:secret"}}, []Key{{Name: "a", Key: "token"}}
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Name: "b", Kind: "bedrock", Upstream: base, Keys: key}, ""},
		{Config{Name: "b", Kind: "bedrock", Upstream: base, Keys: signed, Auth: "sigv4"}, ""},
		{Config{Name: "b", Kind: "bedrock", Upstream: "https://proxy.example.com/aws", Keys: []Key{{Name: "a", File: "/run/creds"}}, Auth: "sigv4", Region: "us-gov-west-1"}, ""},
		{Config{Name: "b", Kind: "bedrock", Upstream: "https://proxy.example.com", Keys: signed, Auth: "sigv4"}, "routes[0].region"},
		{Config{Name: "b", Kind: "bedrock", Upstream: base, Keys: signed, Auth: "sigv4", Region: "US East"}, "routes[0].region"},
		{Config{Name: "b", Kind: "bedrock", Upstream: base, Keys: key, Region: "us-east-1"}, "routes[0].region"},
		{Config{Name: "b", Kind: "bedrock", Upstream: base, Keys: key, Auth: "sigv4"}, "routes[0].keys[0].key"},
		{Config{Name: "b", Kind: "bedrock", Upstream: base, Keys: key, Auth: "x-api-key"}, "routes[0].auth"},
		{Config{Name: "b", Upstream: base, Keys: signed, Auth: "sigv4"}, "routes[0].auth"},
		{Config{Name: "b", Kind: "bedrock", Models: map[string]string{"a": "b"}}, "routes[0].kind"},
		{Config{Name: "b", Kind: "bedrock", Upstream: base + "/model/x", Keys: key}, "routes[0].upstream"},
		{Config{Name: "b", Kind: "bedrock", Upstream: base, Keys: key, Models: map[string]string{"a": "x/../y"}}, `routes[0].models."a"`},
	} {
		var ps setting.Problems
		Validate([]Config{c.cfg}, nil, "127.0.0.1:8700", &ps)
		if c.want == "" && len(ps) > 0 || c.want != "" && (len(ps) != 1 || ps[0].Path != c.want) {
			t.Errorf("%+v: %v", c.cfg, ps)
		}
	}
}

func FuzzVertexBody(f *testing.F) {
	f.Add([]byte(`{"model":"m","anthropic_version":"x","a":{"model":1},"stream":true}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"model":1`))
	f.Fuzz(func(t *testing.T, request []byte) {
		body := vertexBody(request)
		if !json.Valid(request) {
			return
		}
		var was, is map[string]json.RawMessage
		if json.Unmarshal(request, &was) != nil || was == nil {
			return
		}
		if err := json.Unmarshal(body, &is); err != nil || string(is["anthropic_version"]) != vertexVersion || is["model"] != nil && !strings.Contains(string(request), "\\") {
			t.Errorf("%s became %s: %v", request, body, err)
		}
	})
}
