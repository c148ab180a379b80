package deploy

import (
	"log/slog"
	"slices"
	"time"

	"mainstay.dev/mainstay/telemetry"
)

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
	Live        *Copy     `json:"live,omitempty"`       // the release that was deployed last, and its share of the traffic
	Next        *Copy     `json:"next,omitempty"`       // is being brought up
	Old         *Copy     `json:"old,omitempty"`        // the color before: stands by as the rollback, or is being taken down
	Deploying   *Underway `json:"deploying,omitempty"`  // the deploy at work, if there is one
	Frozen      *Record   `json:"frozen,omitempty"`     // the deploy that waits for promote or rollback
	SettlesAt   time.Time `json:"settles_at,omitzero"`  // when the old color is stopped or updated by itself
	Maintenance bool      `json:"maintenance,omitzero"` // nobody is served
}

// A Copy is one running copy of the app.
type Copy struct {
	ID      string `json:"id"` // "green-7", as in traffic.Target
	Color   string `json:"color"`
	Share   int    `json:"share"` // percent of the new requests that it gets
	Version string `json:"version,omitempty"`
	Command string `json:"command"`
	Dir     string `json:"dir"`
	Address string `json:"address,omitempty"`
	PID     int    `json:"pid,omitempty"`
	Log     string `json:"log,omitempty"` // the file with its output
	// Container is the name of its container, if it is one.
	Container string    `json:"container,omitempty"`
	State     State     `json:"state"`
	Reason    string    `json:"reason,omitempty"` // why it is not healthy
	Since     time.Time `json:"since"`            // in this state
	Began     time.Time `json:"began"`            // when this copy was started or adopted
	Adopted   bool      `json:"adopted,omitempty"`
	Restarts  int       `json:"restarts"` // after crashes, since this release was deployed
	LastExit  string    `json:"last_exit,omitempty"`
}

// Underway is a deploy at work.
type Underway struct {
	Who   string    `json:"who,omitempty"`
	Since time.Time `json:"since"`
	Phase Phase     `json:"phase,omitempty"`
	Step  Step      `json:"step"`
	Text  string    `json:"text"`
	// Evidence is what the watch saw last, a sentence each.
	Evidence []string `json:"evidence,omitempty"`
}

// Status tells how things stand now.
func (d *Deployer) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.old
	if n := len(d.leaving); old == nil && n > 0 {
		old = d.leaving[n-1]
	}
	st := Status{Live: d.live.copy(), Next: d.next.copy(), Old: old.copy(), SettlesAt: d.retireAt, Maintenance: d.maintenance}
	for _, c := range []*Copy{st.Live, st.Old} {
		if c != nil && !d.maintenance {
			l, o := d.weights()
			if c.Share = l; c == st.Old {
				c.Share = o
			}
		}
	}
	if u := d.underway; u != nil {
		c := *u
		if d.current != nil {
			c.Phase, c.Evidence = d.current.record.Phase, slices.Clone(d.current.record.Evidence)
		}
		st.Deploying = &c
	}
	if d.frozen != nil {
		r := d.frozen.clone()
		st.Frozen = &r
	}
	return st
}

func (s *slot) copy() *Copy {
	if s == nil {
		return nil
	}
	c := &Copy{
		ID: s.id, Color: s.color, Version: s.release.Version, Command: s.release.what(), Dir: s.release.folder(),
		State: s.state, Reason: s.reason, Since: s.since, Began: s.began, Adopted: s.adopted,
		Restarts: s.restarts, LastExit: s.lastExit,
	}
	if s.inst != nil {
		h := s.inst.Handle()
		c.Address, c.PID, c.Log, c.Container = h.Address, h.PID, h.Log, h.Container
	}
	return c
}

// History returns what is kept of past deploys, newest first.
func (d *Deployer) History() []Record {
	d.mu.Lock()
	defer d.mu.Unlock()
	rs := make([]Record, 0, len(d.history))
	for _, r := range slices.Backward(d.history) {
		rs = append(rs, r.clone())
	}
	return rs
}

// Levels returns how a copy stands, in its role: live, next or old.
func (c Copy) Levels(role string) []telemetry.Level {
	labels := []telemetry.Label{{Name: "color", Value: c.Color}, {Name: "role", Value: role}}
	healthy := 0.0
	if c.State == Healthy || c.State == Draining {
		healthy = 1
	}
	return []telemetry.Level{
		{Name: "mainstay_app_healthy", Help: "1 if the copy of the app in this color passes its probes.", Labels: labels, Value: healthy},
		{Name: "mainstay_app_share", Help: "Percent of the new requests that this color gets.", Labels: labels, Value: float64(c.Share)},
		{Name: "mainstay_app_restarts", Help: "Restarts after crashes since this color was deployed.", Labels: labels, Value: float64(c.Restarts)},
	}
}

// Levels returns what stands at a height now, for the metrics.
func (d *Deployer) Levels() []telemetry.Level {
	st := d.Status()
	var ls []telemetry.Level
	for _, in := range []struct {
		role string
		copy *Copy
	}{{"live", st.Live}, {"next", st.Next}, {"old", st.Old}} {
		c := in.copy
		if c == nil {
			continue
		}
		ls = append(ls, c.Levels(in.role)...)
	}
	busy := 0.0
	if st.Deploying != nil {
		busy = 1
	}
	closed := 0.0
	if st.Maintenance {
		closed = 1
	}
	ls = append(ls, telemetry.Level{Name: "mainstay_maintenance", Help: "1 while maintenance mode is on.", Value: closed})
	return append(ls, telemetry.Level{Name: "mainstay_deploy_underway", Help: "1 while a deploy is at work.", Value: busy})
}

// emit tells the sink what happened.
func (d *Deployer) emit(level slog.Level, name, color, text string, attrs ...slog.Attr) {
	d.deps.Sink.Emit(telemetry.Event{Time: time.Now(), Part: "deploy", Name: name, Color: color, Level: level, Text: text, Attrs: attrs})
}
