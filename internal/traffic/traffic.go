// Package traffic is the language in which deploy tells the edge where requests
// go. It holds data only; deploy makes a [Plan], the edge obeys it.
package traffic

import "mainstay.dev/mainstay/internal/setting"

// Mode says what the edge does with requests.
type Mode string

const (
	Serve Mode = "serve" // requests go to the targets
	// Hold makes requests wait, bounded in number and time, until a plan with
	// targets comes.
	Hold Mode = "hold"
	// Maintenance answers 503 with a page.
	Maintenance Mode = "maintenance"
)

// A Target is one running copy of the app.
type Target struct {
	ID      string // unique among all targets ever planned in this process: "green-7"
	Address string // host:port
	Color   string
	Version string // what runs there, for people; may be empty
	Weight  int    // share of new requests among the targets; 0: none but those that ask for it
}

// A Plan is immutable once applied: to change anything, apply another.
type Plan struct {
	Mode    Mode
	Targets []Target
}

// Problems reports what is wrong with the plan.
func (p Plan) Problems() (ps setting.Problems) {
	switch p.Mode {
	case Serve, Hold, Maintenance:
	default:
		ps.Add("mode", "must be serve, hold or maintenance", "")
	}
	seen := map[string]bool{}
	weight := 0
	for _, t := range p.Targets {
		if t.ID == "" || t.Address == "" || t.Color == "" {
			ps.Add("targets", "a target needs an id, an address and a color", "")
		}
		if seen[t.ID] {
			ps.Add("targets", "two targets have the id "+t.ID, "")
		}
		seen[t.ID] = true
		if t.Weight < 0 {
			ps.Add("targets", "a weight must not be negative", "")
		}
		weight += t.Weight
	}
	if p.Mode == Serve && weight == 0 {
		ps.Add("targets", "serving needs a target with a weight", "")
	}
	return ps
}
