package audit

import (
	"errors"
	"sync/atomic"
	"time"
)

// Looks keeps those who want to know the catalog as it is by now from all asking for it at once: one asks, and the
// answer is good for all who came before it asked. [NewLooks] makes one. Its methods may be called from
// several goroutines.
type Looks struct {
	turn   chan struct{} // who is in there asks
	wanted atomic.Uint64 // how many have come
	seen   [2]uint64     // of those that have come, how many have their answer: any, one to all; of who is in turn
}

// NewLooks makes one.
func NewLooks() *Looks {
	return &Looks{turn: make(chan struct{}, 1)}
}

var errTurn = errors.New("others have asked for the catalog for too long")

// Look returns when somebody has looked since it was called, at all that there is if all is true; if need be it does
// itself. It waits for its turn for at most limit.
func (l *Looks) Look(limit time.Duration, all bool, look func() error) error {
	mine := l.wanted.Add(1)
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case l.turn <- struct{}{}:
	case <-late.C:
		return errTurn
	}
	defer func() { <-l.turn }()
	if l.seen[1] >= mine || !all && l.seen[0] >= mine {
		return nil
	}
	upto := l.wanted.Load()
	if err := look(); err != nil {
		return err
	}
	if l.seen[0] = upto; all {
		l.seen[1] = upto
	}
	return nil
}
