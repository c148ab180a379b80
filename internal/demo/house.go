package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"
)

// A house is all that the demo starts.
type house struct {
	opts   Options
	screen *screen

	loadavg float64 // of the machine before all this began

	dir    string // temporary: logs, Mainstay's configuration and data
	marker string // in the environment of every process below this one
	config string // Mainstay's file
	db     *database
	bare   *side
	kept   *side // behind Mainstay
}

// open starts PostgreSQL, the fakes and both sides, and says each step. What was
// started before an error is for close to stop.
func (h *house) open(ctx context.Context) (err error) {
	if h.dir, err = os.MkdirTemp("", "mainstay-demo-"); err != nil {
		return err
	}
	h.loadavg = loadAverage()
	h.marker = "MAINSTAY_DEMO=" + rand.Text()
	ports, err := freePorts(7)
	if err != nil {
		return err
	}
	if err := h.screen.step("PostgreSQL", func() (string, error) { return h.openDatabase(ctx) }); err != nil {
		return err
	}
	err = h.screen.step("the app, bare", func() (string, error) {
		if h.bare, err = h.bareSide(ports[0], ports[1]); err != nil {
			return "", err
		}
		return h.bare.base, h.bare.start(ctx)
	})
	if err != nil {
		return err
	}
	return h.screen.step("the app, behind Mainstay", func() (string, error) {
		if h.kept, err = h.mainstaySide(ports[2], ports[3], ports[4], ports[5], ports[6]); err != nil {
			return "", err
		}
		return h.kept.base, h.kept.start(ctx)
	})
}

// openDatabase starts PostgreSQL and fills a database for each side with the same
// data.
func (h *house) openDatabase(ctx context.Context) (string, error) {
	db, err := openDatabase(ctx, "before", "after")
	if err != nil {
		return "", err
	}
	h.db = db
	for _, name := range []string{"before", "after"} {
		env := h.environment(name, "")
		for _, verb := range []string{"migrate", "seed"} {
			if _, err := call(ctx, env, h.opts.App, verb); err != nil {
				return "", err
			}
		}
	}
	version, err := db.version(ctx)
	return fmt.Sprintf("%s, SCRAM, two databases with the same data", version), err
}

// sides are both, in the order in which they get the load.
func (h *house) sides() []*side { return []*side{h.bare, h.kept} }

// close stops everything in reverse and removes the temporary folder.
func (h *house) close() error {
	var errs []error
	stopping := h.screen.while("stopping")
	for _, s := range []*side{h.kept, h.bare} {
		if s != nil {
			s.close()
		}
	}
	if h.db != nil {
		errs = append(errs, h.db.close())
	}
	if h.marker != "" {
		sweep(h.marker)
	}
	if h.dir != "" {
		errs = append(errs, os.RemoveAll(h.dir))
	}
	stopping()
	return errors.Join(errs...)
}

// The log of a demo that somebody leaves running must not fill the disk.
const maxLog = 64 << 20

// trimLogs empties log files that have grown too large. Their writers append, so
// they go on at the start.
func (h *house) trimLogs() {
	for _, s := range h.sides() {
		if info, err := os.Stat(s.program.log); err == nil && info.Size() > maxLog {
			// One that can't be emptied now is tried again in a minute.
			_ = os.Truncate(s.program.log, 0)
		}
	}
}

// pause waits for d; false means that ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
