package head

import (
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"mainstay.dev/mainstay/identity"
)

func TestAHeadIsWhatTheHeaderSays(t *testing.T) {
	h := http.Header{
		"X-Api-Key": {"key"}, "Authorization": {"Bearer token"}, "Anthropic-Version": {"2023-06-01"},
		"Anthropic-Beta": {"a", "b"}, "Content-Type": {"application/json"}, "X-Request-Id": {"id", "other"},
		"Traceparent": {"parent"}, "Tracestate": {"state"}, identity.Header: {"sealed"}, Deadline: {"30s"},
		Recovery: {"off"}, Priority: {"low"}, Aggregate: {"off"}, "X-Stainless-Timeout": {"600"},
		"X-Stainless-Retry-Count": {"1"}, "Expect": {"100-continue"}, "User-Agent": {"sdk"},
		"Accept-Encoding": {"gzip"}, "Connection": {"close"}, "X-Of-Nobody": nil,
	}
	want := Head{
		Key: []string{"key"}, Authorization: []string{"Bearer token"}, Version: []string{"2023-06-01"},
		Beta: []string{"a", "b"}, Type: []string{"application/json"}, ID: "id",
		Traceparent: "parent", Tracestate: "state", Identity: "sealed", Deadline: "30s",
		Recovery: "off", Priority: "low", Aggregate: "off", Timeout: "600", RetryCount: "1",
		Own: true, Hops: true, Expects: true, Named: true, Coded: true,
	}
	for name, values := range h {
		for _, v := range values {
			want.Size += len(name) + len(v)
		}
	}
	got := Read(h)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if got := Read(http.Header{}); !reflect.DeepEqual(got, Head{}) {
		t.Errorf("of nothing: %+v", got)
	}
	got.Strip(h)
	for _, name := range []string{Deadline, Recovery, Priority, Aggregate} {
		if _, there := h[name]; there {
			t.Errorf("%s goes on", name)
		}
	}
	if len(h) != 16 {
		t.Errorf("%d headers are left", len(h))
	}
}

// One that says nothing is taken off all the same, and each hop is seen by itself.
func TestWhatGoesNoFurtherIsSeenByItself(t *testing.T) {
	for _, name := range []string{Deadline, Recovery, Priority, Aggregate} {
		h := http.Header{name: {""}}
		d := Read(h)
		if d.Strip(h); !d.Own || len(h) != 0 {
			t.Errorf("%s: %+v, %v", name, d, h)
		}
	}
	for _, name := range hops {
		h := http.Header{name: {"x"}}
		if !Read(h).Hops {
			t.Errorf("%s is not seen", name)
		}
		if DropHops(h); len(h) != 0 {
			t.Errorf("%s goes on", name)
		}
	}
	h := http.Header{"Connection": {"X-One, close", "X-Two"}, "X-One": {"1"}, "X-Two": {"2"}, "X-Three": {"3"}}
	if DropHops(h); !slices.Equal(slices.Collect(maps.Keys(h)), []string{"X-Three"}) {
		t.Errorf("%v", h)
	}
}

func TestASecretIsTheKeyElseTheToken(t *testing.T) {
	for _, c := range []struct {
		key, authorization []string
		want               string
	}{
		{nil, nil, ""},
		{[]string{"key"}, []string{"Bearer token"}, "key"},
		{[]string{""}, []string{"bearer token"}, "token"},
		{nil, []string{"Basic abc"}, "Basic abc"},
		{nil, []string{"abc"}, "abc"},
		{[]string{}, []string{}, ""},
	} {
		if got := (&Head{Key: c.key, Authorization: c.authorization}).Secret(); got != c.want {
			t.Errorf("%v, %v: %q, want %q", c.key, c.authorization, got, c.want)
		}
	}
}

func TestReadingAllocatesNothing(t *testing.T) {
	h := http.Header{"X-Api-Key": {"key"}, "Content-Type": {"application/json"}, "User-Agent": {"sdk"}, "Accept-Encoding": {"gzip"}}
	size := 0
	if n := testing.AllocsPerRun(100, func() { d := Read(h); size += d.Size + len(d.Secret()) }); n != 0 || size == 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzReadable(f *testing.F) {
	for _, s := range []string{"", "gzip", "br, gzip;q=0.5", "identity;q=0", "*", ",,;;"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h := http.Header{"Accept-Encoding": {s}}
		Readable(h)
		now := strings.Join(h["Accept-Encoding"], ",")
		if Readable(h); strings.Join(h["Accept-Encoding"], ",") != now {
			t.Errorf("%q became %q, and then %q", s, now, h["Accept-Encoding"])
		}
	})
}

func BenchmarkRead(b *testing.B) {
	h := http.Header{
		"X-Api-Key": {"key"}, "Content-Type": {"application/json"}, "User-Agent": {"sdk"}, "Accept-Encoding": {"gzip"},
		"Anthropic-Version": {"2023-06-01"}, "Content-Length": {"1000"},
	}
	b.ReportAllocs()
	for b.Loop() {
		d := Read(h)
		d.Strip(h)
	}
}
