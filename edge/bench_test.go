package edge_test

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"mainstay.dev/mainstay/edge"
	"mainstay.dev/mainstay/internal/limits"
	"mainstay.dev/mainstay/internal/traffic"
	"mainstay.dev/mainstay/telemetry"
)

// The whole exchange over loopback sockets, client and app included, through the
// edge, through a bare httputil.ReverseProxy with the same transport, and straight
// to the app: compare the rows of one run.
func BenchmarkExchange(b *testing.B) {
	body := bytes.Repeat([]byte("x"), 1024)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Cache-Control", "max-age=60")
		_, _ = w.Write(body)
	}))
	defer app.Close()
	target, err := url.Parse(app.URL)
	if err != nil {
		b.Fatal(err)
	}
	for _, lane := range []struct {
		name string
		to   string
	}{
		{"direct", app.URL},
		{"reverseproxy", bareProxy(b, target)},
		{"edge", benchEdge(b, target.Host, nil)},
		{"edge with limits", benchEdge(b, target.Host, ladder(b, 1e9, 0))},
		{"edge that keeps answers", benchEdge(b, target.Host, ladder(b, 1e9, time.Hour))},
	} {
		b.Run(lane.name+"/get", func(b *testing.B) {
			exchange(b, func(c *http.Client) (*http.Response, error) { return c.Get(lane.to) })
		})
		b.Run(lane.name+"/post", func(b *testing.B) {
			exchange(b, func(c *http.Client) (*http.Response, error) {
				return c.Post(lane.to, "text/plain", bytes.NewReader(body))
			})
		})
	}
}

// BenchmarkRefused asks beyond the limit: what is answered by a refusal, and by what is
// kept.
func BenchmarkRefused(b *testing.B) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=3600")
		_, _ = w.Write(bytes.Repeat([]byte("x"), 1024))
	}))
	defer app.Close()
	for name, keep := range map[string]time.Duration{"429": 0, "kept": time.Hour} {
		to := benchEdge(b, strings.TrimPrefix(app.URL, "http://"), ladder(b, 1, keep))
		if resp, err := http.Get(to); err != nil || resp.StatusCode != 200 {
			b.Fatal(resp, err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			tr := &http.Transport{MaxIdleConnsPerHost: 16}
			defer tr.CloseIdleConnections()
			for b.Loop() {
				resp, err := (&http.Client{Transport: tr}).Get(to)
				if err != nil || (resp.StatusCode == 200) != (keep > 0) {
					b.Fatal(resp, err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}

// ladder is a gate of so many requests an hour, that keeps answers for so long.
func ladder(b *testing.B, requests int, keep time.Duration) *limits.Gate {
	var c limits.Config
	c.SetDefaults()
	c.Tiers["free"] = limits.Tier{Requests: requests, Window: time.Hour}
	c.Degrade.Stale.For, c.Degrade.Warn = keep, 0
	g, err := limits.NewGate(c, limits.Deps{})
	if err != nil {
		b.Fatal(err)
	}
	return g
}

func exchange(b *testing.B, send func(*http.Client) (*http.Response, error)) {
	tr := &http.Transport{MaxIdleConnsPerHost: 16}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	b.ReportAllocs()
	for b.Loop() {
		resp, err := send(c)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			b.Fatal(resp.Status)
		}
	}
}

func bareProxy(b *testing.B, target *url.URL) string {
	rp := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true},
	}
	srv := httptest.NewServer(rp)
	b.Cleanup(srv.Close)
	return srv.URL
}

func benchEdge(b *testing.B, target string, g *limits.Gate) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var cfg edge.Config
	cfg.SetDefaults()
	s, err := edge.New(cfg, edge.Deps{Listener: ln, Limits: g, Log: slog.New(slog.DiscardHandler), Sink: telemetry.Discard})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := s.Apply(traffic.Plan{Mode: traffic.Serve, Targets: []traffic.Target{{ID: "blue-1", Address: target, Color: "blue", Weight: 1}}}); err != nil {
		b.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(s)
	srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	b.Cleanup(srv.Close)
	return srv.URL
}
