package otlp

import (
	"net"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"

	"mainstay.dev/mainstay/telemetry"
)

// Attributes of ours, for what no semantic convention names. Times are in
// seconds.
const (
	keyPlane      = attribute.Key("mainstay.plane")
	keyID         = attribute.Key("mainstay.id")
	keyRoute      = attribute.Key("mainstay.route")
	keyColor      = attribute.Key("mainstay.color")
	keyCode       = attribute.Key("mainstay.code")
	keyBlame      = attribute.Key("mainstay.blame")
	keyCaller     = attribute.Key("mainstay.caller")
	keyWorkspace  = attribute.Key("mainstay.workspace")
	keyTier       = attribute.Key("mainstay.tier")
	keyWait       = attribute.Key("mainstay.wait")
	keyFirstByte  = attribute.Key("mainstay.first_byte")
	keyAttempts   = attribute.Key("mainstay.attempts")
	keyUpstreamID = attribute.Key("mainstay.upstream_id")
	keyVia        = attribute.Key("mainstay.claude.route")
	keyDegraded   = attribute.Key("mainstay.claude.degraded")
	keyReplayOf   = attribute.Key("mainstay.claude.replay_of")
	keyCost       = attribute.Key("mainstay.cost.usd")
	keyTarget     = attribute.Key("mainstay.target")
	keyCache      = attribute.Key("mainstay.cache")
	keySaved      = attribute.Key("mainstay.saved_by")

	keyFingerprint = attribute.Key("mainstay.db.fingerprint")
	keyServerTime  = attribute.Key("mainstay.db.server_time") // PostgreSQL's part, with the network
	keyClientTime  = attribute.Key("mainstay.db.client_time") // for which the client let us wait
)

var scope = instrumentation.Scope{Name: "mainstay.dev/mainstay", SchemaURL: semconv.SchemaURL}

func (r Resource) attributes() *resource.Resource {
	attrs := []attribute.KeyValue{
		semconv.ServiceName(r.Service),
		semconv.TelemetrySDKLanguageGo,
		semconv.TelemetrySDKName("mainstay"),
	}
	if r.Environment != "" {
		attrs = append(attrs, semconv.DeploymentEnvironmentNameKey.String(r.Environment))
	}
	if r.Version != "" {
		attrs = append(attrs, semconv.ServiceVersion(r.Version))
	}
	if r.Instance != "" {
		attrs = append(attrs, semconv.ServiceInstanceID(r.Instance))
	}
	return resource.NewWithAttributes(semconv.SchemaURL, attrs...)
}

// appendSpans appends the span of x and one below it for each attempt.
func appendSpans(spans []sdktrace.ReadOnlySpan, x *telemetry.Exchange, res *resource.Resource) []sdktrace.ReadOnlySpan {
	state, _ := trace.ParseTraceState(x.Trace.State) // what cannot be read is left out
	context := trace.SpanContextConfig{
		TraceID: x.Trace.TraceID, SpanID: x.Trace.SpanID, TraceFlags: trace.TraceFlags(x.Trace.Flags), TraceState: state,
	}
	self := trace.NewSpanContext(context)
	span := tracetest.SpanStub{
		SpanContext: self, StartTime: x.Start, EndTime: x.Start.Add(x.Took), Status: status(x),
		Attributes: common(x), ChildSpanCount: len(x.Attempts), Resource: res, InstrumentationScope: scope,
	}
	if x.Trace.Parent != [8]byte{} {
		context.SpanID, context.Remote = x.Trace.Parent, true
		span.Parent = trace.NewSpanContext(context)
	}
	switch x.Plane {
	case "edge":
		describeRequest(&span, x)
	case "pooler":
		describeQuery(&span, x)
	case "claude":
		describeCall(&span, x)
	default:
		span.Name, span.SpanKind = x.Plane, trace.SpanKindInternal
	}
	spans = append(spans, snapshot(span))
	for i := range x.Attempts {
		spans = append(spans, attempt(x, i, self, res))
	}
	return spans
}

// common is what every span carries.
func common(x *telemetry.Exchange) []attribute.KeyValue {
	a := make([]attribute.KeyValue, 0, 24)
	a = append(a, keyPlane.String(x.Plane), keyColor.String(x.Color), keyCode.String(x.Code), keyWait.Float64(x.Waited.Seconds()))
	a = text(a, keyID, x.ID)
	a = text(a, keyRoute, x.Route)
	if x.Plane != "edge" { // which has client.address
		a = text(a, keyCaller, x.Caller)
	}
	a = text(a, semconv.EnduserIDKey, x.User)
	a = text(a, keyWorkspace, x.Workspace)
	a = text(a, keyTier, x.Tier)
	if x.FirstByte > 0 {
		a = append(a, keyFirstByte.Float64(x.FirstByte.Seconds()))
	}
	if x.Tries > 1 {
		a = append(a, keyAttempts.Int(x.Tries))
	}
	if x.Blame != telemetry.BlameNone {
		a = append(a, keyBlame.String(x.Blame.String()), semconv.ErrorTypeKey.String(x.Code))
	} else if x.HTTP.Status >= 500 {
		a = append(a, semconv.ErrorTypeKey.String(strconv.Itoa(x.HTTP.Status)))
	}
	return a
}

// status is Error for a server span when the server's side broke, and for a
// client span whenever the exchange went wrong, as the conventions ask.
func status(x *telemetry.Exchange) sdktrace.Status {
	bad := x.Blame != telemetry.BlameNone || x.HTTP.Status >= 500
	if x.Plane == "edge" {
		bad = bad && (x.Blame != telemetry.BlameClient || x.HTTP.Status >= 500)
	}
	if !bad {
		return sdktrace.Status{}
	}
	s := sdktrace.Status{Code: codes.Error}
	if x.Err != nil {
		s.Description = x.Err.Error()
	}
	return s
}

func describeRequest(span *tracetest.SpanStub, x *telemetry.Exchange) {
	span.SpanKind = trace.SpanKindServer
	method := knownMethod(x.HTTP.Method)
	span.Name = spanMethod(method)
	a := httpAttributes(span.Attributes, x, method)
	if strings.HasPrefix(x.Route, "/") {
		span.Name += " " + x.Route
		a = append(a, semconv.HTTPRoute(x.Route))
	}
	a = text(a, semconv.URLPathKey, x.HTTP.Path)
	a = text(a, semconv.URLSchemeKey, x.HTTP.Scheme)
	a = address(a, x.HTTP.Host)
	a = text(a, semconv.ClientAddressKey, x.Caller)
	a = text(a, keyTarget, x.HTTP.Target)
	a = text(a, keyCache, x.HTTP.Cache)
	span.Attributes = a
}

func describeQuery(span *tracetest.SpanStub, x *telemetry.Exchange) {
	span.SpanKind = trace.SpanKindClient
	d := &x.DB
	a := append(span.Attributes, semconv.DBSystemNamePostgreSQL)
	span.Name = "postgresql"
	if d.Database != "" {
		a = append(a, semconv.DBNamespace(d.Database))
		span.Name = d.Database
	}
	if d.Command != "" {
		a = append(a, semconv.DBOperationName(d.Command))
		span.Name = strings.TrimSuffix(d.Command+" "+d.Database, " ")
	}
	a = text(a, semconv.DBResponseStatusCodeKey, d.SQLState)
	if d.Queries > 1 {
		a = append(a, semconv.DBOperationBatchSize(d.Queries))
	}
	if d.Rows > 0 {
		a = append(a, semconv.DBResponseReturnedRows(int(d.Rows)))
	}
	a = text(a, semconv.DBQueryTextKey, d.Text)
	a = text(a, keyFingerprint, d.Fingerprint)
	if x.Took > 0 {
		a = append(a, keyServerTime.Float64(max(0, x.Took-x.Waited-d.Client).Seconds()), keyClientTime.Float64(d.Client.Seconds()))
	}
	span.Attributes = address(a, x.HTTP.Target)
}

func describeCall(span *tracetest.SpanStub, x *telemetry.Exchange) {
	span.SpanKind = trace.SpanKindClient
	g := &x.GenAI
	method := knownMethod(x.HTTP.Method)
	span.Name = strings.TrimSuffix(spanMethod(method)+" "+x.Route, " ")
	a := append(httpAttributes(span.Attributes, x, method), semconv.GenAIProviderNameAnthropic)
	if x.Route == "/v1/messages" {
		a = append(a, semconv.GenAIOperationNameChat)
		span.Name = strings.TrimSuffix("chat "+requested(g), " ")
	}
	a = asked(a, g)
	if g.AnswerID != "" && x.Route == "/v1/messages" {
		a = append(a, semconv.GenAIResponseID(g.AnswerID), semconv.GenAIResponseModel(g.Model))
	}
	if g.Stream {
		a = append(a, semconv.GenAIRequestStream(true))
		if x.FirstByte > 0 {
			a = append(a, semconv.GenAIResponseTimeToFirstChunk(x.FirstByte.Seconds()))
		}
	}
	if g.StopReason != "" {
		a = append(a, semconv.GenAIResponseFinishReasons(g.StopReason))
	}
	a = tokens(a, g)
	a = text(a, keyUpstreamID, g.UpstreamID)
	a = text(a, keySaved, g.Saved)
	a = text(a, keyVia, g.Via)
	a = text(a, keyDegraded, g.Degraded)
	a = text(a, keyReplayOf, g.ReplayOf)
	if g.CostNanoUSD > 0 {
		a = append(a, keyCost.Float64(float64(g.CostNanoUSD)/1e9))
	}
	span.Attributes = address(a, x.HTTP.Target)
}

// asked is what the request says of how it wants to be answered. What it says to the
// model, stop sequences too, is nobody's business.
func asked(a []attribute.KeyValue, g *telemetry.GenAI) []attribute.KeyValue {
	a = text(a, semconv.GenAIRequestModelKey, requested(g))
	if g.MaxTokens > 0 {
		a = append(a, semconv.GenAIRequestMaxTokens(int(g.MaxTokens)))
	}
	a = number(a, semconv.GenAIRequestTemperatureKey, g.Temperature)
	a = number(a, semconv.GenAIRequestTopPKey, g.TopP)
	return number(a, semconv.GenAIRequestTopKKey, g.TopK)
}

// requested is the model that was asked, as far as it is known.
func requested(g *telemetry.GenAI) string {
	if g.Asked != "" {
		return g.Asked
	}
	return g.Model
}

// number adds an attribute for a number as it was written, if it is one.
func number(a []attribute.KeyValue, key attribute.Key, written string) []attribute.KeyValue {
	if f, err := strconv.ParseFloat(written, 64); err == nil {
		a = append(a, key.Float64(f))
	}
	return a
}

// tokens: the conventions count cached input as input, Claude's API does not.
func tokens(a []attribute.KeyValue, g *telemetry.GenAI) []attribute.KeyValue {
	if input := g.InputTokens + g.CacheReadTokens + g.CacheWriteTokens; input > 0 {
		a = append(a, semconv.GenAIUsageInputTokens(int(input)))
	}
	if g.CacheReadTokens > 0 {
		a = append(a, semconv.GenAIUsageCacheReadInputTokens(int(g.CacheReadTokens)))
	}
	if g.CacheWriteTokens > 0 {
		a = append(a, semconv.GenAIUsageCacheCreationInputTokens(int(g.CacheWriteTokens)))
	}
	if g.OutputTokens > 0 {
		a = append(a, semconv.GenAIUsageOutputTokens(int(g.OutputTokens)))
	}
	return a
}

// attempt is the span of x's attempt i.
func attempt(x *telemetry.Exchange, i int, parent trace.SpanContext, res *resource.Resource) sdktrace.ReadOnlySpan {
	try := &x.Attempts[i]
	span := tracetest.SpanStub{
		Name: "attempt", SpanKind: trace.SpanKindClient,
		SpanContext: parent.WithSpanID(telemetry.NewSpanID()), Parent: parent,
		StartTime: try.Start, EndTime: try.Start.Add(try.Took),
		Resource: res, InstrumentationScope: scope,
	}
	a := []attribute.KeyValue{keyPlane.String(x.Plane), keyColor.String(x.Color), keyWait.Float64(try.Waited.Seconds())}
	if x.HTTP.Method != "" {
		method := knownMethod(x.HTTP.Method)
		span.Name = spanMethod(method)
		a = append(a, semconv.HTTPRequestMethodKey.String(method))
		if i > 0 {
			a = append(a, semconv.HTTPRequestResendCount(i))
		}
	}
	a = text(a, keyUpstreamID, try.UpstreamID)
	if try.Status != 0 {
		a = append(a, semconv.HTTPResponseStatusCode(try.Status))
	}
	if try.Cause != "" {
		a = append(a, semconv.ErrorTypeKey.String(try.Cause))
		span.Status = sdktrace.Status{Code: codes.Error, Description: try.Cause}
	}
	span.Attributes = address(a, try.Target)
	return snapshot(span)
}

// snapshot makes a span of the stub. Protocol buffers refuse a whole batch for
// one string that is not UTF-8, and paths and models are whatever clients send.
func snapshot(span tracetest.SpanStub) sdktrace.ReadOnlySpan {
	span.Name = clean(span.Name)
	span.Status.Description = clean(span.Status.Description)
	for i, kv := range span.Attributes {
		switch kv.Value.Type() {
		case attribute.STRING:
			span.Attributes[i].Value = attribute.StringValue(clean(kv.Value.AsString()))
		case attribute.STRINGSLICE:
			all := kv.Value.AsStringSlice()
			for j := range all {
				all[j] = clean(all[j])
			}
			span.Attributes[i].Value = attribute.StringSliceValue(all)
		}
	}
	return span.Snapshot()
}

// maxText bounds every string of a span, in bytes.
const maxText = 2048

func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.ToValidUTF8(s, "?")
}

func httpAttributes(a []attribute.KeyValue, x *telemetry.Exchange, method string) []attribute.KeyValue {
	h := &x.HTTP
	a = append(a, semconv.HTTPRequestMethodKey.String(method))
	if method != h.Method {
		a = append(a, semconv.HTTPRequestMethodOriginal(h.Method))
	}
	if h.Status != 0 {
		a = append(a, semconv.HTTPResponseStatusCode(h.Status))
	}
	if version, ok := strings.CutPrefix(h.Proto, "HTTP/"); ok {
		a = append(a, semconv.NetworkProtocolVersion(strings.TrimSuffix(version, ".0")))
	}
	return append(a, semconv.HTTPRequestBodySize(int(x.BytesIn)), semconv.HTTPResponseBodySize(int(x.BytesOut)))
}

// anyMethod stands for a method that is not one of the known ones, so that
// clients cannot invent span names.
const anyMethod = "_OTHER"

func knownMethod(m string) string {
	switch m {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY":
		return m
	}
	return anyMethod
}

// spanMethod is the method as it stands in a span's name.
func spanMethod(known string) string {
	if known == anyMethod {
		return "HTTP"
	}
	return known
}

// address splits host:port.
func address(a []attribute.KeyValue, hostport string) []attribute.KeyValue {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return text(a, semconv.ServerAddressKey, hostport)
	}
	a = text(a, semconv.ServerAddressKey, host)
	if n, err := strconv.Atoi(port); err == nil {
		a = append(a, semconv.ServerPort(n))
	}
	return a
}

func text(a []attribute.KeyValue, key attribute.Key, v string) []attribute.KeyValue {
	if v != "" {
		a = append(a, key.String(v))
	}
	return a
}
