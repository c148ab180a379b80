package claudetest

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
)

// dispatch answers a call that has been let in.
func (c *call) dispatch(f Fault) {
	if len(c.path) < 2 || c.path[0] != "v1" {
		c.wrong(404, "not_found_error", "Not found")
		return
	}
	switch {
	case c.is("POST", "messages"):
		c.messages(f)
	case c.is("POST", "messages", "count_tokens"):
		if p, r := c.message(true); r != nil {
			c.wrong(r.status, r.kind, r.message)
		} else {
			u := c.s.price(p)
			c.json(200, map[string]int64{"input_tokens": u.Input + u.CacheRead + u.CacheWrite}, f)
		}
	case len(c.path) > 2 && c.path[1] == "messages" && c.path[2] == "batches":
		c.batches(f)
	case c.is("GET", "models"):
		c.models(f)
	case c.is("GET", "models", "*"):
		c.model(f)
	case c.path[1] == "echo":
		c.echo()
	case slices.Contains([]string{"messages", "models"}, c.path[1]) && len(c.path) == 2:
		c.wrong(405, "invalid_request_error", "Method Not Allowed")
	default:
		c.wrong(404, "not_found_error", "Not found")
	}
}

// is matches the method and the path below /v1; "*" stands for any segment.
func (c *call) is(method string, segments ...string) bool {
	if c.r.Method != method || len(segments) != len(c.path)-1 {
		return false
	}
	for i, s := range segments {
		if s != "*" && s != c.path[i+1] {
			return false
		}
	}
	return true
}

func (c *call) messages(f Fault) {
	p, r := c.message(false)
	if r != nil {
		c.wrong(r.status, r.kind, r.message)
		return
	}
	m := c.compose(p)
	whole := f == None
	if p.Stream {
		whole = c.tell(m, f)
	} else {
		c.json(200, m.json(), f)
	}
	if !whole {
		return
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.counts.Messages++
	if p.Stream {
		c.s.counts.Streams++
	}
	c.s.counts.InputTokens += m.usage.Input + m.usage.CacheRead + m.usage.CacheWrite
	c.s.counts.OutputTokens += m.usage.Output
}

func (c *call) models(f Fault) {
	list := make([]any, len(c.s.opt.Models))
	for i, id := range c.s.opt.Models {
		list[i] = describe(id)
	}
	page := map[string]any{"data": list, "has_more": false, "first_id": nil, "last_id": nil}
	if n := len(list); n > 0 {
		page["first_id"], page["last_id"] = c.s.opt.Models[0], c.s.opt.Models[n-1]
	}
	c.json(200, page, f)
}

func (c *call) model(f Fault) {
	id := c.path[2]
	if !slices.Contains(c.s.opt.Models, id) {
		c.wrong(404, "not_found_error", "model: "+id)
		return
	}
	c.json(200, describe(id), f)
}

func describe(id string) map[string]any {
	return map[string]any{
		"type": "model", "id": id, "display_name": strings.ReplaceAll(strings.TrimPrefix(id, "claude-"), "-", " "),
		"created_at": "2026-02-01T00:00:00Z", "max_input_tokens": 1_000_000, "max_tokens": 128_000,
	}
}

// echo stands for every endpoint that a client of tomorrow may call: it asks for a
// beta and gives back what it got, as JSON, raw (/v1/echo/raw), or as a stream of
// events that nobody knows yet, in every legal shape (/v1/echo/stream).
func (c *call) echo() {
	if c.r.Header.Get("anthropic-beta") == "" {
		c.wrong(400, "invalid_request_error", "anthropic-beta: header is required")
		return
	}
	h := c.w.Header()
	switch strings.Join(c.path[2:], "/") {
	case "raw":
		h.Set("Content-Type", c.r.Header.Get("Content-Type"))
		h["X-Echo-Twice"] = []string{"one", "two"}
		_, _ = c.w.Write(c.body)
	case "stream":
		h.Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(c.w, OddStream)
	default:
		h.Set("Content-Type", "application/json")
		_ = json.NewEncoder(c.w).Encode(Echo{Method: c.r.Method, URI: c.r.RequestURI, Host: c.r.Host, Header: c.r.Header, Body: c.body})
	}
}

// Echo is what /v1/echo answers.
type Echo struct {
	Method string      `json:"method"`
	URI    string      `json:"uri"`
	Host   string      `json:"host"`
	Header http.Header `json:"header"`
	Body   []byte      `json:"body"`
}

// OddStream is what /v1/echo/stream answers: legal, and like nothing the API sends
// today.
const OddStream = ": a comment\n\nevent: tomorrow\r\ndata: {\"a\":1}\r\n\r\ndata: one\ndata: two\nid: 7\n\n" +
	"retry: 10\n\nevent: no-data\n\ndata:no-space\n\n\n\nevent: last\ndata: without an end"
