package edge

import (
	"time"

	"mainstay.dev/mainstay/capacity"
	"mainstay.dev/mainstay/telemetry"
)

// Stats is how the edge stands now.
type Stats struct {
	Mode     string          `json:"mode"`
	Requests int64           `json:"requests_in_flight"`
	Holding  int64           `json:"holding"`
	Overload *capacity.Stats `json:"overload,omitempty"` // nil: edge.overload is off
	Kept     *Kept           `json:"kept,omitempty"`     // nil: nobody is limited
	Targets  []Target        `json:"targets"`
}

// Target is how one target stands now.
type Target struct {
	ID       string `json:"id"`
	Color    string `json:"color"`
	Address  string `json:"address"`
	Version  string `json:"version,omitempty"`
	Weight   int    `json:"weight"`
	InFlight int    `json:"in_flight"`
	// State is ready, ejected or slow_start.
	State  string    `json:"state"`
	Until  time.Time `json:"until,omitzero"`  // when an ejected one is tried again, or the slow start ends
	Failed int       `json:"failed,omitzero"` // tries in a row that came to no answer
}

// The words of Target.State.
const (
	Ready     = "ready"      // it gets its share
	Ejected   = "ejected"    // it failed several requests in a row; others take its requests while they can
	SlowStart = "slow_start" // it gets less than its share, and more from moment to moment
)

// state tells how the target stands.
func (h *fitness) state() (state string, until time.Time) {
	if h.out.Load() {
		h.mu.Lock()
		defer h.mu.Unlock()
		return Ejected, h.until
	}
	if since := h.since.Load(); since != 0 {
		if end := time.Unix(0, since).Add(h.slow); time.Now().Before(end) {
			return SlowStart, end
		}
	}
	return Ready, time.Time{}
}

// Stats may be called at any time.
func (s *Server) Stats() Stats {
	p := s.plan.Load()
	st := Stats{Mode: string(p.mode), Requests: s.requests.Load(), Holding: s.holding.Load(), Kept: s.kept.stats(), Targets: []Target{}}
	if s.policy.Load().overload.On {
		overload := s.valve.Stats()
		st.Overload = &overload
	}
	for _, sh := range p.shares {
		t := Target{ID: sh.id, Color: sh.color, Address: sh.address, Version: sh.version, Weight: sh.weight, InFlight: sh.inflight(), Failed: int(sh.health.failed.Load())}
		t.State, t.Until = sh.health.state()
		st.Targets = append(st.Targets, t)
	}
	return st
}

// Levels is Stats as metrics.
func (s *Server) Levels() []telemetry.Level {
	st := s.Stats()
	levels := []telemetry.Level{
		{Name: "mainstay_edge_requests_in_flight", Help: "Requests in flight, streams and tunnels included.", Value: float64(st.Requests)},
		{Name: "mainstay_edge_holding", Help: "Requests that wait while the traffic is held.", Value: float64(st.Holding)},
	}
	for _, color := range []string{"blue", "green"} {
		var n, weight, ejected float64
		for _, t := range st.Targets {
			if t.Color == color {
				n += float64(t.InFlight)
				weight += float64(t.Weight)
				if t.State == Ejected {
					ejected++
				}
			}
		}
		label := []telemetry.Label{{Name: "color", Value: color}}
		levels = append(levels,
			telemetry.Level{Name: "mainstay_edge_color_in_flight", Help: "Requests in flight by color.", Labels: label, Value: n},
			telemetry.Level{Name: "mainstay_edge_color_weight", Help: "Share of new requests by color; 0: none.", Labels: label, Value: weight},
			telemetry.Level{Name: "mainstay_edge_color_ejected", Help: "Copies by color that failed several requests in a row, so that others take theirs.", Labels: label, Value: ejected})
	}
	return append(append(levels, s.overloadLevels()...), s.kept.levels()...)
}

// overloadLevels tells how many requests the app is given, and what became of those
// beyond.
func (s *Server) overloadLevels() []telemetry.Level {
	v := s.valve.Stats()
	level := func(name, help string, value float64) telemetry.Level {
		return telemetry.Level{Name: "mainstay_edge_overload_" + name, Help: help, Value: value}
	}
	delayed := float64(s.slowed.Now())
	limit := 0.0
	if s.policy.Load().overload.On {
		limit = float64(v.Limit)
	}
	flood := 0.0
	if v.Flood {
		flood = 1
	}
	levels := []telemetry.Level{
		level("flood", "1 while most of what waits is of one caller who wants more than its share.", flood),
		level("limit", "Requests that the app is given at once, as it counts now; 0: as many as come.", limit),
		level("in_flight", "Requests that the app has, streams and tunnels not included; 0 while edge.overload is off.", float64(v.InFlight)),
		level("delayed", "Requests that are delayed by limits.degrade.", delayed),
		level("waiting", "Requests that wait for their turn.", float64(v.Waiting)),
	}
	for c := range v.Shed {
		class := []telemetry.Label{{Name: "class", Value: capacity.Class(c).String()}}
		levels = append(levels,
			telemetry.Level{Name: "mainstay_edge_overload_entered_total", Help: "Requests that the app was given, while edge.overload is on.", Labels: class, Value: float64(v.Entered[c]), Counter: true},
			telemetry.Level{Name: "mainstay_edge_overload_shed_total", Help: "Requests that were shed.", Labels: class, Value: float64(v.Shed[c]), Counter: true})
	}
	return levels
}
