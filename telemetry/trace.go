package telemetry

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
)

// Trace is a W3C trace context (https://www.w3.org/TR/trace-context/): the trace
// an exchange belongs to, the exchange's own span, and the span it is a child of.
type Trace struct {
	TraceID [16]byte
	SpanID  [8]byte
	Parent  [8]byte // zero: this span is the root
	Flags   byte
	State   string // tracestate, passed on unread
}

// Sampled reports whether the caller asked for this trace to be kept.
func (t *Trace) Sampled() bool { return t.Flags&1 != 0 }

// Continue makes t a new span below the one that traceparent names, or the root
// of a new, sampled trace when traceparent is absent or malformed. tracestate is
// kept only with a valid traceparent, as the specification asks.
func (t *Trace) Continue(traceparent, tracestate string) {
	*t = Trace{}
	if t.parse(traceparent) {
		t.State = tracestate
	} else {
		fill(t.TraceID[:])
		t.Flags = 1
	}
	fill(t.SpanID[:])
}

// NewSpanID returns a fresh span id, for a child span such as an attempt.
func NewSpanID() (id [8]byte) {
	fill(id[:])
	return id
}

// fill writes random bytes that are not all zero. Ids need to be unique, not
// secret, so the runtime's own generator serves.
func fill(b []byte) {
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rand.Uint64()|1)
	}
}

// parse reads a traceparent of any version: 00-<32 hex>-<16 hex>-<2 hex>, to
// which versions after 00 may append more.
func (t *Trace) parse(s string) bool {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" ||
		(len(s) > 55 && (s[:2] == "00" || s[55] != '-')) {
		return false
	}
	var version, flags [1]byte
	if !unhex(version[:], s[:2]) || !unhex(t.TraceID[:], s[3:35]) || !unhex(t.Parent[:], s[36:52]) || !unhex(flags[:], s[53:55]) ||
		t.TraceID == [16]byte{} || t.Parent == [8]byte{} {
		*t = Trace{}
		return false
	}
	t.Flags = flags[0]
	return true
}

// unhex decodes lower-case hex only, as the specification asks.
func unhex(dst []byte, s string) bool {
	for i := range dst {
		hi, lo := nibbles[s[2*i]], nibbles[s[2*i+1]]
		if hi|lo > 15 {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

// nibbles is what a hexadecimal digit stands for, 0xff for what is none.
var nibbles = func() (n [256]byte) {
	for c := range n {
		n[c] = 0xff
	}
	for v, c := range []byte("0123456789abcdef") {
		n[c] = byte(v)
	}
	return n
}()

// Traceparent renders the context that goes upstream: the upstream's parent is
// this exchange's span.
func (t *Trace) Traceparent() string {
	return string(t.AppendTraceparent(make([]byte, 0, 55), t.SpanID))
}

// AppendTraceparent appends the header value with span as the parent to be.
func (t *Trace) AppendTraceparent(b []byte, span [8]byte) []byte {
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, t.TraceID[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, span[:])
	b = append(b, '-')
	return hex.AppendEncode(b, []byte{t.Flags})
}
