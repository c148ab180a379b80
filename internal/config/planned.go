package config

import (
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// The structs here are the schema of sections whose features are not built yet:
// a file that uses them is understood, and told so. Each moves to the package
// that will obey it.

// Alert is the schema of one alert to come.
type Alert struct {
	Name string        `yaml:"name" doc:"The alert's name."`
	When string        `yaml:"when" doc:"The condition, such as edge.p95 > 1s."`
	For  time.Duration `yaml:"for" doc:"How long it must hold."`
}

// Validate reports every mistake.
func (a *Alert) Validate(ps *setting.Problems) {
	if a.Name == "" {
		ps.Add("name", "is missing", "try slow-api")
	}
	if a.When == "" {
		ps.Add("when", "is missing", "try edge.p95 > 1s")
	}
}
