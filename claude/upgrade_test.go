package claude_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

func TestWhatComesBeforeAnAnswerIsToldToo(t *testing.T) {
	hints := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Link", "</a>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.WriteHeader(http.StatusProcessing)
		fine(w, r)
	}
	upstream := httptest.NewServer(answers(busy, hints))
	defer upstream.Close()
	st := start(t, setup{upstream: upstream.URL})
	var mu sync.Mutex
	var told []string
	r := st.send("POST", "/v1/messages", hello, func(r *http.Request) {
		*r = *r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, http.StatusText(code)+h.Get("Link"))
			return nil
		}}))
	})
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(told, ","); got != "Early Hints</a>; rel=preload,Processing" || r.status != 200 || r.head.Get("Link") != "" || r.head.Get("Mainstay-Attempts") != "2" {
		t.Errorf("%q %+v", got, r)
	}
}

// parrot goes over to a protocol in which it repeats lines in capitals.
func parrot(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "parrot" || r.Header.Get("Connection") != "Upgrade" || r.Header.Get("X-Api-Key") != key {
		says(400, `{"type":"error","error":{"type":"invalid_request_error","message":"speak parrot"}}`)(w, r)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: parrot\r\nX-Odd: 1\r\n\r\nHELLO\n")
	_ = rw.Flush()
	for {
		line, err := rw.ReadString('\n')
		if err != nil || line == "bye\n" {
			return
		}
		_, _ = io.WriteString(rw, strings.ToUpper(line))
		_ = rw.Flush()
	}
}

// goOver asks the plane for an upgrade and returns the connection behind it.
func goOver(t *testing.T, st *stage, first string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(st.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, "GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: parrot\r\nX-Api-Key: "+key+"\r\n\r\n"+first)
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return conn, r, res
}

func TestAConnectionMayGoOverToAnotherProtocol(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(parrot))
	defer upstream.Close()
	st := start(t, setup{upstream: upstream.URL, edit: func(c *claude.Config) { patient(c); c.Drain = time.Second / 10 }})
	conn, r, res := goOver(t, st, "early\n")
	defer conn.Close()
	if res.StatusCode != 101 || res.Header.Get("Upgrade") != "parrot" || res.Header.Get("X-Odd") != "1" {
		t.Fatalf("%+v", res)
	}
	_, _ = io.WriteString(conn, "polly\n")
	for _, want := range []string{"HELLO\n", "EARLY\n", "POLLY\n"} {
		if line, err := r.ReadString('\n'); line != want || err != nil {
			t.Errorf("%q %v", line, err)
		}
	}
	_, _ = io.WriteString(conn, "bye\n")
	if rest, err := io.ReadAll(r); len(rest) != 0 || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	if x := st.book.last(t, 1); x.Code != "ok" || x.HTTP.Status != 101 || x.HTTP.Upgraded != "parrot" || x.BytesIn != 16 || x.BytesOut != 18 {
		t.Errorf("%s %v %+v %d %d", x.Code, x.Err, x.HTTP, x.BytesIn, x.BytesOut)
	}
	if r := st.send("GET", "/v1/realtime", "", func(r *http.Request) { r.Header.Set("Connection", "Upgrade"); r.Header.Set("Upgrade", "h2c") }); r.status != 400 {
		t.Errorf("%d", r.status)
	}
	conn, _, _ = goOver(t, st, "")
	defer conn.Close()
	if err := st.stop(); err != nil { // ends it, or Run would wait for ever
		t.Error(err)
	}
	if x := st.book.last(t, 3); x.Code != "stopping" {
		t.Errorf("%s", x.Code)
	}
}

// Who speaks another protocol has the time to end that any call has when Mainstay stops.
func TestAConnectionThatHasGoneOverIsDrained(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(parrot))
	defer upstream.Close()
	st := start(t, setup{upstream: upstream.URL, edit: func(c *claude.Config) { patient(c); c.Drain = time.Hour }})
	conn, r, _ := goOver(t, st, "")
	defer conn.Close()
	stopped := make(chan error, 1)
	go func() { stopped <- st.stop() }()
	waitFor(t, func() bool {
		other, err := net.Dial("tcp", strings.TrimPrefix(st.url, "http://"))
		if err == nil {
			_ = other.Close()
		}
		return err != nil
	})
	_, _ = io.WriteString(conn, "polly\n")
	for _, want := range []string{"HELLO\n", "POLLY\n"} {
		if line, err := r.ReadString('\n'); line != want || err != nil {
			t.Errorf("%q %v", line, err)
		}
	}
	_, _ = io.WriteString(conn, "bye\n")
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if x := st.book.last(t, 1); x.Code != "ok" {
		t.Errorf("%s", x.Code)
	}
}

func TestAnAnswerThatHasToBeReadIsAskedForInAnEncodingThatCanBe(t *testing.T) {
	st, fake := over(t, claudetest.Options{Keep: 1, Gzip: true}, func(c *claude.Config) { c.Retry.Policy = "compatible" })
	for asked, want := range map[string]string{
		"":                       "",
		"gzip":                   "gzip",
		"gzip, deflate, br":      "gzip",
		"br;q=1.0, gzip;q=0.8":   "gzip;q=0.8",
		"zstd, br":               "identity",
		"*":                      "identity",
		"br, identity;q=0":       "br, identity;q=0",
		"gzip , identity;q=0.5 ": "gzip , identity;q=0.5 ",
	} {
		for _, path := range []string{"/v1/messages", "/v1/models"} {
			method, body := "GET", ""
			if path == "/v1/messages" {
				method, body = "POST", hello
			} else {
				want = asked
			}
			st.send(method, path, body, func(r *http.Request) {
				if asked == "" {
					delete(r.Header, "Accept-Encoding")
					return
				}
				r.Header["Accept-Encoding"] = []string{asked}
			})
			if got := fake.Requests()[0].Header.Get("Accept-Encoding"); got != strings.TrimSpace(want) {
				t.Errorf("%s %q: asked for %q, want %q", path, asked, got, want)
			}
		}
	}
	waitFor(t, func() bool { return st.Stats().InFlight == 0 })
	st.book.mu.Lock()
	defer st.book.mu.Unlock()
	for _, x := range st.book.all {
		if x.Route == "/v1/messages" && x.GenAI.OutputTokens == 0 {
			t.Error("the usage of an answer was not read")
		}
	}
}
