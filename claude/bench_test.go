package claude_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"mainstay.dev/mainstay/claude"
)

// BenchmarkExchange is one whole call over TCP: straight to an upstream that costs
// nearly nothing, through a plain httputil.ReverseProxy, and through the plane.
func BenchmarkExchange(b *testing.B) {
	const answer = `{"id":"msg_013Zva2CMHLNnXjNJJKqJ2EF","type":"message","role":"assistant","model":"claude-sonnet-5","content":[{"type":"text","text":"`
	json := answer + strings.Repeat("word ", 180) + `"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":210,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":190}}`
	events := []string{"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"claude-sonnet-5\",\"content\":[],\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n"}
	events = append(events, "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n")
	for range 40 {
		events = append(events, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"some words here\"}}\n\n")
	}
	events = append(events, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n", "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":190}}\n\n", "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		h := w.Header()
		h["Request-Id"] = []string{"req_018EeWyXxfu5pfWkrYcMdjWG"}
		h["Anthropic-Ratelimit-Requests-Remaining"] = []string{"3999"}
		if r.Header.Get("X-Stream") == "" {
			h["Content-Type"] = []string{"application/json"}
			_, _ = io.WriteString(w, json)
			return
		}
		h["Content-Type"] = []string{"text/event-stream; charset=utf-8"}
		for _, e := range events {
			_, _ = io.WriteString(w, e)
			w.(http.Flusher).Flush()
		}
	}))
	defer upstream.Close()
	target, err := url.Parse(upstream.URL)
	if err != nil {
		b.Fatal(err)
	}
	plain := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: &http.Transport{MaxIdleConnsPerHost: 512, DisableCompression: true},
	})
	defer plain.Close()
	for _, size := range []struct {
		name   string
		body   string
		stream bool
	}{
		{"json", hello + strings.Repeat(" ", 1000), false},
		{"stream", helloS + strings.Repeat(" ", 1000), true},
		{"prompt200KB", hello + strings.Repeat(" ", 200_000), false},
	} {
		b.Run(size.name+"/direct", func(b *testing.B) { exchange(b, upstream.URL, size.body, size.stream) })
		b.Run(size.name+"/reverseproxy", func(b *testing.B) { exchange(b, plain.URL, size.body, size.stream) })
		b.Run(size.name+"/plane", func(b *testing.B) {
			exchange(b, runPlane(b, upstream.URL, func(*claude.Config) {}), size.body, size.stream)
		})
	}
}

func exchange(b *testing.B, url, body string, stream bool) {
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	b.ReportAllocs()
	before := cpu()
	defer func() { b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op") }() // steadier than time on a busy machine
	for b.Loop() {
		req, err := http.NewRequestWithContext(b.Context(), "POST", url+"/v1/messages", strings.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		req.Header["X-Api-Key"] = []string{key}
		req.Header["Anthropic-Version"] = []string{"2023-06-01"}
		req.Header["Content-Type"] = []string{"application/json"}
		if stream {
			req.Header["X-Stream"] = []string{"1"}
		}
		res, err := client.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			b.Fatal(err)
		}
		_ = res.Body.Close()
	}
}

// cpu returns the processor time of this process in nanoseconds: client, proxy and
// upstream together.
func cpu() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
