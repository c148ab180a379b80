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
	"testing"

	"mainstay.dev/mainstay/edge"
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
		{"edge", benchEdge(b, target.Host, telemetry.Discard)},
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

func benchEdge(b *testing.B, target string, sink telemetry.Sink) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var cfg edge.Config
	cfg.SetDefaults()
	s, err := edge.New(cfg, edge.Deps{Listener: ln, Log: slog.New(slog.DiscardHandler), Sink: sink})
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
