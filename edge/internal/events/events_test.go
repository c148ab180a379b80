package events

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// boundaries are the places at which text may be cut, by the words of the
// standard: split into lines, an event ends with an empty one.
func boundaries(text string) map[int]bool {
	at := map[int]bool{0: true}
	line, event := 0, false
	for i := 0; i < len(text); i++ {
		if text[i] != '\n' && text[i] != '\r' {
			continue
		}
		empty := i == line
		if text[i] == '\r' && i+1 < len(text) && text[i+1] == '\n' {
			i++
		}
		line = i + 1
		if event = !empty; !event {
			at[line] = true
		}
	}
	return at
}

// end is where a stream ends that reads text in pieces and is to end at once
// after the first n bytes of it.
func end(t *testing.T, text string, n int, o Options) int {
	t.Helper()
	s := New(io.NopCloser(io.MultiReader(strings.NewReader(text[:n]), strings.NewReader(text[n:]))), o)
	var got bytes.Buffer
	p := make([]byte, 1<<16)
	for got.Len() < n {
		k, err := s.Read(p)
		if got.Write(p[:k]); err != nil {
			t.Fatal(err)
		}
	}
	s.Farewell()
	if _, err := io.Copy(&got, s); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(text, got.String()) {
		t.Fatalf("%q became %q", text, got.String())
	}
	return got.Len()
}

func TestAStreamEndsAtTheNextBoundaryAndNowhereElse(t *testing.T) {
	for _, text := range []string{
		"data: one\n\ndata: two\ndata: two\n\nid: 3\ndata: three\n\n",
		"data: one\r\n\r\ndata: two\r\n\r\n: comment\r\n\r\n\r\ndata: x\r\n\r\n",
		"data: one\r\rdata: two\r\r",
		"\n\n\ndata: x\r\n\ndata: y\n\r\ndata",
	} {
		for n := range len(text) {
			got := end(t, text, n, Options{Closes: true})
			marks := boundaries(text)
			// Between CR and LF a client has seen the line end already.
			if ok := marks[got] || got > 0 && text[got-1] == '\r' && marks[got+1]; !ok && got != len(text) {
				t.Errorf("%q, farewell at %d: cut at %d", text, n, got)
			}
			for m := n; m < got; m++ {
				if marks[m] {
					t.Errorf("%q, farewell at %d: went on over the boundary at %d to %d", text, n, m, got)
				}
			}
		}
	}
}

func TestAStreamThatNobodyCouldResumeGoesOnUntilTheLast(t *testing.T) {
	text := "data: one\n\nid: 2\ndata: two\n\ndata: three\n\n"
	second := strings.Index(text, "data: three")
	for _, tc := range []struct {
		name string
		o    Options
		want int
	}{
		{"closes whatever it says", Options{Closes: true}, 11},
		{"has no id yet", Options{Closes: true, Resumes: true}, second},
		{"its client has one", Options{Closes: true, Resumes: true, Resumable: true}, 11},
		{"may not be closed", Options{}, len(text)},
	} {
		if got := end(t, text, 11, tc.o); got != tc.want {
			t.Errorf("%s: ended at %d, want %d", tc.name, got, tc.want)
		}
	}
	s := New(io.NopCloser(strings.NewReader(text)), Options{Closes: true, Resumes: true})
	s.Last()
	if b, err := io.ReadAll(s); len(b) != 0 || err != nil {
		t.Errorf("after the last farewell: %q %v", b, err)
	}
}

func TestOnlyASilentStreamIsHeardAndOnlyBetweenEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, app := io.Pipe()
		var told int
		s := New(in, Options{Every: 10 * time.Second, Write: func(b []byte) error {
			if string(b) != ": keep-alive\n\n" {
				t.Errorf("wrote %q", b)
			}
			told++
			return nil
		}})
		go func() { _, _ = io.Copy(io.Discard, s); s.Close() }()
		for _, step := range []struct {
			say  string
			wait time.Duration
			want int
		}{
			{"", 35 * time.Second, 3}, {"data: x\n", time.Hour, 0}, {"\n", 9 * time.Second, 0}, {"data: y\n\n", 9 * time.Second, 0}, {"\n", 21 * time.Second, 2},
		} {
			told = 0
			io.WriteString(app, step.say)
			time.Sleep(step.wait)
			synctest.Wait()
			if told != step.want {
				t.Errorf("after %q and %v of silence: %d comments, want %d", step.say, step.wait, told, step.want)
			}
		}
		app.Close()
	})
}

func TestAClientThatTakesNoCommentIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, app := io.Pipe()
		gone := errors.New("gone")
		s := New(in, Options{Every: time.Second, Write: func([]byte) error { return gone }})
		_, err := io.Copy(io.Discard, s)
		if !errors.Is(err, gone) {
			t.Errorf("got %v", err)
		}
		if _, err := io.WriteString(app, "x"); err == nil {
			t.Error("the app was not told")
		}
	})
}

func FuzzACutStreamIsAPrefixThatEndsAtABoundary(f *testing.F) {
	f.Add("data: x\n\n", 3)
	f.Add("id: 1\r\n\r\ndata\r\r\n", 9)
	f.Fuzz(func(t *testing.T, text string, n int) {
		if n < 0 || n > len(text) {
			return
		}
		got := end(t, text, n, Options{Closes: true})
		if marks := boundaries(text); got != len(text) && !marks[got] && !marks[got+1] {
			t.Errorf("%q cut at %d after %d", text, got, n)
		}
	})
}
