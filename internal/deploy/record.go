package deploy

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mainstay.dev/mainstay/internal/deploy/internal/releases"
	"mainstay.dev/mainstay/internal/setting"
)

// A Request asks for a deploy.
type Request struct {
	// Command is what to run; empty means again what runs now, or app.run if
	// that has changed since the live color was deployed.
	Command Command  `json:"command,omitempty"`
	Image   string   `json:"image,omitempty"`   // as Command; a deploy of another image keeps the command
	Targets []string `json:"targets,omitempty"` // as Command, where somebody else runs the copies
	Dir     string   `json:"dir,omitempty"`     // absolute; empty: as for Command
	Release string   `json:"release,omitempty"` // as Dir: a folder's name in app.release.dir, or its whole path
	Env     []string `json:"env,omitempty"`     // KEY=value, laid over the color's own
	Version string   `json:"version,omitempty"`
	Who     string   `json:"who,omitempty"`
	Why     string   `json:"why,omitempty"`
	// Wait makes the deploy wait its turn while another is at work.
	Wait bool `json:"wait,omitempty"`
	// OneWay marks a deploy that must not be undone by itself, such as one that
	// migrates a database: where another would be rolled back it is frozen.
	OneWay bool `json:"one_way,omitempty"`
	// Force makes the deploy go on though a gate of app.gates is closed; it needs
	// a Why, and the record tells what was passed over.
	Force bool `json:"force,omitempty"`
	// Steps are the shares of the traffic that the new color gets one after the
	// other; nil means as app.switch.steps says.
	Steps []setting.Percent `json:"steps,omitempty"`
}

// A Phase is a state of the machine that a deploy goes through. It is persisted
// at every change.
type Phase string

const (
	Preparing  Phase = "preparing"   // the new color is started, until its probes are good
	Warming    Phase = "warming"     // it is warmed up
	Verifying  Phase = "verifying"   // smoke requests and hooks judge it
	Switching  Phase = "switching"   // it gets its share of the traffic, step by step
	Watching   Phase = "watching"    // it is compared with the old color
	Settled    Phase = "settled"     // it has replaced the old color
	RolledBack Phase = "rolled_back" // the old color has all the traffic again
	Frozen     Phase = "frozen"      // the traffic stays as it is until a person decides
	Failed     Phase = "failed"      // before the switch: the old color served on, untouched
)

var phases = []Phase{Preparing, Warming, Verifying, Switching, Watching, Settled, RolledBack, Frozen, Failed}

// Final reports whether nothing more follows by itself.
func (p Phase) Final() bool {
	return p == Settled || p == RolledBack || p == Frozen || p == Failed
}

// routed reports whether the new color has, or had, some of the traffic.
func (p Phase) routed() bool { return p == Switching || p == Watching || p == Frozen }

// A Step is something that happens in a deploy.
type Step string

const (
	StepQueued    Step = "queued"    // another deploy is at work
	StepStarting  Step = "starting"  // the new copy's process is being started
	StepWaiting   Step = "waiting"   // it runs and is not healthy yet; Text says why
	StepHealthy   Step = "healthy"   // it passed its probes
	StepWarming   Step = "warming"   // it gets its first requests, whose answers nobody sees
	StepVerifying Step = "verifying" // a smoke request or a hook judged it
	StepForced    Step = "forced"    // a gate is closed, and passed by force
	StepSwitched  Step = "switched"  // new requests go to it; Text says how many of them
	StepWatching  Step = "watching"  // it is compared with the old color
	StepDraining  Step = "draining"  // a copy finishes its requests
	StepStopping  Step = "stopping"  // that copy was told to end
	StepHook      Step = "hook"      // a hook that is only told ran

	// The last step is the final phase.
	StepSettled    = Step(Settled)
	StepRolledBack = Step(RolledBack)
	StepFrozen     = Step(Frozen)
	StepFailed     = Step(Failed)
)

// Progress is one thing that happened in a deploy.
type Progress struct {
	Time   time.Time `json:"time"`
	Phase  Phase     `json:"phase"`
	Step   Step      `json:"step"`
	Color  string    `json:"color"`
	Target string    `json:"target,omitempty"` // "green-7"
	Text   string    `json:"text"`             // one sentence for a person
}

// The kinds of Record.
const (
	KindDeploy   = "deploy"
	KindRollback = "rollback" // by hand, after the deploy had settled
)

// A Record is what is kept of a deploy.
type Record struct {
	Number   int          `json:"number"` // counts up from 1 in the life of the state folder
	Kind     string       `json:"kind"`
	Color    string       `json:"color"`
	From     string       `json:"from"` // the color that served before
	Target   string       `json:"target,omitempty"`
	Image    string       `json:"image,omitempty"`
	Targets  []string     `json:"targets,omitempty"`
	Command  Command      `json:"command"`
	Dir      string       `json:"dir"`
	Version  string       `json:"version,omitempty"`
	Who      string       `json:"who,omitempty"`
	Why      string       `json:"why,omitempty"`
	OneWay   bool         `json:"one_way,omitempty"`
	Shares   []int        `json:"shares,omitempty"` // percent of the traffic, step by step; the last is that of the watch
	Force    bool         `json:"force,omitempty"`
	Overrode []string     `json:"overrode,omitempty"` // the gates that were closed, a sentence each
	Began    time.Time    `json:"began"`
	TookMS   int64        `json:"took_ms"`
	Phase    Phase        `json:"phase"` // a final one, but for the deploy at work
	Error    string       `json:"error,omitempty"`
	Evidence []string     `json:"evidence,omitempty"` // what the watch saw last, a sentence each
	Hooks    []HookResult `json:"hooks,omitempty"`
	Steps    []Progress   `json:"steps"` // the first of each kind, and every switch
}

// A HookResult is what came of a hook.
type HookResult struct {
	Name   string `json:"name"`
	On     Phase  `json:"on"`
	OK     bool   `json:"ok"`
	TookMS int64  `json:"took_ms"`
	Output string `json:"output,omitempty"` // the end of it, bounded
}

// add keeps p, bounded: the first of each kind and of each text of a switch.
func (r *Record) add(p Progress) {
	same := func(q Progress) bool { return q.Step == p.Step && (p.Step != StepSwitched || q.Text == p.Text) }
	if len(r.Steps) < 64 && !slices.ContainsFunc(r.Steps, same) {
		r.Steps = append(r.Steps, p)
	}
}

// clone is a copy that shares nothing which grows.
func (r Record) clone() Record {
	r.Steps, r.Hooks, r.Evidence, r.Overrode = slices.Clone(r.Steps), slices.Clone(r.Hooks), slices.Clone(r.Evidence), slices.Clone(r.Overrode)
	return r
}

// refuse reports what in r does not fit the driver that cfg chose.
func (r Request) refuse(cfg *policy) error {
	var ps setting.Problems
	lent := len(cfg.Targets) > 0
	if !lent && len(r.Targets) > 0 {
		ps.Add("targets", "are deployed only where app.targets says that somebody else runs the copies", "give a command, or set app.targets and restart Mainstay")
	}
	if r.Image != "" && cfg.Image == "" {
		ps.Add("image", "is deployed only where app.image says that containers do", "give a command, or set app.image and restart Mainstay")
	}
	if r.Release != "" && cfg.Image != "" {
		ps.Add("release", "means nothing where app.image says that containers run", "give --image")
	}
	if lent && (len(r.Command) > 0 || r.Release != "" || r.Dir != "" || len(r.Env) > 0) {
		ps.Add("command", "is nothing that Mainstay could run: app.targets says that somebody else runs the copies", "give their addresses: mainstay deploy --targets HOST:PORT")
	}
	return ps.Err()
}

const maxWords = 1 << 10 // bytes of who, why and version each

// check reports every mistake in r.
func (r Request) check() error {
	var ps setting.Problems
	if len(r.Command) > 0 {
		r.Command.validate("command", &ps)
	}
	validateTargets(r.Targets, &ps)
	if r.Dir != "" && !filepath.IsAbs(r.Dir) {
		ps.Add("dir", "must be absolute", "")
	}
	if r.Dir != "" && r.Release != "" {
		ps.Add("release", "and dir cannot be given together", "leave one out")
	}
	for _, kv := range r.Env {
		key, _, ok := strings.Cut(kv, "=")
		switch {
		case !ok || key == "" || strings.ContainsRune(kv, 0):
			ps.Add("env", fmt.Sprintf("%q is not KEY=value", key), "")
		case key == "PORT":
			ps.Add("env", "must not set PORT", "mainstay gives each copy a port of its own")
		}
	}
	if r.Force && strings.TrimSpace(r.Why) == "" {
		ps.Add("force", "needs a reason, for the record", "add --why")
	}
	if _, err := shares(r.Steps); err != nil {
		ps.Add("steps", err.Error(), "try 10%,50%")
	}
	for name, v := range map[string]string{"version": r.Version, "who": r.Who, "why": r.Why} {
		if len(v) > maxWords {
			ps.Add(name, fmt.Sprintf("must not be longer than %d bytes", maxWords), "")
		}
	}
	return ps.Err()
}

// found is r with the folder that its release means.
func (r Request) found(cfg *policy) (Request, error) {
	if r.Release == "" {
		return r, nil
	}
	folder, err := releases.Find(cfg.Release.Dir, r.Release)
	if err != nil {
		return r, setting.Problem{Path: "release", What: err.Error()}
	}
	if r.Dir = folder; r.Version == "" {
		r.Version = filepath.Base(folder)
	}
	return r, nil
}

// pruneReleases removes the folders of old releases, if the file says so.
func (d *Deployer) pruneReleases() {
	cfg := d.policy.Load().Release
	if cfg.Keep == 0 {
		return
	}
	var ran, inUse []string
	d.mu.Lock()
	for _, r := range slices.Backward(d.history) {
		ran = append(ran, r.Dir)
	}
	for _, s := range append([]*slot{d.live, d.old, d.next}, d.leaving...) {
		if s != nil {
			inUse = append(inUse, s.release.folder())
		}
	}
	d.mu.Unlock()
	removed, err := releases.Prune(cfg.Dir, cfg.Keep, ran, inUse)
	if err != nil {
		d.deps.Log.Warn("old releases could not be removed", "err", err)
	}
	for _, folder := range removed {
		d.emit(slog.LevelInfo, "release_removed", "", "the old release "+folder+" was removed (app.release.keep)", slog.String("folder", folder))
	}
}
