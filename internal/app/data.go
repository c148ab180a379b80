package app

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"mainstay.dev/mainstay/internal/setting"
)

// dataFolder is the folder for state, held by one Mainstay at a time.
type dataFolder struct {
	path string
	lock *os.File
}

// openData makes the folder, checks that it can be written and takes it. The lock
// goes with the process, however it ends.
func openData(path string) (*dataFolder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, setting.Problem{Path: "data", What: "the folder cannot be made: " + err.Error(), Mend: "name one that Mainstay may write to"}
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, setting.Problem{Path: "data", What: "the folder cannot be written to: " + err.Error(), Mend: "name one that Mainstay may write to"}
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		who := "another mainstay"
		if b, err := os.ReadFile(lock.Name()); err == nil && len(b) > 0 {
			who += " (pid " + strings.TrimSpace(string(b)) + ")"
		}
		lock.Close()
		return nil, setting.Problem{Path: "data", What: who + " is running with " + path, Mend: "stop it, or name another folder"}
	}
	if err := lock.Truncate(0); err == nil {
		_, err = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		if err != nil {
			lock.Close()
			return nil, fmt.Errorf("write %s: %w", lock.Name(), err)
		}
	}
	return &dataFolder{path, lock}, nil
}

// Close lets the next Mainstay have the folder.
func (d *dataFolder) Close() error { return d.lock.Close() }
