package pooler

import (
	"cmp"
	"slices"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

// Stats is how the pooler stands now.
type Stats struct {
	Clients    int             `json:"clients"`
	MaxClients int             `json:"max_clients"`
	Databases  []DatabaseStats `json:"databases"`
}

// DatabaseStats is how one database's pool stands now.
type DatabaseStats struct {
	Database    string        `json:"database"`
	Mode        string        `json:"mode"`
	Upstream    string        `json:"upstream"` // without the password
	Min         int           `json:"min"`
	Max         int           `json:"max"`
	Active      int           `json:"active"`       // servers that a client has
	Idle        int           `json:"idle"`         // servers that wait for a client
	Connecting  int           `json:"connecting"`   // servers that are being connected to
	Waiting     int           `json:"waiting"`      // clients that wait for a server
	LongestWait time.Duration `json:"longest_wait"` // of those, in nanoseconds
	LongestUse  time.Duration `json:"longest_use"`  // of the active servers, in nanoseconds
	Outage      string        `json:"outage,omitempty"`
}

// Stats may be called at any time.
func (p *Server) Stats() Stats {
	policy := p.policy.Load()
	p.mu.Lock()
	st := Stats{Clients: len(p.sessions), MaxClients: policy.config.MaxClients, Databases: []DatabaseStats{}}
	p.mu.Unlock()
	for _, pool := range policy.pools {
		st.Databases = append(st.Databases, pool.stats())
	}
	slices.SortFunc(st.Databases, func(a, b DatabaseStats) int { return cmp.Compare(a.Database, b.Database) })
	return st
}

func (p *pool) stats() DatabaseStats {
	config := p.config.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	st := DatabaseStats{
		Database: p.name, Mode: config.Mode, Upstream: p.target.String(), Min: config.Pool.Min, Max: config.Pool.Max,
		Idle: len(p.idle), Active: len(p.all) - len(p.idle), Connecting: p.dialing, Waiting: p.waiting,
	}
	if p.head != nil {
		st.LongestWait = time.Since(p.head.since)
	}
	for b := range p.all {
		if b.holder != nil {
			st.LongestUse = max(st.LongestUse, time.Since(b.since))
		}
	}
	if p.outage != nil {
		st.Outage = p.outage.err.Error()
	}
	return st
}

// Levels is Stats as metrics.
func (p *Server) Levels() []telemetry.Level {
	st := p.Stats()
	levels := []telemetry.Level{
		{Name: "mainstay_pooler_clients", Help: "Clients that are connected.", Value: float64(st.Clients)},
		{Name: "mainstay_pooler_clients_max", Help: "Clients that may be connected at once.", Value: float64(st.MaxClients)},
	}
	for _, d := range st.Databases {
		database := telemetry.Label{Name: "database", Value: d.Database}
		for _, s := range []struct {
			state string
			n     int
		}{{"active", d.Active}, {"idle", d.Idle}, {"connecting", d.Connecting}} {
			levels = append(levels, telemetry.Level{
				Name: "mainstay_pooler_servers", Help: "Connections to PostgreSQL by state: active (a client has it), idle, connecting.",
				Labels: []telemetry.Label{database, {Name: "state", Value: s.state}}, Value: float64(s.n),
			})
		}
		for _, l := range []telemetry.Level{
			{Name: "mainstay_pooler_servers_max", Help: "Connections to PostgreSQL that may be open at once.", Value: float64(d.Max)},
			{Name: "mainstay_pooler_waiting", Help: "Clients that wait for a connection to PostgreSQL.", Value: float64(d.Waiting)},
			{Name: "mainstay_pooler_longest_wait_seconds", Help: "How long the first of them has waited.", Value: d.LongestWait.Seconds()},
			{Name: "mainstay_pooler_longest_use_seconds", Help: "How long a client has had its connection to PostgreSQL.", Value: d.LongestUse.Seconds()},
			{Name: "mainstay_pooler_upstream_down", Help: "1 while PostgreSQL accepts no connection.", Value: bit(d.Outage != "")},
		} {
			l.Labels = []telemetry.Label{database}
			levels = append(levels, l)
		}
	}
	return levels
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
