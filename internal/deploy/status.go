package deploy

import "time"

// A State is how a copy fares.
type State string

const (
	Starting  State = "starting"  // it runs and has not been healthy yet
	Healthy   State = "healthy"   // its probes are good
	Unhealthy State = "unhealthy" // it runs and its probes are bad
	Down      State = "down"      // it ended by itself and will be started again
	Draining  State = "draining"  // it finishes its requests
	Stopping  State = "stopping"  // it was told to end
)

// Status is how things stand now.
type Status struct {
	Live      *Copy     `json:"live,omitempty"`      // gets the traffic
	Next      *Copy     `json:"next,omitempty"`      // is being brought up
	Old       *Copy     `json:"old,omitempty"`       // is being taken down
	Deploying *Underway `json:"deploying,omitempty"` // the deploy at work, if there is one
}

// A Copy is one running copy of the app.
type Copy struct {
	ID       string    `json:"id"` // "green-7", as in traffic.Target
	Color    string    `json:"color"`
	Version  string    `json:"version,omitempty"`
	Command  string    `json:"command"`
	Dir      string    `json:"dir"`
	Address  string    `json:"address,omitempty"`
	PID      int       `json:"pid,omitempty"`
	Log      string    `json:"log,omitempty"` // the file with its output
	State    State     `json:"state"`
	Reason   string    `json:"reason,omitempty"` // why it is not healthy
	Since    time.Time `json:"since"`            // in this state
	Began    time.Time `json:"began"`            // when this copy was started or adopted
	Adopted  bool      `json:"adopted,omitempty"`
	Restarts int       `json:"restarts"` // after crashes, since this release was deployed
	LastExit string    `json:"last_exit,omitempty"`
}

// Underway is a deploy at work.
type Underway struct {
	Who   string    `json:"who,omitempty"`
	Since time.Time `json:"since"`
	Step  Step      `json:"step"`
	Text  string    `json:"text"`
}
