package app

import (
	"io"
	"log/slog"

	"mainstay.dev/mainstay/internal/config"
	"mainstay.dev/mainstay/telemetry/jsonlog"
)

// logControl is what a reload can change of the log, and what the end has to close.
type logControl struct {
	level     slog.LevelVar
	exchanges *jsonlog.Sink
	queue     *jsonlog.Queue // before whoever reads the log
}

// set puts validated settings in force.
func (c *logControl) set(cfg config.Logs, terminal bool) {
	var l slog.Level
	if l.UnmarshalText([]byte(cfg.Level)) == nil {
		c.level.Set(l)
	}
	if which, err := jsonlog.ParseWhich(exchanges(cfg, terminal)); err == nil {
		c.exchanges.Choose(which)
	}
}

// newLogger writes JSON lines, or text for a person at a terminal, and never waits for w. The
// control's sink turns exchanges and events into lines; its queue is to be closed.
func newLogger(cfg config.Logs, w io.Writer, terminal bool) (*slog.Logger, *logControl) {
	c := new(logControl)
	form := func(w io.Writer) slog.Handler { return jsonlog.NewHandler(w, &c.level) }
	if cfg.Format == "text" || cfg.Format == "auto" && terminal {
		form = func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, &slog.HandlerOptions{Level: &c.level}) }
	}
	c.queue = jsonlog.NewQueue(w, form)
	log := slog.New(form(c.queue))
	c.exchanges = jsonlog.New(log, jsonlog.All)
	c.set(cfg, terminal)
	return log, c
}

// exchanges says which requests, queries and calls get a line.
func exchanges(cfg config.Logs, terminal bool) string {
	switch {
	case cfg.Exchanges != "auto":
		return cfg.Exchanges
	case terminal:
		return "errors"
	}
	return "all"
}
