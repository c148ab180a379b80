package claude_test

import (
	"compress/gzip"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

// asIs is the default policy with recovery off: answers pass as they come.
func asIs(c *claude.Config) { patient(c); c.Recovery.Streams, c.Recovery.Aggregate = false, false }

// counts says that the SDK makes its first try.
func counts(r *http.Request) { r.Header.Set("X-Stainless-Retry-Count", "0") }

// leave makes a call and leaves after d.
func (st *stage) leave(t *testing.T, path, body string, d time.Duration) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", st.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", key)
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("Content-Type", "application/json")
	counts(req)
	client := &http.Client{Transport: st.http.Transport, Timeout: d}
	if res, err := client.Do(req); err == nil {
		_, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err == nil {
			t.Error("the answer came before its client left")
		}
	}
}

func TestARetryOfAStreamThatPassesAsItComesIsToldAllOfItToTheByte(t *testing.T) {
	var direct strings.Builder
	h, all, _ := counted(words(30))
	tee := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(&copying{w, &direct}, r) })
	inBubble(t, tee, asIs, func(t *testing.T, st *stage) {
		first, begun := st.open(t, 600, counts)
		time.Sleep(5 * time.Second)
		_ = first.Body.Close()
		time.Sleep(2 * time.Second)
		came := time.Now()
		second, again := st.open(t, 600, retried)
		if again != begun || second.Header.Get("Mainstay-Attached") != "1" || second.Header.Get("Mainstay-Claude-Route") != "claude" || second.Header.Get("Request-Id") != "req_words" || time.Since(came) > time.Second {
			t.Errorf("after %v: %v\n%s\n%s", time.Since(came), second.Header, begun, again)
		}
		rest, err := io.ReadAll(second.Body)
		if err != nil || again+string(rest) != direct.String() || time.Since(came) < 20*time.Second {
			t.Errorf("%v after %v:\n%s%s", err, time.Since(came), again, rest)
		}
		pages := st.book.pages(t, 2)
		if pages[0].GenAI.OutputTokens+pages[1].GenAI.OutputTokens != 77 || pages[0].GenAI.Saved+pages[1].GenAI.Saved != "attach" || all.Load() != 1 {
			t.Errorf("%d requests: %+v\n%+v", all.Load(), pages[0].GenAI, pages[1].GenAI)
		}
		waitFor(t, func() bool { return st.Stats().AnswerBytes == 0 && st.Flights() == 0 })
	})
}

// copying writes everything down too.
type copying struct {
	http.ResponseWriter
	to io.Writer
}

func (c *copying) Write(p []byte) (int, error) {
	_, _ = c.to.Write(p)
	return c.ResponseWriter.Write(p)
}

func (c *copying) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func TestWhatPassesAsItComesAndEndsWhileItsClientIsAwayIsKeptForTheRetry(t *testing.T) {
	packed := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		words(4)(&zipping{w, z}, r)
		_ = z.Close()
	}
	long := `{"type":"message","model":"claude-sonnet-5","content":"` + strings.Repeat("long ", 500_000) + `","usage":{"input_tokens":3,"output_tokens":5}}`
	slowly := func(text, kind string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind)
			_, _ = io.WriteString(w, text[:len(text)/2])
			_ = http.NewResponseController(w).Flush()
			if sleep(r.Context(), 4*time.Second) == nil {
				_, _ = io.WriteString(w, text[len(text)/2:])
			}
		}
	}
	const short = `{"type":"message","model":"claude-sonnet-5","usage":{"input_tokens":3,"output_tokens":5}}`
	for name, c := range map[string]struct {
		api        http.HandlerFunc
		path, body string
		want       string // in the answer
		paid       int64
	}{
		"a stream":              {words(4), "/v1/messages", helloS, "message_stop", 77},
		"a compressed stream":   {packed, "/v1/messages", helloS, "message_stop", 77},
		"JSON":                  {slowly(short, "application/json"), "/v1/messages", hello, short, 5},
		"JSON beyond a MiB":     {slowly(long, "application/json"), "/v1/messages", hello, long, 0}, // its usage is not read
		"a legacy completion":   {slowly(short, "application/json"), "/v1/complete", hello, short, 5},
		"a count of tokens":     {slowly(`{"input_tokens":9}`, "application/json"), "/v1/messages/count_tokens", hello, `{"input_tokens":9}`, 0},
		"a new batch":           {slowly(`{"id":"msgbatch_1"}`, "application/json"), "/v1/messages/batches", `{"requests":[]}`, `{"id":"msgbatch_1"}`, 0},
		"what nobody foresaw":   {slowly(strings.Repeat("text", 100), "text/plain"), "/v1/messages", hello, strings.Repeat("text", 100), 0},
		"a body without a type": {slowly("x y", ""), "/v1/messages", hello, "x y", 0},
	} {
		t.Run(name, func(t *testing.T) {
			h, all, now := counted(c.api)
			inBubble(t, h, asIs, func(t *testing.T, st *stage) {
				st.leave(t, c.path, c.body, 2500*time.Millisecond)
				time.Sleep(2500 * time.Millisecond)
				if now.Load() != 0 {
					t.Error("it has not ended")
				}
				r := st.send("POST", c.path, c.body, retried)
				text := r.body
				if r.head.Get("Content-Encoding") == "gzip" {
					if z, err := gzip.NewReader(strings.NewReader(text)); err != nil {
						t.Error(err)
					} else if plain, err := io.ReadAll(z); err == nil {
						text = string(plain)
					}
				}
				if r.status != 200 || r.err != nil || !strings.Contains(text, c.want) || all.Load() != 1 || r.head.Get("Mainstay-Attached") != "1" {
					t.Errorf("%d %v %.100s, %d requests", r.status, r.err, text, all.Load())
				}
				var paid int64
				for _, x := range st.book.pages(t, 2) {
					paid += x.GenAI.OutputTokens
				}
				if paid != c.paid {
					t.Errorf("%d output tokens were paid for", paid)
				}
				time.Sleep(10 * time.Second)
				if st.Stats().AnswerBytes != 0 || st.Flights() != 0 {
					t.Errorf("%+v", st.Stats())
				}
			})
		})
	}
}

// zipping writes compressed.
type zipping struct {
	http.ResponseWriter
	z *gzip.Writer
}

func (z *zipping) Write(p []byte) (int, error) { return z.z.Write(p) }

func (z *zipping) FlushError() error {
	_ = z.z.Flush()
	return http.NewResponseController(z.ResponseWriter).Flush()
}

func TestWhoDoesNotCountItsTriesOrAsksForSomethingElseSeesForItself(t *testing.T) {
	for name, c := range map[string]struct{ first, second func(*http.Request) }{
		"no SDK":                      {func(*http.Request) {}, retried},
		"no retry":                    {counts, counts},
		"another key":                 {counts, func(r *http.Request) { retried(r); r.Header.Set("X-Api-Key", "sk-another") }},
		"another encoding":            {counts, func(r *http.Request) { retried(r); r.Header.Set("Accept-Encoding", "gzip") }},
		"a header that means nothing": {counts, func(r *http.Request) { retried(r); r.Header.Set("Mainstay-Recovery", "on") }}, // it is off for all
		"batches of a twin":           {counts, counts},
	} {
		h, all, _ := counted(words(6))
		want := int64(2)
		if name == "a header that means nothing" {
			want = 1
		}
		inBubble(t, h, func(c *claude.Config) { asIs(c); c.Retry.Join = name == "batches of a twin" }, func(t *testing.T, st *stage) {
			path := "/v1/messages"
			if name == "batches of a twin" {
				path = "/v1/messages/batches"
			}
			var wg sync.WaitGroup
			for _, edit := range []func(*http.Request){c.first, c.second} {
				wg.Go(func() { st.send("POST", path, helloS, edit) })
				time.Sleep(time.Second)
			}
			wg.Wait()
			if all.Load() != want {
				t.Errorf("%s: %d requests, want %d", name, all.Load(), want)
			}
		})
	}
}

func TestTwinsShareWhatPassesAsItComes(t *testing.T) {
	for _, ask := range []string{hello, helloS} {
		fake := claudetest.New(claudetest.Options{Latency: 5 * time.Second, EventDelay: time.Second})
		inBubble(t, fake, func(c *claude.Config) { asIs(c); c.Retry.Join = true }, func(t *testing.T, st *stage) {
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(func() {
					if r := st.post(ask); r.status != 200 || r.err != nil || !strings.Contains(r.body, "end_turn") {
						t.Errorf("%d %v %s", r.status, r.err, r.body)
					}
				})
				time.Sleep(time.Second / 2)
			}
			wg.Wait()
			if n := fake.Counts().Requests; n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// A stream that breaks, or carries an error, is told as such to those who are attached:
// with one error event, and no more of it than the first client got.
func TestThoseWhoAreAttachedToWhatPassesAsItComesSeeItsEnd(t *testing.T) {
	begin := func(w http.ResponseWriter, r *http.Request, then func()) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":1}}}\n\nevent: content_block_del")
		_ = http.NewResponseController(w).Flush()
		if sleep(r.Context(), 3*time.Second) == nil {
			then()
		}
	}
	for name, api := range map[string]http.HandlerFunc{
		"cut": func(w http.ResponseWriter, r *http.Request) { begin(w, r, func() { panic(http.ErrAbortHandler) }) },
		"error": func(w http.ResponseWriter, r *http.Request) {
			begin(w, r, func() {
				_, _ = io.WriteString(w, "ta\ndata: {}\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"m\"}}\n\n")
			})
		},
		"end": func(w http.ResponseWriter, r *http.Request) {
			begin(w, r, func() { _, _ = io.WriteString(w, "ta\ndata: {}\n\n") })
		},
	} {
		h, all, _ := counted(api)
		inBubble(t, h, asIs, func(t *testing.T, st *stage) {
			st.leave(t, "/v1/messages", helloS, 2*time.Second)
			r := st.send("POST", "/v1/messages", helloS, retried)
			if strings.Count(r.body, "event: error") != 1 || strings.Count(r.body, "message_start") != 2 || strings.Contains(r.body, "message_stop") || (r.err == nil) != (name == "error") || all.Load() != 1 {
				t.Errorf("%s: %v, %d requests: %s", name, r.err, all.Load(), r.body)
			}
			waitFor(t, func() bool { return st.Flights() == 0 && st.Stats().AnswerBytes == 0 })
		})
	}
}

// Beyond what may be kept nobody can attach any more, and the first client does not see
// any of it.
func TestWhatPassesAsItComesIsKeptWithinItsBound(t *testing.T) {
	const piece, pieces = 64 << 10, 40
	h, all, now := counted(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for range pieces {
			_, _ = io.WriteString(w, "event: x\ndata: "+strings.Repeat("y", piece)+"\n\n")
			_ = http.NewResponseController(w).Flush()
			if sleep(r.Context(), time.Second) != nil {
				return
			}
		}
	}))
	edit := func(c *claude.Config) { asIs(c); c.Recovery.MaxAnswer, c.Recovery.Memory = 1<<20, 1<<20 }
	inBubble(t, h, edit, func(t *testing.T, st *stage) {
		var wg sync.WaitGroup
		wg.Go(func() {
			if r := st.send("POST", "/v1/messages", helloS, counts); r.err != nil || len(r.body) != pieces*(piece+len("event: x\ndata: \n\n")) {
				t.Errorf("%v, %d bytes", r.err, len(r.body))
			}
		})
		highest := int64(0)
		for range 30 {
			time.Sleep(time.Second)
			highest = max(highest, st.Stats().AnswerBytes)
		}
		if highest > 1<<20 || highest < 1<<19 || st.Stats().AnswerBytes != 0 {
			t.Errorf("at most %d bytes, now %d", highest, st.Stats().AnswerBytes)
		}
		wg.Wait()
		st.leave(t, "/v1/messages", helloS, 30*time.Second) // what can't be attached to ends with its client
		waitFor(t, func() bool { return now.Load() == 0 })
		if all.Load() != 2 {
			t.Errorf("%d requests", all.Load())
		}
	})
}
