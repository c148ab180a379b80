package otlp

import (
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"mainstay.dev/mainstay/telemetry"
)

// A kind is OTLP's Span.SpanKind.
type kind uint64

const (
	kindInternal kind = 1
	kindServer   kind = 2
	kindClient   kind = 3
)

// statusError is OTLP's Status.StatusCode for what went wrong.
const statusError = 2

// Bits of Span.flags beside those of traceparent, which are the lowest eight.
const (
	flagRemoteIsKnown = 0x100
	flagRemote        = 0x200 // the parent is another process's
)

// exchange writes the span of x and one below it for each attempt, as spans of a
// ScopeSpans.
func (w *wire) exchange(x *telemetry.Exchange) {
	from := w.open(scopeSpansSpans)
	flags := uint32(x.Trace.Flags) | flagRemoteIsKnown
	if x.Trace.Parent != [8]byte{} {
		flags |= flagRemote
	}
	w.context(&x.Trace, &x.Trace.SpanID, &x.Trace.Parent)
	w.title(title(x))
	w.times(x.Start, x.Took)
	w.common(x)
	switch x.Plane {
	case "edge":
		w.request(x)
	case "pooler":
		w.query(x)
	case "claude":
		w.call(x)
	}
	if bad(x) {
		broken := ""
		if x.Err != nil {
			broken = x.Err.Error()
		}
		w.failed(broken)
	}
	w.flags(flags)
	w.close(from)
	for i := range x.Attempts {
		w.attempt(x, i)
	}
}

// context writes which trace the span belongs to, who it is, and whose child.
func (w *wire) context(t *telemetry.Trace, self, parent *[8]byte) {
	w.bytes(spanTraceID, t.TraceID[:])
	w.bytes(spanID, self[:])
	if t.State != "" {
		before := len(*w)
		from := w.open(spanTraceState)
		if all, ok := appendState(*w, t.State); ok && len(all) > from {
			*w = all
			w.close(from)
		} else {
			*w = (*w)[:before]
		}
	}
	if *parent != [8]byte{} {
		w.bytes(spanParent, parent[:])
	}
}

// title is what x's span is called, in two halves of which one may be empty, and what
// kind it is of.
func title(x *telemetry.Exchange) (verb, object string, k kind) {
	switch x.Plane {
	case "edge":
		verb = spanMethod(knownMethod(x.HTTP.Method))
		if strings.HasPrefix(x.Route, "/") {
			object = x.Route
		}
		return verb, object, kindServer
	case "pooler":
		if x.DB.Command == "" && x.DB.Database == "" {
			return postgresql, "", kindClient
		}
		return x.DB.Command, x.DB.Database, kindClient
	case "claude":
		if x.Route == messages {
			return chat, requested(&x.GenAI), kindClient
		}
		return spanMethod(knownMethod(x.HTTP.Method)), x.Route, kindClient
	}
	return x.Plane, "", kindInternal
}

// title writes the span's name, the halves with a space between them, and its kind.
func (w *wire) title(verb, object string, k kind) {
	verb = clean(verb)
	object = cleanTo(object, max(0, maxText-len(verb)-1))
	space := ""
	if verb != "" && object != "" {
		space = " "
	}
	if n := len(verb) + len(space) + len(object); n > 0 {
		w.tag(spanName, protowire.BytesType)
		w.size(n)
		*w = append(append(append(*w, verb...), space...), object...)
	}
	w.varint(spanKind, uint64(k))
}

func (w *wire) times(start time.Time, took time.Duration) {
	w.time(spanStart, start)
	w.time(spanEnd, start.Add(took))
}

// failed writes the status of a span that went wrong.
func (w *wire) failed(why string) {
	why = clean(why)
	n := 1 + protowire.SizeVarint(statusError)
	if why != "" {
		n += 1 + protowire.SizeBytes(len(why))
	}
	w.tag(spanStatus, protowire.BytesType)
	w.size(n)
	if why != "" {
		w.string(statusMessage, why)
	}
	w.varint(statusCode, statusError)
}

func (w *wire) flags(flags uint32) {
	w.tag(spanFlags, protowire.Fixed32Type)
	*w = protowire.AppendFixed32(*w, flags)
}

// common is what every exchange's span carries.
func (w *wire) common(x *telemetry.Exchange) {
	w.text(keyPlane, x.Plane)
	w.text(keyColor, x.Color)
	w.text(keyCode, x.Code)
	w.double(keyWait, x.Waited.Seconds())
	w.text(keyID, x.ID)
	w.text(keyRoute, x.Route)
	if x.Plane != "edge" { // which has client.address
		w.text(keyCaller, x.Caller)
	}
	w.text(keyUser, x.User)
	w.text(keyWorkspace, x.Workspace)
	w.text(keyTier, x.Tier)
	if x.FirstByte > 0 {
		w.double(keyFirstByte, x.FirstByte.Seconds())
	}
	if x.Tries > 1 {
		w.int(keyAttempts, int64(x.Tries))
	}
	if x.Blame != telemetry.BlameNone {
		w.text(keyBlame, x.Blame.String())
		w.text(keyErrorType, x.Code)
	} else if x.HTTP.Status >= 500 {
		w.text(keyErrorType, strconv.Itoa(x.HTTP.Status))
	}
}

// bad reports whether the span's status is Error: that of a server span when the
// server's side broke, and of a client span whenever the exchange went wrong, as the
// conventions ask.
func bad(x *telemetry.Exchange) bool {
	if x.Plane == "edge" && x.Blame == telemetry.BlameClient {
		return x.HTTP.Status >= 500
	}
	return x.Blame != telemetry.BlameNone || x.HTTP.Status >= 500
}

func (w *wire) request(x *telemetry.Exchange) {
	w.http(x)
	if strings.HasPrefix(x.Route, "/") {
		w.text(keyHTTPRoute, x.Route)
	}
	w.text(keyPath, x.HTTP.Path)
	w.text(keyScheme, x.HTTP.Scheme)
	w.address(x.HTTP.Host)
	w.text(keyClientAddress, x.Caller)
	w.text(keyTarget, x.HTTP.Target)
	w.text(keyCache, x.HTTP.Cache)
}

// postgresql is the conventions' name of the database system.
const postgresql = "postgresql"

func (w *wire) query(x *telemetry.Exchange) {
	d := &x.DB
	w.text(keySystem, postgresql)
	w.text(keyNamespace, d.Database)
	w.text(keyOperation, d.Command)
	w.text(keySQLState, d.SQLState)
	if d.Queries > 1 {
		w.int(keyBatchSize, int64(d.Queries))
	}
	if d.Rows > 0 {
		w.int(keyRows, d.Rows)
	}
	w.text(keyQuery, d.Text)
	w.text(keyFingerprint, d.Fingerprint)
	if x.Took > 0 {
		w.double(keyServerTime, max(0, x.Took-x.Waited-d.Client).Seconds())
		w.double(keyClientTime, d.Client.Seconds())
	}
	w.address(x.HTTP.Target)
}

const (
	messages = "/v1/messages" // the route that the conventions have an operation for
	chat     = "chat"         // that operation
)

func (w *wire) call(x *telemetry.Exchange) {
	g := &x.GenAI
	w.http(x)
	w.text(keyProvider, "anthropic")
	if x.Route == messages {
		w.text(keyGenAI, chat)
	}
	w.asked(g)
	if g.AnswerID != "" && x.Route == messages {
		w.text(keyAnswer, g.AnswerID)
		w.text(keyAnswering, g.Model)
	}
	if g.Stream {
		w.yes(keyStream)
		if x.FirstByte > 0 {
			w.double(keyFirstChunk, x.FirstByte.Seconds())
		}
	}
	if g.StopReason != "" {
		w.texts(keyFinish, g.StopReason)
	}
	w.tokens(g)
	w.text(keyUpstreamID, g.UpstreamID)
	w.text(keySaved, g.Saved)
	w.text(keyVia, g.Via)
	w.text(keyDegraded, g.Degraded)
	w.text(keyReplayOf, g.ReplayOf)
	if g.CostNanoUSD > 0 {
		w.double(keyCost, float64(g.CostNanoUSD)/1e9)
	}
	w.address(x.HTTP.Target)
}

// asked is what the request says of how it wants to be answered. What it says to the
// model, stop sequences too, is nobody's business.
func (w *wire) asked(g *telemetry.GenAI) {
	w.text(keyModel, requested(g))
	w.count(keyMaxTokens, g.MaxTokens)
	w.number(keyTemperature, g.Temperature)
	w.number(keyTopP, g.TopP)
	w.number(keyTopK, g.TopK)
}

// requested is the model that was asked, as far as it is known.
func requested(g *telemetry.GenAI) string {
	if g.Asked != "" {
		return g.Asked
	}
	return g.Model
}

// number adds an attribute for a number as it was written, if it is one.
func (w *wire) number(k key, written string) {
	if written == "" {
		return
	}
	if f, err := strconv.ParseFloat(written, 64); err == nil {
		w.double(k, f)
	}
}

// count adds n if there is something to count.
func (w *wire) count(k key, n int64) {
	if n > 0 {
		w.int(k, n)
	}
}

// tokens: the conventions count cached input as input, Claude's API does not.
func (w *wire) tokens(g *telemetry.GenAI) {
	w.count(keyInput, g.InputTokens+g.CacheReadTokens+g.CacheWriteTokens)
	w.count(keyCacheRead, g.CacheReadTokens)
	w.count(keyCacheWrite, g.CacheWriteTokens)
	w.count(keyOutput, g.OutputTokens)
}

// attempt writes the span of x's attempt i.
func (w *wire) attempt(x *telemetry.Exchange, i int) {
	try := &x.Attempts[i]
	from := w.open(scopeSpansSpans)
	self := telemetry.NewSpanID()
	w.context(&x.Trace, &self, &x.Trace.SpanID)
	method := knownMethod(x.HTTP.Method)
	if x.HTTP.Method == "" {
		w.title("attempt", "", kindClient)
	} else {
		w.title(spanMethod(method), "", kindClient)
	}
	w.times(try.Start, try.Took)
	w.text(keyPlane, x.Plane)
	w.text(keyColor, x.Color)
	w.double(keyWait, try.Waited.Seconds())
	if x.HTTP.Method != "" {
		w.text(keyMethod, method)
		w.count(keyResend, int64(i))
	}
	w.text(keyUpstreamID, try.UpstreamID)
	if try.Status != 0 {
		w.int(keyStatus, int64(try.Status))
	}
	w.text(keyErrorType, try.Cause)
	w.address(try.Target)
	if try.Cause != "" {
		w.failed(try.Cause)
	}
	w.flags(uint32(x.Trace.Flags) | flagRemoteIsKnown)
	w.close(from)
}

func (w *wire) http(x *telemetry.Exchange) {
	h := &x.HTTP
	method := knownMethod(h.Method)
	w.text(keyMethod, method)
	if method != h.Method {
		w.text(keyMethodOriginal, h.Method)
	}
	if h.Status != 0 {
		w.int(keyStatus, int64(h.Status))
	}
	if version, ok := strings.CutPrefix(h.Proto, "HTTP/"); ok {
		w.text(keyProtocol, strings.TrimSuffix(version, ".0"))
	}
	w.int(keyRequestSize, x.BytesIn)
	w.int(keyResponseSize, x.BytesOut)
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
func (w *wire) address(hostport string) {
	if !strings.Contains(hostport, ":") { // as it mostly is; SplitHostPort would make an error of it
		w.text(keyServerAddress, hostport)
		return
	}
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		w.text(keyServerAddress, hostport)
		return
	}
	w.text(keyServerAddress, host)
	if n, err := strconv.Atoi(port); err == nil {
		w.int(keyServerPort, int64(n))
	}
}
