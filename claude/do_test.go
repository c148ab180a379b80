package claude_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

func TestDoTriesAgainWhatItsJudgeSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := claude.Compatible()
		p.Jitter = 0
		for _, c := range []struct {
			err   error
			tries int
			took  time.Duration
		}{
			{io.ErrUnexpectedEOF, 4, 7 * time.Second},
			{fmt.Errorf("post: %w", http.ErrServerClosed), 1, 0},
			{errors.New("a bug"), 1, 0},
			{nil, 1, 0},
		} {
			tries, begun := 0, time.Now()
			tr := &claude.Transport{Policy: &p}
			_, err := claude.Do(t.Context(), tr, func(context.Context, *http.Client) (int, error) { tries++; return 1, c.err })
			if took := time.Since(begun); !errors.Is(err, c.err) || tries != c.tries || took != c.took {
				t.Errorf("%v: %d tries in %v, then %v", c.err, tries, took, err)
			}
		}
	})
}

func TestAnAnswerIsJudgedByItsHead(t *testing.T) {
	for status, again := range map[int]bool{200: false, 302: false, 400: false, 404: false, 408: true, 409: true, 429: true, 500: true, 529: true} {
		res := &http.Response{StatusCode: status, Header: http.Header{"Retry-After": {"2"}}}
		if a, after := claude.JudgeResponse(res); a != again || again && after != 2*time.Second {
			t.Errorf("%d: %v after %v", status, a, after)
		}
	}
	if again, _ := claude.JudgeResponse(nil); again {
		t.Error("no answer is not to be judged")
	}
}

// dripping is a base transport whose answers and requests a test shapes.
type dripping func(*http.Request) (*http.Response, error)

func (d dripping) RoundTrip(r *http.Request) (*http.Response, error) { return d(r) }

func TestTheTransportSendsTheBodyAgainAndClosesIt(t *testing.T) {
	for name, size := range map[string]int64{"by GetBody": 0, "kept": 3, "of unknown length": -1} {
		synctest.Test(t, func(t *testing.T) {
			var sent []string
			base := dripping(func(r *http.Request) (*http.Response, error) {
				b, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				sent = append(sent, string(b))
				status := 500
				if len(sent) == 3 {
					status = 200
				}
				return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("hm")), ContentLength: 2}, nil
			})
			closed := &closing{Reader: strings.NewReader("abc")}
			req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://claude.test/v1/messages", closed)
			req.ContentLength = size
			if size == 0 {
				req.ContentLength = 3
				req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("abc")), nil }
			}
			b := &book{}
			res, err := (&claude.Transport{Base: base, Sink: b}).RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if strings.Join(sent, ",") != "abc,abc,abc" || !closed.closed || b.last(t, 1).BytesIn != 3 {
				t.Errorf("%s: sent %q, closed %v, %d in", name, sent, closed.closed, b.last(t, 1).BytesIn)
			}
		})
	}
}

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

func TestClosingABodyThatSaysNothingFreesItsReader(t *testing.T) {
	fake := claudetest.New(claudetest.Options{})
	b := &book{}
	c := &http.Client{Transport: &claude.Transport{Sink: b, Base: &http.Transport{}}}
	fake.Next(claudetest.Stall)
	req, _ := http.NewRequestWithContext(t.Context(), "POST", fake.Start(t)+"/v1/messages", strings.NewReader(helloS))
	req.Header.Set("X-Api-Key", key)
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("Content-Type", "application/json")
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(res.Body, make([]byte, 100))
	ended := make(chan error)
	go func() {
		_, err := io.Copy(io.Discard, res.Body)
		ended <- err
	}()
	_ = res.Body.Close()
	if err := <-ended; err == nil {
		t.Error("the reader was told that all is well")
	}
	if x := b.last(t, 1); x.Code != "client_gone" {
		t.Errorf("%s", x.Code)
	}
}
