// Package deploy keeps the app running behind the edge and replaces it without a
// failed request: it starts a color, waits until it is healthy, switches the
// traffic, drains and stops the color before. How a copy is run is a [Driver]'s
// business; drivers are sub-packages.
//
// Only app and admin import it. It knows the edge by one method, [Edge].
package deploy

import (
	"context"
	"errors"
	"log/slog"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/internal/traffic"
	"mainstay.dev/mainstay/telemetry"
)

// Edge is all that deploy needs of the edge: Apply sends every request that
// begins after it returns where the plan says; the drain it returns waits for the
// requests that the plan before had taken and this one has no place for.
type Edge interface {
	Apply(traffic.Plan) (drain func(ctx context.Context) error, err error)
}

// Deps is what a Deployer works with. All fields but Log and Sink are required.
type Deps struct {
	Edge   Edge
	Driver Driver
	// Env returns the whole environment of a color but PORT. It is asked anew
	// for every copy that is started.
	Env  func(color string) ([]string, error)
	Dir  string // state folder, made if it is missing; one Mainstay at a time works in it
	Log  *slog.Logger
	Sink telemetry.Sink
}

// ErrBusy is returned by Deploy while another deploy is at work; its text names
// whose, and since when.
var ErrBusy = errors.New("another deploy is at work")

// ErrNotRunning is returned by Deploy before Run is ready and after it ended.
var ErrNotRunning = errors.New("the app is not up yet, or no longer; try again when mainstay is ready")

// Deployer supervises the app. Its methods may be called from several goroutines
// at once.
type Deployer struct {
	deps Deps
}

// New validates and wires; it starts nothing.
func New(cfg Config, d Deps) (*Deployer, error) {
	var ps setting.Problems
	cfg.Validate(&ps)
	if len(cfg.Run) == 0 {
		ps.Add("run", "nothing to run", "give app.run in the file, or a command: mainstay run -- npm start")
	}
	if err := ps.Err(); err != nil {
		return nil, err
	}
	return &Deployer{deps: d}, nil
}

// Run brings the app up, calls ready once it serves, and supervises it until ctx
// is done; then it stops the app.
func (d *Deployer) Run(ctx context.Context, ready func()) error { return ErrNotRunning }

// Deploy replaces the live color by what r asks for.
func (d *Deployer) Deploy(ctx context.Context, r Request, progress func(Progress)) (Record, error) {
	return Record{}, ErrNotRunning
}

// Status tells how things stand now.
func (d *Deployer) Status() Status { return Status{} }

// History returns what is kept of past deploys, newest first.
func (d *Deployer) History() []Record { return nil }

// Levels returns what stands at a height now, for the metrics.
func (d *Deployer) Levels() []telemetry.Level { return nil }

// Prepare checks cfg and returns what puts it to work; nothing changes before.
func (d *Deployer) Prepare(cfg Config) (commit func(), err error) {
	var ps setting.Problems
	cfg.Validate(&ps)
	return func() {}, ps.Err()
}
