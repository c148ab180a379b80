package deploy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"mainstay.dev/mainstay/internal/deploy/internal/releases"
)

// A release is what runs in a color, and how it came to be.
type release struct {
	Image   string    `json:"image,omitempty"`
	Command Command   `json:"command"`
	Targets []string  `json:"targets,omitempty"`
	Dir     string    `json:"dir"`
	Folder  string    `json:"folder,omitempty"` // what Dir meant when the release was deployed
	Env     []string  `json:"env,omitempty"`    // may hold secrets: the state file is for its owner alone
	Version string    `json:"version,omitempty"`
	Who     string    `json:"who,omitempty"`
	Began   time.Time `json:"began"`
	// ConfigRun and the like are app.run and app.dir as they were when the release
	// was made: if they differ later, the file has changed its mind and wins.
	ConfigImage   string   `json:"config_image,omitempty"`
	ConfigRun     Command  `json:"config_run"`
	ConfigDir     string   `json:"config_dir"`
	ConfigTargets []string `json:"config_targets,omitempty"`
}

// wanted is the release that r asks for, completed by what runs now and by the
// file.
func (d *Deployer) wanted(r Request) release {
	cfg := d.policy.Load()
	rel := release{
		Image: r.Image, Command: r.Command, Targets: r.Targets, Dir: r.Dir, Env: r.Env, Version: r.Version, Who: r.Who, Began: time.Now(),
		ConfigImage: cfg.Image, ConfigRun: cfg.Run, ConfigDir: cfg.Dir, ConfigTargets: cfg.Targets,
	}
	d.mu.Lock()
	live, answered := d.live, d.answers.match(cfg)
	d.mu.Unlock()
	base := release{Image: cfg.Image, Command: cfg.Run, Targets: cfg.Targets, Dir: cfg.Dir}
	if live != nil && (live.release.follows(cfg) || answered) {
		base = live.release
	}
	if rel.Image == "" {
		rel.Image = base.Image
	}
	if len(rel.Targets) == 0 {
		rel.Targets = base.Targets
	}
	if len(rel.Command) == 0 {
		rel.Command = base.Command
		if rel.Dir == "" {
			rel.Dir = base.Dir
		}
		if rel.Env == nil {
			rel.Env = base.Env
		}
		if rel.Version == "" {
			rel.Version = base.Version
		}
	}
	if rel.Dir == "" {
		rel.Dir = cfg.Dir
	}
	rel.Folder = releases.Real(rel.Dir)
	return rel
}

// folder is where the release runs.
func (r release) folder() string {
	if r.Folder == "" { // of a state file that knew no folders
		return r.Dir
	}
	return r.Folder
}

// spec is what a driver is given to run the release as a copy.
func (r release) spec(id, color string) Spec {
	return Spec{ID: id, Color: color, Image: r.Image, Command: r.Command, Dir: r.folder(), Targets: r.Targets}
}

// follows reports whether the release was made from the file as it is now.
func (r release) follows(cfg *policy) bool {
	return r.ConfigImage == cfg.Image && r.ConfigRun.equal(cfg.Run) && r.ConfigDir == cfg.Dir && slices.Equal(r.ConfigTargets, cfg.Targets)
}

// what says for people what runs.
func (r release) what() string {
	if len(r.Targets) > 0 {
		return strings.Join(r.Targets, ", ")
	}
	return strings.TrimSpace(r.Image + " " + r.Command.String())
}

// state is what outlives a kill -9.
type state struct {
	Format     int         `json:"format"`
	NextID     int         `json:"next_id"`
	NextRecord int         `json:"next_record"`
	Live       *savedSlot  `json:"live,omitempty"`
	Old        *savedSlot  `json:"old,omitempty"`    // runs on beside the live one, as its rollback
	Share      int         `json:"share"`            // percent of the traffic that live gets, the rest is old's
	Retire     time.Time   `json:"retire,omitzero"`  // when old is settled; zero: when somebody says so
	Deploy     *Record     `json:"deploy,omitempty"` // at work, or frozen
	Before     *Figures    `json:"before,omitempty"` // what the old color did before the switch of the deploy at work
	Answers    answers     `json:"answers,omitzero"`
	Closed     bool        `json:"maintenance,omitempty"`
	Others     []savedCopy `json:"others,omitempty"` // to be stopped by the next life
}

// answers is what the file said when a person chose to go back to a release that
// was made from another file: that file must not be followed again by itself.
type answers struct {
	Image   string   `json:"image,omitempty"`
	Run     Command  `json:"run,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	Targets []string `json:"targets,omitempty"`
}

func (a answers) match(cfg *policy) bool {
	return (len(a.Run) > 0 || len(a.Targets) > 0 || a.Image != "") && a.Image == cfg.Image && a.Run.equal(cfg.Run) && a.Dir == cfg.Dir && slices.Equal(a.Targets, cfg.Targets)
}

type savedSlot struct {
	Color   string     `json:"color"`
	Pinned  string     `json:"pinned,omitempty"` // the image that the release's name meant
	Release release    `json:"release"`
	Copy    *savedCopy `json:"copy,omitempty"` // absent: none runs
}

type savedCopy struct {
	ID     string `json:"id"`
	Color  string `json:"color"`
	Handle Handle `json:"handle"`
}

const (
	stateFormat = 2
	stateFile   = "state.json"
	twinFile    = "state.twin.json" // the same, for when the first is damaged
	historyFile = "history.json"
	lockFile    = "lock"
	maxHistory  = 100
)

// errDamaged marks a state file that cannot be understood.
var errDamaged = errors.New("is damaged")

// loadState reads the state of the life before; a missing file is an empty state.
// Of a damaged file the twin is read instead, and the damage is told; if both are
// damaged nothing is guessed.
func loadState(dir string, log *slog.Logger) (state, error) {
	path := filepath.Join(dir, stateFile)
	s, err := readState(path)
	if errors.Is(err, fs.ErrNotExist) {
		if s, terr := readState(filepath.Join(dir, twinFile)); terr == nil {
			log.Warn("the state file was gone; its twin is used", "path", path)
			return s, nil
		}
		return state{Format: stateFormat, NextID: 1, NextRecord: 1, Share: 100}, nil
	}
	if !errors.Is(err, errDamaged) {
		return s, err
	}
	s, terr := readState(filepath.Join(dir, twinFile))
	if terr != nil {
		return state{}, fmt.Errorf("%w; its twin %s cannot be used either (%w); the app runs on as it is: stop it if it still runs, then remove both files", err, twinFile, terr)
	}
	aside := path + ".damaged"
	if rerr := os.Rename(path, aside); rerr != nil {
		return state{}, fmt.Errorf("%w; it could not be put aside: %w", err, rerr)
	}
	log.Error("the state file was damaged and was put aside; its twin is used", "path", aside, "err", err)
	return s, nil
}

// readState reads one file, of this format or the one before.
func readState(path string) (state, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return state{}, fmt.Errorf("read the state of the app: %w", err)
	}
	s := state{Share: 100} // the format before had no shares
	if err := json.Unmarshal(raw, &s); err != nil {
		return state{}, fmt.Errorf("%s %w (%w)", path, errDamaged, err)
	}
	if s.Format < 1 {
		return state{}, fmt.Errorf("%s %w (it names no format)", path, errDamaged)
	}
	if s.Format > stateFormat {
		return state{}, fmt.Errorf("%s has format %d, this mainstay knows 1 to %d; run the mainstay that wrote it, or stop the app and remove the file and %s", path, s.Format, stateFormat, twinFile)
	}
	if what := s.contradiction(); what != "" {
		return state{}, fmt.Errorf("%s %w (%s)", path, errDamaged, what)
	}
	s.NextID, s.NextRecord = max(s.NextID, 1), max(s.NextRecord, 1)
	return s, nil
}

// contradiction says what in s cannot be, in words; empty if all may be.
func (s state) contradiction() string {
	for _, of := range []struct {
		name string
		slot *savedSlot
	}{{"live", s.Live}, {"old", s.Old}} {
		if l := of.slot; l != nil && (l.Color != blue && l.Color != green || len(l.Release.Command) == 0 && len(l.Release.Targets) == 0 && l.Release.Image == "") {
			return "the " + of.name + " color has no name or no command"
		}
	}
	switch {
	case s.Old != nil && (s.Live == nil || s.Old.Color == s.Live.Color):
		return "the old color is also the live one"
	case s.Share < 1 || s.Share > 100:
		return fmt.Sprintf("the live color has a share of %d", s.Share)
	case s.Deploy != nil && !slices.Contains(phases, s.Deploy.Phase):
		return fmt.Sprintf("the deploy is in an unknown phase %q", s.Deploy.Phase)
	}
	return ""
}

// loadHistory reads the deploys of earlier lives. History is not worth refusing
// to serve for: a damaged file is put aside and named in the error.
func loadHistory(dir string) ([]Record, error) {
	path := filepath.Join(dir, historyFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var rs []Record
	if err == nil {
		err = json.Unmarshal(raw, &rs)
	}
	var former []struct{ Outcome Step } // of the format before
	if err == nil && json.Unmarshal(raw, &former) == nil {
		for i := range rs {
			switch {
			case rs[i].Phase != "":
			case former[i].Outcome == "done":
				rs[i].Phase = Settled
			default:
				rs[i].Phase = Failed
			}
			if rs[i].Kind == "" {
				rs[i].Kind = KindDeploy
			}
		}
	}
	if err != nil {
		aside := path + ".damaged"
		return nil, errors.Join(fmt.Errorf("the history of deploys could not be read and was put aside as %s: %w", aside, err), os.Rename(path, aside))
	}
	return rs, nil
}

// writeFile replaces dir/name by v as JSON: whatever happens, the file is the old
// one or the new one, whole.
func writeFile(dir, name string, v any) (err error) {
	raw, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(append(raw, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncFolder(dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// syncFolder makes a rename in dir last through a loss of power.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// lockFolder makes sure that no other Mainstay works in dir: it would adopt, and
// stop, this one's copies. The kernel drops the lock when its holder dies.
func lockFolder(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another mainstay runs with the data folder %s; stop it, or give this one its own (data: in the file)", filepath.Dir(dir))
		}
		return nil, fmt.Errorf("lock the state folder: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// save writes down how things stand now.
func (d *Deployer) save() error {
	d.saving.Lock()
	defer d.saving.Unlock()
	now := d.snapshot()
	if err := writeFile(d.deps.Dir, stateFile, now); err != nil {
		return err
	}
	return writeFile(d.deps.Dir, twinFile, now)
}

// saveOrSay saves where going on without is better than not going on.
func (d *Deployer) saveOrSay() {
	if err := d.save(); err != nil {
		d.deps.Log.Error("the state of the app could not be written; a copy that outlives a kill of mainstay might not be found again", "err", err)
	}
}

func (d *Deployer) snapshot() state {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := state{
		Format: stateFormat, NextID: d.nextID, NextRecord: d.nextRecord, Live: d.live.savedSlot(), Old: d.old.savedSlot(),
		Share: d.share, Retire: d.retireAt, Answers: d.answers, Closed: d.maintenance,
	}
	switch {
	case d.current != nil && d.current.record.Kind == KindDeploy:
		r := d.current.record.clone()
		st.Deploy = &r
		if b := d.current.before; b.known {
			st.Before = &b.Figures
		}
	case d.frozen != nil:
		r := d.frozen.clone()
		st.Deploy = &r
	}
	for _, s := range append([]*slot{d.next}, d.leaving...) {
		if c := s.saved(); c != nil {
			st.Others = append(st.Others, *c)
		}
	}
	st.Others = append(st.Others, d.others...)
	return st
}

func (s *slot) savedSlot() *savedSlot {
	if s == nil {
		return nil
	}
	return &savedSlot{Color: s.color, Pinned: s.pinned, Release: s.release, Copy: s.saved()}
}

// saved is what is written down of the copy in s, nil if there is none.
func (s *slot) saved() *savedCopy {
	if s == nil || s.inst == nil {
		return nil
	}
	return &savedCopy{ID: s.id, Color: s.color, Handle: s.inst.Handle()}
}

// abandon notes a copy that would not end: the next life tries again.
func (d *Deployer) abandon(s *slot, id string, inst Instance, why error) {
	d.mu.Lock()
	d.others = append(slices.Clone(d.others), savedCopy{ID: id, Color: s.color, Handle: inst.Handle()})
	d.mu.Unlock()
	d.emit(slog.LevelError, "app_stuck", s.color, fmt.Sprintf("%s would not end: %v", id, why), slog.String("target", id))
}
