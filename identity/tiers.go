package identity

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// tierTable says who has which tier, whatever a token says.
type tierTable struct{ users, workspaces map[string]string }

func newTierTable() *tierTable {
	return &tierTable{map[string]string{}, map[string]string{}}
}

// add notes one line of it: user:7 or workspace:acme, and the tier.
func (t *tierTable) add(who, tier string) bool {
	kind, id, _ := strings.Cut(who, ":")
	if !validID(id) || !validTier(tier) {
		return false
	}
	switch kind {
	case "user":
		t.users[id] = tier
	case "workspace":
		t.workspaces[id] = tier
	default:
		return false
	}
	return true
}

// of is the tier of w, the user's own before the workspace's; empty: none is noted.
func (t *tierTable) of(w *Who) string {
	if w.User != "" {
		if tier, ok := t.users[w.User]; ok {
			return tier
		}
	}
	if w.Workspace != "" {
		return t.workspaces[w.Workspace]
	}
	return ""
}

const (
	maxTierFile  = 256 << 20
	maxTierLines = 4 << 20
	tierLook     = 2 * time.Second // how often the file is looked at
)

// tierFile is a table that is read from a file, and again when that changes.
type tierFile struct {
	path  string
	table atomic.Pointer[tierTable]
	seen  os.FileInfo
	fails atomic.Uint64
}

func openTierFile(path string) (*tierFile, error) {
	f := &tierFile{path: path}
	return f, f.read()
}

// read takes the file in. With a mistake in it, the last table stays in force.
func (f *tierFile) read() error {
	info, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxTierFile {
		return fmt.Errorf("%s is no regular file of 256 MiB at most", f.path)
	}
	file, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer file.Close()
	t, err := readTiers(io.LimitReader(file, maxTierFile))
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	f.table.Store(t)
	f.seen = info
	return nil
}

func readTiers(r io.Reader) (*tierTable, error) {
	t := newTierTable()
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		if n > maxTierLines {
			return nil, errors.New("has more than 4 million lines")
		}
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		i := strings.LastIndexAny(line, " \t") // an id may hold blanks, a tier may not
		if i < 0 || !t.add(strings.TrimSpace(line[:i]), line[i+1:]) {
			return nil, fmt.Errorf("line %d is not written as: user:7 pro", n)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return t, nil
}

// watch reads the file again when it changes, until ctx ends.
func (f *tierFile) watch(ctx context.Context, notice notice) {
	tick := time.NewTicker(tierLook)
	defer tick.Stop()
	var told os.FileInfo // of the mistake that was told of
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		info, err := os.Stat(f.path)
		if err == nil && unchanged(info, f.seen) || err == nil && unchanged(info, told) {
			continue
		}
		if err == nil {
			if err = f.read(); err == nil {
				told = nil
				notice(slog.LevelInfo, "tiers_read", "The table of tiers was read again.", slog.String("file", f.path))
				continue
			}
			told = info
		} else if f.fails.Load() > 0 {
			continue // it is gone, and that was told
		}
		f.fails.Add(1)
		notice(slog.LevelError, "tiers_failed", "The table of tiers cannot be read; the last one stays in force.", slog.Any("err", err))
	}
}

func unchanged(a, b os.FileInfo) bool {
	return a != nil && b != nil && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && os.SameFile(a, b)
}
