package app

import (
	"io"
	"log/slog"

	"mainstay.dev/mainstay/internal/config"
	"mainstay.dev/mainstay/telemetry/jsonlog"
)

// logControl is what a reload can change of the log.
type logControl struct {
	level     slog.LevelVar
	exchanges *jsonlog.Sink
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

// newLogger writes JSON lines, or text for a person at a terminal. The control's
// sink turns exchanges and events into lines.
func newLogger(cfg config.Logs, w io.Writer, terminal bool) (*slog.Logger, *logControl) {
	c := new(logControl)
	var h slog.Handler = jsonlog.NewHandler(w, &c.level)
	if cfg.Format == "text" || cfg.Format == "auto" && terminal {
		h = slog.NewTextHandler(w, &slog.HandlerOptions{Level: &c.level})
	}
	log := slog.New(h)
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
