package sse

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type told struct {
	Name, Data string
	Cut        bool
}

// feed feeds the stream in pieces of n bytes, each in a buffer that is overwritten
// afterwards, and returns the events and how many bytes led up to the last place
// between two events.
func feed(s *Scanner, stream string, n int) (events []told, whole int) {
	for at := 0; at < len(stream); at += n {
		p := []byte(stream[at:min(at+n, len(stream))])
		if w := s.Feed(p, func(e Event) { events = append(events, told{string(e.Name), string(e.Data), e.Cut}) }); w > 0 {
			whole = at + w
		}
		clear(p)
	}
	return events, whole
}

var streams = []struct {
	name, stream string
	want         []told
	whole        int // bytes up to the last place between events; -1: all
}{
	{"two events", "event: a\ndata: 1\n\nevent: b\ndata: 2\n\n", []told{{Name: "a", Data: "1"}, {Name: "b", Data: "2"}}, -1},
	{"carriage returns", "event: a\r\ndata: 1\r\n\r\nevent: b\r\ndata: 2\r\n\r\n", []told{{Name: "a", Data: "1"}, {Name: "b", Data: "2"}}, -1},
	{"lone carriage returns", "event: a\rdata: 1\r\rdata:2\r\r", []told{{Name: "a", Data: "1"}, {Data: "2"}}, -1},
	{"several data lines", "data: 1\ndata\ndata:  2\n\n", []told{{Data: "1\n\n 2"}}, -1},
	{"data before its name", "data: 1\nevent: a\n\n", []told{{Name: "a", Data: "1"}}, -1},
	{"comments and unknown fields", ": hello\nid: 3\nretry: 5\ndata: x\n\n", []told{{Data: "x"}}, -1},
	{"byte order mark", "\xef\xbb\xbfevent: a\ndata: 1\n\n", []told{{Name: "a", Data: "1"}}, -1},
	{"blank lines between", "\n\ndata: 1\n\n\n\n", []told{{Data: "1"}}, -1},
	{"an unfinished event", "data: 1\n\ndata: 2\n", []told{{Data: "1"}}, 9},
	{"an unfinished line", "data: 1\n\ndat", []told{{Data: "1"}}, 9},
	{"a comment alone", ": keep-alive\n\n", nil, -1},
	{"a long event", "event: e\ndata: " + strings.Repeat("x", 100) + "\n\ndata: 2\n\n", []told{{Name: "e", Cut: true}, {Data: "2"}}, -1},
	{"long data lines together", "data: " + strings.Repeat("x", 40) + "\ndata: " + strings.Repeat("y", 40) + "\n\ndata: 2\n\n", []told{{Cut: true}, {Data: "2"}}, -1},
	{"nothing", "", nil, -1},
}

func TestEventsAreTheSameHoweverTheirBytesArrive(t *testing.T) {
	for _, c := range streams {
		for n := 1; n <= len(c.stream)+1; n++ {
			s := Scanner{Limit: 64}
			got, whole := feed(&s, c.stream, n)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Fatalf("%s, %d bytes at a time: %s", c.name, n, d)
			}
			want := c.whole
			if want < 0 {
				want = len(c.stream)
			}
			if whole != want || s.Between() != (want == len(c.stream)) {
				t.Fatalf("%s, %d bytes at a time: whole up to %d, want %d; between: %v", c.name, n, whole, want, s.Between())
			}
		}
	}
}

func TestAnEventInOnePieceIsReadWithoutCopies(t *testing.T) {
	s, p := Scanner{}, []byte("event: content_block_delta\ndata: {\"type\":\"content_block_delta\"}\n\n")
	found := func(Event) {}
	s.Feed(p, found)
	if n := testing.AllocsPerRun(100, func() { s.Feed(p, found) }); n > 0 {
		t.Errorf("%v allocations per event", n)
	}
}

func FuzzFeed(f *testing.F) {
	for _, c := range streams {
		f.Add([]byte(c.stream), 3)
	}
	f.Fuzz(func(t *testing.T, stream []byte, n int) {
		if n = n % 50; n < 1 {
			n = 1
		}
		one, bits := Scanner{Limit: 64}, Scanner{Limit: 64}
		want, whole := feed(&one, string(stream), len(stream)+1)
		got, inBits := feed(&bits, string(stream), n)
		if d := cmp.Diff(want, got); d != "" || whole != inBits {
			t.Errorf("in pieces of %d: up to %d instead of %d; %s", n, inBits, whole, d)
		}
		if whole > 0 && !bytes.HasSuffix(stream[:whole], []byte("\n")) && !bytes.HasSuffix(stream[:whole], []byte("\r")) {
			t.Errorf("%d bytes are no whole events", whole)
		}
		if len(one.data)+len(one.line)+len(bits.data)+len(bits.line) > 4*128 {
			t.Error("more is kept than the limit allows")
		}
	})
}

func BenchmarkFeed(b *testing.B) {
	p := []byte("event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello there\"}}\n\n")
	var s Scanner
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		s.Feed(p, func(Event) {})
	}
}
