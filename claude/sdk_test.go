package claude_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

// client is the official one, without retries of its own.
func client(url string, opts ...option.RequestOption) anthropic.Client {
	return anthropic.NewClient(append([]option.RequestOption{
		option.WithBaseURL(url), option.WithAPIKey(key), option.WithMaxRetries(0),
	}, opts...)...)
}

func ask(text string) anthropic.MessageNewParams {
	return anthropic.MessageNewParams{
		Model: "claude-sonnet-5", MaxTokens: 256,
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(text))},
	}
}

// converse makes one call, whole or streamed, and checks that its answer is all
// there.
func converse(t *testing.T, c anthropic.Client, text string, streamed bool) error {
	if !streamed {
		m, err := c.Messages.New(t.Context(), ask(text))
		if err == nil && (m.StopReason != "end_turn" || len(m.Content) != 1) {
			err = fmt.Errorf("not whole: %s", m.RawJSON())
		}
		return err
	}
	s, m, ended := c.Messages.NewStreaming(t.Context(), ask(text)), anthropic.Message{}, false
	defer s.Close()
	for s.Next() {
		if err := m.Accumulate(s.Current()); err != nil {
			return err
		}
		ended = s.Current().Type == "message_stop"
	}
	if s.Err() == nil && (!ended || m.StopReason != "end_turn") {
		return fmt.Errorf("a stream ended too early, and seemed well: %s", m.RawJSON())
	}
	return s.Err()
}

// crowd makes n calls from a few goroutines, half of them streamed, and returns how
// many failed.
func crowd(t *testing.T, c anthropic.Client, n int) (failed int64) {
	var errs atomic.Int64
	var wg sync.WaitGroup
	next := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range next {
				if err := converse(t, c, fmt.Sprintf("call %d", i), i%2 == 0); err != nil {
					if errs.Add(1) < 5 {
						t.Logf("call %d: %v", i, err)
					}
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return errs.Load()
}

// sevenTries makes it next to impossible that a call meets nothing but faults.
func sevenTries(c *claude.Config) { c.Retry.MaxRetries = 6 }

func TestWithFivePercentFaultsTheOfficialGoClientSeesNone(t *testing.T) {
	const calls = 2000
	st, fake := over(t, claudetest.Options{Seed: 20260801, FaultRate: 0.05, RetryAfter: "0.002"}, sevenTries)
	if failed := crowd(t, client(st.url), calls); failed != 0 {
		t.Errorf("%d of %d calls failed", failed, calls)
	}
	faults := 0
	for _, n := range fake.Counts().Faults {
		faults += n
	}
	s := st.Stats()
	if faults < calls/30 || s.Retries != int64(faults) || s.Failed != 0 || s.Attempts != calls+s.Retries {
		t.Errorf("%d faults; %+v", faults, s)
	}
	t.Logf("%d calls, %d faults met, %d errors seen", calls, faults, s.Failed)
}

func TestTheOfficialGoClientSeesEveryEndOfAStreamForWhatItIs(t *testing.T) {
	st, fake := over(t, claudetest.Options{}, nil)
	c := client(st.url)
	for _, f := range claudetest.StreamFaults()[:6] { // all but the stall
		fake.Next(f)
		err := converse(t, c, "x", true)
		if err == nil {
			t.Errorf("%s: no error", f)
		}
		api, ok := errors.AsType[*anthropic.Error](err)
		want := anthropic.ErrorType("overloaded_error")
		if f == claudetest.Cut || f == claudetest.CutBetween || f == claudetest.EndEarly {
			want = "api_error"
		}
		if !ok || api.Type() != want {
			t.Errorf("%s: %v, want an %s", f, err, want)
		}
	}
}

func TestTheTransportIsTheSameEngine(t *testing.T) {
	fake := claudetest.New(claudetest.Options{Seed: 4, FaultRate: 0.05, RetryAfter: "0.002"})
	fake.Start(t)
	p := claude.Compatible()
	p.Base, p.Max = time.Millisecond, 6
	b, logs := &book{}, &safe{}
	tr := &claude.Transport{Policy: &p, Sink: b, Log: slog.New(slog.NewTextHandler(logs, nil))}
	c := client(fake.URL(), option.WithHTTPClient(&http.Client{Transport: tr}))
	if failed := crowd(t, c, 1000); failed != 0 {
		t.Errorf("%d of 1000 calls failed", failed)
	}
	if b.len() != 1000 {
		t.Errorf("%d calls were written down", b.len())
	}
	fake.SetFaults(0)
	for i, f := range claudetest.StreamFaults()[:6] {
		fake.Next(f)
		if err := converse(t, c, "x", true); err == nil {
			t.Errorf("%s: no error", f)
		}
		want := "stream_error"
		if f == claudetest.Cut || f == claudetest.CutBetween || f == claudetest.EndEarly {
			want = "upstream_cut"
		}
		if x := b.last(t, 1001+i); x.Code != want || x.GenAI.Model == "" && f != claudetest.ErrorFirst {
			t.Errorf("%s: %s, model %q", f, x.Code, x.GenAI.Model)
		}
	}
	fake.SetFaults(1, claudetest.Overloaded)
	_, err := c.Messages.New(t.Context(), ask("x"))
	if api, ok := errors.AsType[*anthropic.Error](err); !ok || api.StatusCode != 529 {
		t.Errorf("%v", err)
	}
	if x := b.last(t, 1007); x.Code != "overloaded" || x.Tries != 7 || x.GenAI.ErrorType != "overloaded_error" {
		t.Errorf("%s, %d tries, %s", x.Code, x.Tries, x.GenAI.ErrorType)
	}
	fake.Close()
	if _, err := c.Messages.New(t.Context(), ask("x")); err == nil {
		t.Error("a closed server answered")
	}
	if x := b.last(t, 1008); x.Code != "unreachable" || x.GenAI.Model != "claude-sonnet-5" || x.Attempts[3].Cause != "connect" {
		t.Errorf("%s, model %q, %+v", x.Code, x.GenAI.Model, x.Attempts)
	}
}
