package otlp

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"mainstay.dev/mainstay/telemetry"
)

var begin = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

const remote = flagRemoteIsKnown | flagRemote

// spansOf reads x's spans back with the protocol's own types.
func spansOf(t *testing.T, x *telemetry.Exchange) []*tracepb.Span {
	t.Helper()
	x.Start = begin
	x.Trace.Continue("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=1")
	return decode(t, x)
}

func decode(t *testing.T, x *telemetry.Exchange) []*tracepb.Span {
	t.Helper()
	var w wire
	w.exchange(x)
	var all tracepb.ScopeSpans
	if err := proto.Unmarshal(w, &all); err != nil {
		t.Fatal(err)
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(&all)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(w, again) {
		t.Fatalf("%d bytes, of which the official encoder makes %d: %v", len(w), len(again), &all)
	}
	return all.Spans
}

func attributes(s *tracepb.Span) map[string]any {
	out := map[string]any{}
	for _, kv := range s.Attributes {
		out[kv.Key] = value(kv.Value)
	}
	return out
}

func value(v *commonpb.AnyValue) any {
	switch v := v.Value.(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_BoolValue:
		return v.BoolValue
	case *commonpb.AnyValue_IntValue:
		return v.IntValue
	case *commonpb.AnyValue_DoubleValue:
		return v.DoubleValue
	case *commonpb.AnyValue_ArrayValue:
		var all []string
		for _, one := range v.ArrayValue.Values {
			all = append(all, one.GetStringValue())
		}
		return all
	}
	return nil
}

func TestARequestIsAServerSpanInTheCallersTrace(t *testing.T) {
	x := &telemetry.Exchange{
		Plane: "edge", ID: "r-1", Route: "app", Color: "blue", Caller: "203.0.113.7", Code: "ok",
		Took: 3 * time.Second, Waited: time.Second, FirstByte: 2 * time.Second, BytesIn: 1, BytesOut: 2,
		HTTP: telemetry.HTTP{Method: "GET", Scheme: "https", Host: "example.com:8443", Path: "/api", Proto: "HTTP/2.0", Status: 200, Target: "127.0.0.1:3000"},
	}
	x.Try(telemetry.Attempt{Start: begin, Took: time.Second, Target: "127.0.0.1:3000", Cause: "refused"})
	x.Try(telemetry.Attempt{Start: begin.Add(time.Second), Took: 2 * time.Second, Waited: 100 * time.Millisecond, Target: "127.0.0.1:3001", Status: 200, UpstreamID: "req_2"})
	spans := spansOf(t, x)
	if len(spans) != 3 {
		t.Fatalf("%d spans, want the request and two attempts", len(spans))
	}
	s := spans[0]
	if !bytes.Equal(s.SpanId, x.Trace.SpanID[:]) || !bytes.Equal(s.TraceId, x.Trace.TraceID[:]) || !bytes.Equal(s.ParentSpanId, x.Trace.Parent[:]) || s.Flags != remote|1 {
		t.Errorf("%v, want the exchange's own context", s)
	}
	if s.TraceState != "vendor=1" || s.Kind != tracepb.Span_SPAN_KIND_SERVER || s.Name != "GET" ||
		s.StartTimeUnixNano != uint64(begin.UnixNano()) || s.EndTimeUnixNano-s.StartTimeUnixNano != uint64(3*time.Second) || s.Status != nil {
		t.Errorf("%v", s)
	}
	want := map[string]any{
		"mainstay.plane": "edge", "mainstay.id": "r-1", "mainstay.route": "app", "mainstay.color": "blue", "mainstay.code": "ok",
		"mainstay.wait": 1.0, "mainstay.first_byte": 2.0, "mainstay.attempts": int64(2), "mainstay.target": "127.0.0.1:3000",
		"http.request.method": "GET", "http.response.status_code": int64(200), "network.protocol.version": "2",
		"http.request.body.size": int64(1), "http.response.body.size": int64(2),
		"url.path": "/api", "url.scheme": "https", "server.address": "example.com", "server.port": int64(8443), "client.address": "203.0.113.7",
	}
	if diff := cmp.Diff(want, attributes(s)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	second := attributes(spans[2])
	wantTry := map[string]any{
		"mainstay.plane": "edge", "mainstay.color": "blue", "mainstay.wait": 0.1, "http.request.method": "GET", "http.request.resend_count": int64(1),
		"http.response.status_code": int64(200), "server.address": "127.0.0.1", "server.port": int64(3001), "mainstay.upstream_id": "req_2",
	}
	if diff := cmp.Diff(wantTry, second); diff != "" {
		t.Errorf("second attempt (-want +got):\n%s", diff)
	}
	for _, a := range spans[1:] {
		if !bytes.Equal(a.ParentSpanId, s.SpanId) || !bytes.Equal(a.TraceId, s.TraceId) || a.Kind != tracepb.Span_SPAN_KIND_CLIENT || len(a.SpanId) != 8 || a.Flags != flagRemoteIsKnown|1 || a.TraceState != "vendor=1" {
			t.Errorf("attempt %v", a)
		}
	}
	if bytes.Equal(spans[1].SpanId, spans[2].SpanId) || spans[1].GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR || spans[1].Status.Message != "refused" {
		t.Errorf("attempts %v", spans[1:])
	}
}

func TestAQueryIsADatabaseClientSpan(t *testing.T) {
	s := spansOf(t, &telemetry.Exchange{
		Plane: "pooler", Route: "app", Color: "green", Caller: "u", Code: "query_error", Blame: telemetry.BlameClient, Err: errors.New("division by zero"),
		DB: telemetry.DB{Database: "app", User: "u", Command: "SELECT", SQLState: "22012", Rows: 3, Queries: 2},
	})[0]
	want := map[string]any{
		"mainstay.plane": "pooler", "mainstay.route": "app", "mainstay.color": "green", "mainstay.code": "query_error", "mainstay.blame": "client",
		"mainstay.caller": "u", "mainstay.wait": 0.0, "error.type": "query_error",
		"db.system.name": "postgresql", "db.namespace": "app", "db.operation.name": "SELECT", "db.response.status_code": "22012",
		"db.operation.batch.size": int64(2), "db.response.returned_rows": int64(3),
	}
	if diff := cmp.Diff(want, attributes(s)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if s.Name != "SELECT app" || s.Kind != tracepb.Span_SPAN_KIND_CLIENT || s.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || s.Status.Message != "division by zero" {
		t.Errorf("%v", s)
	}
}

func TestACallIsAGenAISpanWhoseInputIsTheSumOfTheThree(t *testing.T) {
	s := spansOf(t, &telemetry.Exchange{
		Plane: "claude", Route: "/v1/messages", Code: "ok", FirstByte: time.Second, Took: 2 * time.Second,
		HTTP: telemetry.HTTP{Method: "POST", Status: 200, Target: "api.anthropic.com:443"},
		GenAI: telemetry.GenAI{Model: "claude-opus-4-1", Asked: "claude-opus-4", AnswerID: "msg_1", MaxTokens: 64, Temperature: "0.5", TopP: "1e0", TopK: "[4]", Stream: true, InputTokens: 1, CacheReadTokens: 20, CacheWriteTokens: 300, OutputTokens: 4000,
			StopReason: "end_turn", UpstreamID: "req_1", Saved: "resume"},
	})[0]
	got := attributes(s)
	for key, want := range map[string]any{
		"gen_ai.provider.name": "anthropic", "gen_ai.operation.name": "chat", "gen_ai.request.model": "claude-opus-4", "gen_ai.request.stream": true,
		"gen_ai.response.model": "claude-opus-4-1", "gen_ai.response.id": "msg_1", "gen_ai.request.max_tokens": int64(64), "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 1.0, "gen_ai.request.top_k": nil,
		"gen_ai.usage.input_tokens": int64(321), "gen_ai.usage.cache_read.input_tokens": int64(20),
		"gen_ai.usage.cache_creation.input_tokens": int64(300), "gen_ai.usage.output_tokens": int64(4000),
		"gen_ai.response.time_to_first_chunk": 1.0, "mainstay.upstream_id": "req_1", "mainstay.saved_by": "resume", "server.address": "api.anthropic.com", "server.port": int64(443),
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	if diff := cmp.Diff([]string{"end_turn"}, got["gen_ai.response.finish_reasons"]); diff != "" {
		t.Error(diff)
	}
	if s.Name != "chat claude-opus-4" || s.Kind != tracepb.Span_SPAN_KIND_CLIENT {
		t.Errorf("%v", s)
	}
}

func TestStatusFollowsTheConventionsOfEachKind(t *testing.T) {
	const unset, failed = tracepb.Status_STATUS_CODE_UNSET, tracepb.Status_STATUS_CODE_ERROR
	for name, c := range map[string]struct {
		x         telemetry.Exchange
		want      tracepb.Status_StatusCode
		errorType any
	}{
		"a request the app refused":     {telemetry.Exchange{Plane: "edge", Code: "ok", HTTP: telemetry.HTTP{Status: 404}}, unset, nil},
		"a request over the limit":      {telemetry.Exchange{Plane: "edge", Code: "too_large", Blame: telemetry.BlameClient, HTTP: telemetry.HTTP{Status: 413}}, unset, "too_large"},
		"a 500 of the app":              {telemetry.Exchange{Plane: "edge", Code: "ok", HTTP: telemetry.HTTP{Status: 500}}, failed, "500"},
		"no target":                     {telemetry.Exchange{Plane: "edge", Code: "no_target", Blame: telemetry.BlameMainstay, HTTP: telemetry.HTTP{Status: 503}}, failed, "no_target"},
		"a call that the API refused":   {telemetry.Exchange{Plane: "claude", Code: "refused", Blame: telemetry.BlameClient, HTTP: telemetry.HTTP{Status: 400}}, failed, "refused"},
		"a query of a client that left": {telemetry.Exchange{Plane: "pooler", Code: "client_gone", Blame: telemetry.BlameClient}, failed, "client_gone"},
	} {
		s := spansOf(t, &c.x)[0]
		if s.GetStatus().GetCode() != c.want || attributes(s)["error.type"] != c.errorType {
			t.Errorf("%s: status %v, error.type %v", name, s.Status, attributes(s)["error.type"])
		}
	}
}

func TestWhatClientsSendCannotSpoilABatchOrInventSpanNames(t *testing.T) {
	var c collector
	s, err := newSink(config("http://collector"), Resource{}, quietLog, noEnvironment, &c)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, s)
	x := sampled("edge")
	x.HTTP = telemetry.HTTP{Method: "INVENTED\xff", Path: "/\xff\xfe", Host: "\xff"}
	x.Trace.State = "no trace state at all \xff"
	x.Err = errors.New("\xff")
	s.Record(x)
	y := sampled("claude")
	y.Route, y.GenAI.Model, y.GenAI.StopReason = "/v1/messages", string(make([]byte, 1<<16))+"\xff", "\xff"
	s.Record(y)
	stop()
	spans := c.spans()
	if len(spans) != 2 || spans[0].Name != "HTTP" || len(spans[1].Name) > maxText {
		t.Fatalf("%d spans, dropped %d: %.200v", len(spans), s.Dropped(), spans)
	}
}
