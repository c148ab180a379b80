package claude_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go/option"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

func TestAnSDKsRetryAttachesToTheAttemptThatIsStillRunning(t *testing.T) {
	for _, recovers := range []bool{true, false} {
		for _, streamed := range []bool{false, true} {
			sdkRetries(t, streamed, recovers)
		}
	}
}

func sdkRetries(t *testing.T, streamed, recovers bool) {
	fake := claudetest.New(claudetest.Options{Latency: 20 * time.Second})
	edit := func(c *claude.Config) { patient(c); c.Recovery.Streams, c.Recovery.Aggregate = recovers, recovers }
	inBubble(t, fake, edit, func(t *testing.T, st *stage) {
		const calls = 10
		for range calls { // each of the client's tries is shorter than the answer takes
			hurried := visitor(st, option.WithMiddleware(func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
				ctx, cancel := context.WithCancel(r.Context())
				timer := time.AfterFunc(14*time.Second, cancel) // stops at the head, as that of the SDK in TypeScript
				defer timer.Stop()
				return next(r.WithContext(ctx))
			}))
			if err := converse(t, hurried, "hello", streamed); err != nil {
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

// words are a stream that takes its time: n words, one a second.
func words(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Request-Id", "req_words")
		tell := func(name, data string) {
			_, _ = io.WriteString(w, "event: "+name+"\ndata: "+data+"\n\n")
			_ = http.NewResponseController(w).Flush()
		}
		tell("message_start", `{"type":"message_start","message":{"id":"msg_1","model":"claude-sonnet-5","content":[],"usage":{"input_tokens":10,"output_tokens":1}}}`)
		tell("content_block_start", `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`)
		for i := range n {
			tell("content_block_delta", fmt.Sprintf(`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"word%d "}}`, i))
			if sleep(r.Context(), time.Second) != nil {
				return
			}
		}
		tell("content_block_stop", `{"type":"content_block_stop","index":0}`)
		tell("message_delta", `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":77}}`)
		tell("message_stop", `{"type":"message_stop"}`)
	}
}

// counted counts the requests that reach a handler, and those that are under way.
func counted(h http.Handler) (counting http.Handler, all, now *atomic.Int64) {
	all, now = new(atomic.Int64), new(atomic.Int64)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all.Add(1)
		now.Add(1)
		defer now.Add(-1)
		_, _ = io.Copy(io.Discard, r.Body)
		h.ServeHTTP(w, r)
	}), all, now
}

// open asks for a stream and reads its first n bytes.
func (st *stage) open(t *testing.T, n int, edit func(*http.Request)) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", st.url+"/v1/messages", strings.NewReader(helloS))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", key)
	if edit != nil {
		edit(req)
	}
	res, err := st.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	begun := make([]byte, n)
	if _, err := io.ReadFull(res.Body, begun); err != nil {
		t.Fatal(err)
	}
	return res, string(begun)
}

func retried(r *http.Request) { r.Header.Set("X-Stainless-Retry-Count", "1") }

func TestARetryOfAStreamIsToldWhatWasToldAlreadyAndThenTheRestAsItComes(t *testing.T) {
	h, all, _ := counted(words(30))
	inBubble(t, h, patient, func(t *testing.T, st *stage) {
		first, begun := st.open(t, 600, nil)
		time.Sleep(5 * time.Second)
		_ = first.Body.Close()
		time.Sleep(2 * time.Second)
		came := time.Now()
		second, again := st.open(t, 600, retried)
		if again != begun || second.Header.Get("Mainstay-Attached") != "1" || second.Header.Get("Request-Id") != "req_words" || time.Since(came) > time.Second {
			t.Errorf("after %v: %v\n%s\n%s", time.Since(came), second.Header, begun, again)
		}
		rest, err := io.ReadAll(second.Body)
		if err != nil {
			t.Error(err)
		}
		m, err := read(again + string(rest))
		if err != nil || m.stop != "end_turn" || strings.Count(m.blocks[0], "word") != 30 || time.Since(came) < 20*time.Second {
			t.Errorf("%v %+v", err, m)
		}
		time.Sleep(time.Second)
		if third, _ := st.open(t, 600, retried); third.Header.Get("Mainstay-Attached") != "" || all.Load() != 2 { // it has ended, and its client had it
			t.Errorf("%v, %d requests", third.Header, all.Load())
		} else {
			third.Body.Close()
		}
		pages := st.book.pages(t, 3)
		if pages[0].GenAI.OutputTokens+pages[1].GenAI.OutputTokens != 77 || pages[0].GenAI.Saved+pages[1].GenAI.Saved != "attach" {
			t.Errorf("%+v\n%+v", pages[0].GenAI, pages[1].GenAI)
		}
		waitFor(t, func() bool { return st.Stats().AnswerBytes == 0 && st.Flights() == 0 })
	})
}

func TestAStreamThatEndsWhileItsClientIsAwayIsKeptForTheRetry(t *testing.T) {
	h, all, now := counted(words(4))
	inBubble(t, h, patient, func(t *testing.T, st *stage) {
		first, _ := st.open(t, 350, nil)
		time.Sleep(2500 * time.Millisecond)
		_ = first.Body.Close()
		time.Sleep(2500 * time.Millisecond)
		if now.Load() != 0 {
			t.Error("it has not ended")
		}
		r := st.send("POST", "/v1/messages", helloS, func(r *http.Request) { retried(r); r.Header.Del("Anthropic-Version"); r.Header.Del("Content-Type") })
		if m, err := read(r.body); err != nil || m.stop != "end_turn" || all.Load() != 1 {
			t.Errorf("%v %+v, %d requests", err, m, all.Load())
		}
		time.Sleep(10 * time.Second)
		if st.Stats().AnswerBytes != 0 || st.Flights() != 0 {
			t.Errorf("%+v", st.Stats())
		}
	})
}

func TestAStreamThatNobodyComesBackForEndsAfterAWhile(t *testing.T) {
	h, _, now := counted(words(1000))
	inBubble(t, h, patient, func(t *testing.T, st *stage) {
		first, _ := st.open(t, 600, nil)
		_ = first.Body.Close()
		left := time.Now()
		waitFor(t, func() bool { return now.Load() == 0 })
		if took := time.Since(left); took > 5*time.Second || st.book.last(t, 1).Code != "client_gone" || st.Stats().AnswerBytes != 0 {
			t.Errorf("%v %+v", took, st.Stats())
		}
	})
}

func TestTwinsShareAStreamWhereThatIsWanted(t *testing.T) {
	for joins, want := range map[bool]int64{false: 5, true: 1} {
		h, all, _ := counted(words(20))
		inBubble(t, h, func(c *claude.Config) { patient(c); c.Retry.Join = joins }, func(t *testing.T, st *stage) {
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(func() {
					r := st.post(helloS)
					if m, err := read(r.body); err != nil || r.err != nil || m.stop != "end_turn" || strings.Count(m.blocks[0], "word") != 20 {
						t.Errorf("%v %+v", err, m)
					}
				})
				time.Sleep(2 * time.Second)
			}
			wg.Wait()
			if all.Load() != want {
				t.Errorf("joins %v: %d requests", joins, all.Load())
			}
		})
	}
}

func TestThoseWhoAreAttachedSeeAStreamThatCanNotBeMendedForWhatItIs(t *testing.T) {
	cut := func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 4500*time.Millisecond)
		defer cancel()
		words(100)(w, r.WithContext(ctx))
		panic(http.ErrAbortHandler)
	}
	h, _, _ := counted(answers(cut, busy))
	inBubble(t, h, func(c *claude.Config) { patient(c); c.Retry.Join = true; c.Retry.Hold = 3 * time.Second }, func(t *testing.T, st *stage) {
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				r := st.post(helloS)
				if strings.Count(r.body, "event: error") != 1 || strings.Contains(r.body, "message_stop") || strings.Count(r.body, "word") != 5 || r.err == nil {
					t.Errorf("%v %s", r.err, r.body)
				}
			})
			time.Sleep(time.Second)
		}
		wg.Wait()
	})
}

// A try of an SDK that ends by its own timeout while the answer is being made is not told
// so by us: the answer would be paid for, and thrown away.
func TestAnSDKsTimeoutDoesNotThrowAnAnswerAwayThatItsRetryWillAskFor(t *testing.T) {
	for count, whole := range map[string]bool{"": false, "0": true, "1": true, "2": false} {
		inBubble(t, words(20), patient, func(t *testing.T, st *stage) {
			begun := time.Now()
			r := st.send("POST", "/v1/messages", hello, func(r *http.Request) {
				r.Header.Set("X-Stainless-Timeout", "10")
				if count != "" {
					r.Header.Set("X-Stainless-Retry-Count", count)
				}
			})
			if took := time.Since(begun); (r.status == 200) != whole || whole != (took > 10*time.Second) || !whole && r.status != 504 {
				t.Errorf("retry %q: %d after %v", count, r.status, took)
			}
		})
	}
}

func TestAnswersTakeNoMoreMemoryTogetherThanTheyMay(t *testing.T) {
	const most = 1 << 20
	long := strings.Repeat("long ", 60_000)
	big := func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		if !strings.Contains(string(text), `"stream":true`) {
			says(200, `{"type":"message","stop_reason":"end_turn","content":[{"type":"text","text":"`+long+`"}],"usage":{"output_tokens":1}}`)(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		tell := func(s string) { _, _ = io.WriteString(w, s); _ = http.NewResponseController(w).Flush() }
		tell("event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"usage\":{\"input_tokens\":3}}}\n\n" +
			"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n")
		for i := range 10 {
			tell("event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"" + long[i*30_000:(i+1)*30_000] + "\"}}\n\n")
			_ = sleep(r.Context(), time.Second)
		}
		tell("event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":9}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")
	}
	edit := func(c *claude.Config) { patient(c); c.Recovery.MaxAnswer, c.Recovery.Memory = most, most }
	inBubble(t, http.HandlerFunc(big), edit, func(t *testing.T, st *stage) {
		if r := st.post(hello); r.status != 200 || len(r.body) < len(long) {
			t.Fatalf("alone: %d, %d bytes", r.status, len(r.body))
		}
		var mu sync.Mutex
		codes, highest := map[string]int{}, int64(0)
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 300 * time.Millisecond)
				ask := []string{hello, helloS}[i%2]
				r := st.post(ask)
				mu.Lock()
				defer mu.Unlock()
				codes[fmt.Sprint(r.status, r.head.Get("Mainstay-Code"))]++
				switch {
				case r.status == 200 && !strings.Contains(r.body, "end_turn"):
					t.Errorf("%d, %d bytes, %v", r.status, len(r.body), r.err)
				case r.status != 200 && (i%2 == 1 || parseError(t, r.body).Error.Type != "overloaded_error"):
					t.Errorf("%d %s", r.status, r.body)
				}
			})
		}
		for range 30 {
			time.Sleep(time.Second)
			highest = max(highest, st.Stats().AnswerBytes)
		}
		wg.Wait()
		time.Sleep(10 * time.Second)
		if highest > most || highest < most/2 || st.Stats().AnswerBytes != 0 || codes["529answers_full"] == 0 || codes["200"] < 20 {
			t.Errorf("%v, at most %d bytes, then %d", codes, highest, st.Stats().AnswerBytes)
		}
	})
}
