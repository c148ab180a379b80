package claude_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude/claudetest"
	"mainstay.dev/mainstay/telemetry"
)

type apiError struct {
	Type  string
	Error struct{ Type, Message string }
	ID    string `json:"request_id"`
}

func parseError(t *testing.T, body string) (e apiError) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Type != "error" || e.Error.Message == "" {
		t.Errorf("%v: no error of the API's shape: %s", err, body)
	}
	return e
}

// matrix is every fault and what becomes of it under the default policy.
var matrix = []struct {
	faults []claudetest.Fault
	stream bool
	code   string
	tries  int
	broken bool // the connection is broken off
	event  bool // an error event ends what came
}{
	{faults: []claudetest.Fault{claudetest.Overloaded}, code: "ok", tries: 2},
	{faults: []claudetest.Fault{claudetest.Overloaded, claudetest.Overloaded, claudetest.Overloaded}, code: "ok", tries: 4},
	{faults: []claudetest.Fault{claudetest.RateLimited}, code: "ok", tries: 2},
	{faults: []claudetest.Fault{claudetest.Internal}, code: "ok", tries: 2},
	{faults: []claudetest.Fault{claudetest.BadGateway}, code: "ok", tries: 2},
	{faults: []claudetest.Fault{claudetest.GatewayTimeout}, code: "ok", tries: 2},
	{faults: []claudetest.Fault{claudetest.Conflict}, code: "ok", tries: 2},
	{faults: []claudetest.Fault{claudetest.RequestTimeout}, code: "ok", tries: 2},
	{faults: []claudetest.Fault{claudetest.Reset}, code: "ok", tries: 2},
	{faults: []claudetest.Fault{claudetest.Truncated}, code: "ok", tries: 2},
	{faults: []claudetest.Fault{claudetest.Hang}, code: "ok", tries: 2},
	{faults: []claudetest.Fault{claudetest.Overloaded, claudetest.Reset}, stream: true, code: "ok", tries: 3},
	{faults: []claudetest.Fault{claudetest.ErrorFirst}, stream: true, code: "stream_error", tries: 1, event: true},
	{faults: []claudetest.Fault{claudetest.ErrorAfterStart}, stream: true, code: "stream_error", tries: 1, event: true},
	{faults: []claudetest.Fault{claudetest.ErrorMiddle}, stream: true, code: "stream_error", tries: 1, event: true},
	{faults: []claudetest.Fault{claudetest.Cut}, stream: true, code: "upstream_cut", tries: 1, broken: true, event: true},
	{faults: []claudetest.Fault{claudetest.CutBetween}, stream: true, code: "upstream_cut", tries: 1, broken: true, event: true},
	{faults: []claudetest.Fault{claudetest.EndEarly}, stream: true, code: "upstream_cut", tries: 1, broken: true, event: true},
	{faults: []claudetest.Fault{claudetest.Stall}, stream: true, code: "upstream_stalled", tries: 1, broken: true, event: true},
}

func TestEveryFaultEndsInAWholeAnswerOrInOneClearError(t *testing.T) {
	for _, c := range matrix {
		t.Run(fmt.Sprint(c.faults, c.stream), func(t *testing.T) {
			fake := claudetest.New(claudetest.Options{})
			fake.Next(c.faults...)
			inBubble(t, fake, nil, func(t *testing.T, st *stage) {
				body := hello
				if c.stream {
					body = helloS
				}
				r := st.post(body)
				if r.status != 200 || (r.err != nil) != c.broken {
					t.Fatalf("%d, %v: %s", r.status, r.err, r.body)
				}
				if whole := strings.Contains(r.body, "message_stop") || strings.Contains(r.body, `"stop_reason":"end_turn"`); whole != (c.code == "ok") {
					t.Errorf("whole: %v: %s", whole, r.body)
				}
				events := strings.Split(strings.TrimSuffix(r.body, "\n\n"), "\n\n")
				last, isError := strings.CutPrefix(events[len(events)-1], "event: error\ndata: ")
				if isError != c.event || strings.Count(r.body, "event: error") > 1 {
					t.Errorf("ends in %q", events[len(events)-1])
				} else if isError {
					parseError(t, last)
				}
				x := st.book.last(t, 1)
				if x.Code != c.code || x.Tries != c.tries || x.GenAI.Stream != c.stream || x.HTTP.Stream != c.stream {
					t.Errorf("%+v", x)
				}
				if (x.Blame == telemetry.BlameUpstream) != (c.code != "ok") || (x.GenAI.ErrorType == "overloaded_error") != (c.code == "stream_error") {
					t.Errorf("blame %s, error type %q", x.Blame, x.GenAI.ErrorType)
				}
			})
		})
	}
}

// piecewise sends a stream piece by piece, each when the last has been seen.
func piecewise(pieces []string, sent chan<- int, next <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		for i, p := range pieces {
			_, _ = io.WriteString(w, p)
			_ = http.NewResponseController(w).Flush()
			sent <- i
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
		}
	}
}

func TestEachEventReachesTheClientBeforeTheNextIsSent(t *testing.T) {
	pieces := []string{
		"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"m\"}}\n\n",
		"event: ping\ndata: {}\n\n",
		"event: content_block_delta\ndata: {}\n\nevent: content_block_delta\ndata: {}\n\n",
		"event: message_stop\ndata: {}\n\n",
	}
	sent, next := make(chan int), make(chan struct{})
	inBubble(t, piecewise(pieces, sent, next), nil, func(t *testing.T, st *stage) {
		go func() {
			<-sent // the first, so that Do returns
		}()
		req, _ := http.NewRequestWithContext(t.Context(), "POST", st.url+"/v1/messages", strings.NewReader(helloS))
		res, err := st.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body := bufio.NewReader(res.Body)
		for i, want := range pieces {
			got := make([]byte, len(want))
			if _, err := io.ReadFull(body, got); err != nil || string(got) != want {
				t.Fatalf("piece %d: %q, %v", i, got, err)
			}
			next <- struct{}{}
			if i+1 < len(pieces) {
				<-sent
			}
		}
		if rest, err := io.ReadAll(body); err != nil || len(rest) > 0 {
			t.Errorf("%q, %v", rest, err)
		}
		if x := st.book.last(t, 1); x.Code != "ok" || x.GenAI.Model != "m" {
			t.Errorf("%+v", x)
		}
	})
}

func TestAStreamThatIsAliveIsNotKilledHoweverLongItLasts(t *testing.T) {
	h := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: message_start\ndata: {}\n\n")
		for range 100 {
			_ = http.NewResponseController(w).Flush()
			time.Sleep(170 * time.Second) // under the limit of 3m
			_, _ = io.WriteString(w, "event: ping\ndata: {}\n\n")
		}
		_, _ = io.WriteString(w, "event: message_stop\ndata: {}\n\n")
	}
	inBubble(t, answers(h), nil, func(t *testing.T, st *stage) {
		r := st.post(helloS)
		if x := st.book.last(t, 1); r.err != nil || !strings.Contains(r.body, "message_stop") || x.Took < 4*time.Hour || x.Code != "ok" {
			t.Errorf("%v after %v: %s", r.err, x.Took, x.Code)
		}
	})
}

func TestTheHeadOfAnUnknownStreamDoesNotWaitForItsFirstEvent(t *testing.T) {
	let := make(chan struct{})
	h := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		<-let
		_, _ = io.WriteString(w, "data: 1\n\n")
	}
	inBubble(t, http.HandlerFunc(h), nil, func(t *testing.T, st *stage) {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", st.url+"/v1/sessions/s1/events/stream", nil)
		res, err := st.http.Do(req) // returns with the head
		if err != nil {
			t.Fatal(err)
		}
		close(let)
		if b, err := io.ReadAll(res.Body); err != nil || string(b) != "data: 1\n\n" {
			t.Errorf("%q, %v", b, err)
		}
	})
}

func TestAStreamThatBreaksBeforeItsFirstEventIsTriedAgain(t *testing.T) {
	breaks := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	good := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: message_start\ndata: {}\n\nevent: message_stop\ndata: {}\n\n")
	}
	inBubble(t, answers(breaks, good), nil, func(t *testing.T, st *stage) {
		if r := st.post(helloS); r.err != nil || r.head.Get("Mainstay-Attempts") != "2" || !strings.Contains(r.body, "message_stop") {
			t.Errorf("%+v", r)
		}
	})
}

func TestALongAnswerThatIsCutIsNeverShownAsWhole(t *testing.T) {
	long := strings.Repeat("x", 2<<20)
	for name, head := range map[string][]string{
		"json of known length": {"Content-Type", "application/json", "Content-Length", "4000000"},
		"json in chunks":       {"Content-Type", "application/json"},
		"json lines":           {"Content-Type", "application/x-jsonl"},
	} {
		t.Run(name, func(t *testing.T) {
			h := func(w http.ResponseWriter, r *http.Request) {
				says(200, long, head...)(w, r)
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
			inBubble(t, answers(h), nil, func(t *testing.T, st *stage) {
				r := st.send("GET", "/v1/messages/batches/b/results", "", nil)
				if x := st.book.last(t, 1); r.err == nil || x.Code != "upstream_cut" || len(r.body) > len(long) {
					t.Errorf("%v, %s, %d bytes", r.err, x.Code, len(r.body))
				}
			})
		})
	}
}

func TestAnEventLongerThanTheBufferPasses(t *testing.T) {
	stream := "event: message_start\ndata: {}\n\n" + "event: content_block_delta\ndata: " + strings.Repeat("y", 200<<10) + "\n\n"
	for _, cut := range []bool{false, true} {
		h := func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			if cut {
				_, _ = io.WriteString(w, stream[:len(stream)-1000])
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
			_, _ = io.WriteString(w, stream+"event: message_stop\ndata: {}\n\n")
		}
		inBubble(t, answers(h), nil, func(t *testing.T, st *stage) {
			r := st.post(helloS)
			if (r.err != nil) != cut || !cut && !strings.HasPrefix(r.body, stream) || strings.Contains(r.body, "event: error") {
				t.Errorf("cut %v: %v, %d bytes", cut, r.err, len(r.body))
			}
		})
	}
}
