// Package prom turns exchanges, events and levels into Prometheus metrics
// (https://prometheus.io/docs/instrumenting/exposition_formats/). Every metric is
// in one table, [Reference] prints it, and the number of series is bounded
// whatever clients send.
//
// Package app makes the sink and gives its handler to admin; any Go program that
// uses a plane without the binary may do the same.
package prom

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"mainstay.dev/mainstay/telemetry"
)

// A Sink counts exchanges and events. It has a registry of its own. Its methods
// may be called from many goroutines at once; Record does not allocate but for
// the first exchange of a new combination of labels.
type Sink struct {
	registry *prometheus.Registry
	edge     *plane
	pooler   *plane
	claude   *plane
	events   *prometheus.CounterVec
	parts    *vocabulary
	names    *vocabulary
}

// An Option changes what New makes.
type Option func(*Sink)

// Version adds mainstay_build_info with this version.
func Version(version string) Option {
	return func(s *Sink) {
		s.gauge("mainstay_build_info").WithLabelValues(version, revision(), runtime.Version()).Set(1)
	}
}

// New makes a sink. levels is asked at every scrape for what stands at a height;
// nil means that there is nothing.
func New(levels func() []telemetry.Level, options ...Option) *Sink {
	s := &Sink{registry: prometheus.NewRegistry(), parts: newVocabulary(maxNames), names: newVocabulary(maxNames)}
	s.edge = newPlane(s, "edge", "request")
	s.pooler = newPlane(s, "pooler", "query")
	s.claude = newPlane(s, "claude", "call")
	s.events = s.counter("mainstay_events_total")
	s.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		heights{levels},
	)
	for _, o := range options {
		o(s)
	}
	return s
}

// Record counts x. An exchange of a plane that is none of the three is ignored.
func (s *Sink) Record(x *telemetry.Exchange) {
	switch x.Plane {
	case "edge":
		s.edge.record(x)
	case "pooler":
		s.pooler.record(x)
	case "claude":
		s.claude.record(x)
	}
}

// Emit counts e.
func (s *Sink) Emit(e telemetry.Event) {
	s.events.WithLabelValues(s.parts.fold(e.Part), s.names.fold(e.Name)).Inc()
}

// Handler answers a scrape, in the text format, OpenMetrics or protobuf as the
// client asks. What can be gathered is served even if a part of it cannot.
func (s *Sink) Handler() http.Handler {
	return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{
		Registry:            s.registry, // counts what could not be gathered
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 8,
		Timeout:             10 * time.Second,
		EnableOpenMetrics:   true,
	})
}

// counter and gauge make and register the metric of that name as the table describes it.
func (s *Sink) counter(name string) *prometheus.CounterVec {
	m := described(name)
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.Name, Help: m.Help}, m.Labels)
	s.registry.MustRegister(v)
	return v
}

func (s *Sink) gauge(name string) *prometheus.GaugeVec {
	m := described(name)
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: m.Name, Help: m.Help}, m.Labels)
	s.registry.MustRegister(v)
	return v
}

// revision is the commit the binary was built from, or "unknown".
func revision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, kv := range info.Settings {
			if kv.Key == "vcs.revision" {
				return kv.Value
			}
		}
	}
	return "unknown"
}

// heights shows levels as gauges at the moment of a scrape.
type heights struct{ levels func() []telemetry.Level }

// Describe says nothing: which levels there are is known only when asked.
func (heights) Describe(chan<- *prometheus.Desc) {}

func (h heights) Collect(out chan<- prometheus.Metric) {
	if h.levels == nil {
		return
	}
	seen, help := map[string]bool{}, map[string]string{}
	for _, l := range h.levels() {
		names, values := make([]string, len(l.Labels)), make([]string, len(l.Labels))
		var id strings.Builder
		id.WriteString(l.Name)
		for i, label := range l.Labels {
			names[i], values[i] = label.Name, clean(label.Value)
			id.WriteString("\x00" + label.Name + "\x00" + values[i])
		}
		// One level told twice, or in two wordings, would cost the whole scrape.
		if seen[id.String()] {
			continue
		}
		seen[id.String()] = true
		if _, ok := help[l.Name]; !ok {
			help[l.Name] = l.Help
		}
		kind := prometheus.GaugeValue
		if l.Counter {
			kind = prometheus.CounterValue
		}
		m, err := prometheus.NewConstMetric(prometheus.NewDesc(l.Name, help[l.Name], names, nil), kind, l.Value, values...)
		if err != nil {
			m = prometheus.NewInvalidMetric(prometheus.NewDesc(l.Name, help[l.Name], nil, nil), err)
		}
		out <- m
	}
}

// clean makes a string fit to be a label's value: valid UTF-8 of bounded length.
func clean(s string) string {
	if len(s) > maxValue {
		s = s[:maxValue]
	}
	return strings.ToValidUTF8(s, "?")
}
