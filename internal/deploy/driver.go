package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// A Driver starts copies of the app and finds those again that an earlier life of
// Mainstay started. Its methods may be called from several goroutines at once.
type Driver interface {
	// Start starts a copy and returns as soon as it exists; whether it serves
	// is for the caller to find out. No two copies that live at the same time
	// have the same address. An error says what could not be started and the
	// mend; nothing is left behind then.
	Start(ctx context.Context, s Spec) (Instance, error)
	// Adopt takes back a copy by the handle that its instance gave in an
	// earlier life. It returns ErrGone if that copy is no more; another copy
	// that happens to look like it, such as a process with a reused id, is never
	// adopted.
	Adopt(ctx context.Context, s Spec, h Handle) (Instance, error)
}

// A Resolver is a Driver whose images may change under their names. Resolve
// returns a name that means one image forever, getting it first if it must.
type Resolver interface {
	Resolve(ctx context.Context, image string) (pinned string, err error)
}

// A Sweeper is a Driver that can tell the copies of earlier lives that nobody has
// adopted, and ends them.
type Sweeper interface {
	Sweep(ctx context.Context) error
}

// An Explainer is an Instance that may know why nobody answers at its address.
type Explainer interface {
	Explain() (why, mend string)
}

// ErrGone is returned by Adopt for a copy that has ended meanwhile.
var ErrGone = errors.New("the copy is no more")

// A Spec says what to start.
type Spec struct {
	ID      string // unique in the life of the state folder: "green-7"
	Color   string
	Image   string // what to run, for a driver of images; Command is then optional, and Dir means nothing
	Command Command
	Targets []string // addresses of copies that somebody else runs; then there is no command
	Dir     string   // absolute
	Env     []string // the whole environment, as KEY=value; the driver adds PORT
}

// A Handle is what a driver needs to find a copy again after a kill -9 of
// Mainstay. It is persisted, so it holds no secret.
type Handle struct {
	Address string   `json:"address"`        // host:port where the copy serves, or should
	Also    []string `json:"also,omitempty"` // more addresses that the same color serves on
	PID     int      `json:"pid,omitempty"`  // of the copy's first process, for people
	Log     string   `json:"log,omitempty"`  // the file with its output, for people
	// Container is the name of the copy's container, for people.
	Container string          `json:"container,omitempty"`
	Private   json.RawMessage `json:"private,omitempty"` // the driver's own
}

// An Instance is one running copy of the app. Its methods may be called from
// several goroutines at once, at any time, also after its end.
type Instance interface {
	Handle() Handle
	// Exited is closed when the copy and everything it started have ended and
	// its last output has been read.
	Exited() <-chan struct{}
	// Exit tells how the copy ended; before that it is the zero Exit.
	Exit() Exit
	// Stop asks the copy to end, and ends it when grace is over or ctx is
	// done. It returns when Exited is closed; an error names what would not go.
	Stop(ctx context.Context, grace time.Duration) error
	// Listening lists the TCP addresses at which the copy listens, to tell an
	// app that ignores PORT.
	Listening() ([]netip.AddrPort, error)
	// LastLines returns the newest lines of output, oldest first, bounded in
	// number and length and free of control characters; nil if its output is not
	// Mainstay's to read.
	LastLines() []string
}

// An Exit tells how a copy ended.
type Exit struct {
	Code   int    // exit code; -1 if a signal ended it or nobody knows
	Signal string // "SIGKILL"; empty if none
	// OutOfMemory is set if a process of the copy was killed for taking more
	// memory than it was given, where the driver can tell.
	OutOfMemory bool
	// Unknown is set for an adopted copy, whose exit code the kernel gave to
	// somebody else.
	Unknown bool
}

// A StartError tells why a copy could not be brought up.
type StartError struct {
	Target string   // "green-7"
	What   string   // what happened to it
	Mend   string   // may be empty
	Lines  []string // its last output, oldest first; nil: Mainstay does not have it
}

func (e *StartError) Error() string {
	var b strings.Builder
	b.WriteString(e.brief())
	switch {
	case e.Lines == nil: // nobody knows
		return b.String()
	case len(e.Lines) == 0:
		b.WriteString("; it wrote nothing")
		return b.String()
	}
	b.WriteString("; its last lines:")
	for _, l := range e.Lines {
		b.WriteString("\n    " + l)
	}
	return b.String()
}

func (e *StartError) brief() string {
	s := e.Target + " " + e.What
	if e.Mend != "" {
		s += "; " + e.Mend
	}
	return s
}

// brief is err in one line, without the app's output.
func brief(err error) string {
	if e, ok := errors.AsType[*StartError](err); ok {
		return e.brief()
	}
	return err.Error()
}

// String says in words how the copy ended.
func (e Exit) String() string {
	switch {
	case e.OutOfMemory:
		return "killed because it took more memory than it was given"
	case e.Signal == "SIGKILL":
		return "killed by SIGKILL (by hand, or because memory ran out)"
	case e.Signal != "":
		return "ended by " + e.Signal
	case e.Unknown:
		return "ended (its exit code is unknown: it was started by an earlier mainstay)"
	}
	return fmt.Sprintf("exit code %d", e.Code)
}
