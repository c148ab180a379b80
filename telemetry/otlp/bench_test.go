package otlp

import (
	"io"
	"net/http"
	"testing"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// query is a typical one: what pgbench asks, seen by the pooler.
func query() *telemetry.Exchange {
	x := &telemetry.Exchange{
		Plane: "pooler", Route: "app", Color: "blue", Caller: "web", Code: "ok", Start: time.Now(), Took: 812 * time.Microsecond, Waited: 100 * time.Microsecond, BytesIn: 120, BytesOut: 80,
		DB: telemetry.DB{Database: "app", User: "web", Command: "SELECT", Rows: 1, Queries: 1, Fingerprint: "0123456789abcdef", Text: "select abalance from pgbench_accounts where aid = ?", Client: 10 * time.Microsecond},
	}
	x.Trace.Continue("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "")
	return x
}

func request() *telemetry.Exchange {
	x := sampled("edge")
	x.ID, x.Route, x.Caller = "01J000000000000000000000", "app", "203.0.113.7"
	x.HTTP = telemetry.HTTP{Method: "GET", Scheme: "https", Host: "app.example.com", Path: "/api/contacts", Proto: "HTTP/1.1", Status: 200, Target: "127.0.0.1:3000"}
	x.Try(telemetry.Attempt{Start: x.Start, Took: x.Took, Target: "127.0.0.1:3000", Status: 200})
	return x
}

func call() *telemetry.Exchange {
	x := sampled("claude")
	x.Route, x.HTTP = messages, telemetry.HTTP{Method: "POST", Status: 200, Proto: "HTTP/1.1", Target: "api.anthropic.com:443"}
	x.GenAI = telemetry.GenAI{Model: "claude-opus-4-1", Asked: "claude-opus-4-1", AnswerID: "msg_1", MaxTokens: 64, Temperature: "0.5", Stream: true, InputTokens: 1, OutputTokens: 4000, StopReason: "end_turn", UpstreamID: "req_1"}
	x.Try(telemetry.Attempt{Start: x.Start, Took: x.Took, Target: "api.anthropic.com:443", Status: 200, UpstreamID: "req_1"})
	return x
}

// swallow is a network that takes everything.
type swallow struct{}

func (swallow) RoundTrip(r *http.Request) (*http.Response, error) {
	_, err := io.Copy(io.Discard, r.Body)
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, err
}

// onto is a sink on a network that takes everything.
func onto(t testing.TB, network http.RoundTripper, change ...func(*Config)) *Sink {
	t.Helper()
	cfg := config("http://collector")
	for _, f := range change {
		f(&cfg)
	}
	s, err := newSink(cfg, Resource{Service: "unite-hub", Environment: "production"}, quietLog, noEnvironment, network)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// BenchmarkSpan is what a span costs in all, but for the network: recorded, gathered,
// compressed and posted.
func BenchmarkSpan(b *testing.B) {
	for _, how := range []string{gzipped, plain} {
		b.Run(how, func(b *testing.B) {
			s := onto(b, swallow{}, func(c *Config) { c.Compression = how })
			x := query()
			b.ReportAllocs()
			for b.Loop() {
				x.Trace.Continue("", "") // what differs from span to span is what takes compression's time
				x.Start = x.Start.Add(123457 * time.Nanosecond)
				s.Record(x)
				s.drain(b.Context(), false)
			}
		})
	}
}

// BenchmarkRecord is the part of it that the planes wait for.
func BenchmarkRecord(b *testing.B) {
	for name, x := range map[string]*telemetry.Exchange{"query": query(), "request": request(), "call": call()} {
		b.Run(name, func(b *testing.B) {
			s := onto(b, swallow{})
			b.ReportAllocs()
			for b.Loop() {
				s.Record(x)
				if batch := s.queue.take(false); batch.exchanges > 0 {
					s.queue.giveBack(batch)
				}
			}
		})
	}
}

func BenchmarkRecordUnsampled(b *testing.B) {
	s := onto(b, swallow{})
	x := query()
	x.Trace.Flags = 0
	b.ReportAllocs()
	for b.Loop() {
		s.Record(x)
	}
}
