package deploy

import "time"

// A Request asks for a deploy.
type Request struct {
	// Command is what to run; empty means again what runs now, or app.run if
	// that has changed since the live color was deployed.
	Command Command  `json:"command,omitempty"`
	Dir     string   `json:"dir,omitempty"` // absolute; empty: as for Command
	Env     []string `json:"env,omitempty"` // KEY=value, laid over the color's own
	Version string   `json:"version,omitempty"`
	Who     string   `json:"who,omitempty"`
	Why     string   `json:"why,omitempty"`
}

// A Step is where a deploy stands.
type Step string

const (
	StepStarting Step = "starting" // the new copy's process is being started
	StepWaiting  Step = "waiting"  // it runs and is not healthy yet; Text says why
	StepHealthy  Step = "healthy"  // it passed its probes
	StepSwitched Step = "switched" // every new request goes to it
	StepDraining Step = "draining" // the old copy finishes its requests
	StepStopping Step = "stopping" // the old copy was told to end
	StepDone     Step = "done"
	StepFailed   Step = "failed" // before the switch: the old color serves on, untouched
)

// Progress is one thing that happened in a deploy.
type Progress struct {
	Time   time.Time `json:"time"`
	Step   Step      `json:"step"`
	Color  string    `json:"color"`
	Target string    `json:"target,omitempty"` // "green-7"
	Text   string    `json:"text"`             // one sentence for a person
}

// A Record is what is kept of a deploy.
type Record struct {
	Number  int        `json:"number"` // counts up from 1 in the life of the state folder
	Color   string     `json:"color"`
	From    string     `json:"from"` // the color that served before
	Target  string     `json:"target,omitempty"`
	Command Command    `json:"command"`
	Dir     string     `json:"dir"`
	Version string     `json:"version,omitempty"`
	Who     string     `json:"who,omitempty"`
	Why     string     `json:"why,omitempty"`
	Began   time.Time  `json:"began"`
	TookMS  int64      `json:"took_ms"`
	Outcome Step       `json:"outcome"` // done or failed
	Error   string     `json:"error,omitempty"`
	Steps   []Progress `json:"steps"` // the first of each kind
}
