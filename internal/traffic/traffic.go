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
	// Backup makes a target of weight 0 the one that takes what the weighted
	// targets cannot: the old color, kept running after a switch.
	Backup bool
}

// Sticky keeps a client with a color while several have weight.
type Sticky struct {
	By   string // "": not at all; or one of the words below
	Name string // of the cookie or header
}

// The words of Sticky.By.
const (
	StickyCookie    = "cookie"
	StickyHeader    = "header"
	StickyAddress   = "address"
	StickyUser      = "user"      // who has none goes by address
	StickyWorkspace = "workspace" // likewise
)

// Preview lets chosen requests see a color that has no weight yet: those with the
// header, whose value is the secret, or those for the host.
type Preview struct {
	Color  string // "": no preview
	Header string
	Secret setting.Secret
	Host   string
}

// Mirror sends copies of the next GET and HEAD requests to a color and throws its
// answers away, to warm it up.
type Mirror struct {
	Color    string // "": none
	Requests int    // how many, in all
}

// A Plan is immutable once applied: to change anything, apply another.
type Plan struct {
	Mode    Mode
	Targets []Target
	Sticky  Sticky
	Preview Preview
	Mirror  Mirror
	// Page is the HTML that Maintenance answers to browsers; empty: a plain one.
	Page string
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
