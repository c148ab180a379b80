package claude_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

func TestWhatIsWrongWithARequestIsSaidInTheAPIsWords(t *testing.T) {
	huge := `{"model":"claude-sonnet-5","max_tokens":64,"messages":[{"role":"user","content":"` + strings.Repeat("x", 40e6) + `"}]}`
	for name, c := range map[string]struct {
		path, body string
		edit       func(*http.Request)
		status     int
		kind       string
		sent       int // requests that the API saw
	}{
		"not JSON":         {body: "no {json", status: 400, kind: "invalid_request_error", sent: 1},
		"half of it":       {body: hello[:40], status: 400, kind: "invalid_request_error", sent: 1},
		"empty":            {body: "", status: 400, kind: "invalid_request_error", sent: 1},
		"an unknown model": {body: strings.Replace(hello, "claude-sonnet-5", "claudius", 1), status: 404, kind: "not_found_error", sent: 1},
		"40 MB, not told":  {body: huge, status: 413, kind: "request_too_large", edit: func(r *http.Request) { r.ContentLength = -1 }},
		"a header bomb":    {body: hello, status: 431, kind: "invalid_request_error", edit: func(r *http.Request) { r.Header.Set("X-Bomb", strings.Repeat("b", 100<<10)) }},
		"many headers": {body: hello, status: 431, kind: "invalid_request_error", edit: func(r *http.Request) {
			r.Header["X-Bomb"] = strings.Split(strings.Repeat("bomb ", 20000), " ")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			st, fake := over(t, claudetest.Options{}, patient)
			r := st.send("POST", "/v1/messages", c.body, c.edit)
			if e := parseError(t, r.body); r.status != c.status || e.Error.Type != c.kind || r.head.Get("Content-Type") != "application/json" || strings.Contains(r.body, key) {
				t.Errorf("%d %s", r.status, r.body)
			}
			if n := fake.Counts(); n.Requests != c.sent || n.Messages > 0 {
				t.Errorf("the API saw %d requests", n.Requests)
			}
			if x := st.book.last(t, 1); strings.Contains(st.logs.String(), key) || x.Tries != c.sent {
				t.Errorf("%d tries", x.Tries)
			}
		})
	}
}

func TestEachRoutesLimitIsTheAPIsAndIsCheckedBeforeAnythingIsSent(t *testing.T) {
	st, fake := over(t, claudetest.Options{}, patient)
	for path, size := range map[string]int{
		"/v1/messages": 34e6, "/v1/messages/count_tokens": 34e6, "/v1/messages/batches": 270e6, "/v1/files": 530e6, "/v1/tomorrow": 700e6,
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(st.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n{", path, size)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		if e := parseError(t, string(body)); res.StatusCode != 413 || e.Error.Type != "request_too_large" {
			t.Errorf("%s: %d %s", path, res.StatusCode, body)
		}
		_ = conn.Close()
	}
	if fake.Counts().Requests > 0 {
		t.Error("something was sent")
	}
}

func TestAHeaderBombOfTheUpstreamIsOneClearError(t *testing.T) {
	bomb := says(200, "{}", "X-Bomb", strings.Repeat("b", 300<<10))
	inBubble(t, answers(bomb), patient, func(t *testing.T, st *stage) {
		r := st.send("POST", "/v1/messages", hello, func(r *http.Request) { r.Header.Set("Mainstay-Deadline", "20") })
		if e := parseError(t, r.body); r.status != 502 || e.Error.Type != "api_error" || r.head.Get("X-Should-Retry") != "false" {
			t.Errorf("%d %v %s", r.status, r.head, r.body)
		}
	})
}

func TestAClientThatLeavesCancelsItsUpstreamCall(t *testing.T) {
	for _, body := range []string{helloS, hello} {
		left, begun := make(chan struct{}), make(chan struct{})
		h := func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "event: message_start\ndata: {\"message\":{}}\n\nevent: content_block_start\ndata: {\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n"+
				"event: content_block_delta\ndata: {\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"x\"}}\n\n")
			_ = http.NewResponseController(w).Flush()
			close(begun)
			<-r.Context().Done()
			close(left)
		}
		inBubble(t, answers(h), patient, func(t *testing.T, st *stage) {
			conn, err := st.http.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = fmt.Fprintf(conn, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			<-begun
			_ = conn.Close()
			waitFor(t, func() bool { // a call that gathers goes on for a moment, in case a retry comes
				select {
				case <-left:
					return true
				default:
					return false
				}
			})
			if x := st.book.last(t, 1); x.Code != "client_gone" {
				t.Errorf("%s %v", x.Code, x.Err)
			}
		})
	}
}

// What streams through has one try, and is not held in memory: the SDK, which has it
// still, may try again.
func TestFilesAndBatchesPassWithoutBeingHeld(t *testing.T) {
	for path, size := range map[string]int{"/v1/files": 20e6, "/v1/messages/batches": 20e6, "/v1/messages": 50e6} {
		t.Run(path, func(t *testing.T) {
			var most atomic.Int64
			var st *stage
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				buf := make([]byte, 1<<20)
				for err := error(nil); err == nil; _, err = r.Body.Read(buf) {
					most.Store(max(most.Load(), st.Stats().ReplayBytes))
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(529)
				_, _ = io.WriteString(w, `{"type":"error","error":{"type":"overloaded_error","message":"m"}}`)
			})
			upstream := httptest.NewServer(h)
			defer upstream.Close()
			st = start(t, setup{upstream: upstream.URL, edit: func(c *claude.Config) { patient(c); c.Limits.Message = 0 }})
			r := st.send("POST", path, strings.Repeat("x", size), nil)
			if r.status != 529 || r.head.Get("X-Should-Retry") != "" || r.head.Get("Mainstay-Attempts") != "1" || most.Load() > 0 {
				t.Errorf("%d %v, %d bytes were held", r.status, r.head, most.Load())
			}
		})
	}
}
