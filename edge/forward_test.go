package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"mainstay.dev/mainstay/edge"
)

func TestARequestReachesTheAppAsItCame(t *testing.T) {
	seen := make(chan *http.Request, 1)
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(b))
		seen <- r
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "short and stout")
	}))
	req, _ := http.NewRequest("PATCH", "http://"+h.addr+"/a%2Fb//c;x=1?q=1;2&%zz", strings.NewReader("body"))
	req.Host = "shop.example:81"
	req.Header.Set("X-Anything", "kept")
	req.Header.Set("Connection", "X-Hop")
	req.Header.Set("X-Hop", "must not pass")
	req.Header.Set("Proxy-Authorization", "must not pass")
	resp, body := do(t, req)
	r := <-seen
	b, _ := io.ReadAll(r.Body)
	for what, pair := range map[string][2]string{
		"method":  {r.Method, "PATCH"},
		"target":  {r.RequestURI, "/a%2Fb//c;x=1?q=1;2&%zz"},
		"host":    {r.Host, "shop.example:81"},
		"header":  {r.Header.Get("X-Anything"), "kept"},
		"hop":     {r.Header.Get("X-Hop") + r.Header.Get("Proxy-Authorization"), ""},
		"body":    {string(b), "body"},
		"answer":  {body, "short and stout"},
		"cookies": {strings.Join(resp.Header["Set-Cookie"], ","), "a=1,b=2"},
		"code":    {resp.Header.Get("Mainstay-Code"), ""},
		"status":  {resp.Status, "418 I'm a teapot"},
		"agent":   {r.Header.Get("Accept-Encoding"), "gzip"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: got %q, want %q", what, pair[0], pair[1])
		}
	}
	x := h.ledger.next(t, 0)
	if x.Code != "ok" || x.HTTP.Status != 418 || x.Color != "blue" || x.BytesIn != 4 || x.BytesOut != 15 || x.Tries != 1 || x.FirstByte <= 0 {
		t.Errorf("recorded %+v", x)
	}
}

func TestForwardingHeadersAreBelievedFromTrustedPeersOnly(t *testing.T) {
	for _, tc := range []struct {
		name    string
		trusted []string
		want    map[string]string
	}{
		{"from a stranger", nil, map[string]string{
			"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "shop.example",
			"Forwarded": `for=127.0.0.1;host="shop.example";proto=http`, "X-Real-Ip": "127.0.0.1", "X-Original-Url": "", "X-Forwarded-Prefix": ""}},
		{"from a trusted proxy", []string{"loopback"}, map[string]string{
			"X-Forwarded-For": "1.2.3.4, 127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "www.example",
			"Forwarded": `for=6.6.6.6, for=127.0.0.1;host="www.example";proto=https`, "X-Real-Ip": "1.2.3.4", "X-Original-Url": "/admin", "X-Forwarded-Prefix": "/x"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			seen := make(chan http.Header, 1)
			h := start(t, defaults(), tc.trusted...)
			h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header }))
			req, _ := http.NewRequest("GET", "http://"+h.addr+"/", nil)
			req.Host = "shop.example"
			for k, v := range map[string]string{"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "www.example",
				"Forwarded": "for=6.6.6.6", "X-Original-Url": "/admin", "X-Forwarded-Prefix": "/x", "X-Real-Ip": "7.7.7.7"} {
				req.Header.Set(k, v)
			}
			do(t, req)
			got := <-seen
			for k, v := range tc.want {
				if got.Get(k) != v {
					t.Errorf("%s: got %q, want %q", k, got.Get(k), v)
				}
			}
			if x := h.ledger.next(t, 0); x.Caller != tc.want["X-Real-Ip"] {
				t.Errorf("caller %q", x.Caller)
			}
		})
	}
}

func TestTheRequestIDAndTheTraceGoInAndOut(t *testing.T) {
	seen := make(chan http.Header, 1)
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header }))
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	resp, _ := get(t, "http://"+h.addr, "X-Request-Id", "abc-1", "Traceparent", parent, "Tracestate", "dd=s:2;o:rum")
	up, x := <-seen, h.ledger.next(t, 0)
	if up.Get("X-Request-Id") != "abc-1" || resp.Header.Get("X-Request-Id") != "abc-1" || x.ID != "abc-1" {
		t.Errorf("request id: app %q, client %q, record %q", up.Get("X-Request-Id"), resp.Header.Get("X-Request-Id"), x.ID)
	}
	if got := up.Get("Traceparent"); got != x.Trace.Traceparent() || !strings.HasPrefix(got, parent[:35]) || got == parent {
		t.Errorf("traceparent %q is not a child of %q", got, parent)
	}
	if up.Get("Tracestate") != "dd=s:2;o:rum" {
		t.Errorf("tracestate %q", up.Get("Tracestate"))
	}
	resp, _ = get(t, "http://"+h.addr, "X-Request-Id", "bad id <script>", "Traceparent", "junk", "Tracestate", "a=1")
	up = <-seen
	if id := resp.Header.Get("X-Request-Id"); len(id) != 32 || id != up.Get("X-Request-Id") {
		t.Errorf("a bad id was not replaced: %q", id)
	}
	if up.Get("Tracestate") != "" || len(up.Get("Traceparent")) != 55 {
		t.Errorf("a bad trace was passed on: %q %q", up.Get("Traceparent"), up.Get("Tracestate"))
	}
}

func TestAnEventStreamIsPassedOnEventByEvent(t *testing.T) {
	next := make(chan struct{})
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			<-next // not before the client has seen it
		}
	}))
	resp, err := http.Get("http://" + h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 3 {
		if !lines.Scan() || lines.Text() != fmt.Sprint("data: ", i) || !lines.Scan() {
			t.Fatalf("event %d: %q %v", i, lines.Text(), lines.Err())
		}
		next <- struct{}{}
	}
	if lines.Scan() {
		t.Errorf("more came: %q", lines.Text())
	}
	if x := h.ledger.next(t, 0); !x.HTTP.Stream || x.Code != "ok" {
		t.Errorf("recorded %+v", x)
	}
}

func TestABodyStreamsBothWaysAtOnce(t *testing.T) {
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		in := bufio.NewScanner(r.Body)
		for in.Scan() {
			fmt.Fprintln(w, "echo", in.Text())
			w.(http.Flusher).Flush()
		}
	}))
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", "http://"+h.addr, pr)
	answered := make(chan *http.Response, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
		}
		answered <- resp
	}()
	fmt.Fprintln(pw, "one")
	resp := <-answered
	defer resp.Body.Close()
	out := bufio.NewScanner(resp.Body)
	for _, word := range []string{"one", "two", "three"} {
		if word != "one" {
			fmt.Fprintln(pw, word)
		}
		if !out.Scan() || out.Text() != "echo "+word {
			t.Fatalf("got %q %v", out.Text(), out.Err())
		}
	}
	pw.Close()
	if out.Scan() {
		t.Errorf("more came: %q", out.Text())
	}
}

func TestAWebSocketPassesAndIsNotALatency(t *testing.T) {
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		for {
			kind, msg, err := c.Read(r.Context())
			if err != nil {
				return
			}
			_ = c.Write(r.Context(), kind, append([]byte("echo "), msg...))
		}
	}))
	c, _, err := websocket.Dial(t.Context(), "ws://"+h.addr+"/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := c.Write(t.Context(), websocket.MessageText, fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
		if _, msg, err := c.Read(t.Context()); err != nil || string(msg) != fmt.Sprint("echo ", i) {
			t.Fatalf("got %q %v", msg, err)
		}
	}
	if got := h.Stats().Requests; got != 1 {
		t.Errorf("%d in flight while the tunnel is open", got)
	}
	c.Close(websocket.StatusNormalClosure, "")
	if x := h.ledger.next(t, 0); x.HTTP.Upgraded != "websocket" || x.HTTP.Status != 101 || x.Code != "ok" {
		t.Errorf("recorded %+v", x)
	}
}

func TestTrailersEarlyHintsAndHEADPass(t *testing.T) {
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "HEAD" {
			w.Header().Set("Content-Length", "12345")
			return
		}
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, "body")
		w.Header().Set("X-Sum", "42")
	}))
	var hints textproto.MIMEHeader
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		hints = h
		return nil
	}})
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+h.addr, nil)
	resp, body := do(t, req)
	if body != "body" || resp.Trailer.Get("X-Sum") != "42" || hints.Get("Link") == "" || resp.StatusCode != 200 {
		t.Errorf("body %q, trailer %v, hints %v, status %d", body, resp.Trailer, hints, resp.StatusCode)
	}
	req, _ = http.NewRequest("HEAD", "http://"+h.addr, nil)
	if resp, body = do(t, req); resp.ContentLength != 12345 || body != "" {
		t.Errorf("HEAD: length %d, body %q", resp.ContentLength, body)
	}
}

func TestAClientThatExpects100ContinueIsToldByTheApp(t *testing.T) {
	reading := make(chan bool, 1)
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Refuse") != "" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		reading <- true
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	}))
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	if line, _ := in.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100") {
		t.Fatalf("got %q", line)
	}
	in.ReadString('\n')
	<-reading
	fmt.Fprint(c, "body")
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	io.Copy(io.Discard, resp.Body)

	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\nX-Refuse: 1\r\n\r\n")
	if resp, err = http.ReadResponse(in, nil); err != nil || resp.StatusCode != 403 {
		t.Fatalf("a refusal before the body: %v %v", resp, err)
	}
}

func TestHTTP2PassesWithAndWithoutTLS(t *testing.T) {
	cert, key := writeCertificate(t, "edge.test")
	h := start(t, defaults(func(c *edge.Config) {
		c.TLS = edge.TLS{Listen: "127.0.0.1:0", Cert: cert, Key: key}
	}))
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.Header.Get("X-Forwarded-Proto"), b)
	}))
	h2c := new(http.Protocols)
	h2c.SetUnencryptedHTTP2(true)
	both := new(http.Protocols)
	both.SetHTTP2(true)
	for _, tc := range []struct {
		url, want string
		tr        *http.Transport
	}{
		{"http://" + h.addr, "http hello", &http.Transport{Protocols: h2c}},
		{"https://" + h.tls, "https hello", &http.Transport{Protocols: both, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
	} {
		defer tc.tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tc.tr}).Post(tc.url, "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != tc.want || resp.ProtoMajor != 2 {
			t.Errorf("%s: %s %q", tc.url, resp.Proto, b)
		}
	}
}

func TestAReloadBringsTheNewCertificate(t *testing.T) {
	cert, key := writeCertificate(t, "first.test")
	cfg := defaults(func(c *edge.Config) { c.TLS = edge.TLS{Listen: "127.0.0.1:0", Cert: cert, Key: key} })
	h := start(t, cfg)
	name := func() string {
		c, err := tls.Dial("tcp", h.tls, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	if got := name(); got != "first.test" {
		t.Fatalf("got %s", got)
	}
	cfg.TLS.Cert, cfg.TLS.Key = writeCertificate(t, "second.test")
	commit, err := h.Prepare(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := name(); got != "first.test" {
		t.Fatalf("before the commit: got %s", got)
	}
	commit()
	if got := name(); got != "second.test" {
		t.Fatalf("after the commit: got %s", got)
	}
}

func TestAnAnswerThatBreaksOffBreaksTheClientOff(t *testing.T) {
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half of ")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	resp, err := http.Get("http://" + h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("a half answer looked whole: %q", b)
	}
	if x := h.ledger.next(t, 0); x.Code != "answer_cut" {
		t.Errorf("code %s", x.Code)
	}
}

func TestAClientThatHangsUpFreesItsPlace(t *testing.T) {
	inside, freed := make(chan struct{}), make(chan struct{})
	h := start(t, defaults())
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		close(inside)
		<-r.Context().Done()
		close(freed)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+h.addr, nil)
	go func() { <-inside; cancel() }()
	if _, err := http.DefaultClient.Do(req); err == nil {
		t.Fatal("answered")
	}
	select {
	case <-freed:
	case <-time.After(10 * time.Second):
		t.Fatal("the app was not told")
	}
	if x := h.ledger.next(t, 0); x.Code != "client_gone" || x.Blame.String() != "client" {
		t.Errorf("code %s, blame %s", x.Code, x.Blame)
	}
}
