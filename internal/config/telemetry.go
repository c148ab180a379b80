package config

import (
	"slices"
	"strings"
	"time"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/telemetry/otlp"
)

// Telemetry says where traces and logs go.
type Telemetry struct {
	Export      string                    `yaml:"export" doc:"Base address of an OTLP/HTTP collector, as OTEL_EXPORTER_OTLP_ENDPOINT has it; /v1/traces is appended. Empty: traces are not exported."`
	Headers     map[string]setting.Secret `yaml:"headers" doc:"Headers for the collector, such as an API key."`
	Compression string                    `yaml:"compression" doc:"How traces are compressed on their way: gzip or none. Empty: as OTEL_EXPORTER_OTLP_COMPRESSION says, else gzip, and none to a collector on this machine."`
	Logs        Logs                      `yaml:"logs" doc:"The log."`
	Datadog     Datadog                   `yaml:"datadog" planned:"the Datadog link" doc:"A Datadog agent."`
}

// Logs says what the log holds and how it is written.
type Logs struct {
	Level     string `yaml:"level" doc:"The least level that is written: debug, info, warn or error."`
	Format    string `yaml:"format" doc:"json, text, or auto: text on a terminal and json elsewhere."`
	Exchanges string `yaml:"exchanges" doc:"Which requests, queries and calls get a line: all, errors, none, or auto: errors on a terminal and all elsewhere."`

	Dir    string        `yaml:"dir" planned:"rotated log files" doc:"Folder for log files."`
	Rotate string        `yaml:"rotate" planned:"rotated log files" doc:"daily or hourly."`
	Keep   time.Duration `yaml:"keep" planned:"rotated log files" doc:"How long rotated files are kept."`
}

// Datadog is the schema of the Datadog link to come.
type Datadog struct {
	Agent string `yaml:"agent" doc:"Address of the agent."`
}

// SetDefaults fills in what the file leaves out.
func (t *Telemetry) SetDefaults() {
	*t = Telemetry{Logs: Logs{Level: "info", Format: "auto", Exchanges: "auto"}}
}

// OTLP is the exporter's part of the section.
func (t *Telemetry) OTLP() otlp.Config {
	var c otlp.Config
	c.SetDefaults()
	c.Endpoint, c.Headers, c.Compression = t.Export, t.Headers, t.Compression
	return c
}

// Validate reports every mistake.
func (t *Telemetry) Validate(ps *setting.Problems) {
	var found setting.Problems
	t.OTLP().Validate(&found)
	for _, p := range found {
		if p.Path == "endpoint" {
			p.Path = "export"
		}
		*ps = append(*ps, p)
	}
	oneOf(ps, "logs.level", t.Logs.Level, "debug", "info", "warn", "error")
	oneOf(ps, "logs.format", t.Logs.Format, "auto", "json", "text")
	oneOf(ps, "logs.exchanges", t.Logs.Exchanges, "auto", "all", "errors", "none")
}

func oneOf(ps *setting.Problems, path, got string, allowed ...string) {
	if !slices.Contains(allowed, got) {
		ps.Add(path, "must be one of "+strings.Join(allowed, ", "), "try "+allowed[0])
	}
}
