package telemetry

import (
	"encoding/hex"
	"strings"
	"testing"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestAValidTraceparentIsContinuedByANewSpan(t *testing.T) {
	for _, s := range []string{
		parent,
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",                    // a later version
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-is", // that says more
	} {
		var tr Trace
		tr.Continue(s, "vendor=1")
		if got := hex.EncodeToString(tr.TraceID[:]); got != "0af7651916cd43dd8448eb211c80319c" {
			t.Errorf("%s: trace id %s", s, got)
		}
		if got := hex.EncodeToString(tr.Parent[:]); got != "b7ad6b7169203331" {
			t.Errorf("%s: parent %s", s, got)
		}
		if tr.SpanID == tr.Parent || tr.SpanID == [8]byte{} {
			t.Errorf("%s: span id %x", s, tr.SpanID)
		}
		if tr.State != "vendor=1" || tr.Sampled() != (s[53:55] == "01") {
			t.Errorf("%s: state %q, sampled %v", s, tr.State, tr.Sampled())
		}
	}
}

func TestAMalformedTraceparentStartsANewSampledTrace(t *testing.T) {
	for _, s := range []string{
		"", "00", strings.Repeat("-", 55),
		"00-00000000000000000000000000000000-b7ad6b7169203331-01", // no trace
		"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", // no parent
		"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", // upper case
		"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", // forbidden version
		"0g-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
		"00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		parent + "-more", // version 00 has no more
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.more",
	} {
		var tr Trace
		tr.Continue(s, "vendor=1")
		if tr.TraceID == [16]byte{} || tr.SpanID == [8]byte{} || tr.Parent != [8]byte{} || !tr.Sampled() || tr.State != "" {
			t.Errorf("%q gave %+v", s, tr)
		}
	}
}

func TestTraceparentNamesThisSpanAsTheParentToBe(t *testing.T) {
	var tr, next Trace
	tr.Continue(parent, "")
	next.Continue(tr.Traceparent(), "")
	if next.TraceID != tr.TraceID || next.Parent != tr.SpanID || next.Flags != tr.Flags {
		t.Fatalf("%+v was continued as %+v", tr, next)
	}
}

func FuzzTraceparent(f *testing.F) {
	for _, s := range []string{parent, "", "cc" + parent[2:] + "-x", parent[:54], strings.ToUpper(parent), "00-\xff\xfe"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var tr Trace
		tr.Continue(s, "k=v")
		if tr.TraceID == [16]byte{} || tr.SpanID == [8]byte{} {
			t.Fatalf("%q gave an invalid context %+v", s, tr)
		}
		if tr.Parent == [8]byte{} {
			return // a new trace
		}
		again := string(tr.AppendTraceparent(nil, tr.Parent))
		if again[3:] != s[3:55] {
			t.Fatalf("%q was read as %q", s, again)
		}
	})
}

func BenchmarkContinue(b *testing.B) {
	var tr Trace
	b.ReportAllocs()
	for b.Loop() {
		tr.Continue(parent, "")
	}
}
