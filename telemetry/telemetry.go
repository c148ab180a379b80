// Package telemetry is the one vocabulary in which the planes say what happened:
// an [Exchange] for every request, query and call, an [Event] for what is no
// exchange, and a [Level] for what stands at a height (pool size, waiting, in
// flight). Metrics, the log line, the span and the dashboard are sinks of these;
// they live in sub-packages, so this package imports the standard library only.
//
// Anyone may import it. It knows no plane.
package telemetry

import (
	"log/slog"
	"time"
)

// A Sink takes what the planes tell. Both methods are called from many
// goroutines at once and must not block: a sink that has to wait keeps a bounded
// queue and counts what it drops.
type Sink interface {
	// Record takes a finished exchange. x is borrowed: it is reused as soon as
	// Record returns, so a sink that wants to keep something copies it
	// ([Exchange.Clone]).
	Record(x *Exchange)
	// Emit takes an event; e and its attributes may be kept.
	Emit(e Event)
}

// An Event is something worth knowing that is not a request, a query or a call:
// a switch of colors, a reload, a crash of the app, a breaker that opened.
type Event struct {
	Time  time.Time
	Part  string // who tells: "edge", "pooler", "claude", "deploy", "app", "admin"
	Name  string // a constant in snake_case: "switched", "app_crashed", "reloaded"
	Color string // the color it is about; empty if none
	Level slog.Level
	Text  string // one sentence for a person
	Attrs []slog.Attr
}

// A Level is a quantity that stands at a height now, read when asked for.
type Level struct {
	Name   string // the metric's whole name: mainstay_pooler_servers
	Help   string
	Labels []Label
	Value  float64
	// Counter tells that it only goes up, from 0 at the start; its name ends in _total.
	Counter bool
}

// A Label is a metric dimension. Its values come from a bounded set.
type Label struct{ Name, Value string }

// Discard is a Sink that drops everything.
var Discard Sink = discard{}

type discard struct{}

func (discard) Record(*Exchange) {}
func (discard) Emit(Event)       {}

// Fanout gives each exchange and event to all sinks, in order.
func Fanout(sinks ...Sink) Sink {
	switch len(sinks) {
	case 0:
		return Discard
	case 1:
		return sinks[0]
	}
	return fanout(sinks)
}

type fanout []Sink

func (f fanout) Record(x *Exchange) {
	for _, s := range f {
		s.Record(x)
	}
}

func (f fanout) Emit(e Event) {
	for _, s := range f {
		s.Emit(e)
	}
}
