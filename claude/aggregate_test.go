package claude_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

// odd are strings that JSON writes in more than one way, and what breaks badly.
var odd = []string{"", "a", "naïve 日本 😀", "\"\\/\b\f\n\r\t\u0000", "<&>\u2028", "event: error\ndata: {}\n\n", "data: [DONE]", strings.Repeat("long ", 50)}

// generated makes a message of every kind of block, by the seed.
func generated(seed uint64, text string) []byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	word := func() string {
		if rng.IntN(3) == 0 {
			return text
		}
		return odd[rng.IntN(len(odd))] + odd[rng.IntN(len(odd))]
	}
	var value func(depth int) any
	value = func(depth int) any {
		switch n := rng.IntN(7); {
		case n == 0 && depth > 0:
			return []any{value(depth - 1), value(depth - 1)}
		case n == 1 && depth > 0:
			return map[string]any{word(): value(depth - 1), "k": value(depth - 1)}
		case n == 2:
			return json.Number("12345678901234567890.25e-3")
		case n == 3:
			return rng.IntN(2) == 0
		case n == 4:
			return nil
		}
		return word()
	}
	input := func() map[string]any { return map[string]any{"a": value(3), word(): value(2)} }
	content := []any{}
	for range rng.IntN(5) {
		content = append(content, []map[string]any{
			{"type": "text", "text": word()},
			{"type": "text", "text": word(), "citations": []any{map[string]any{"type": "char_location", "cited_text": word(), "n": value(1)}, map[string]any{"type": "x"}}},
			{"type": "text", "text": word(), "citations": nil},
			{"type": "thinking", "thinking": word(), "signature": "c2ln" + word()},
			{"type": "redacted_thinking", "data": word()},
			{"type": "tool_use", "id": "toolu_1", "name": word(), "input": input(), "caller": map[string]any{"type": "direct"}},
			{"type": "tool_use", "id": "toolu_2", "name": "n", "input": map[string]any{}},
			{"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": input()},
			{"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []any{value(3)}},
			{"type": "mcp_tool_use", "id": "m", "name": "n", "server_name": "s", "input": input()},
			{"type": "compaction", "content": word()},
			{"type": "block_of_tomorrow", "what": value(3), word(): value(1)},
		}[rng.IntN(12)])
	}
	m := map[string]any{
		"id": fmt.Sprint("msg_", seed), "type": "message", "role": "assistant", "model": "claude-sonnet-5", "content": content,
		"stop_reason": []any{"end_turn", "tool_use", "refusal", "new"}[rng.IntN(4)], "stop_sequence": []any{nil, word()}[rng.IntN(2)],
		"usage": map[string]any{"input_tokens": rng.IntN(1000), "cache_creation_input_tokens": rng.IntN(9), "cache_read_input_tokens": 0,
			"cache_creation": map[string]any{"ephemeral_5m_input_tokens": 1}, "output_tokens": rng.IntN(5000), "service_tier": "standard", "server_tool_use": map[string]any{"web_search_requests": 1}},
	}
	for _, name := range []string{"container", "context_management", "stop_details", "future"} {
		if v := value(3); rng.IntN(2) == 0 && v != nil {
			m[name] = v
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// seeded is a request that asks generated for its answer.
func seeded(seed uint64, text string) string {
	b, _ := json.Marshal(map[string]any{"model": "claude-sonnet-5", "max_tokens": 64, "metadata": map[string]any{"seed": seed, "text": text}, "messages": []any{map[string]any{"role": "user", "content": "x"}}})
	return string(b)
}

func answered(body []byte) []byte {
	var ask struct {
		Metadata struct {
			Seed uint64
			Text string
		}
	}
	if err := json.Unmarshal(body, &ask); err != nil {
		panic(err)
	}
	return generated(ask.Metadata.Seed, ask.Metadata.Text)
}

// FuzzAnAggregatedAnswerIsTheDirectOne compares what a client gets straight from the
// API with what it gets of the same message through the plane, which asks for it as a
// stream, healthy and broken.
func FuzzAnAggregatedAnswerIsTheDirectOne(f *testing.F) {
	for seed := range uint64(150) {
		f.Add(seed, "some <text> "+odd[seed%uint64(len(odd))])
	}
	fake := claudetest.New(claudetest.Options{Answer: answered})
	direct := httptest.NewServer(fake)
	defer direct.Close()
	plane := runPlane(f, direct.URL, func(c *claude.Config) {})
	f.Fuzz(func(t *testing.T, seed uint64, text string) {
		body := seeded(seed, strings.ToValidUTF8(text, "?"))
		want := send(t, http.DefaultClient, "POST", direct.URL+"/v1/messages", body, nil)
		if seed%16 == 0 {
			fake.Next(claudetest.StreamFaults()[seed/16%6]) // all but the stall
		}
		got := send(t, http.DefaultClient, "POST", plane+"/v1/messages", body, nil)
		if d := cmp.Diff(number(t, want.body), number(t, got.body)); d != "" || got.status != 200 {
			t.Errorf("%d -direct +aggregated: %s", got.status, d)
		}
		for _, h := range []http.Header{want.head, got.head} { // each call has its own
			for _, name := range []string{"Date", "Request-Id", "Mainstay-Attempts", "Mainstay-Claude-Route", "Content-Length", "Anthropic-Ratelimit-Requests-Remaining",
				"Anthropic-Ratelimit-Tokens-Remaining", "Anthropic-Ratelimit-Input-Tokens-Remaining", "Anthropic-Ratelimit-Output-Tokens-Remaining"} {
				if h.Get(name) == "" && !strings.HasPrefix(name, "Mainstay-") {
					t.Errorf("no %s", name)
				}
				h.Del(name)
			}
		}
		if d := cmp.Diff(want.head, got.head); d != "" {
			t.Errorf("-direct +aggregated: %s", d)
		}
	})
}

func number(t *testing.T, body string) (v any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Errorf("%v: %s", err, body)
	}
	return v
}

// runPlane runs a plane of the default policy on a port, for benchmarks and fuzzing.
func runPlane(tb testing.TB, upstream string, edit func(*claude.Config)) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var cfg claude.Config
	cfg.SetDefaults()
	cfg.Upstream = upstream
	edit(&cfg)
	s, err := claude.New(cfg, claude.Deps{Listener: ln})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error)
	go func() { ran <- s.Run(ctx) }()
	tb.Cleanup(func() { cancel(); <-ran })
	return "http://" + ln.Addr().String()
}

func TestACallThatDoesNotStreamGoesUpstreamAsAStreamByTheLeastEdit(t *testing.T) {
	for in, want := range map[string]string{
		hello: strings.TrimSuffix(hello, "}") + `,"stream":true}`,
		`{"stream": false, "model":"claude-sonnet-5","max_tokens":64,"messages":[{"role":"user","content":"h\u00e9 "}]} `: `{"stream": true, "model":"claude-sonnet-5","max_tokens":64,"messages":[{"role":"user","content":"h\u00e9 "}]} `,
	} {
		fake := claudetest.New(claudetest.Options{Keep: 3})
		inBubble(t, fake, patient, func(t *testing.T, st *stage) {
			for _, off := range []bool{false, true} {
				r := st.send("POST", "/v1/messages", in, func(r *http.Request) {
					if off {
						r.Header.Set("Mainstay-Aggregate", "off")
					}
				})
				if r.status != 200 || r.head.Get("Content-Type") != "application/json" || !strings.Contains(r.body, `"stop_reason":"end_turn"`) {
					t.Errorf("%d %v %s", r.status, r.head, r.body)
				}
			}
			sent := fake.Requests()
			if string(sent[0].Body) != want || string(sent[1].Body) != in || sent[1].Header.Get("Mainstay-Aggregate") != "" {
				t.Errorf("%s\n%s", sent[0].Body, sent[1].Body)
			}
			if x := st.book.pages(t, 2)[0]; x.GenAI.Stream || x.GenAI.OutputTokens == 0 || x.GenAI.StopReason != "end_turn" || x.Code != "ok" {
				t.Errorf("%+v", x.GenAI)
			}
		})
	}
	fake := claudetest.New(claudetest.Options{Keep: 3})
	inBubble(t, fake, func(c *claude.Config) { patient(c); c.Recovery.Aggregate = false }, func(t *testing.T, st *stage) {
		if r := st.post(hello); r.status != 200 || string(fake.Requests()[0].Body) != hello {
			t.Errorf("%d", r.status)
		}
	})
}

// essay answers with more text than is cheap to have anew, so that it is continued.
func essay([]byte) string {
	var b strings.Builder
	for i := range 1500 {
		fmt.Fprintf(&b, "line %d of a long answer; ", i)
	}
	return b.String() + "the end"
}

func TestACallThatDoesNotStreamSeesNoFaultOfItsStream(t *testing.T) {
	for kind, body := range asks("claude-sonnet-5") {
		body = strings.Replace(body, `"stream":true,`, "", 1)
		for _, long := range []bool{false, true} {
			for _, fault := range claudetest.StreamFaults() {
				t.Run(fmt.Sprint(kind, " ", fault, long), func(t *testing.T) {
					opt := claudetest.Options{Repeat: 40}
					if long {
						opt.Reply = essay
						body = strings.Replace(body, "4096", "100000", 1)
					}
					fake := claudetest.New(opt)
					inBubble(t, fake, patient, func(t *testing.T, st *stage) {
						beta := func(r *http.Request) { r.Header.Set("Anthropic-Beta", "any") }
						want := number(t, st.send("POST", "/v1/messages", body, beta).body).(map[string]any)
						fake.Next(fault)
						begun := time.Now()
						r := st.send("POST", "/v1/messages", body, beta)
						got, _ := number(t, r.body).(map[string]any)
						if took := time.Since(begun); r.status != 200 || took > 62*time.Second || cmp.Diff(want["content"], got["content"]) != "" || got["stop_reason"] != want["stop_reason"] {
							t.Errorf("%d after %v: %s", r.status, took, cmp.Diff(want, got))
						}
						if x := st.book.last(t, 2); x.Code != "ok" || x.Tries != 2 {
							t.Errorf("%s after %d tries", x.Code, x.Tries)
						}
						middle := fault != claudetest.ErrorFirst && fault != claudetest.ErrorAfterStart
						if s := st.Stats(); (s.Resumed > 0) != (long && kind == "text" && middle) && kind == "text" {
							t.Errorf("%+v", s)
						}
					})
				})
			}
		}
	}
}

func TestAnAnswerThatCannotBeGatheredIsOneClearError(t *testing.T) {
	sse := func(events ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			for _, e := range events {
				_, _ = io.WriteString(w, e)
			}
		}
	}
	event := func(name, data string) string { return "event: " + name + "\ndata: " + data + "\n\n" }
	start := event("message_start", `{"type":"message_start","message":{"id":"m","content":[]}}`)
	block := event("content_block_start", `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`)
	delta := event("content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"`+strings.Repeat("x", 9000)+`"}}`)
	stop := event("message_stop", `{"type":"message_stop"}`)
	for name, c := range map[string]struct {
		h      http.HandlerFunc
		status int
		code   string
		kind   string
	}{
		"too large":      {sse(start, block, strings.Repeat(delta, 200), stop), 502, "answer_too_large", "api_error"},
		"no json":        {sse(start, event("content_block_start", `{"type":"content_block_start","index":0,"content_block":{"type":tex}}`), stop), 502, "upstream_cut", "api_error"},
		"not a message":  {sse(start, event("content_block_start", `{"index":4,"content_block":{"type":"text"}}`), delta, stop), 502, "upstream_cut", "api_error"},
		"refused":        {sse(start, event("error", `{"type":"error","error":{"type":"invalid_request_error","message":"no"},"request_id":"r"}`)), 400, "rejected", "invalid_request_error"},
		"refused, first": {sse(event("error", `{"type":"error","error":{"type":"permission_error","message":"no"}}`)), 403, "rejected", "permission_error"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, answers(c.h), func(cfg *claude.Config) { patient(cfg); cfg.Recovery.MaxAnswer = 1e6 }, func(t *testing.T, st *stage) {
				r := st.post(hello)
				if e := parseError(t, r.body); r.status != c.status || r.head.Get("Mainstay-Code") != c.code || e.Error.Type != c.kind || r.head.Get("Content-Type") != "application/json" {
					t.Errorf("%d %v %s", r.status, r.head, r.body)
				}
				if x := st.book.last(t, 1); x.Code != c.code || x.Tries != 1 {
					t.Errorf("%s, %d tries", x.Code, x.Tries)
				}
			})
		})
	}
}

func TestAnAnswerThatIsNotWholeByTheDeadlineEndsBeforeIt(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: message_start\ndata: {\"message\":{}}\n\nevent: content_block_start\ndata: {\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n")
		for r.Context().Err() == nil {
			_, _ = io.WriteString(w, "event: content_block_delta\ndata: {\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"on and on \"}}\n\n")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(time.Second / 4)
		}
	}
	inBubble(t, http.HandlerFunc(h), patient, func(t *testing.T, st *stage) {
		begun := time.Now()
		r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "90s") })
		if took := time.Since(begun); took < 85*time.Second || took >= 90*time.Second || r.status != 504 || r.head.Get("X-Should-Retry") != "false" {
			t.Errorf("%d after %v", r.status, took)
		}
		if e := parseError(t, r.body); e.Error.Type != "timeout_error" || st.book.last(t, 1).Code != "upstream_timeout" || st.Stats().Shut != 0 {
			t.Errorf("%s", r.body)
		}
	})
}

func TestTheTransportGathersToo(t *testing.T) {
	fake := claudetest.New(claudetest.Options{Keep: 2, Answer: answered})
	url := fake.Start(t)
	fake.Next(claudetest.ErrorMiddle)
	hc := &http.Client{Transport: &claude.Transport{}}
	body := seeded(3, "x")
	got := send(t, hc, "POST", url+"/v1/messages", body, nil)
	if d := cmp.Diff(number(t, string(answered([]byte(body)))), number(t, got.body)); d != "" || got.head.Get("Content-Type") != "application/json" {
		t.Errorf("%v %s", got.head, d)
	}
	if !bytes.HasSuffix(fake.Requests()[0].Body, []byte(`"stream":true}`)) {
		t.Errorf("%s", fake.Requests()[0].Body)
	}
}
