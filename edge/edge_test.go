package edge_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/identity"
	"mainstay.dev/mainstay/internal/traffic"
	"mainstay.dev/mainstay/telemetry"
)

// ledger is a sink that keeps every exchange.
type ledger struct {
	mu sync.Mutex
	xs []*telemetry.Exchange
}

func (l *ledger) Record(x *telemetry.Exchange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.xs = append(l.xs, x.Clone())
}

func (l *ledger) Emit(telemetry.Event) {}

// next waits for the record of the i-th exchange: it is written after the client
// has its answer.
func (l *ledger) next(t *testing.T, i int) *telemetry.Exchange {
	t.Helper()
	for range 2000 {
		l.mu.Lock()
		if len(l.xs) > i {
			x := l.xs[i]
			l.mu.Unlock()
			return x
		}
		l.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("exchange %d was never recorded", i)
	return nil
}

// house is an edge on a real loopback listener.
type house struct {
	*edge.Server
	addr   string
	ledger *ledger
	stop   func()
	done   chan error
	tls    string
}

func defaults(change ...func(*edge.Config)) edge.Config {
	var c edge.Config
	c.SetDefaults()
	c.Listen = "127.0.0.1:0"
	for _, f := range change {
		f(&c)
	}
	return c
}

func start(t *testing.T, cfg edge.Config, who ...string) *house {
	t.Helper()
	return startWith(t, cfg, nil, who...)
}

// startWith is start with other Deps.
func startWith(t *testing.T, cfg edge.Config, change func(*edge.Deps), who ...string) *house {
	t.Helper()
	h := &house{ledger: &ledger{}, done: make(chan error, 1)}
	proxies, err := identity.CompileProxies(identity.Config{TrustedProxies: who, Rewriting: rewriting(who), ClientHeader: identity.XForwardedFor})
	if err != nil {
		t.Fatal(err)
	}
	d := edge.Deps{Log: slog.New(slog.DiscardHandler), Sink: h.ledger, Identity: proxies}
	d.Listener = listen(t)
	h.addr = d.Listener.Addr().String()
	if cfg.TLS.Listen != "" {
		d.TLS = listen(t)
		h.tls = d.TLS.Addr().String()
	}
	if change != nil {
		change(&d)
	}
	s, err := edge.New(cfg, d)
	if err != nil {
		t.Fatal(err)
	}
	h.Server = s
	ctx, cancel := context.WithCancel(t.Context())
	h.stop = cancel
	go func() { h.done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-h.done:
		case <-time.After(20 * time.Second):
			t.Error("the edge did not stop")
		}
	})
	return h
}

// rewriting are the trusted proxies of a test that write X-Forwarded-Host
// themselves; 127.0.0.1, given as such, stands for one that passes it on.
func rewriting(trusted []string) []string {
	return slices.DeleteFunc(slices.Clone(trusted), func(s string) bool { return s == "127.0.0.1" })
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// app starts a real server and returns its address.
func app(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// serve points the edge at addresses, as colors blue, green, ….
func (h *house) serve(t *testing.T, addrs ...string) func(context.Context) error {
	t.Helper()
	colors := []string{"blue", "green"}
	p := traffic.Plan{Mode: traffic.Serve}
	for i, a := range addrs {
		p.Targets = append(p.Targets, traffic.Target{ID: colors[i] + "@" + a, Address: a, Color: colors[i], Weight: 1})
	}
	drain, err := h.Apply(p)
	if err != nil {
		t.Fatal(err)
	}
	return drain
}

func get(t *testing.T, url string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return do(t, req)
}

func do(t *testing.T, req *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}
