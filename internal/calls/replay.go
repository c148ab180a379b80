package calls

import (
	"context"
	"errors"
	"time"
)

// A Replayer sends calls again. The Claude plane is one.
type Replayer interface {
	// Kept tells of a request that can be sent again, or why it can't.
	Kept(id string) (Kept, error)
	// Replay sends it, with key if there are no configured keys. Its error means that
	// nothing was sent.
	Replay(ctx context.Context, id, key string) (Replayed, error)
}

// Why a call can't be sent again.
var (
	ErrOff     = errors.New("requests are not kept")
	ErrUnknown = errors.New("no request with that id is kept")
	ErrNoKey   = errors.New("there are no claude.keys, and callers' keys are not kept")
)

// A Kept tells of a request that can be sent again, but not what it says.
type Kept struct {
	ID       string    `json:"id"`
	At       time.Time `json:"at"`
	Path     string    `json:"path"`
	Model    string    `json:"model"`
	Bytes    int       `json:"bytes"`
	Removed  int       `json:"removed"`         // places from which something was taken out before it was kept
	NeedsKey bool      `json:"needs_key"`       // there are no configured keys
	First    *Call     `json:"first,omitempty"` // what became of it; nil: that is forgotten
}

// A Replayed is what came of a call that was sent again.
type Replayed struct {
	Of       string        `json:"of"` // the call that it repeats
	ID       string        `json:"id"` // its own
	Status   int           `json:"status"`
	Code     string        `json:"code"`
	Attempts int           `json:"attempts"`
	Took     time.Duration `json:"took"`
	Dollars  float64       `json:"cost_usd"`
	Body     string        `json:"body"`
}
