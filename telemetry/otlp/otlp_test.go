package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

var quietLog = slog.New(slog.DiscardHandler)

func config(endpoint string) Config {
	var c Config
	c.SetDefaults()
	c.Endpoint = endpoint
	return c
}

func noEnvironment(string) string { return "" }

// collector is an OTLP receiver: it keeps the spans and the headers it got.
type collector struct {
	mu      sync.Mutex
	exports []*coltracepb.ExportTraceServiceRequest
	headers []http.Header
	paths   []string
	refuse  func(n int) (status int, err error) // by number of the try, from 1; nil: takes all
	tries   int
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status, err := c.take(r)
	if err != nil {
		status = http.StatusBadRequest
	}
	w.WriteHeader(status)
}

// RoundTrip makes the collector its own network.
func (c *collector) RoundTrip(r *http.Request) (*http.Response, error) {
	status, err := c.take(r)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
}

func (c *collector) take(r *http.Request) (status int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tries++
	if c.refuse != nil {
		if status, err := c.refuse(c.tries); status != 0 || err != nil {
			return status, err
		}
	}
	in := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		zr, err := gzip.NewReader(r.Body)
		if err != nil {
			return 0, err
		}
		in = zr
	}
	body, err := io.ReadAll(io.LimitReader(in, 8<<20))
	if err != nil {
		return 0, err
	}
	var export coltracepb.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &export); err != nil {
		return 0, err
	}
	c.exports = append(c.exports, &export)
	c.headers = append(c.headers, r.Header)
	c.paths = append(c.paths, r.Method+" "+r.URL.Path)
	return http.StatusOK, nil
}

func (c *collector) spans() (all []*tracepb.Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.exports {
		for _, rs := range e.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				all = append(all, ss.Spans...)
			}
		}
	}
	return all
}

// run runs s until the returned function is called, which waits for its end.
func run(t *testing.T, s *Sink) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func sampled(plane string) *telemetry.Exchange {
	x := &telemetry.Exchange{Plane: plane, Color: "blue", Code: "ok", Start: time.Now(), Took: time.Millisecond}
	x.Trace.Continue("", "")
	return x
}

func TestSpansReachARealReceiverWithResourceAndHeaders(t *testing.T) {
	var c collector
	server := httptest.NewServer(&c)
	defer server.Close()
	cfg := config(server.URL + "/otel/")
	cfg.Headers = map[string]setting.Secret{"x-api-key": "sesame"}
	s, err := New(cfg, Resource{Service: "unite-hub", Environment: "production", Version: "1.4", Instance: "i-1"}, quietLog)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, s)
	s.Record(sampled("edge"))
	s.Record(sampled("pooler"))
	stop() // flushes

	if n := len(c.spans()); n != 2 {
		t.Fatalf("%d spans, want 2", n)
	}
	if c.paths[0] != "POST /otel/v1/traces" || c.headers[0].Get("X-Api-Key") != "sesame" {
		t.Errorf("%s with key %q", c.paths[0], c.headers[0].Get("X-Api-Key"))
	}
	got := map[string]string{}
	for _, kv := range c.exports[0].ResourceSpans[0].Resource.Attributes {
		got[kv.Key] = kv.Value.GetStringValue()
	}
	for key, want := range map[string]string{"service.name": "unite-hub", "deployment.environment.name": "production", "service.version": "1.4", "service.instance.id": "i-1"} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	if s.Dropped() != 0 || s.Levels()[1].Value != 2 {
		t.Errorf("dropped %d, exported %v", s.Dropped(), s.Levels()[1].Value)
	}
}

func TestOnlySampledTracesAreExported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c collector
		s, err := newSink(config("http://collector"), Resource{}, quietLog, noEnvironment, &c)
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, s)
		x := sampled("edge")
		x.Trace.Continue("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "")
		s.Record(x)
		s.Record(sampled("edge"))
		s.Emit(telemetry.Event{Name: "switched"})
		time.Sleep(2 * interval)
		if n := len(c.spans()); n != 1 {
			t.Errorf("%d spans after the interval, want 1", n)
		}
		stop()
	})
}

func TestAFullBatchLeavesAtOnceAndARestWithTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c collector
		s, err := newSink(config("http://collector"), Resource{}, quietLog, noEnvironment, &c)
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, s)
		for range batchSize + 1 {
			s.Record(sampled("edge"))
		}
		synctest.Wait()
		if n := len(c.spans()); n != batchSize {
			t.Errorf("%d spans at once, want %d", n, batchSize)
		}
		time.Sleep(2 * interval)
		if n := len(c.spans()); n != batchSize+1 {
			t.Errorf("%d spans after the interval, want %d", n, batchSize+1)
		}
		stop()
	})
}

func TestACollectorThatRestartsLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := collector{refuse: func(n int) (int, error) {
			switch n {
			case 1:
				return 0, errors.New("connection refused")
			case 2:
				return http.StatusServiceUnavailable, nil
			}
			return 0, nil
		}}
		s, err := newSink(config("http://collector"), Resource{}, quietLog, noEnvironment, &c)
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, s)
		s.Record(sampled("edge"))
		time.Sleep(patience)
		if n := len(c.spans()); n != 1 || s.Dropped() != 0 {
			t.Errorf("%d spans, %d dropped, after %d tries", n, s.Dropped(), c.tries)
		}
		stop()
	})
}

func TestADeadCollectorNeverBlocksIsLoggedSeldomAndLosesACountedNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := collector{refuse: func(int) (int, error) { return 0, errors.New("connection refused: key=hunter2") }}
		var logged bytes.Buffer
		cfg := config("http://collector")
		cfg.Queue = 100
		cfg.Headers = map[string]setting.Secret{"authorization": "Bearer sesame"}
		s, err := newSink(cfg, Resource{}, slog.New(slog.NewTextHandler(&logged, nil)), noEnvironment, &c)
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, s)
		const minutes = 10
		begin, recorded := time.Now(), 0
		for time.Since(begin) < minutes*time.Minute {
			for range 10 {
				s.Record(sampled("edge"))
				recorded++
			}
			time.Sleep(time.Second)
		}
		stop()
		if s.Dropped() != int64(recorded) {
			t.Errorf("%d dropped of %d", s.Dropped(), recorded)
		}
		if n := strings.Count(logged.String(), "\n"); n == 0 || n > minutes+1 {
			t.Errorf("%d log lines in %d minutes", n, minutes)
		}
		if strings.Contains(logged.String(), "sesame") {
			t.Error("a header's value is in the log")
		}
	})
}

func TestTheEndOfADeadCollectorIsBoundedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := newSink(config("http://collector"), Resource{}, quietLog, noEnvironment, hanging{})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, s)
		for range 3 * batchSize {
			s.Record(sampled("edge"))
		}
		time.Sleep(time.Second)
		begin := time.Now()
		stop()
		if took := time.Since(begin); took != flushLimit {
			t.Errorf("took %v, want %v", took, flushLimit)
		}
		if s.Dropped() != 3*batchSize {
			t.Errorf("%d dropped, want %d", s.Dropped(), 3*batchSize)
		}
	})
}

func TestRecordAfterTheEndIsDroppedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config("http://collector")
		cfg.Queue = 3
		s, err := newSink(cfg, Resource{}, quietLog, noEnvironment, &collector{})
		if err != nil {
			t.Fatal(err)
		}
		run(t, s)()
		for range 10 {
			s.Record(sampled("edge"))
		}
		if s.Dropped() != 7 {
			t.Errorf("%d dropped, want 7", s.Dropped())
		}
	})
}

func TestRecoveryIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dead bool
		c := collector{refuse: func(int) (int, error) {
			if dead {
				return http.StatusBadRequest, nil
			}
			return 0, nil
		}}
		var logged bytes.Buffer
		s, err := newSink(config("http://collector"), Resource{}, slog.New(slog.NewTextHandler(&logged, nil)), noEnvironment, &c)
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, s)
		for i := range 10 {
			c.mu.Lock()
			dead = i < 5
			c.mu.Unlock()
			s.Record(sampled("edge"))
			time.Sleep(2 * interval)
		}
		stop()
		if n := strings.Count(logged.String(), "exported again"); n != 1 {
			t.Errorf("recovery logged %d times:\n%s", n, logged.String())
		}
	})
}

func TestConfigMistakesAreAllReportedWithTheirMend(t *testing.T) {
	for endpoint, want := range map[string]string{
		"localhost:4318":               "endpoint: must be a URL with http or https and a host; try http://localhost:4318",
		"ftp://h":                      "endpoint: must be a URL with http",
		"http://:4318":                 "endpoint: must be a URL with http",
		"http://u:p@h":                 "endpoint: must not hold a password",
		"http://h/?k=v":                "endpoint: must be a base URL, without ? and #",
		"http://h:4318/v1/traces":      "leave /v1/traces away",
		"http://h:4318/otel/v1/traces": "leave /v1/traces away",
		"":                             "endpoint: must be given",
	} {
		if _, err := New(config(endpoint), Resource{}, quietLog); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gave %v, want %q", endpoint, err, want)
		}
	}
	bad := Config{Endpoint: "x", Headers: map[string]setting.Secret{"a b": "v", "c": "se\nsame"}}
	var ps setting.Problems
	bad.Validate(&ps)
	if len(ps) != 5 || strings.Contains(ps.Error(), "sesame") {
		t.Errorf("%d problems:\n%v", len(ps), ps)
	}
	var ok setting.Problems
	config("").Validate(&ok)
	if len(ok) != 0 {
		t.Errorf("the defaults have problems: %v", ok)
	}
}

func FuzzTracesURL(f *testing.F) {
	for _, s := range []string{"http://localhost:4318", "https://h/otel/", "http://[::1]:1", "://", "http://u:p@h/?q#f", "http://h/%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		to, what, _ := tracesURL(s)
		if (to == "") == (what == "") {
			t.Fatalf("%q gave %q and %q", s, to, what)
		}
		if to != "" && !strings.HasSuffix(to, "/v1/traces") {
			t.Fatalf("%q gave %q", s, to)
		}
	})
}

func BenchmarkRecordWhileTheQueueIsFull(b *testing.B) {
	cfg := config("http://collector")
	cfg.Queue = 1
	s, err := newSink(cfg, Resource{}, quietLog, noEnvironment, &collector{})
	if err != nil {
		b.Fatal(err)
	}
	x := sampled("edge")
	s.Record(x)
	b.ReportAllocs()
	for b.Loop() {
		s.Record(x)
	}
}

// hanging is a network in which nothing is ever answered.
type hanging struct{}

func (hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, fmt.Errorf("wait for a reply: %w", r.Context().Err())
}
