package otlp

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"mainstay.dev/mainstay/telemetry"
)

func TestNamesAreThoseOfTheConventions(t *testing.T) {
	if schema != semconv.SchemaURL {
		t.Errorf("schema %s, want %s", schema, semconv.SchemaURL)
	}
	for k, want := range map[key]string{
		keyService: string(semconv.ServiceNameKey), keyServiceVersion: string(semconv.ServiceVersionKey), keyInstance: string(semconv.ServiceInstanceIDKey),
		keyEnvironment: string(semconv.DeploymentEnvironmentNameKey), keySDKName: string(semconv.TelemetrySDKNameKey), keySDKLanguage: string(semconv.TelemetrySDKLanguageKey),
		keyUser: string(semconv.EnduserIDKey), keyErrorType: string(semconv.ErrorTypeKey), keyServerAddress: string(semconv.ServerAddressKey),
		keyServerPort: string(semconv.ServerPortKey), keyClientAddress: string(semconv.ClientAddressKey),
		keyMethod: string(semconv.HTTPRequestMethodKey), keyMethodOriginal: string(semconv.HTTPRequestMethodOriginalKey), keyRequestSize: string(semconv.HTTPRequestBodySizeKey),
		keyResponseSize: string(semconv.HTTPResponseBodySizeKey), keyResend: string(semconv.HTTPRequestResendCountKey), keyStatus: string(semconv.HTTPResponseStatusCodeKey),
		keyHTTPRoute: string(semconv.HTTPRouteKey), keyProtocol: string(semconv.NetworkProtocolVersionKey), keyPath: string(semconv.URLPathKey), keyScheme: string(semconv.URLSchemeKey),
		keySystem: string(semconv.DBSystemNameKey), keyNamespace: string(semconv.DBNamespaceKey), keyOperation: string(semconv.DBOperationNameKey), keyBatchSize: string(semconv.DBOperationBatchSizeKey),
		keyQuery: string(semconv.DBQueryTextKey), keySQLState: string(semconv.DBResponseStatusCodeKey), keyRows: string(semconv.DBResponseReturnedRowsKey),
		keyProvider: string(semconv.GenAIProviderNameKey), keyGenAI: string(semconv.GenAIOperationNameKey), keyModel: string(semconv.GenAIRequestModelKey),
		keyMaxTokens: string(semconv.GenAIRequestMaxTokensKey), keyTemperature: string(semconv.GenAIRequestTemperatureKey), keyTopP: string(semconv.GenAIRequestTopPKey), keyTopK: string(semconv.GenAIRequestTopKKey),
		keyStream: string(semconv.GenAIRequestStreamKey), keyAnswer: string(semconv.GenAIResponseIDKey), keyAnswering: string(semconv.GenAIResponseModelKey), keyFinish: string(semconv.GenAIResponseFinishReasonsKey),
		keyFirstChunk: string(semconv.GenAIResponseTimeToFirstChunkKey), keyInput: string(semconv.GenAIUsageInputTokensKey), keyOutput: string(semconv.GenAIUsageOutputTokensKey),
		keyCacheRead: string(semconv.GenAIUsageCacheReadInputTokensKey), keyCacheWrite: string(semconv.GenAIUsageCacheCreationInputTokensKey),
	} {
		if k != newKey(want) {
			t.Errorf("%q is not %s", string(k), want)
		}
	}
	for got, want := range map[string]string{
		postgresql: semconv.DBSystemNamePostgreSQL.Value.AsString(), chat: semconv.GenAIOperationNameChat.Value.AsString(), "anthropic": semconv.GenAIProviderNameAnthropic.Value.AsString(),
		"go": semconv.TelemetrySDKLanguageGo.Value.AsString(),
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// A message of any length has the shortest length before it.
func TestLengthsAreWrittenAsTheOfficialEncoderDoes(t *testing.T) {
	for _, n := range []int{0, 1, 126, 127, 128, 129, 16_382, 16_383, 16_384, 16_385, 1<<21 - 1, 1 << 21} {
		var w wire
		w.string(spanTraceState, "before")
		from := w.open(spanName)
		w = append(w, strings.Repeat("x", n)...)
		w.close(from)
		w.varint(spanKind, 2)
		want, err := proto.Marshal(&tracepb.Span{TraceState: "before", Name: strings.Repeat("x", n), Kind: 2})
		if err != nil || string(w) != string(want) && n > 0 { // the official one leaves out what is empty
			t.Errorf("%d bytes: %v", n, err)
		}
		var back tracepb.Span
		if err := proto.Unmarshal(w, &back); err != nil || len(back.Name) != n || back.Kind != 2 {
			t.Errorf("%d bytes: %v, %d read", n, err, len(back.Name))
		}
	}
}

func TestARequestFramesItsSpans(t *testing.T) {
	f := Resource{Service: "s", Environment: "e\xff"}.frame()
	var spans wire
	for range 100 {
		spans.exchange(query())
	}
	all := f.close(append(f.open(nil, len(spans)), spans...))
	var read coltracepb.ExportTraceServiceRequest
	if err := proto.Unmarshal(all, &read); err != nil {
		t.Fatal(err)
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(&read)
	if err != nil || string(again) != string(all) {
		t.Fatalf("%v: the official encoder has it otherwise", err)
	}
	r := read.ResourceSpans[0]
	if r.SchemaUrl != schema || r.ScopeSpans[0].SchemaUrl != schema || r.ScopeSpans[0].Scope.Name != scope || len(r.ScopeSpans[0].Spans) != 100 {
		t.Errorf("%v", r.ScopeSpans[0].Scope)
	}
	got := map[string]any{}
	for _, kv := range r.Resource.Attributes {
		got[kv.Key] = value(kv.Value)
	}
	want := map[string]any{"service.name": "s", "deployment.environment.name": "e?", "telemetry.sdk.language": "go", "telemetry.sdk.name": "mainstay"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// Whatever an exchange holds, its spans are what the official types read and write.
func FuzzExchange(f *testing.F) {
	f.Add("edge", "GET", "/x", "[::1]:80", "k=v", int64(1), int64(2), uint8(1), uint8(2))
	f.Add("pooler", "SELECT", "app", "h:5432", "\xff", int64(-1), int64(1<<62), uint8(3), uint8(0))
	f.Add("claude", messages, "0.5", "h", "a@b=c, d=e", int64(1000), int64(5), uint8(0), uint8(20))
	f.Add("", "", "", ":", ",", int64(-1<<63), int64(1<<63-1), uint8(200), uint8(255))
	f.Fuzz(func(t *testing.T, plane, a, b, c, state string, n, m int64, blame, tries uint8) {
		x := &telemetry.Exchange{
			Plane: plane, ID: b, Route: a, Color: c, Caller: b, User: a, Workspace: c, Tier: b, Code: c, Blame: telemetry.Blame(blame),
			Start: begin.Add(time.Duration(n)), Waited: time.Duration(m), FirstByte: time.Duration(n), Took: time.Duration(m), BytesIn: n, BytesOut: m,
			HTTP: telemetry.HTTP{Method: a, Scheme: b, Host: c, Path: a, Proto: b, Status: int(n), Target: c, Cache: b},
			DB:   telemetry.DB{Database: b, Command: a, SQLState: c, Rows: n, Queries: int(m), Fingerprint: a, Text: c, Client: time.Duration(m)},
			GenAI: telemetry.GenAI{Model: a, Asked: b, AnswerID: c, MaxTokens: n, Temperature: b, TopP: a, TopK: c, Stream: n > 0, InputTokens: n, CacheReadTokens: m, CacheWriteTokens: n, OutputTokens: m,
				StopReason: a, UpstreamID: b, Via: c, Degraded: a, CostNanoUSD: n, ReplayOf: b, Saved: c},
		}
		if blame%2 == 1 {
			x.Err = errors.New(a + b)
		}
		x.Trace.Continue("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", state)
		for range tries {
			x.Try(telemetry.Attempt{Start: begin, Took: time.Duration(n), Waited: time.Duration(m), Target: c, Status: int(m), Cause: a, UpstreamID: b})
		}
		spans := decode(t, x)
		if len(spans) != 1+min(int(tries), telemetry.MaxAttempts) {
			t.Fatalf("%d spans of %d attempts", len(spans), tries)
		}
		for _, s := range spans {
			if len(s.Name) > maxText || !utf8.ValidString(s.Name) || len(s.GetStatus().GetMessage()) > maxText {
				t.Fatalf("%q", s.Name)
			}
			for _, kv := range s.Attributes {
				if v := kv.Value.GetStringValue(); len(v) > maxText {
					t.Fatalf("%s has %d bytes", kv.Key, len(v))
				}
			}
		}
	})
}

// The state of a trace is read as the official library reads it.
func FuzzTraceState(f *testing.F) {
	for _, s := range []string{
		"", ",", "a=b", " a=b ,\tc@d=e\t", "a=b,a=c", "a=", "=b", "A=b", "1=b", "1@a=b", "a@1=b", "a@b@c=d", "a=b=c", "a = b", "a=b c", "a=\x7f", "é=b",
		strings.Repeat("k", 256) + "=v", strings.Repeat("k", 257) + "=v", "k=" + strings.Repeat("v", 256), "k=" + strings.Repeat("v", 257),
		strings.Repeat("t", 241) + "@" + strings.Repeat("s", 14) + "=v", strings.Repeat("t", 242) + "@s=v", "t@" + strings.Repeat("s", 15) + "=v", "a0=1,a1=1,a2=1,a3=1,a4=1,a5=1,a6=1,a7=1,a8=1,a9=1,b0=1,b1=1,b2=1,b3=1,b4=1,b5=1,b6=1,b7=1,b8=1,b9=1,c0=1,c1=1,c2=1,c3=1,c4=1,c5=1,c6=1,c7=1,c8=1,c9=1,d0=1,d1=1",
		"a0=1,a1=1,a2=1,a3=1,a4=1,a5=1,a6=1,a7=1,a8=1,a9=1,b0=1,b1=1,b2=1,b3=1,b4=1,b5=1,b6=1,b7=1,b8=1,b9=1,c0=1,c1=1,c2=1,c3=1,c4=1,c5=1,c6=1,c7=1,c8=1,c9=1,d0=1,d1=1,d2=1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want, err := trace.ParseTraceState(s)
		got, ok := appendState([]byte("x"), s)
		if ok != (err == nil) || string(got) != "x"+want.String() {
			t.Fatalf("%q gave %q, %v; want %q, %v", s, got, ok, want, err)
		}
	})
}

func TestAStateThatCannotBeReadIsLeftOut(t *testing.T) {
	for state, want := range map[string]string{"a=b, c=d": "a=b,c=d", "no state": "", " , ": "", "": ""} {
		x := query()
		x.Trace.State = state
		if got := decode(t, x)[0].TraceState; got != want {
			t.Errorf("%q gave %q, want %q", state, got, want)
		}
	}
}

func TestRecordDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	unsampled := query()
	unsampled.Trace.Flags = 0
	withState := query()
	withState.Trace.State = "vendor=1,other@tenant=2"
	for name, x := range map[string]*telemetry.Exchange{"query": query(), "request": request(), "call": call(), "unsampled": unsampled, "with tracestate": withState} {
		s := onto(t, swallow{})
		record := func() {
			for range 4 * batchSize { // full batches are part of it
				s.Record(x)
				if b := s.queue.take(false); b.exchanges > 0 {
					s.queue.giveBack(b)
				}
			}
		}
		record() // the buffers grow to their size
		// A collection may empty the pool of scratch buffers at any time.
		if n := testing.AllocsPerRun(20, record); n > 4 {
			t.Errorf("%s: %v allocations in %d records", name, n, 4*batchSize)
		}
		if s.Dropped() != 0 {
			t.Errorf("%s: %d dropped", name, s.Dropped())
		}
	}
}

func TestASpanAllocatesNothingUntilItHasLeft(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, how := range []string{gzipped, plain} {
		s, x := onto(t, swallow{}, func(c *Config) { c.Compression = how }), query()
		export := func() {
			for range batchSize {
				s.Record(x)
			}
			s.drain(t.Context(), false)
		}
		export()
		// What is left is the HTTP request, once for the batch.
		if n := testing.AllocsPerRun(20, export); n > batchSize/8 {
			t.Errorf("%s: %v allocations for %d spans", how, n, batchSize)
		}
	}
}
