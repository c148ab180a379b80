package edge_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/edge"
)

// Django, Rails, PHP and all of CGI read X_Real_Ip as X-Real-Ip.
func TestALieIsNotToldInAnotherSpelling(t *testing.T) {
	for _, who := range [][]string{nil, {"loopback"}} {
		seen := make(chan http.Header, 1)
		h := start(t, defaults(), who...)
		h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header }))
		resp, _ := get(t, "http://"+h.addr, "X_Forwarded_For", "6.6.6.6", "x_real-ip", "6.6.6.6", "X_REAL_IP", "6.6.6.6", "Transfer_Encoding", "chunked",
			"Proxy", "http://evil", "X_Forwarded_User", "root", "Api_key", "kept")
		got := <-seen
		for _, name := range slices.Sorted(maps.Keys(got)) {
			if strings.Contains(name, "_") != (name == "Api_key") || name == "Proxy" {
				t.Errorf("trusting %v: %s: %q (%s)", who, name, got[name], resp.Status)
			}
		}
	}
	seen := make(chan http.Header, 1)
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header }))
	get(t, "http://"+h.addr, "X-Forwarded-User", "root", "Client-Ip", "6.6.6.6", "Forwarded-For", "6.6.6.6")
	if got := <-seen; got.Get("X-Forwarded-User")+got.Get("Client-Ip")+got.Get("Forwarded-For") != "" {
		t.Errorf("a stranger's word was passed on: %v", got)
	}
}

// A tunnel that carries HTTP would lead past everything the edge does.
func TestATunnelOfHTTPIsNotOffered(t *testing.T) {
	seen := make(chan http.Header, 1)
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header }))
	for _, protocol := range []string{"h2c", "HTTP/2.0", "websocket, h2c", "TLS/1.0"} {
		resp, _ := get(t, "http://"+h.addr, "Connection", "Upgrade, HTTP2-Settings", "Upgrade", protocol, "HTTP2-Settings", "AAMAAABk")
		if got := <-seen; resp.StatusCode != 200 || got.Get("Upgrade")+got.Get("Connection")+got.Get("Http2-Settings") != "" {
			t.Errorf("%s: %s %v", protocol, resp.Status, got)
		}
	}
}

func TestARequestThatIsNoneIsRefused(t *testing.T) {
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) { t.Errorf("the app was asked for %s", r.RequestURI) }))
	for _, text := range []string{"GET a:b HTTP/1.1\r\nHost: a", "GET http:b HTTP/1.1\r\nHost: a", "GET / HTTP/1.1\r\nHost:",
		"CONNECT a:1 HTTP/1.1\r\nHost: a:1", "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: \x80"} {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, text+"\r\n\r\n")
		if resp, _ := read(t, bufio.NewReader(c)); resp.StatusCode != 400 || resp.Header.Get("Mainstay-Code") != "bad_request" {
			t.Errorf("%q: %s %v", text, resp.Status, resp.Header)
		}
	}
}

func TestOPTIONSOfTheWholeServerIsTheAppsToAnswer(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.hasty(t, "blue:80", "HTTP/1.1 204 No Content\r\nAllow: GET\r\n\r\n")
		b.apply(t, one("blue-1", "blue:80"))
		_, in := b.raw(t, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := read(t, in); resp.StatusCode != 204 || resp.Header.Get("Allow") != "GET" {
			t.Errorf("%s %v", resp.Status, resp.Header)
		}
	})
}

func TestTrailersOfARequestPassWithoutLies(t *testing.T) {
	seen := make(chan http.Header, 1)
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		seen <- r.Trailer
	}))
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"+
		"1\r\nx\r\n0\r\nX-Sum: 42\r\nX-Forwarded-For: 6.6.6.6\r\nX_Real_Ip: 6.6.6.6\r\nContent-Length: 9\r\n\r\n")
	read(t, bufio.NewReader(c))
	if got := <-seen; got.Get("X-Sum") != "42" || len(got) != 1 {
		t.Errorf("trailers %v", got)
	}
}

func TestATargetsNonsenseIsItsOwnFault(t *testing.T) {
	for _, answer := range []string{"HTTP/1.1 000 Nothing\r\n\r\n", "HTTP/1.1 042 Early\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"} {
		inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
			b.hasty(t, "blue:80", answer)
			b.apply(t, one("blue-1", "blue:80"))
			if status, code, _ := b.get(t.Context()); status != 502 || code != "target_broke" {
				t.Errorf("%q: %d %s", answer, status, code)
			}
			if x := b.ledger.next(t, 0); x.Code != "target_broke" || x.HTTP.Status != 502 || x.HTTP.Upgraded != "" {
				t.Errorf("%q: recorded %+v", answer, x.HTTP)
			}
		})
	}
}

func TestAnHTTP10ClientIsToldNoHints(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.hasty(t, "blue:80", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		b.apply(t, one("blue-1", "blue:80"))
		_, in := b.raw(t, "GET / HTTP/1.0\r\nHost: a\r\n\r\n")
		if resp, body := read(t, in); resp.StatusCode != 200 || body != "ok" {
			t.Errorf("%s %q", resp.Status, body)
		}
	})
}

// fragile is a writer that breaks once, as a bug of ours would.
type fragile struct {
	header http.Header
	status int
	broke  bool
}

func (f *fragile) Header() http.Header         { return f.header }
func (f *fragile) Write(b []byte) (int, error) { return len(b), nil }
func (f *fragile) WriteHeader(status int) {
	if !f.broke {
		f.broke = true
		panic("a bug")
	}
	f.status = status
}

func TestABugOfOursIsLoggedAndAnswered(t *testing.T) {
	var log strings.Builder
	l := &ledger{}
	s, err := edge.New(defaults(), edge.Deps{Log: slog.New(slog.NewTextHandler(&log, nil)), Sink: l})
	if err != nil {
		t.Fatal(err)
	}
	w := &fragile{header: http.Header{}}
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://a/", nil)
	s.ServeHTTP(w, req)
	if x := l.next(t, 0); w.status != 500 || x.Code != "internal" || x.HTTP.Status != 500 || x.Err == nil || s.Stats().Requests != 0 {
		t.Errorf("answered %d, recorded %s %d %v", w.status, x.Code, x.HTTP.Status, x.Err)
	}
	if !strings.Contains(log.String(), "a bug") || !strings.Contains(log.String(), "stack=") {
		t.Errorf("logged %q", log.String())
	}
}

// A tunnel may stand still for as long as its ends like, also when the app takes
// nothing of what is sent.
func TestATunnelOutlivesTheAppsPause(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		ln := b.mem.Listen("blue:80")
		defer ln.Close()
		pause := make(chan struct{})
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			in := bufio.NewReader(c)
			_, _ = http.ReadRequest(in)
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			<-pause
			line, _ := in.ReadString('\n')
			io.WriteString(c, "echo "+line)
		}()
		b.apply(t, one("blue-1", "blue:80"))
		c, in := b.raw(t, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 101 {
			t.Fatalf("%v %v", resp, err)
		}
		fmt.Fprint(c, "hello\n")
		synctest.Wait()
		time.Sleep(time.Hour)
		close(pause)
		if line, err := in.ReadString('\n'); line != "echo hello\n" {
			t.Errorf("got %q %v", line, err)
		}
	})
}

func TestAProxyThatPassesOnWhatClientsSayDoesNotChooseTheHost(t *testing.T) {
	h := start(t, defaults(), "127.0.0.1")
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"X-Forwarded-Host", "X-Forwarded-Prefix", "X-Original-Url", "X-Rewrite-Url"} {
			fmt.Fprintf(w, "%s=%s ", name, r.Header.Get(name))
		}
		fmt.Fprint(w, r.Header.Get("X-Forwarded-Proto"))
	}))
	_, body := get(t, "http://"+h.addr, "X-Forwarded-Host", "evil.example", "X-Forwarded-Prefix", "/evil", "X-Original-Url", "/admin", "X-Rewrite-Url", "/admin", "X-Forwarded-Proto", "https")
	if want := "X-Forwarded-Host=" + h.addr + " X-Forwarded-Prefix= X-Original-Url= X-Rewrite-Url= https"; body != want {
		t.Errorf("the app was told %q, want %q", body, want)
	}
}
