package edge_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/edge/edgetest"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/internal/traffic"
)

func TestRefusalsNameTheCodeInThePlainOrTheJSONBody(t *testing.T) {
	h := start(t, defaults())
	resp, body := get(t, "http://"+h.addr)
	if resp.StatusCode != 503 || resp.Header.Get("Mainstay-Code") != "no_target" || resp.Header.Get("Retry-After") != "1" ||
		resp.Header.Get("Cache-Control") != "no-store" || !strings.Contains(body, "code: no_target") || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("plain: %v %v %s", resp.Status, resp.Header, body)
	}
	resp, body = get(t, "http://"+h.addr, "Accept", "application/json", "X-Request-Id", "r-1")
	var p struct {
		Status  int
		Code    string
		Request string `json:"request_id"`
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil || p.Status != 503 || p.Code != "no_target" || p.Request != "r-1" ||
		resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("JSON: %v %s (%v)", resp.Header, body, err)
	}
}

func TestABodyOverTheLimitIsRefused(t *testing.T) {
	h := start(t, defaults(func(c *edge.Config) { c.Body = 1000 }))
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	}))
	for _, tc := range []struct {
		size   int
		told   bool
		status int
	}{{1000, true, 200}, {1000, false, 200}, {1001, true, 413}, {1001, false, 413}, {500_000, false, 413}} {
		var body io.Reader = strings.NewReader(strings.Repeat("x", tc.size))
		if !tc.told {
			body = struct{ io.Reader }{body} // chunked
		}
		resp, err := http.Post("http://"+h.addr, "text/plain", body)
		if err != nil {
			t.Fatalf("%+v: %v", tc, err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tc.status || tc.status == 413 && resp.Header.Get("Mainstay-Code") != "too_large" {
			t.Errorf("%+v: %s %v", tc, resp.Status, resp.Header)
		}
	}
}

func TestAHeaderOverTheLimitIsRefused(t *testing.T) {
	h := start(t, defaults(func(c *edge.Config) { c.Header = 8000 }))
	h.serve(t, app(t, func(w http.ResponseWriter, r *http.Request) {}))
	if resp, _ := get(t, "http://"+h.addr, "X-Big", strings.Repeat("x", 7000)); resp.StatusCode != 200 {
		t.Errorf("below the limit: %s", resp.Status)
	}
	if resp, _ := get(t, "http://"+h.addr, "X-Big", strings.Repeat("x", 9000)); resp.StatusCode != 431 || resp.Header.Get("Mainstay-Code") != "header_too_large" {
		t.Errorf("over the limit: %s %v", resp.Status, resp.Header)
	}
	if resp, _ := get(t, "http://"+h.addr, "X-Big", strings.Repeat("x", 90000)); resp.StatusCode != 431 {
		t.Errorf("far over the limit: %s", resp.Status)
	}
}

func TestADeadAppIsToldApartFromABrokenOne(t *testing.T) {
	h := start(t, defaults())
	dead := listen(t)
	dead.Close()
	h.serve(t, dead.Addr().String())
	if resp, _ := get(t, "http://"+h.addr); resp.StatusCode != 502 || resp.Header.Get("Mainstay-Code") != "target_unreachable" {
		t.Errorf("dead: %s %v", resp.Status, resp.Header)
	}
	rude := listen(t)
	defer rude.Close()
	go func() {
		for {
			c, err := rude.Accept()
			if err != nil {
				return
			}
			bufio.NewReader(c).ReadString('\n')
			c.Close()
		}
	}()
	h.serve(t, rude.Addr().String())
	if resp, _ := get(t, "http://"+h.addr); resp.StatusCode != 502 || resp.Header.Get("Mainstay-Code") != "target_broke" {
		t.Errorf("broken: %s %v", resp.Status, resp.Header)
	}
	for i, want := range []string{"target_unreachable", "target_broke"} {
		if x := h.ledger.next(t, i); x.Code != want || x.Err == nil || x.Blame.String() != "upstream" {
			t.Errorf("recorded %s, %v, %s", x.Code, x.Err, x.Blame)
		}
	}
}

func TestARequestGoesToAnotherTargetWhenOneCannotBeReached(t *testing.T) {
	h := start(t, defaults())
	dead := listen(t)
	dead.Close()
	h.serve(t, dead.Addr().String(), app(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	}))
	retried := 0
	for i := range 40 {
		resp, err := http.Post("http://"+h.addr, "text/plain", strings.NewReader("precious"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(b) != "precious" {
			t.Fatalf("%s %q", resp.Status, b)
		}
		if x := h.ledger.next(t, i); x.Tries == 2 && x.Attempts[0].Cause == "target_unreachable" && x.Color == "green" {
			retried++
		}
	}
	if retried == 0 {
		t.Error("no request met the dead target, so nothing was shown")
	}
}

// bubble is an edge in a synctest bubble: fake time, in-memory network.
type bubble struct {
	*edge.Server
	mem    *edgetest.Network
	ledger *ledger
	client *http.Client
	stop   func()
	done   chan error
}

func inBubble(t *testing.T, change func(*edge.Config), f func(t *testing.T, b *bubble)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{mem: edgetest.NewNetwork(), ledger: &ledger{}, done: make(chan error, 1)}
		cfg := defaults(change)
		s, err := edge.New(cfg, edge.Deps{Listener: b.mem.Listen("edge:80"), Dial: b.mem.Dial, Sink: b.ledger})
		if err != nil {
			t.Fatal(err)
		}
		b.Server = s
		ctx, cancel := context.WithCancel(t.Context())
		b.stop = cancel
		go func() { b.done <- s.Run(ctx) }()
		b.client = &http.Client{Transport: &http.Transport{DialContext: b.mem.Dial, DisableKeepAlives: true}}
		f(t, b)
		cancel()
		if err := <-b.done; err != nil {
			t.Error(err)
		}
	})
}

func (b *bubble) app(t *testing.T, name string, f http.HandlerFunc) {
	srv := &http.Server{Handler: f}
	ln := b.mem.Listen(name)
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
}

func (b *bubble) apply(t *testing.T, p traffic.Plan) func(context.Context) error {
	t.Helper()
	drain, err := b.Apply(p)
	if err != nil {
		t.Fatal(err)
	}
	return drain
}

func one(id, addr string) traffic.Plan {
	color, _, _ := strings.Cut(id, "-")
	return traffic.Plan{Mode: traffic.Serve, Targets: []traffic.Target{{ID: id, Address: addr, Color: color, Weight: 1}}}
}

func (b *bubble) get(ctx context.Context) (status int, code, body string) {
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://edge/", nil)
	resp, err := b.client.Do(req)
	if err != nil {
		return 0, "", err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, "cut", string(text)
	}
	return resp.StatusCode, resp.Header.Get("Mainstay-Code"), string(text)
}

func TestAnAppThatDoesNotAnswerIsGivenUpAtItsDeadline(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		b.apply(t, one("blue-1", "blue:80"))
		began := time.Now()
		status, code, _ := b.get(t.Context())
		if took := time.Since(began); status != 504 || code != "target_timeout" || took != 2*time.Minute {
			t.Errorf("%d %s after %v", status, code, took)
		}
	})
}

func TestAStreamOutlivesEveryDeadlineAndAStalledAnswerDoesNot(t *testing.T) {
	inBubble(t, func(c *edge.Config) { c.Streams.Heartbeat = 0 }, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) {
			kind := "text/event-stream"
			if r.URL.Path == "/stall" {
				kind = "text/plain"
			}
			w.Header().Set("Content-Type", kind)
			fmt.Fprint(w, "data: first\n\n")
			w.(http.Flusher).Flush()
			select {
			case <-time.After(time.Hour):
			case <-r.Context().Done():
			}
			fmt.Fprint(w, "data: last\n\n")
		})
		b.apply(t, one("blue-1", "blue:80"))
		began := time.Now()
		status, _, body := b.get(t.Context())
		if took := time.Since(began); status != 200 || body != "data: first\n\ndata: last\n\n" || took != time.Hour {
			t.Errorf("stream: %d %q after %v", status, body, took)
		}
		req, _ := http.NewRequest("GET", "http://edge/stall", nil)
		began = time.Now()
		resp, err := b.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadAll(resp.Body)
		if took := time.Since(began); err == nil || took != 5*time.Minute {
			t.Errorf("stall: %v after %v", err, took)
		}
		resp.Body.Close()
	})
}

func TestAClientThatFallsSilentInItsBodyIsGivenUp(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		b.app(t, "blue:80", func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
		b.apply(t, one("blue-1", "blue:80"))
		c, err := b.mem.Dial(t.Context(), "tcp", "edge:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began := time.Now()
		fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
		time.Sleep(20 * time.Second) // slow, but alive
		fmt.Fprint(c, "m")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); resp.StatusCode != 408 || resp.Header.Get("Mainstay-Code") != "client_timeout" || took != 50*time.Second {
			t.Errorf("%s %v after %v", resp.Status, resp.Header, took)
		}
	})
}

func TestAClientThatSendsItsHeaderTooSlowlyIsGivenUp(t *testing.T) {
	inBubble(t, func(c *edge.Config) {}, func(t *testing.T, b *bubble) {
		c, err := b.mem.Dial(t.Context(), "tcp", "edge:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began := time.Now()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\n")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestHeldRequestsWaitBoundedInNumberAndTime(t *testing.T) {
	inBubble(t, func(c *edge.Config) { c.Hold.Requests = 2 }, func(t *testing.T, b *bubble) {
		b.app(t, "green:80", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "green") })
		b.apply(t, traffic.Plan{Mode: traffic.Hold})
		type answer struct {
			status     int
			code, body string
		}
		answers := make(chan answer, 2)
		ask := func() {
			s, c, body := b.get(t.Context())
			answers <- answer{s, c, body}
		}
		go ask()
		go ask()
		synctest.Wait()
		if s, c, _ := b.get(t.Context()); s != 503 || c != "hold_full" {
			t.Errorf("a third: %d %s", s, c)
		}
		if got := b.Stats().Holding; got != 2 {
			t.Errorf("%d are held", got)
		}
		time.Sleep(10 * time.Second)
		b.apply(t, one("green-1", "green:80"))
		for range 2 {
			if a := <-answers; a.status != 200 || a.body != "green" {
				t.Errorf("held: %+v", a)
			}
		}
		synctest.Wait()
		if x := b.ledger.next(t, 1); x.Waited != 10*time.Second {
			t.Errorf("waited %v", x.Waited)
		}
		b.apply(t, traffic.Plan{Mode: traffic.Hold})
		began := time.Now()
		if s, c, _ := b.get(t.Context()); s != 503 || c != "hold_timeout" || time.Since(began) != 30*time.Second {
			t.Errorf("too long: %d %s after %v", s, c, time.Since(began))
		}
		b.apply(t, traffic.Plan{Mode: traffic.Maintenance})
		if s, c, _ := b.get(t.Context()); s != 503 || c != "maintenance" {
			t.Errorf("maintenance: %d %s", s, c)
		}
	})
}

func TestCompileReportsEveryMistakeAtOnce(t *testing.T) {
	var c edge.Config
	c.SetDefaults()
	c.Drain, c.Header, c.Body, c.TLS = -1, 1, -1, edge.TLS{Listen: ":1", Cert: "/no/such.pem", Key: "/no/such.key"}
	_, err := edge.Compile(c)
	var paths []string
	for _, p := range setting.Of(err) {
		paths = append(paths, p.Path)
	}
	want := "drain max_body max_header tls.cert tls.key"
	if got := strings.Join(paths, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestEveryCodeHasAMeaning(t *testing.T) {
	seen := map[edge.Code]bool{}
	for _, m := range edge.Meanings {
		if seen[m.Code] || m.Text == "" {
			t.Errorf("%s: twice, or without a text", m.Code)
		}
		seen[m.Code] = true
	}
	source, err := os.ReadFile("code.go")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(regexp.MustCompile(`(?m)^\t\w+ +Code = "`).FindAll(source, -1)); len(seen) != n {
		t.Errorf("%d codes have a meaning; %d constants stand in code.go", len(seen), n)
	}
}
