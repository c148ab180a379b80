package claude_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go/option"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

func TestAnSDKsRetryAttachesToTheAttemptThatIsStillRunning(t *testing.T) {
	fake := claudetest.New(claudetest.Options{Latency: 20 * time.Second})
	inBubble(t, fake, patient, func(t *testing.T, st *stage) {
		const calls = 10
		for range calls { // each of the client's tries is shorter than the answer takes
			hurried := visitor(st, option.WithMiddleware(func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
				ctx, cancel := context.WithTimeout(r.Context(), 14*time.Second)
				context.AfterFunc(ctx, cancel)
				return next(r.WithContext(ctx))
			}))
			if err := converse(t, hurried, "hello", false); err != nil {
				t.Error(err)
			}
		}
		if n := fake.Counts().Requests; n > calls*12/10 {
			t.Errorf("%d requests reached the API for %d calls", n, calls)
		}
		if s := st.Stats(); s.Calls <= calls || st.Flights() != 0 {
			t.Errorf("%d calls, %d flights: nothing was tried again", s.Calls, st.Flights())
		}
		var paid int64
		for _, x := range st.book.pages(t, int(st.Stats().Calls)) {
			paid += x.GenAI.OutputTokens
		}
		waitFor(t, func() bool { return fake.Counts().InFlight == 0 })
		if want := fake.Counts().OutputTokens; paid != want {
			t.Errorf("%d output tokens were counted, %d were made", paid, want)
		}
	})
}

func TestWhoHasLeftAndDoesNotComeBackIsNotPaidFor(t *testing.T) {
	fake := claudetest.New(claudetest.Options{Latency: time.Hour})
	inBubble(t, fake, patient, func(t *testing.T, st *stage) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "POST", st.url+"/v1/messages", strings.NewReader(hello))
		begun := time.Now()
		if _, err := st.http.Do(req); err == nil {
			t.Error("an answer")
		}
		waitFor(t, func() bool { return fake.Counts().InFlight == 0 })
		if took := time.Since(begun); took > 5*time.Second || st.book.last(t, 1).Code != "client_gone" || st.Flights() != 0 {
			t.Errorf("after %v", took)
		}
	})
}

func TestTwinsShareAnAnswerWhereThatIsWantedAndOtherKeysNever(t *testing.T) {
	for _, joins := range []bool{false, true} {
		fake := claudetest.New(claudetest.Options{Latency: 10 * time.Second})
		inBubble(t, fake, func(c *claude.Config) { patient(c); c.Retry.Join = joins }, func(t *testing.T, st *stage) {
			var wg sync.WaitGroup
			for i := range 6 {
				wg.Go(func() {
					r := st.send("POST", "/v1/messages", hello, func(r *http.Request) {
						if i%2 == 1 {
							r.Header.Set("X-Api-Key", "sk-another")
						}
					})
					if r.status != 200 || !strings.Contains(r.body, "end_turn") {
						t.Errorf("%d %s", r.status, r.body)
					}
				})
			}
			wg.Wait()
			if n := fake.Counts().Requests; n != map[bool]int{false: 6, true: 2}[joins] {
				t.Errorf("joins %v: %d requests", joins, n)
			}
		})
	}
}
