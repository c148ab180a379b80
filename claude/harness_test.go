package claude_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mainstay.dev/mainstay/claude"
	"mainstay.dev/mainstay/claude/claudetest"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/telemetry"
)

// key is the API key of all tests; it must turn up nowhere but upstream.
const key = "sk-ant-secret-of-this-test"

// book is a sink that remembers.
type book struct {
	mu  sync.Mutex
	all []*telemetry.Exchange
}

func (b *book) Record(x *telemetry.Exchange) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, x.Clone())
}

func (b *book) Emit(telemetry.Event) {}

// last returns the newest exchange once there are n of them.
func (b *book) last(t *testing.T, n int) *telemetry.Exchange {
	t.Helper()
	return b.pages(t, n)[n-1]
}

// pages returns the exchanges once there are n of them: a call is written down after
// its client has its answer.
func (b *book) pages(t *testing.T, n int) []*telemetry.Exchange {
	t.Helper()
	waitFor(t, func() bool { return b.len() >= n })
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.all) != n {
		t.Fatalf("%d exchanges, want %d", len(b.all), n)
	}
	return slices.Clone(b.all)
}

func (b *book) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.all)
}

// waitFor gives other goroutines the time that they need; a minute is for ever.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}

// safe is a buffer that many may write to.
type safe struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safe) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safe) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// stage is a plane on a network, and what it left in writing.
type stage struct {
	t    *testing.T
	url  string
	book *book
	logs *safe
	*claude.Server
	stop func() error // ends Run and returns its error; may be called again
	http *http.Client // for the client's side
}

type setup struct {
	upstream string
	ln       net.Listener
	dial     claude.Dial
	colors   []string
	who      identity.Opener
	limits   claude.Limits
	edit     func(*claude.Config)
	dir      string
}

// start runs a plane of the policy compatible whose retries wait for next to
// nothing, unless edit says otherwise.
func start(t *testing.T, s setup) *stage {
	t.Helper()
	if s.ln == nil {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.ln = ln
	}
	var cfg claude.Config
	cfg.SetDefaults()
	cfg.Upstream, cfg.Retry.Policy, cfg.Retry.Base = s.upstream, "compatible", time.Millisecond
	if s.edit != nil {
		s.edit(&cfg)
	}
	st := &stage{t: t, book: &book{}, logs: &safe{}, url: "http://" + s.ln.Addr().String()}
	srv, err := claude.New(cfg, claude.Deps{
		Listener: s.ln, Dial: s.dial, Sink: st.book, Colors: s.colors, Dir: s.dir, Identity: s.who, Limits: s.limits,
		Log: slog.New(slog.NewTextHandler(st.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	st.Server = srv
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- srv.Run(ctx) }()
	st.stop = sync.OnceValue(func() error { cancel(); return <-ran })
	st.http = &http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}}
	t.Cleanup(func() {
		st.http.CloseIdleConnections()
		if err := st.stop(); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return st
}

// over starts a fake and a plane in front of it, over real TCP.
func over(t *testing.T, opt claudetest.Options, edit func(*claude.Config)) (*stage, *claudetest.Server) {
	t.Helper()
	fake := claudetest.New(opt)
	return start(t, setup{upstream: fake.Start(t), edit: edit}), fake
}

const (
	hello  = `{"model":"claude-sonnet-5","max_tokens":64,"messages":[{"role":"user","content":"hello"}]}`
	helloS = `{"model":"claude-sonnet-5","max_tokens":64,"stream":true,"messages":[{"role":"user","content":"hello"}]}`
)

// reply is an answer as the raw client saw it.
type reply struct {
	status int
	head   http.Header
	body   string
	err    error // of reading the body
}

func (st *stage) post(body string) reply { return st.send("POST", "/v1/messages", body, nil) }

func (st *stage) send(method, path, body string, edit func(*http.Request)) reply {
	st.t.Helper()
	return send(st.t, st.http, method, st.url+path, body, edit)
}

func send(t *testing.T, client *http.Client, method, url, body string, edit func(*http.Request)) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", key)
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("Content-Type", "application/json")
	if edit != nil {
		edit(req)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(b), err}
}

// pipes is a network in memory, for tests in which time is not real.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8700} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.closed:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// inBubble runs a test in fake time with a plane in front of h. The plane follows
// the policy compatible, without jitter, unless edit says otherwise.
func inBubble(t *testing.T, h http.Handler, edit func(*claude.Config), test func(t *testing.T, st *stage)) {
	t.Helper()
	inBubbleIn(t, "", h, edit, test)
}

// inBubbleIn is inBubble with a folder for state.
func inBubbleIn(t *testing.T, dir string, h http.Handler, edit func(*claude.Config), test func(t *testing.T, st *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		front, back := newPipes(), newPipes()
		upstream := &http.Server{Handler: h}
		go func() { _ = upstream.Serve(back) }()
		st := start(t, setup{upstream: "http://claude.test", dir: dir, ln: front, dial: back.dial, edit: func(c *claude.Config) {
			c.Retry.Base, c.Retry.Jitter = time.Second, 0
			if edit != nil {
				edit(c)
			}
		}})
		st.http.Transport.(*http.Transport).DialContext = front.dial
		test(t, st)
		st.http.CloseIdleConnections()
		if err := st.stop(); err != nil {
			t.Errorf("run: %v", err)
		}
		_ = upstream.Shutdown(context.WithoutCancel(t.Context())) // waits for its handlers, so that what is left over is ours
		synctest.Wait()                                           // a goroutine that is left over fails the test when the bubble ends
	})
}

// answers gives the same scripted answers in order, the last one again and again.
func answers(hs ...http.HandlerFunc) http.HandlerFunc {
	var mu sync.Mutex
	n := 0
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		h := hs[min(n, len(hs)-1)]
		n++
		mu.Unlock()
		h(w, r)
	}
}

// says answers with a status, a body, and headers in pairs.
func says(status int, body string, head ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for i := 0; i < len(head); i += 2 {
			w.Header()[head[i]] = []string{head[i+1]}
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

var (
	fine = says(200, `{"type":"message","model":"claude-sonnet-5","usage":{"input_tokens":3,"output_tokens":5}}`, "Request-Id", "req_fine")
	busy = says(529, `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`)
)

// sleep waits, unless ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// answer is an upstream's, in memory.
func answer(status int, body string, stream io.Reader, limits http.Header) *http.Response {
	h := http.Header{"Content-Type": {"application/json"}}
	maps.Copy(h, limits)
	if stream == nil {
		stream = strings.NewReader(body)
	} else {
		h.Set("Content-Type", "text/event-stream")
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(stream), ContentLength: -1}
}
