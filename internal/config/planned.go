package config

import (
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// The structs here are the schema of sections whose features are not built yet:
// a file that uses them is understood, and told so. Each moves to the package
// that will obey it.

// Limits is the schema of the rate limits to come.
type Limits struct {
	Tiers          map[string]Tier `yaml:"tiers" doc:"Limits by tier."`
	Per            []string        `yaml:"per" doc:"Who has the tier's number for itself: user, workspace."`
	OnStoreFailure string          `yaml:"on_store_failure" doc:"local, allow or deny."`
}

// Tier is one tier's limit.
type Tier struct {
	Requests int           `yaml:"requests" doc:"How many requests."`
	Window   time.Duration `yaml:"window" doc:"In any window of this length."`
}

// Validate reports every mistake.
func (l *Limits) Validate(ps *setting.Problems) {
	for name, t := range l.Tiers {
		if t.Requests <= 0 {
			ps.Add("tiers."+name+".requests", "must be positive", "try 1000")
		}
		if t.Window <= 0 {
			ps.Add("tiers."+name+".window", "must be positive", "try 1h")
		}
	}
	for _, p := range l.Per {
		oneOf(ps, "per", p, "user", "workspace")
	}
	if l.OnStoreFailure != "" {
		oneOf(ps, "on_store_failure", l.OnStoreFailure, "local", "allow", "deny")
	}
}

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

// Local is the schema of the app's local door to come.
type Local struct {
	Listen string `yaml:"listen" doc:"Address of the door."`
}
