package output

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

func TestLinesAreSplitWhereverTheStreamIsCut(t *testing.T) {
	const text = "one\n\ntwo\r\nthree"
	for cut := range len(text) {
		var s Splitter
		var got []string
		add := func(b []byte, more int) { got = append(got, fmt.Sprintf("%q+%d", b, more)) }
		s.Take([]byte(text[:cut]), add)
		s.Take([]byte(text[cut:]), add)
		s.Flush(add)
		s.Flush(add)
		if want := []string{`"one"+0`, `""+0`, `"two\r"+0`, `"three"+0`}; !slices.Equal(got, want) {
			t.Errorf("cut at %d: %q", cut, got)
		}
	}
}

func TestALongLineIsCutAndCounted(t *testing.T) {
	var s Splitter
	j := Journal{Say: func(string, slog.Level, int) {}}
	s.Take([]byte(strings.Repeat("x", MaxLine+100)+"\nnext\n"), j.Add)
	l := j.Last()
	if len(l) != 2 || len(l[0]) > 510 || l[1] != "next" {
		t.Errorf("%q", l)
	}
	if got := j.Keep([]byte("head"), 100); got != "head … (100 bytes more)" {
		t.Errorf("%q", got)
	}
}

func TestTooManyLinesAreCountedNotSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said, skips, counted := 0, 0, 0
		j := Journal{Count: func(slog.Level) { counted++ }, Say: func(_ string, _ slog.Level, skipped int) { said++; skips += skipped }}
		time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
		for i := range MaxRate + 50 {
			j.Add(fmt.Append(nil, "line ", i), 0)
		}
		if said != MaxRate || skips != 0 {
			t.Errorf("said %d, skipped %d", said, skips)
		}
		time.Sleep(time.Second)
		j.Add([]byte("later"), 0)
		if said != MaxRate+1 || skips != 50 {
			t.Errorf("said %d, skipped %d", said, skips)
		}
		if counted != MaxRate+51 {
			t.Errorf("counted %d", counted)
		}
		if l := j.Last(); len(l) != LastLines || l[LastLines-1] != "later" || l[LastLines-2] != fmt.Sprint("line ", MaxRate+49) {
			t.Errorf("%q", l)
		}
	})
}

func FuzzLinesAreFitToBeShown(f *testing.F) {
	f.Add([]byte("plain\nline\n"))
	f.Add([]byte("\x1b[31mred\x1b[0m \x1b[unfinished"))
	f.Add([]byte("\xff\x00\x07\u2028\u0085\n\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Splitter
		j := Journal{Say: func(l string, _ slog.Level, _ int) {
			if !utf8.ValidString(l) || strings.ContainsAny(l, "\x00\x1b\n\r\u2028\u2029\u0085") || len(l) > 3*MaxLine+50 {
				t.Errorf("%q", l)
			}
		}}
		s.Take(b, j.Add)
		s.Flush(j.Add)
		for _, l := range j.Last() {
			if len(l) > 600 || !utf8.ValidString(l) {
				t.Errorf("%q", l)
			}
		}
	})
}
