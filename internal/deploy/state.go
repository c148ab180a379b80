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
	"syscall"
	"time"
)

// A release is what runs in a color, and how it came to be.
type release struct {
	Command Command   `json:"command"`
	Dir     string    `json:"dir"`
	Env     []string  `json:"env,omitempty"` // may hold secrets: the state file is for its owner alone
	Version string    `json:"version,omitempty"`
	Who     string    `json:"who,omitempty"`
	Began   time.Time `json:"began"`
	// ConfigRun and ConfigDir are app.run and app.dir as they were when the
	// release was made: if they differ later, the file has changed its mind and
	// wins.
	ConfigRun Command `json:"config_run"`
	ConfigDir string  `json:"config_dir"`
}

// state is what outlives a kill -9.
type state struct {
	Format     int         `json:"format"`
	NextID     int         `json:"next_id"`
	NextRecord int         `json:"next_record"`
	Live       *savedSlot  `json:"live,omitempty"`
	Others     []savedCopy `json:"others,omitempty"` // not live: to be stopped by the next life
}

type savedSlot struct {
	Color   string     `json:"color"`
	Release release    `json:"release"`
	Copy    *savedCopy `json:"copy,omitempty"` // absent: none runs
}

type savedCopy struct {
	ID     string `json:"id"`
	Color  string `json:"color"`
	Handle Handle `json:"handle"`
}

const (
	stateFormat = 1
	stateFile   = "state.json"
	historyFile = "history.json"
	lockFile    = "lock"
	maxHistory  = 100
)

// loadState reads the state of the life before; a missing file is an empty state.
func loadState(dir string) (state, error) {
	path := filepath.Join(dir, stateFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{Format: stateFormat, NextID: 1, NextRecord: 1}, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("read the state of the app: %w", err)
	}
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return state{}, fmt.Errorf("%s is damaged (%w); stop the app if a copy of it still runs, then remove the file", path, err)
	}
	if s.Format != stateFormat {
		return state{}, fmt.Errorf("%s has format %d, this mainstay knows %d; run the mainstay that wrote it, or stop the app and remove the file", path, s.Format, stateFormat)
	}
	if l := s.Live; l != nil && (l.Color == "" || len(l.Release.Command) == 0) {
		return state{}, fmt.Errorf("%s is damaged (the live color has no name or no command); stop the app if a copy of it still runs, then remove the file", path)
	}
	s.NextID, s.NextRecord = max(s.NextID, 1), max(s.NextRecord, 1)
	return s, nil
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
	return writeFile(d.deps.Dir, stateFile, d.snapshot())
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
	st := state{Format: stateFormat, NextID: d.nextID, NextRecord: d.nextRecord}
	if d.live != nil {
		st.Live = &savedSlot{Color: d.live.color, Release: d.live.release, Copy: d.live.saved()}
	}
	for _, s := range []*slot{d.next, d.old} {
		if c := s.saved(); c != nil {
			st.Others = append(st.Others, *c)
		}
	}
	st.Others = append(st.Others, d.others...)
	return st
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
