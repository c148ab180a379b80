// Package ratelimit decides whether one more unit of something may pass: so many
// in any window, at a smooth pace, or so many at once. Several limits are decided
// together, all or none. It knows keys and numbers, not users, routes or HTTP.
//
// [Memory] keeps the counters in this process; the sub-package redisstore shares
// them through Redis; [Shield] stands in front of a shared store, refuses locally
// what is over its limit anyway, and goes on when the store fails.
//
// Anyone may import it; it imports the standard library only.
package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// An Algorithm says what a limit promises.
type Algorithm uint8

const (
	// Window admits at most Max units in any interval of length Window. It is
	// [Exact] up to [ExactUpTo] units and [Sliced] above.
	Window Algorithm = iota

	// Exact is a log with the time of each unit. Worst case: in every half-open
	// interval of length Window at most Max units are admitted, and a unit is free
	// again exactly Window after it was taken. It costs up to 16 bytes a unit, so
	// Max is at most [MaxExact].
	Exact

	// Sliced counts by slices of a sixtieth of Window. Worst case: in every
	// half-open interval of length Window at most Max units are admitted, never one
	// more; the price is that a unit becomes free up to one slice late, so that a
	// caller who always asks gets at least Max in 61/60 of a Window. It costs at
	// most 16 bytes a slice.
	Sliced

	// GCRA (the leaky bucket as a meter; ITU-T I.371) spaces the units: one each
	// Window/Max (rounded up to a microsecond), of which Burst may come at once.
	// Worst case: Burst + Max units in an interval of length Window. It costs 8
	// bytes.
	GCRA

	// Concurrency admits at most Max leases at once. A lease ends when it is given
	// back with Refund, or after Window, should its holder have died. It costs 16
	// bytes a lease, so Max is at most [MaxExact].
	Concurrency
)

func (a Algorithm) String() string {
	if int(a) < len(algorithms) {
		return algorithms[a]
	}
	return "unknown"
}

var algorithms = [...]string{"window", "exact", "sliced", "gcra", "concurrency"}

// Bounds of what is accepted; they keep all arithmetic within 53 bits, which is
// what Redis' Lua can count exactly.
const (
	ExactUpTo = 128           // units up to which Window means Exact
	MaxExact  = 4096          // largest Max of Exact and Concurrency
	MaxUnits  = 1_000_000_000 // largest Max, Burst and Cost
	MaxChecks = 32            // most checks in one decision
	MaxKey    = 1024          // longest key, in bytes

	MinWindow = time.Millisecond
	MaxWindow = 366 * 24 * time.Hour

	slices = 60
)

// Never is the Retry of a cost that is larger than the limit itself.
const Never time.Duration = math.MaxInt64

// A Limit is a promise in numbers.
type Limit struct {
	Algorithm Algorithm
	Max       int64         // units in a window, or leases at once; at least 1
	Window    time.Duration // the interval, or the life of a lease; kept in whole microseconds
	Burst     int64         // GCRA only: units that may come at once; at least 1
}

// Validate says what is wrong with l, or nil.
func (l Limit) Validate() error {
	switch {
	case l.Algorithm > Concurrency:
		return fmt.Errorf("%w: algorithm %d is not known", ErrInvalid, l.Algorithm)
	case l.Max < 1 || l.Max > MaxUnits:
		return fmt.Errorf("%w: a maximum of %d is not between 1 and %d", ErrInvalid, l.Max, MaxUnits)
	case l.Window < MinWindow || l.Window > MaxWindow:
		return fmt.Errorf("%w: a window of %s is not between %s and %s", ErrInvalid, l.Window, MinWindow, MaxWindow)
	case l.Max > MaxExact && (l.Algorithm == Exact || l.Algorithm == Concurrency):
		return fmt.Errorf("%w: %s counts up to %d, not %d; use sliced or gcra", ErrInvalid, l.Algorithm, MaxExact, l.Max)
	case l.Algorithm == GCRA && (l.Burst < 1 || l.Burst > MaxUnits):
		return fmt.Errorf("%w: a burst of %d is not between 1 and %d", ErrInvalid, l.Burst, MaxUnits)
	case l.Algorithm == GCRA && l.Max > l.Window.Microseconds():
		return fmt.Errorf("%w: gcra spaces units by at least a microsecond; %d in %s is too many", ErrInvalid, l.Max, l.Window)
	case l.Algorithm == GCRA && l.Burst > maxTolerance/l.emission():
		return fmt.Errorf("%w: a burst of %d at %d in %s takes more than ten years to come back", ErrInvalid, l.Burst, l.Max, l.Window)
	}
	return nil
}

// maxTolerance bounds Burst times emission, in microseconds.
const maxTolerance = 3660 * 24 * 3600 * 1e6

// window is Window in microseconds.
func (l *Limit) window() int64 { return int64(l.Window / time.Microsecond) }

// emission is the distance of two units of GCRA, rounded up so that a rounding
// never admits more.
func (l *Limit) emission() int64 { w := l.window(); return (w + l.Max - 1) / l.Max }

// Grain is how late a unit may become free: 0 when the limit is exact to the
// microsecond, else the length of a slice.
func (l Limit) Grain() time.Duration { return time.Duration(l.grain()) * time.Microsecond }

func (l *Limit) grain() int64 {
	if l.Algorithm == Sliced || l.Algorithm == Window && l.Max > ExactUpTo {
		return (l.window() + slices - 1) / slices
	}
	return 0
}

// Capacity is how many units there are when none is taken: Burst of GCRA, else Max.
func (l Limit) Capacity() int64 { return capacity(&l) }

// Family is the algorithm as far as it decides how a counter is stored: Exact and
// Sliced are Windows, so that a change of Max keeps what has been counted.
func (l Limit) Family() Algorithm {
	if l.Algorithm == Exact || l.Algorithm == Sliced {
		return Window
	}
	return l.Algorithm
}

// A Check asks one limit for one key. A counter is told by Key, the limit's
// [Limit.Family] and its Window: the same key may stand under several windows, and
// a new Max (another tier) finds what has been counted so far.
type Check struct {
	Key    string // valid until the call returns; stores copy what they keep
	Limit  Limit
	Cost   int64 // units; 0 only looks. A Concurrency check takes one lease, its Cost is 0 or 1.
	Shadow bool  // counts and reports, but refuses nobody
}

// A Result is what one limit said.
type Result struct {
	Allowed   bool          // the cost fitted
	Remaining int64         // units left after the decision
	Retry     time.Duration // until the cost fits, if nobody else takes units; 0: now; Never
	Next      time.Duration // until at least one more unit is free; 0: all are
	Reset     time.Duration // until all units are free
}

// A Mode says who made a decision.
type Mode uint8

const (
	ModeExact Mode = iota // the store
	ModeDeny              // the store, earlier: the key is over its limit until a known time
	ModeLocal             // this process alone, since the store failed
	ModeOpen              // nobody: the store failed and the caller lets all pass
	ModeShut              // nobody: the store failed and the caller refuses all
)

func (m Mode) String() string {
	return [...]string{"exact", "deny", "local", "open", "shut"}[min(m, ModeShut)]
}

// A Decision is what all checks came to. It is needed again for a Refund.
type Decision struct {
	Allowed bool
	Retry   time.Duration // until all costs fit; 0 if they do; Never
	Mode    Mode
	At      int64  // microseconds on the store's own clock
	Lease   uint64 // of the Concurrency checks; 0: none was taken
}

// A Debt is what a counter should know and may have forgotten or never heard of.
type Debt struct {
	Used  int64         // at least so many units are taken …
	Reset time.Duration // … and all of them free again after this
	Add   int64         // so many more were taken meanwhile; they count as taken now
}

// ErrInvalid is wrapped by errors about the checks themselves: nothing was decided.
var ErrInvalid = errors.New("ratelimit: invalid check")

// A Store decides. All methods may be called from several goroutines. An error
// that wraps [ErrInvalid] is the caller's mistake; any other means that the store
// could not be asked.
type Store interface {
	// Take charges every check or, if one that is no Shadow does not fit, none. A
	// Shadow check that does not fit is not charged. The first len(checks) results
	// are filled in; results may be nil.
	Take(ctx context.Context, checks []Check, results []Result) (Decision, error)
	// Refund gives back the costs that an allowed decision took, and its leases.
	// Leave out Shadow checks that did not fit: they took nothing. What has left the
	// window by itself is not given back a second time. The units
	// that come back are the oldest, which admits no more than if they were the
	// very ones.
	Refund(ctx context.Context, d Decision, checks []Check) error
	// Charge takes the costs without asking, at most down to nothing left: for work
	// whose cost is known only afterwards.
	Charge(ctx context.Context, checks []Check) error
	// Restore makes up for what a store has missed: debts[i] belongs to checks[i],
	// whose Cost means nothing here. Leases are not restored.
	Restore(ctx context.Context, checks []Check, debts []Debt) error
	// Reset forgets the counters.
	Reset(ctx context.Context, checks []Check) error
}

// Validate says what is wrong with a set of checks, or nil. Stores call it; it
// allocates nothing when all is well.
func Validate(checks []Check, results []Result) error {
	if len(checks) > MaxChecks {
		return fmt.Errorf("%w: %d checks in one decision are more than %d", ErrInvalid, len(checks), MaxChecks)
	}
	if results != nil && len(results) < len(checks) {
		return fmt.Errorf("%w: %d results for %d checks", ErrInvalid, len(results), len(checks))
	}
	for i := range checks {
		c := &checks[i]
		if err := c.Limit.Validate(); err != nil {
			return err
		}
		if c.Cost < 0 || c.Cost > MaxUnits || c.Limit.Algorithm == Concurrency && c.Cost > 1 {
			return fmt.Errorf("%w: a cost of %d", ErrInvalid, c.Cost)
		}
		if len(c.Key) == 0 || len(c.Key) > MaxKey {
			return fmt.Errorf("%w: a key of %d bytes is not between 1 and %d", ErrInvalid, len(c.Key), MaxKey)
		}
		for j := range i {
			if o := &checks[j]; o.Key == c.Key && o.kind() == c.kind() {
				return fmt.Errorf("%w: two checks share a counter", ErrInvalid)
			}
		}
	}
	return nil
}

// kind is what tells counters of the same key apart.
func (c *Check) kind() uint64 { return uint64(c.Limit.Family()) | uint64(c.Limit.window())<<3 }
