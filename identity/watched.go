package identity

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

const (
	maxWatched  = 256 << 20
	watchLook   = 2 * time.Second // how often a file is looked at
	maxFileKeys = 1 << 20
	maxRanges   = 4096
)

// watched is what was read from a file, and is read again when that changes.
type watched[T any] struct {
	path  string
	what  string // "The table of tiers"
	event string // begins the names of its events
	parse func(io.Reader) (*T, error)
	now   atomic.Pointer[T]
	seen  os.FileInfo
	fails atomic.Uint64
}

// open reads the file for the first time; a mistake is noted below key. Nil: there is
// no path.
func openWatched[T any](ps *setting.Problems, key, path, event, what, mend string, parse func(io.Reader) (*T, error)) *watched[T] {
	if path == "" {
		return nil
	}
	f := &watched[T]{path: path, what: what, event: event, parse: parse}
	if err := f.read(); err != nil {
		ps.Add(key, "cannot be read: "+err.Error(), mend)
	}
	return f
}

// get is what the file says now; nil if there is none.
func (f *watched[T]) get() *T {
	if f == nil {
		return nil
	}
	return f.now.Load()
}

// read takes the file in. With a mistake in it, what was read last stays in force.
func (f *watched[T]) read() error {
	info, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxWatched {
		return fmt.Errorf("%s is no regular file of 256 MiB at most", f.path)
	}
	if info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("%s can be written by everybody on this machine", f.path)
	}
	file, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer file.Close()
	v, err := f.parse(io.LimitReader(file, maxWatched))
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	f.now.Store(v)
	f.seen = info
	return nil
}

// watch reads the file again when it changes, until ctx ends.
func (f *watched[T]) watch(ctx context.Context, notice notice) {
	tick := time.NewTicker(watchLook)
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
				notice(slog.LevelInfo, f.event+"_read", f.what+" was read again.", slog.String("file", f.path))
				continue
			}
			told = info
		} else if f.fails.Load() > 0 {
			continue // it is gone, and that was told
		}
		f.fails.Add(1)
		notice(slog.LevelError, f.event+"_failed", f.what+" cannot be read; the last one stays in force.", slog.Any("err", err))
	}
}

func unchanged(a, b os.FileInfo) bool {
	return a != nil && b != nil && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && os.SameFile(a, b)
}

// entries calls do for each line that says something.
func entries(r io.Reader, most int, do func(fields []string) error) error {
	lines := bufio.NewScanner(r)
	for n, said := 1, 0; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		if said++; said > most {
			return fmt.Errorf("has more than %d entries", most)
		}
		if err := do(fields); err != nil {
			return fmt.Errorf("line %d %w", n, err)
		}
	}
	return lines.Err()
}

// apiKeys are keys by their hashes.
type apiKeys map[[sha256.Size]byte]*apiKey

// readKeys reads the file of API keys.
func readKeys(r io.Reader) (*apiKeys, error) {
	keys, names := apiKeys{}, map[string]bool{}
	err := entries(r, maxFileKeys, func(fields []string) error {
		if len(fields) < 2 || names[fields[0]] {
			return errors.New("names no key and its SHA-256, or one that was named before")
		}
		k := Key{SHA256: fields[1]}
		for _, field := range fields[2:] {
			switch name, value, _ := strings.Cut(field, "="); {
			case name == "user" && value != "":
				k.User = value
			case name == "workspace" && value != "":
				k.Workspace = value
			case name == "tier" && value != "":
				k.Tier = value
			default:
				return errors.New("is not written as: acme-ci SHA256 user=ci workspace=acme tier=pro")
			}
		}
		names[fields[0]] = true
		return keys.add(fields[0], k)
	})
	return &keys, err
}

// readRanges reads the file of trusted proxies.
func readRanges(r io.Reader) (*[]netip.Prefix, error) {
	var all []netip.Prefix
	err := entries(r, maxRanges, func(fields []string) error {
		for _, field := range fields {
			p, err := parseRange(field)
			if err != nil {
				return errors.New("is neither an address nor a range")
			}
			if p.Bits() == 0 {
				return errors.New("would trust everybody")
			}
			all = append(all, p)
		}
		return nil
	})
	return &all, err
}
