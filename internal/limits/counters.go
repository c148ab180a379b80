package limits

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"mainstay.dev/mainstay/ratelimit"
)

// countersFile holds what this process alone has counted, so that neither a
// restart nor a kill is a full limit for everybody. With Redis there is none: Redis
// remembers.
const (
	countersFile = "limits-counters"
	saveEvery    = time.Second      // if something has changed …
	saveRest     = 50               // … and so many times as long as it took …
	saveLate     = 15 * time.Second // … but no longer
)

// loadCounters reads what an earlier process has counted. Damage costs the counts
// and nothing else.
func (g *Gate) loadCounters(m *ratelimit.Memory) {
	path := filepath.Join(g.deps.Dir, countersFile)
	info, err := os.Stat(path)
	if g.deps.Dir == "" || errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil && (!info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0) {
		err = errors.New("it can be written by others than its owner, or is no file of ours")
	}
	if err == nil {
		var f *os.File
		if f, err = os.Open(path); err == nil {
			err = errors.Join(m.Load(f, time.Since(info.ModTime())), f.Close())
		}
	}
	if err != nil {
		g.deps.Log.Warn("what was counted before the restart could not be read; callers begin anew", "err", err)
	}
}

// saveCounters writes every second or so, and at the end, what this process has
// counted. A killed process loses nothing that it has written, so that only the last
// time waits for the disk.
func (g *Gate) saveCounters(ctx context.Context) {
	if g.memory == nil || g.deps.Dir == "" {
		return
	}
	timer := time.NewTimer(saveEvery)
	defer timer.Stop()
	for ended := false; !ended; {
		select {
		case <-timer.C:
		case <-ctx.Done():
			ended = true
		}
		began := time.Now()
		if g.moved.Swap(false) || ended {
			if err := replace(g.deps.Dir, countersFile, ended, g.memory.Save); err != nil {
				g.deps.Log.Error("what is counted was not written down", "err", err)
			}
		}
		timer.Reset(min(max(saveEvery, saveRest*time.Since(began)), saveLate))
	}
}

// replace writes a file whole or not at all, for its owner alone. Durable: it outlives
// a crash of the machine, and not of this process alone.
func replace(dir, name string, durable bool, write func(io.Writer) error) error {
	f, err := os.CreateTemp(dir, name+".*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already if all went well
	err = write(f)
	if durable {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if !durable {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return errors.Join(d.Sync(), d.Close())
}
