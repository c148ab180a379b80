package app

import (
	"fmt"

	"mainstay.dev/mainstay/internal/calls"
	"mainstay.dev/mainstay/internal/monitor"
	"mainstay.dev/mainstay/telemetry"
	"mainstay.dev/mainstay/telemetry/otlp"
	"mainstay.dev/mainstay/telemetry/prom"
)

// wireTelemetry builds the sinks; every exchange and event goes to all of them.
func (a *App) wireTelemetry(res *Resolved) error {
	cfg := res.Telemetry
	a.log, a.logs = newLogger(cfg.Logs, a.opts.Logs, a.opts.Terminal)
	a.monitor = monitor.New()
	a.metrics = prom.New(a.levels, prom.Version(a.opts.Version))
	sinks := []telemetry.Sink{a.metrics, a.monitor, a.logs.exchanges}
	if res.ClaudeOn {
		a.calls = calls.New(res.Claude.Calls)
		sinks = append(sinks, a.calls)
	}
	if cfg.Export != "" {
		export, err := otlp.New(cfg.OTLP(), otlp.Resource{
			Service: res.Service, Environment: res.Environment, Version: a.opts.Version, Instance: host(),
		}, a.part("telemetry"))
		if err != nil {
			return fmt.Errorf("telemetry.export: %w", err)
		}
		a.export = export
		sinks = append(sinks, export)
	}
	a.sink = telemetry.Fanout(sinks...)
	return nil
}
