package claude_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/claude"
)

// A telegram is a healthy answer, made by the dice of its seed.
type telegram struct {
	status int
	head   http.Header
	parts  [][]byte // sent one by one
}

// pick is one of its arguments.
func pick[T any](dice *rand.Rand, of ...T) T { return of[dice.IntN(len(of))] }

func newTelegram(seed uint64, stream bool) telegram {
	dice := rand.New(rand.NewPCG(seed, 11))
	g := telegram{status: pick(dice, 200, 200, 200, 201, 202, 400, 401, 403, 404, 413, 422), head: http.Header{}}
	for i := range dice.IntN(5) {
		for range 1 + dice.IntN(2) {
			g.head.Add(pick(dice, "X-Of-Tomorrow-"+strconv.Itoa(i), "Set-Cookie", "Anthropic-Organization-Id", "Cf-Ray", "Via", "Request-Id", "Cache-Control", "Etag"), pick(dice, odd[1], "a, b", "\"q\"", "", " x ", "ü"))
		}
	}
	var body []byte
	switch {
	case stream:
		g.status = 200
		g.head.Set("Content-Type", pick(dice, "text/event-stream", "text/event-stream; charset=utf-8", "Text/Event-Stream;charset=UTF-8"))
		body = []byte(healthyStream(dice))
	case g.status >= 400: // anything else is no answer of the API, and is not passed on
		g.head.Set("Content-Type", "application/json")
		body = []byte(fmt.Sprintf(`{"type":"error", "error":{"type":"invalid_request_error","message":"%d"},"request_id":"req_1"}`, seed))
	case dice.IntN(2) == 0:
		g.head.Set("Content-Type", pick(dice, "application/json", "application/json; charset=utf-8", "application/x-jsonl", "application/problem+json"))
		body = generated(seed, "text")
	default:
		g.head.Set("Content-Type", pick(dice, "application/octet-stream", "text/event-stream", "text/plain", "application/binary"))
		body = make([]byte, dice.IntN(1+pick(dice, 10, 5000, 200_000)))
		for i := range body {
			body[i] = byte(dice.Uint32())
		}
	}
	if !stream && dice.IntN(2) == 0 {
		g.head.Set("Content-Length", strconv.Itoa(len(body)))
	}
	for len(body) > 0 {
		n := min(len(body), 1+dice.IntN(pick(dice, 3, 100, 10_000, 100_000)))
		if len(body) > 20_000 { // few pieces
			n = max(n, len(body)/10)
		}
		g.parts = append(g.parts, body[:n])
		body = body[n:]
	}
	return g
}

// healthyStream is the stream of a message with all that one may hold, and with what
// nobody has thought of yet.
func healthyStream(dice *rand.Rand) string {
	var b strings.Builder
	event := func(name, data string) {
		fmt.Fprintf(&b, pick(dice, "event: %s\ndata: %s\n\n", "event:%s\ndata:%s\n\n", "event: %s\nid: 7\ndata: %s\n\n", "event: %s\ndata: %s\nretry: 10\n\n"), name, data)
	}
	other := func() {
		switch dice.IntN(12) {
		case 0:
			b.WriteString(pick(dice, ": a comment\n\n", ":\n\n", "\n"))
		case 1:
			event("event_of_tomorrow", `{"type":"event_of_tomorrow","index":0,"text":"`+strings.Repeat("new ", dice.IntN(50))+`"}`)
		case 2:
			b.WriteString("data: without a name\n\n")
		}
	}
	other()
	event("message_start", `{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-sonnet-5","content":[],"usage":{"input_tokens":5,"output_tokens":1},"future":[1]}}`)
	for i := range dice.IntN(5) {
		kind := pick(dice, "text", "text", "thinking", "tool_use", "redacted_thinking", "block_of_tomorrow")
		event("content_block_start", fmt.Sprintf(`{"type":"content_block_start","index":%d,"content_block":{"type":%q,"text":"","id":"t"}}`, i, kind))
		for range dice.IntN(6) {
			other()
			delta := map[string]string{"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}[kind]
			if delta == "" {
				delta = "delta_of_tomorrow"
			}
			event("content_block_delta", fmt.Sprintf(`{"type":"content_block_delta","index":%d,"delta":{"type":%q,"text":%q,"partial_json":"","x":null}}`, i, delta, pick(dice, "words ", "\u00e9\n", "<&>", strings.Repeat("long ", 500))))
		}
		event("content_block_stop", fmt.Sprintf(`{ "index" : %d, "type":"content_block_stop" }`, i))
	}
	other()
	event("message_delta", `{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":17}}`)
	other()
	event("message_stop", `{"type":"message_stop"}`)
	if dice.IntN(3) == 0 {
		event("after_the_end", `{}`)
		b.WriteString(pick(dice, "", ": bye\n\n", "half a line"))
	}
	if s := b.String(); dice.IntN(4) > 0 {
		return s
	}
	return strings.ReplaceAll(b.String(), "\n", "\r\n")
}

// A mirror answers by the seed in a header and remembers what it was asked.
type mirror struct {
	mu   sync.Mutex
	seen *http.Request
	body []byte
}

func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	m.mu.Lock()
	m.seen, m.body = r, body
	m.mu.Unlock()
	seed, _ := strconv.ParseUint(r.Header.Get("X-Seed"), 10, 64)
	g := newTelegram(seed, r.Header.Get("X-Stream") != "")
	maps.Copy(w.Header(), g.head)
	w.WriteHeader(g.status)
	for _, p := range g.parts {
		_, _ = w.Write(p)
		_ = http.NewResponseController(w).Flush()
	}
}

// take gives what was asked, but for what differs between any two calls.
func (m *mirror) take() (method, uri string, head http.Header, body []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	head = m.seen.Header.Clone()
	return m.seen.Method, m.seen.RequestURI, head, m.body
}

// FuzzAHealthyCallIsTheDirectOne makes any call straight and through a plane of the
// default policy, and compares all that the API was sent and all that the client got:
// of streams too, which the plane holds back and lets go as it can tell what they are.
func FuzzAHealthyCallIsTheDirectOne(f *testing.F) {
	for seed := range uint64(300) {
		f.Add(seed, odd[seed%uint64(len(odd))], bytes.Repeat([]byte{byte(seed), '{'}, int(seed)))
	}
	api := &mirror{}
	direct := httptest.NewServer(api)
	defer direct.Close()
	plane := runPlane(f, direct.URL, func(*claude.Config) {})
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	f.Fuzz(func(t *testing.T, seed uint64, text string, body []byte) {
		dice := rand.New(rand.NewPCG(seed, 13))
		stream := dice.IntN(2) == 0
		method, path := "POST", "/v1/messages"
		if stream {
			body = []byte(fmt.Sprintf(`{"model":"claude-sonnet-5","stream":true,"max_tokens":64, "x":%q,"messages":[{"role":"user","content":%q}]}`, text, body))
		} else {
			method = pick(dice, "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD")
			path = pick(dice, "/v1/messages/count_tokens", "/v1/models", "/v1/models/"+url.PathEscape("a/b "+text), "/v1/files", "/v1/files/f/content", "/v1/messages/batches/b/results", "/v1/tomorrow/"+url.PathEscape(text), "/v2//@x/%2F", "/v1/messages")
			if strings.HasPrefix(path, "/v1/messages") && method == "POST" { // of these only messages and counts are answers; a gathered one has a fuzz test of its own
				method = "PUT"
			}
		}
		path += pick(dice, "", "?", "?beta=true", "?a=%20+b&&=&c", "?"+url.QueryEscape(text))
		edit := func(r *http.Request) {
			h := r.Header
			h.Set("X-Seed", strconv.FormatUint(seed, 10))
			if stream {
				h.Set("X-Stream", "1")
			}
			d := rand.New(rand.NewPCG(seed, 17))
			for i := range d.IntN(4) {
				h.Add(pick(d, "X-New-"+strconv.Itoa(i), "Anthropic-Beta", "X-Stainless-Lang", "Cookie", "Traceparent"), pick(d, "a", "beta-of-2031-01-01,b", "  ", "ü", "x=\"y\""))
			}
			h.Set("Accept-Encoding", "identity") // so that the plane, which asks for streams so, changes nothing
		}
		type seen struct {
			Method, URI string
			Head        http.Header
			Body        string
			Status      int
			Answer      http.Header
			Text        string
			Err         string
		}
		var both [2]seen
		for i, base := range []string{direct.URL, plane} {
			r := send(t, client, method, base+path, string(body), edit)
			for name := range r.head {
				if strings.HasPrefix(name, "Mainstay-") || name == "Date" {
					delete(r.head, name)
				}
			}
			if both[0].Answer != nil && both[0].Answer.Get("Content-Length") == "" {
				r.head.Del("Content-Length") // how an answer is framed is between neighbours
			}
			m, uri, head, sent := api.take()
			both[i] = seen{m, uri, head, string(sent), r.status, r.head, r.body, fmt.Sprint(r.err)}
		}
		if d := cmp.Diff(both[0], both[1]); d != "" {
			t.Errorf("%s %s, seed %d, -direct +plane: %s", method, path, seed, d)
		}
	})
}
