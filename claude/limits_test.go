package claude_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
)

func TestABodyOverTheLimitIsRefused(t *testing.T) {
	st, fake := over(t, claudetest.Options{}, func(c *claude.Config) { c.Limits = claude.LimitConfig{Body: 1000, Replay: 100, ReplayMemory: 200} })
	big := strings.Repeat("x", 2000)
	r := st.post(big)
	if e := parseError(t, r.body); r.status != 413 || e.Error.Type != "request_too_large" || r.head.Get("Mainstay-Code") != "too_large" || fake.Counts().Requests != 0 {
		t.Errorf("%+v", r)
	}
	r = st.send("POST", "/v1/messages", "", func(req *http.Request) { // not announced: found out on the way
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(big)), -1
	})
	if x := st.book.last(t, 2); r.status != 413 || x.Code != "too_large" {
		t.Errorf("%+v %+v", r, x)
	}
}

func TestABodyTooLargeToKeepStreamsThroughOnce(t *testing.T) {
	for name, c := range map[string]struct {
		limits claude.LimitConfig
		size   int64
	}{
		"announced":        {claude.LimitConfig{Body: 1 << 20, Replay: 1000, ReplayMemory: 1000}, 300_000},
		"in chunks":        {claude.LimitConfig{Body: 1 << 20, Replay: 1000, ReplayMemory: 1000}, -1},
		"no memory":        {claude.LimitConfig{Body: 1 << 20, Replay: 0, ReplayMemory: 0}, 300_000},
		"memory runs out":  {claude.LimitConfig{Body: 1 << 20, Replay: 299_000, ReplayMemory: 299_000}, -1},
		"one byte too few": {claude.LimitConfig{Body: 1 << 20, Replay: 299_999, ReplayMemory: 299_999}, 300_000},
	} {
		t.Run(name, func(t *testing.T) {
			st, fake := over(t, claudetest.Options{Keep: 2}, func(cfg *claude.Config) { cfg.Limits = c.limits })
			body := strings.Repeat("0123456789", 30_000)
			edit := func(req *http.Request) {
				req.Header.Set("Anthropic-Beta", "x")
				req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), c.size
			}
			if r := st.send("POST", "/v1/echo/raw", "", edit); r.status != 200 || r.body != body {
				t.Errorf("%d, %d bytes", r.status, len(r.body))
			}
			fake.Next(claudetest.Overloaded)
			if r := st.send("POST", "/v1/echo/raw", "", edit); r.status != 529 || r.head.Get("Mainstay-Attempts") != "1" {
				t.Errorf("%+v", r)
			}
			waitFor(t, func() bool { return st.Stats().ReplayBytes == 0 })
		})
	}
}

func TestABodyOfJustTheLimitIsKept(t *testing.T) {
	for _, size := range []int64{1000, -1} {
		st, fake := over(t, claudetest.Options{}, func(c *claude.Config) { c.Limits = claude.LimitConfig{Body: 1 << 20, Replay: 1000, ReplayMemory: 1001} })
		fake.Next(claudetest.Overloaded)
		r := st.send("POST", "/v1/echo/raw", "", func(req *http.Request) {
			req.Header.Set("Anthropic-Beta", "x")
			req.Body, req.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat("x", 1000))), size
		})
		if r.status != 200 || r.head.Get("Mainstay-Attempts") != "2" || len(r.body) != 1000 {
			t.Errorf("size %d: %+v", size, r)
		}
	}
}

// raw opens a connection to the plane of a bubble and writes to it.
func raw(t *testing.T, st *stage, text string) net.Conn {
	t.Helper()
	conn, err := st.http.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestAClientThatStopsSendingIsLetGo(t *testing.T) {
	inBubble(t, fine, nil, func(t *testing.T, st *stage) {
		conn := raw(t, st, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
		defer conn.Close()
		begun := time.Now()
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); res.StatusCode != 408 || took != 30*time.Second || res.Header.Get("Mainstay-Code") != "upload_timeout" {
			t.Errorf("%d after %v", res.StatusCode, took)
		}
	})
}

func TestAClientThatSendsSlowlyIsWaitedFor(t *testing.T) {
	inBubble(t, fine, nil, func(t *testing.T, st *stage) {
		conn := raw(t, st, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n")
		defer conn.Close()
		for range 20 {
			time.Sleep(20 * time.Second)
			_, _ = io.WriteString(conn, "x")
		}
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 200 {
			t.Errorf("%v, %v", res, err)
		}
	})
}

func TestAClientThatStopsReadingIsLetGo(t *testing.T) {
	endless := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, "event: ping\ndata: {}\n\n"); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
	}
	inBubble(t, answers(endless), nil, func(t *testing.T, st *stage) {
		conn := raw(t, st, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
		defer conn.Close()
		begun := time.Now()
		time.Sleep(time.Minute)
		x := st.book.last(t, 1)
		if x.Code != "client_gone" || x.Took > 35*time.Second || time.Since(begun) != time.Minute || st.Stats().InFlight != 0 {
			t.Errorf("%s after %v", x.Code, x.Took)
		}
	})
}

func TestABrokenUploadEndsTheCall(t *testing.T) {
	for _, text := range []string{
		"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
		"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
	} {
		inBubble(t, fine, nil, func(t *testing.T, st *stage) {
			_ = raw(t, st, text).Close()
			synctest.Wait()
			if x := st.book.last(t, 1); x.Code != "client_gone" {
				t.Errorf("%s: %v", x.Code, x.Err)
			}
		})
	}
	inBubble(t, fine, nil, func(t *testing.T, st *stage) {
		conn := raw(t, st, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
		defer conn.Close()
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || res.StatusCode != 400 || res.Header.Get("Mainstay-Code") != "bad_request" {
			t.Errorf("%v, %v", res, err)
		}
	})
}

func TestAHeaderBombIsRefused(t *testing.T) {
	inBubble(t, fine, nil, func(t *testing.T, st *stage) {
		client := &http.Client{Transport: st.http.Transport}
		req, _ := http.NewRequestWithContext(t.Context(), "GET", st.url+"/v1/models", nil)
		req.Header.Set("X-Bomb", strings.Repeat("x", 100<<10))
		if res, err := client.Do(req); err == nil && res.StatusCode != 431 {
			t.Errorf("%d", res.StatusCode)
		}
	})
}

func TestStoppingLetsCallsEndAndBreaksOffThoseThatTakeTooLong(t *testing.T) {
	for _, c := range []struct {
		needs  time.Duration
		code   string
		ran    time.Duration
		broken bool
	}{{20 * time.Second, "ok", 20 * time.Second, false}, {time.Hour, "stopping", 30 * time.Second, true}} {
		h := func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "event: message_start\ndata: {}\n\n")
			_ = http.NewResponseController(w).Flush()
			for end := time.Now().Add(c.needs); time.Now().Before(end) && r.Context().Err() == nil; time.Sleep(time.Second) {
				_, _ = io.WriteString(w, "event: ping\ndata: {}\n\n")
				_ = http.NewResponseController(w).Flush()
			}
			_, _ = io.WriteString(w, "event: message_stop\ndata: {}\n\n")
		}
		inBubble(t, answers(h), nil, func(t *testing.T, st *stage) {
			got := make(chan reply)
			go func() { got <- st.post(helloS) }()
			synctest.Wait()
			begun := time.Now()
			ended := make(chan time.Duration)
			go func() { _ = st.stop(); ended <- time.Since(begun) }()
			r := <-got
			if took := <-ended; took < c.ran || took > c.ran+5*time.Second {
				t.Errorf("stopping took %v", took)
			}
			if x := st.book.last(t, 1); x.Code != c.code || (r.err != nil) != c.broken || strings.Contains(r.body, "event: error") != c.broken {
				t.Errorf("%s, %v: %.80s", x.Code, r.err, r.body)
			}
		})
	}
}

func TestStoppingEndsAWaitForARetry(t *testing.T) {
	inBubble(t, answers(says(429, "{}", "Retry-After", "60")), func(c *claude.Config) { c.Drain = time.Second }, func(t *testing.T, st *stage) {
		got := make(chan reply)
		go func() { got <- st.post(hello) }()
		synctest.Wait()
		_ = st.stop()
		if r := <-got; r.status != 503 || r.head.Get("Mainstay-Code") != "stopping" {
			t.Errorf("%+v", r)
		}
	})
}

func TestAReloadChangesWhatFollowsAndNothingElse(t *testing.T) {
	inBubble(t, answers(busy, busy, fine, busy, fine), nil, func(t *testing.T, st *stage) {
		var cfg claude.Config
		cfg.SetDefaults()
		cfg.Upstream, cfg.Retry.Policy = "http://claude.test", "compatible"
		cfg.Retry.MaxRetries, cfg.Listen = 0, "127.0.0.1:1"
		if _, err := st.Prepare(cfg); err == nil || !strings.Contains(err.Error(), "listen: can't change while Mainstay runs") {
			t.Errorf("%v", err)
		}
		cfg.Listen = "127.0.0.1:8700"
		commit, err := st.Prepare(cfg)
		if err != nil {
			t.Fatal(err)
		}
		under := make(chan reply)
		go func() { under <- st.post(hello) }()
		synctest.Wait() // it waits for its first retry
		commit()
		if r := <-under; r.status != 200 || r.head.Get("Mainstay-Attempts") != "3" {
			t.Errorf("the call under way got %+v", r)
		}
		if r := st.post(hello); r.status != 529 {
			t.Errorf("after the reload: %+v", r)
		}
	})
}

// TestNoGoroutineOutlivesItsCall kills the upstream in the middle of streams and
// takes clients away in the middle of retries, many times.
func TestNoGoroutineOutlivesItsCall(t *testing.T) {
	fake := claudetest.New(claudetest.Options{EventDelay: time.Millisecond})
	if err := fake.Open("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	addr := strings.TrimPrefix(fake.URL(), "http://")
	st := start(t, setup{upstream: fake.URL(), edit: func(c *claude.Config) { c.Retry.Base = 5 * time.Millisecond }})
	if r := st.post(hello); r.status != 200 {
		t.Fatal(r)
	}
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for i := range 80 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%2 == 0 {
				cancel = func() {}
			}
			req, _ := http.NewRequestWithContext(ctx, "POST", st.url+"/v1/messages", strings.NewReader(helloS))
			req.Header.Set("X-Api-Key", key)
			req.Header.Set("Anthropic-Version", "2023-06-01")
			req.Header.Set("Content-Type", "application/json")
			res, err := st.http.Do(req)
			if err != nil {
				return
			}
			defer res.Body.Close()
			_, _ = io.ReadFull(res.Body, make([]byte, 300))
			cancel()
			_, _ = io.Copy(io.Discard, res.Body)
		})
		switch i {
		case 30:
			fake.Close()
		case 50:
			if err := fake.Open(addr); err != nil {
				t.Fatal(err)
			}
		case 60:
			fake.SetFaults(0.5, append(claudetest.StreamFaults()[:6], claudetest.HTTPFaults()...)...)
		}
	}
	wg.Wait()
	fake.SetFaults(0)
	waitFor(t, func() bool { return st.Stats().InFlight == 0 })
	if r := st.post(hello); r.status != 200 {
		t.Errorf("the plane did not come round: %+v", r)
	}
	st.http.CloseIdleConnections()
	fake.Close()
	waitFor(t, func() bool { return runtime.NumGoroutine() <= before })
	waitFor(t, func() bool {
		s := st.Stats()
		return s.InFlight == 0 && s.Waiting == 0 && s.Streams == 0 && s.ReplayBytes == 0
	})
}

func TestAPlaneNeedsAListenerAndAValidConfig(t *testing.T) {
	var cfg claude.Config
	cfg.SetDefaults()
	if _, err := claude.New(cfg, claude.Deps{}); err == nil {
		t.Error("no listener was missed")
	}
	ln := newPipes()
	if _, err := claude.New(claude.Config{}, claude.Deps{Listener: ln}); err == nil {
		t.Error("an empty configuration was taken")
	}
	broken := errors.New("no more")
	s, err := claude.New(cfg, claude.Deps{Listener: failing{ln, broken}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("run: %v", err)
	}
	if len(s.Levels()) < 6 {
		t.Errorf("%v", s.Levels())
	}
}

type failing struct {
	*pipes
	err error
}

func (f failing) Accept() (net.Conn, error) { return nil, f.err }
