// Package otlp exports exchanges as OpenTelemetry spans over OTLP/HTTP
// (https://opentelemetry.io/docs/specs/otlp/). Names and attributes follow the
// semantic conventions for HTTP, databases and generative AI.
//
// Package app makes the sink when an endpoint is configured; any Go program that
// uses a plane without the binary may do the same.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

const (
	batchSize    = 256                    // exchanges in one export
	interval     = time.Second            // how long an exchange waits for its batch to fill
	patience     = 30 * time.Second       // how long one batch is tried again
	flushLimit   = 5 * time.Second        // for what is left when Run is told to end
	quiet        = time.Minute            // between two log lines about trouble
	maxReply     = 64 << 10               // bytes of a collector's reply that are read
	firstBackoff = 500 * time.Millisecond // before a second try
	maxBackoff   = 10 * time.Second
)

// Resource says who speaks; it goes with every span.
type Resource struct {
	Service     string // service.name
	Environment string // deployment.environment.name; may be empty
	Version     string // service.version; may be empty
	Instance    string // service.instance.id; may be empty
}

// A Sink sends the exchanges of sampled traces to a collector. Record never
// blocks: exchanges wait in a bounded queue, and what finds it full is dropped
// and counted.
type Sink struct {
	log      *slog.Logger
	endpoint string
	resource *resource.Resource
	exporter *otlptrace.Exporter
	wire     *http.Transport // nil in tests without a network
	queue    chan *telemetry.Exchange
	dropped  atomic.Int64
	sent     atomic.Int64
	trouble  trouble // used by Run alone
}

// New makes a sink. Its errors are cfg's mistakes, as setting.Problems. Standard
// environment variables (OTEL_EXPORTER_OTLP_HEADERS …) hold where cfg says
// nothing.
func New(cfg Config, res Resource, log *slog.Logger) (*Sink, error) {
	wire := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
		ForceAttemptHTTP2:   true,
		MaxIdleConns:        2,
		IdleConnTimeout:     time.Minute,
	}
	s, err := newSink(cfg, res, log, wire)
	if err != nil {
		return nil, err
	}
	s.wire = wire
	return s, nil
}

func newSink(cfg Config, res Resource, log *slog.Logger, wire http.RoundTripper) (*Sink, error) {
	var ps setting.Problems
	cfg.Validate(&ps)
	if cfg.Endpoint == "" {
		ps.Add("endpoint", "must be given to export spans", "try http://localhost:4318")
	}
	if err := ps.Err(); err != nil {
		return nil, err
	}
	to, _, _ := tracesURL(cfg.Endpoint)
	options := []otlptracehttp.Option{
		otlptracehttp.WithEndpointURL(to),
		otlptracehttp.WithTimeout(cfg.Timeout),
		otlptracehttp.WithMaxResponseSize(maxReply),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		otlptracehttp.WithHTTPClient(&http.Client{Transport: patient{wire}, Timeout: cfg.Timeout}),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
			Enabled: true, InitialInterval: firstBackoff, MaxInterval: maxBackoff, MaxElapsedTime: patience,
		}),
	}
	if len(cfg.Headers) > 0 {
		headers := make(map[string]string, len(cfg.Headers))
		for name, value := range cfg.Headers {
			headers[name] = value.Reveal()
		}
		options = append(options, otlptracehttp.WithHeaders(headers))
	}
	exporter, err := otlptracehttp.New(context.Background(), options...)
	if err != nil {
		return nil, fmt.Errorf("make the exporter to %s: %w", to, err)
	}
	return &Sink{
		log: log, endpoint: to, resource: res.attributes(), exporter: exporter,
		queue: make(chan *telemetry.Exchange, cfg.Queue),
	}, nil
}

// Record queues x if its trace is sampled.
func (s *Sink) Record(x *telemetry.Exchange) {
	if !x.Trace.Sampled() {
		return
	}
	// Looking first saves the copy while the collector is away.
	if len(s.queue) == cap(s.queue) {
		s.dropped.Add(1)
		return
	}
	select {
	case s.queue <- x.Clone():
	default:
		s.dropped.Add(1)
	}
}

// Emit does nothing: an event belongs to no trace.
func (s *Sink) Emit(telemetry.Event) {}

// Dropped is how many exchanges were not exported, because the queue was full or
// the collector did not take them.
func (s *Sink) Dropped() int64 { return s.dropped.Load() }

// Levels tells the height of the queue and what became of the exchanges.
func (s *Sink) Levels() []telemetry.Level {
	return []telemetry.Level{
		{Name: "mainstay_otlp_queue", Help: "Exchanges that wait for export to the OTLP collector.", Value: float64(len(s.queue))},
		{Name: "mainstay_otlp_exported", Help: "Exchanges exported to the OTLP collector since the start.", Value: float64(s.sent.Load())},
		{Name: "mainstay_otlp_dropped", Help: "Exchanges lost on the way to the OTLP collector since the start.", Value: float64(s.dropped.Load())},
	}
}

// Run exports batches until ctx ends, then what is left, for at most five
// seconds. A collector that does not answer is no error of Run's: it is logged,
// at most once a minute.
func (s *Sink) Run(ctx context.Context) error {
	work, stop := outlive(ctx, flushLimit)
	defer stop()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	batch := make([]*telemetry.Exchange, 0, batchSize)
	for {
		select {
		case x := <-s.queue:
			if batch = append(batch, x); len(batch) < batchSize {
				continue
			}
		case <-tick.C:
		case <-ctx.Done():
			s.flush(work, batch)
			return nil
		}
		s.export(work, batch)
		batch = batch[:0]
		s.trouble.full(s, len(s.queue) == cap(s.queue))
	}
}

// flush exports batch and all that is queued.
func (s *Sink) flush(work context.Context, batch []*telemetry.Exchange) {
	for {
		for len(batch) < batchSize && len(s.queue) > 0 {
			batch = append(batch, <-s.queue)
		}
		if len(batch) == 0 {
			break
		}
		s.export(work, batch)
		batch = batch[:0]
	}
	if err := s.exporter.Shutdown(work); err != nil && !errors.Is(err, context.Canceled) {
		s.log.Warn("span exporter did not end cleanly", "endpoint", s.endpoint, "err", err)
	}
	if s.wire != nil {
		s.wire.CloseIdleConnections()
	}
}

func (s *Sink) export(work context.Context, batch []*telemetry.Exchange) {
	if len(batch) == 0 {
		return
	}
	spans := make([]sdktrace.ReadOnlySpan, 0, 2*len(batch))
	for _, x := range batch {
		spans = appendSpans(spans, x, s.resource)
	}
	err := s.exporter.ExportSpans(work, spans)
	if err != nil {
		s.dropped.Add(int64(len(batch)))
	} else {
		s.sent.Add(int64(len(batch)))
	}
	s.trouble.exported(s, err)
}

// outlive returns a context that ends a while after ctx does. stop ends it at
// once and releases what it holds.
func outlive(ctx context.Context, by time.Duration) (late context.Context, stop func()) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	timer := time.AfterFunc(by, cancel)
	timer.Stop()
	unhook := context.AfterFunc(ctx, func() { timer.Reset(by) })
	return late, func() {
		unhook()
		cancel()
		timer.Stop()
	}
}

// trouble logs what goes wrong at a bounded rate, and once when it is over.
type trouble struct {
	last    time.Time
	failing bool
}

func (t *trouble) exported(s *Sink, err error) {
	switch {
	case err == nil && t.failing:
		t.failing = false
		s.log.Info("spans are exported again", "endpoint", s.endpoint, "dropped_total", s.Dropped())
	case err != nil && (t.last.IsZero() || time.Since(t.last) >= quiet):
		t.failing, t.last = true, time.Now()
		s.log.Warn("spans are not exported: the collector does not take them", "endpoint", s.endpoint, "dropped_total", s.Dropped(), "err", clean(err.Error()))
	case err != nil:
		t.failing = true
	}
}

func (t *trouble) full(s *Sink, full bool) {
	if full && (t.last.IsZero() || time.Since(t.last) >= quiet) {
		t.last = time.Now()
		s.log.Warn("spans are dropped: the queue is full", "endpoint", s.endpoint, "dropped_total", s.Dropped(), "queue", cap(s.queue))
	}
}

// patient marks errors of the connection as temporary, which makes the exporter
// try again: a collector that restarts refuses for a moment.
type patient struct{ next http.RoundTripper }

func (p patient) RoundTrip(r *http.Request) (*http.Response, error) {
	reply, err := p.next.RoundTrip(r)
	if err != nil && r.Context().Err() == nil {
		return nil, temporary{err}
	}
	return reply, err
}

type temporary struct{ error }

func (temporary) Temporary() bool { return true }
func (t temporary) Unwrap() error { return t.error }
