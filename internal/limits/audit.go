package limits

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// An Entry is one line of the audit log: who changed the limits of whom.
type Entry struct {
	Time   time.Time `json:"time"`
	What   string    `json:"what"` // granted, ended, expired, reset, refused, or an override of the file: added, changed, removed
	Key    string    `json:"key"`
	Who    string    `json:"who,omitempty"`
	Why    string    `json:"why,omitempty"`
	Before string    `json:"before,omitempty"`
	After  string    `json:"after,omitempty"`
}

// The audit log and the one before it: together at most twice maxAudit.
const (
	auditFile = "limits-audit.jsonl"
	maxAudit  = 1 << 20
	maxWords  = 500 // bytes of what a person writes
)

// audit is a file that is only appended to, for its owner's eyes.
type audit struct {
	mu  sync.Mutex
	dir string // "" keeps none
}

func (a *audit) write(e Entry) error {
	if a.dir == "" {
		return nil
	}
	e.Who, e.Why = shorten(e.Who), shorten(e.Why)
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	path := filepath.Join(a.dir, auditFile)
	if info, err := os.Stat(path); err == nil && info.Size()+int64(len(line)) >= maxAudit {
		if err := os.Rename(path, path+".1"); err != nil {
			return fmt.Errorf("rotate the audit log: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}

func shorten(s string) string {
	if len(s) > maxWords {
		s = s[:maxWords]
	}
	return s
}

// latest reads the newest n entries, newest first.
func (a *audit) latest(n int) ([]Entry, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	entries := []Entry{}
	for _, name := range []string{auditFile + ".1", auditFile} {
		f, err := os.Open(filepath.Join(a.dir, name))
		if a.dir == "" || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the audit log: %w", err)
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			var e Entry
			if json.Unmarshal(lines.Bytes(), &e) == nil { // a line that a crash cut short is none
				entries = append(entries, e)
			}
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return nil, fmt.Errorf("read the audit log: %w", err)
		}
	}
	slices.Reverse(entries)
	return entries[:min(n, len(entries))], nil
}
