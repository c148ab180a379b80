package edge

import "mainstay.dev/mainstay/telemetry"

// Stats is how the edge stands now.
type Stats struct {
	Mode     string   `json:"mode"`
	Requests int64    `json:"requests_in_flight"`
	Holding  int64    `json:"holding"`
	Targets  []Target `json:"targets"`
}

// Target is how one target stands now.
type Target struct {
	ID       string `json:"id"`
	Color    string `json:"color"`
	Address  string `json:"address"`
	Version  string `json:"version,omitempty"`
	Weight   int    `json:"weight"`
	InFlight int    `json:"in_flight"`
}

// Stats may be called at any time.
func (s *Server) Stats() Stats {
	p := s.plan.Load()
	st := Stats{Mode: string(p.mode), Requests: s.requests.Load(), Holding: s.holding.Load(), Targets: []Target{}}
	for _, sh := range p.shares {
		st.Targets = append(st.Targets, Target{sh.id, sh.color, sh.address, sh.version, sh.weight, sh.inflight()})
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
		var n, weight float64
		for _, t := range st.Targets {
			if t.Color == color {
				n += float64(t.InFlight)
				weight += float64(t.Weight)
			}
		}
		label := []telemetry.Label{{Name: "color", Value: color}}
		levels = append(levels,
			telemetry.Level{Name: "mainstay_edge_color_in_flight", Help: "Requests in flight by color.", Labels: label, Value: n},
			telemetry.Level{Name: "mainstay_edge_color_weight", Help: "Share of new requests by color; 0: none.", Labels: label, Value: weight})
	}
	return levels
}
