package otlp

import (
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of OTLP's messages
// (https://github.com/open-telemetry/opentelemetry-proto, opentelemetry/proto/trace/v1/trace.proto and its like).
const (
	requestResourceSpans = 1 // ExportTraceServiceRequest

	resourceSpansResource = 1
	resourceSpansScopes   = 2
	resourceSpansSchema   = 3

	resourceAttributes = 1

	scopeSpansScope  = 1
	scopeSpansSpans  = 2
	scopeSpansSchema = 3

	scopeName = 1

	spanTraceID    = 1
	spanID         = 2
	spanTraceState = 3
	spanParent     = 4
	spanName       = 5
	spanKind       = 6
	spanStart      = 7
	spanEnd        = 8
	spanAttributes = 9
	spanStatus     = 15
	spanFlags      = 16

	statusMessage = 2
	statusCode    = 3

	keyValueKey   = 1
	keyValueValue = 2

	valueText   = 1
	valueFlag   = 2
	valueInt    = 3
	valueDouble = 4
	valueArray  = 5

	arrayValues = 1
)

// wire is a message of protocol buffers as it is written, field by field in the order of
// their numbers (https://protobuf.dev/programming-guides/encoding/). Nothing of it
// allocates but the growth of the slice, and the mending of text that is not UTF-8.
type wire []byte

func (w *wire) tag(field protowire.Number, kind protowire.Type) {
	w.size(int(protowire.EncodeTag(field, kind)))
}

// size writes a length or a tag, which mostly have one byte.
func (w *wire) size(n int) {
	if n < 0x80 {
		*w = append(*w, byte(n))
		return
	}
	*w = protowire.AppendVarint(*w, uint64(n))
}

func (w *wire) varint(field protowire.Number, v uint64) {
	w.tag(field, protowire.VarintType)
	*w = protowire.AppendVarint(*w, v)
}

func (w *wire) bytes(field protowire.Number, b []byte) {
	w.tag(field, protowire.BytesType)
	w.size(len(b))
	*w = append(*w, b...)
}

func (w *wire) string(field protowire.Number, s string) {
	w.tag(field, protowire.BytesType)
	w.size(len(s))
	*w = append(*w, s...)
}

// time writes nanoseconds since 1970; what was before is 0, which a message leaves out.
func (w *wire) time(field protowire.Number, t time.Time) {
	if n := t.UnixNano(); n > 0 {
		w.tag(field, protowire.Fixed64Type)
		*w = protowire.AppendFixed64(*w, uint64(n))
	}
}

// open begins a message within the message; close ends it and writes its length, for
// which open leaves room.
func (w *wire) open(field protowire.Number) (from int) {
	w.tag(field, protowire.BytesType)
	*w = append(*w, 0, 0) // enough for 16 kB, which nearly every span is below
	return len(*w)
}

func (w *wire) close(from int) {
	const room = 2
	b := *w
	n := len(b) - from
	switch need := protowire.SizeVarint(uint64(n)); {
	case need > room:
		var more [8]byte
		b = append(b, more[:need-room]...)
		copy(b[from+need-room:], b[from:from+n])
	case need < room:
		copy(b[from-1:], b[from:])
		b = b[:len(b)-1]
	}
	protowire.AppendVarint(b[:from-room], uint64(n))
	*w = b
}

// A key is an attribute's name as it stands in a KeyValue, made once.
type key string

func newKey(name string) key {
	var w wire
	w.string(keyValueKey, name)
	return key(w)
}

// attribute begins an attribute of the span whose value, an AnyValue, will be n bytes.
func (w *wire) attribute(k key, n int) {
	w.tag(spanAttributes, protowire.BytesType)
	w.keyValue(k, n)
}

func (w *wire) keyValue(k key, n int) {
	w.size(len(k) + 1 + protowire.SizeBytes(n))
	*w = append(*w, k...)
	w.tag(keyValueValue, protowire.BytesType)
	w.size(n)
}

// text adds v, cleaned, if it is not empty.
func (w *wire) text(k key, v string) {
	if v == "" {
		return
	}
	v = clean(v)
	w.attribute(k, 1+protowire.SizeBytes(len(v)))
	w.string(valueText, v)
}

// texts adds an array of v alone.
func (w *wire) texts(k key, v string) {
	v = clean(v)
	one := 1 + protowire.SizeBytes(len(v))
	array := 1 + protowire.SizeBytes(one)
	w.attribute(k, 1+protowire.SizeBytes(array))
	w.tag(valueArray, protowire.BytesType)
	w.size(array)
	w.tag(arrayValues, protowire.BytesType)
	w.size(one)
	w.string(valueText, v)
}

func (w *wire) int(k key, v int64) {
	w.attribute(k, 1+protowire.SizeVarint(uint64(v)))
	w.varint(valueInt, uint64(v))
}

func (w *wire) double(k key, v float64) {
	w.attribute(k, 1+protowire.SizeFixed64())
	w.tag(valueDouble, protowire.Fixed64Type)
	*w = protowire.AppendFixed64(*w, math.Float64bits(v))
}

// yes adds an attribute that is true.
func (w *wire) yes(k key) {
	w.attribute(k, 2)
	w.varint(valueFlag, 1)
}

// maxText bounds every string of a span, in bytes.
const maxText = 2048

// clean bounds s and makes it UTF-8: receivers refuse a whole batch for one string that
// is not, and paths and models are whatever clients send.
func clean(s string) string { return cleanTo(s, maxText) }

func cleanTo(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	if utf8.ValidString(s) { // as nearly everything is, and much quicker to see
		return s
	}
	return strings.ToValidUTF8(s, "?")
}
