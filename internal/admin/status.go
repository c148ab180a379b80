package admin

import (
	"os"
	"regexp"
	"slices"
	"time"

	"mainstay.dev/mainstay/internal/deploy"
	"mainstay.dev/mainstay/internal/monitor"
)

// A Plane describes a plane as app sees it. No field holds a secret.
type Plane struct {
	Name     string `json:"name"`               // edge, pooler or claude
	State    string `json:"state"`              // on or off
	Listen   string `json:"listen,omitempty"`   // where the app or the public comes in
	Upstream string `json:"upstream,omitempty"` // where it leads
	Note     string `json:"note,omitempty"`     // why it is off, or how it works
	Stats    any    `json:"stats,omitempty"`    // the plane's own Stats
}

// PlaneStatus is a plane with its figures of the last minute.
type PlaneStatus struct {
	Plane
	Figures monitor.Plane `json:"figures"`
}

// Status is how everything stands: what the API answers and `mainstay status`
// prints.
type Status struct {
	Service     string        `json:"service"`
	Environment string        `json:"environment"`
	Version     string        `json:"version"`
	PID         int           `json:"pid"`
	Began       time.Time     `json:"began"`
	Now         time.Time     `json:"now"`
	Ready       bool          `json:"ready"`
	Reason      string        `json:"reason,omitempty"` // why it is not ready
	Window      float64       `json:"window_s"`         // what the figures are of, in seconds
	Planes      []PlaneStatus `json:"planes"`
	App         deploy.Status `json:"app"`
	Warnings    []string      `json:"warnings,omitempty"` // what works, but not as it should
	Levels      []Level       `json:"levels"`
}

// A Level is what stands at a height now.
type Level struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Value  float64           `json:"value"`
}

// current tells how everything stands now.
func (s *Server) current(window time.Duration) Status {
	past := s.deps.Monitor.Snapshot(window)
	why := s.notReady()
	st := Status{
		Service: s.deps.Service, Environment: s.deps.Environment, Version: s.deps.Version, PID: os.Getpid(),
		Began: s.began, Now: time.Now(), Ready: why == "", Reason: why, Window: past.Window,
		Planes: []PlaneStatus{}, Levels: []Level{},
	}
	if s.deps.Planes != nil {
		for _, p := range s.deps.Planes() {
			p.Upstream, p.Listen = hide(p.Upstream), hide(p.Listen)
			st.Planes = append(st.Planes, PlaneStatus{p, past.Planes[p.Name]})
		}
	}
	if s.deps.Deploys != nil {
		st.App = s.deps.Deploys.Status()
		for _, c := range []*deploy.Copy{st.App.Live, st.App.Next, st.App.Old} {
			if c != nil {
				c.Command, c.Reason, c.LastExit = hide(c.Command), hide(c.Reason), hide(c.LastExit)
			}
		}
		if u := st.App.Deploying; u != nil {
			u.Text = hide(u.Text)
		}
		if f := st.App.Frozen; f != nil {
			r := shown(*f)
			st.App.Frozen = &r
		}
	}
	if s.deps.Limits != nil && s.deps.Limits.Overview(0).Down {
		st.Warnings = append(st.Warnings, "Redis does not answer: rate limits go on as limits.on_store_failure says, without the other nodes")
	}
	if s.deps.Levels != nil {
		for _, l := range s.deps.Levels() {
			out := Level{Name: l.Name, Value: l.Value}
			for _, label := range l.Labels {
				if out.Labels == nil {
					out.Labels = map[string]string{}
				}
				out.Labels[label.Name] = label.Value
			}
			st.Levels = append(st.Levels, out)
		}
	}
	return st
}

// Secrets that people write into commands, and apps into their output: a password
// in a URL, a Claude key.
var (
	password  = regexp.MustCompile(`(://[^\s:/@'"]*):[^\s'"]+@`) // up to the last @: people do not escape
	claudeKey = regexp.MustCompile(`sk-ant-[A-Za-z0-9_-]+`)
)

// hide makes a text fit to be shown.
func hide(s string) string {
	return claudeKey.ReplaceAllString(password.ReplaceAllString(s, "$1:***@"), "sk-ant-***")
}

// shown is a record with nothing that must not be.
func shown(r deploy.Record) deploy.Record {
	r.Command = slices.Clone(r.Command)
	for i := range r.Command {
		r.Command[i] = hide(r.Command[i])
	}
	r.Error, r.Why = hide(r.Error), hide(r.Why)
	r.Hooks = slices.Clone(r.Hooks)
	for i := range r.Hooks {
		r.Hooks[i].Name, r.Hooks[i].Output = hide(r.Hooks[i].Name), hide(r.Hooks[i].Output)
	}
	r.Evidence = slices.Clone(r.Evidence)
	for i := range r.Evidence {
		r.Evidence[i] = hide(r.Evidence[i])
	}
	r.Steps = slices.Clone(r.Steps)
	for i := range r.Steps {
		r.Steps[i].Text = hide(r.Steps[i].Text)
	}
	return r
}

func withoutPasswords(e monitor.Event) monitor.Event {
	e.Text = hide(e.Text)
	if e.Attrs != nil {
		attrs := make(map[string]string, len(e.Attrs)) // e's own is shared
		for k, v := range e.Attrs {
			attrs[k] = hide(v)
		}
		e.Attrs = attrs
	}
	return e
}
