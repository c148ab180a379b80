// Package otlp exports exchanges as OpenTelemetry spans over OTLP/HTTP
// (https://opentelemetry.io/docs/specs/otlp/). Names and attributes follow the
// semantic conventions for HTTP, databases and generative AI.
//
// A span costs a few microseconds in all, and where it is recorded about one and no
// allocation: Record writes it down in the protocol's own form, which is what waits for
// the export (docs/decisions/0005-our-own-exporter.md).
//
// Package app makes the sink when an endpoint is configured; any Go program that
// uses a plane without the binary may do the same.
package otlp

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry"
)

const (
	interval   = time.Second     // how long an exchange waits for its batch to fill
	flushLimit = 5 * time.Second // for what is left when Run is told to end
	quiet      = time.Minute     // between two log lines about trouble
	maxScratch = 64 << 10        // bytes that are kept to write the next exchange's spans into
)

// A Sink sends the exchanges of sampled traces to a collector. Record never
// blocks: exchanges wait in a bounded queue, and what finds it full is dropped
// and counted.
type Sink struct {
	log      *slog.Logger
	exporter exporter        // used by Run alone
	network  *http.Transport // nil in tests without one
	queue    *queue
	scratch  sync.Pool // of *wire: where Record writes
	dropped  atomic.Int64
	sent     atomic.Int64
	trouble  trouble // used by Run alone
}

// New makes a sink. Its errors are cfg's mistakes, as setting.Problems. Standard
// environment variables hold where cfg says nothing: OTEL_EXPORTER_OTLP_HEADERS,
// …_COMPRESSION, …_CERTIFICATE, …_CLIENT_CERTIFICATE and …_CLIENT_KEY, and the same of
// OTEL_EXPORTER_OTLP_TRACES_….
func New(cfg Config, res Resource, log *slog.Logger) (*Sink, error) {
	return newSink(cfg, res, log, os.Getenv, nil)
}

// newSink makes a sink on a network of its own if it gets none.
func newSink(cfg Config, res Resource, log *slog.Logger, getenv func(string) string, network http.RoundTripper) (*Sink, error) {
	var ps setting.Problems
	cfg.Validate(&ps)
	if cfg.Endpoint == "" {
		ps.Add("endpoint", "must be given to export spans", "try http://localhost:4318")
	}
	env := readEnvironment(getenv, &ps)
	if err := ps.Err(); err != nil {
		return nil, err
	}
	if env.protocol != "" && env.protocol != "http/protobuf" {
		log.Warn("OTEL_EXPORTER_OTLP_PROTOCOL is not heeded: spans leave as http/protobuf", "asked", clean(env.protocol), "endpoint", cfg.Endpoint)
	}
	s := &Sink{log: log, queue: newQueue(cfg.Queue)}
	s.scratch.New = func() any { return new(wire) }
	if network == nil {
		s.network = &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSClientConfig:     env.tls,
			TLSHandshakeTimeout: 5 * time.Second,
			ForceAttemptHTTP2:   true,
			MaxIdleConns:        2,
			IdleConnTimeout:     time.Minute,
		}
		network = s.network
	}
	s.exporter = newExporter(cfg, env, res, network)
	return s, nil
}

// Record writes the spans of x down if its trace is sampled, for Run to export.
func (s *Sink) Record(x *telemetry.Exchange) {
	if !x.Trace.Sampled() {
		return
	}
	// Looking first saves the work while the collector is away.
	if s.queue.crowded() {
		s.dropped.Add(1)
		return
	}
	w := s.scratch.Get().(*wire)
	*w = (*w)[:0]
	w.exchange(x)
	if !s.queue.put(*w) {
		s.dropped.Add(1)
	}
	if cap(*w) <= maxScratch {
		s.scratch.Put(w)
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
		{Name: "mainstay_otlp_queue", Help: "Exchanges that wait for export to the OTLP collector.", Value: float64(s.queue.waiting.Load())},
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
	for {
		select {
		case <-s.queue.ready:
			s.drain(work, false)
		case <-tick.C:
			s.drain(work, true)
		case <-ctx.Done():
			s.drain(work, true)
			if s.network != nil {
				s.network.CloseIdleConnections()
			}
			return nil
		}
	}
}

// drain exports the batches that are full, and with rest what else waits.
func (s *Sink) drain(work context.Context, rest bool) {
	for {
		b := s.queue.take(rest)
		if b.exchanges == 0 {
			return
		}
		s.export(work, b)
		s.queue.giveBack(b)
		s.trouble.full(s, s.queue.crowded())
	}
}

func (s *Sink) export(work context.Context, b batch) {
	rejected, why, err := s.exporter.export(work, b)
	lost := int64(b.exchanges)
	if err == nil {
		// Of an exchange with attempts some spans may have been taken; it counts as lost.
		lost = min(lost, rejected)
	}
	s.dropped.Add(lost)
	s.sent.Add(int64(b.exchanges) - lost)
	s.trouble.exported(s, err)
	s.trouble.partly(s, rejected, why)
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
		s.log.Info("spans are exported again", "endpoint", s.exporter.to, "dropped_total", s.Dropped())
	case err != nil:
		t.failing = true
		if t.due() {
			s.log.Warn("spans are not exported: the collector does not take them", "endpoint", s.exporter.to, "dropped_total", s.Dropped(), "err", clean(err.Error()))
		}
	}
}

// partly tells what a collector said that took a batch, or most of it.
func (t *trouble) partly(s *Sink, rejected int64, why string) {
	if (rejected > 0 || why != "") && t.due() {
		s.log.Warn("the collector took a batch with a remark", "endpoint", s.exporter.to, "rejected_spans", rejected, "remark", why, "dropped_total", s.Dropped())
	}
}

func (t *trouble) full(s *Sink, full bool) {
	if full && t.due() {
		s.log.Warn("spans are dropped: the queue is full", "endpoint", s.exporter.to, "dropped_total", s.Dropped(), "queue", s.queue.most)
	}
}

// due reports whether a line may be logged again, and takes the turn if so.
func (t *trouble) due() bool {
	if !t.last.IsZero() && time.Since(t.last) < quiet {
		return false
	}
	t.last = time.Now()
	return true
}
