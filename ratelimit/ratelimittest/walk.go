package ratelimittest

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mainstay.dev/mainstay/ratelimit"
)

// Virtual is a store whose clock the test turns: every call says what time it is,
// in microseconds.
type Virtual interface {
	TakeAt(now int64, checks []ratelimit.Check, results []ratelimit.Result) (ratelimit.Decision, error)
	RefundAt(now int64, d ratelimit.Decision, checks []ratelimit.Check) error
	ChargeAt(now int64, checks []ratelimit.Check) error
	ResetAt(now int64, checks []ratelimit.Check) error
	RestoreAt(now int64, checks []ratelimit.Check, debts []ratelimit.Debt) error
}

// Limits are one of each kind, in two sizes where a caller may move between them.
var Limits = [][]ratelimit.Limit{
	{{Algorithm: ratelimit.Exact, Max: 5, Window: time.Second}, {Algorithm: ratelimit.Exact, Max: 8, Window: time.Second}},
	{{Max: 100, Window: time.Minute}, {Max: 300, Window: time.Minute}}, // a log, then slices
	{{Algorithm: ratelimit.Sliced, Max: 20, Window: 7 * time.Second}},
	{{Algorithm: ratelimit.GCRA, Max: 7, Window: time.Second, Burst: 3}},
	{{Algorithm: ratelimit.GCRA, Max: 1000, Window: time.Hour, Burst: 100}},
	{{Algorithm: ratelimit.Concurrency, Max: 4, Window: 2 * time.Second}},
}

// A Walk is a sequence of random calls, the same for the same seed.
type Walk struct {
	rnd    *rand.Rand
	prefix string
	now    int64
	given  []given
}

// given is a decision that may be refunded.
type given struct {
	checks      []ratelimit.Check
	store, ours ratelimit.Decision
}

// NewWalk returns a walk whose keys begin with prefix and whose time begins now,
// in microseconds.
func NewWalk(seed uint64, prefix string, now int64) *Walk {
	return &Walk{rnd: rand.New(rand.NewPCG(seed, 1)), prefix: prefix, now: now}
}

func (w *Walk) checks() []ratelimit.Check {
	kinds := w.rnd.Perm(len(Limits))[:1+w.rnd.IntN(4)]
	checks := make([]ratelimit.Check, len(kinds))
	for i, k := range kinds {
		sizes := Limits[k]
		l := sizes[w.rnd.IntN(len(sizes))]
		cost := int64(1)
		switch n := w.rnd.IntN(20); {
		case l.Algorithm == ratelimit.Concurrency || n < 12:
		case n < 19:
			cost = w.rnd.Int64N(4)
		default:
			cost = w.rnd.Int64N(l.Max + 3)
		}
		checks[i] = ratelimit.Check{
			Key:   fmt.Sprintf("%s%d", w.prefix, w.rnd.IntN(3)),
			Limit: l, Cost: cost, Shadow: w.rnd.IntN(10) == 0,
		}
	}
	return checks
}

func (w *Walk) debts(checks []ratelimit.Check) []ratelimit.Debt {
	debts := make([]ratelimit.Debt, len(checks))
	for i, c := range checks {
		reset := w.rnd.Int64N(c.Limit.Window.Microseconds())
		debts[i] = ratelimit.Debt{Used: w.rnd.Int64N(c.Limit.Max), Reset: time.Duration(reset) * time.Microsecond, Add: w.rnd.Int64N(3)}
	}
	return debts
}

// pass lets time go by: often none, mostly little, at times a whole window.
func (w *Walk) pass() {
	switch n := w.rnd.IntN(100); {
	case n < 20:
	case n < 97:
		w.now += w.rnd.Int64N(300_000)
	case n < 99:
		w.now += w.rnd.Int64N(5_000_000)
	default:
		w.now += w.rnd.Int64N(100_000_000)
	}
}

// Run makes steps calls and ends the test at the first difference.
func (w *Walk) Run(t testing.TB, store Virtual, model *Model, steps int) {
	t.Helper()
	got, want := make([]ratelimit.Result, ratelimit.MaxChecks), make([]ratelimit.Result, ratelimit.MaxChecks)
	allowed := 0
	for step := range steps {
		w.pass()
		checks := w.checks()
		var err error
		switch n := w.rnd.IntN(100); {
		case n < 86:
			var d ratelimit.Decision
			d, err = store.TakeAt(w.now, checks, got)
			m := model.Take(w.now, checks, want)
			w.compare(t, step, checks, d, m, got, want)
			if d.Allowed {
				allowed++
				w.given = append(w.given, given{checks, d, m})
			}
		case n < 94 && len(w.given) > 0:
			g := w.given[len(w.given)-1-w.rnd.IntN(min(len(w.given), 20))]
			err = store.RefundAt(w.now, g.store, g.checks)
			model.Refund(w.now, g.ours, g.checks)
		case n < 96:
			debts := w.debts(checks)
			err = store.RestoreAt(w.now, checks, debts)
			model.Restore(w.now, checks, debts)
		case n < 99:
			err = store.ChargeAt(w.now, checks)
			model.Charge(w.now, checks)
		default:
			err = store.ResetAt(w.now, checks[:1])
			model.Reset(checks[:1])
		}
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
	}
	if allowed < steps/10 || allowed > steps*9/10 {
		t.Fatalf("%d of %d were allowed: the walk shows little", allowed, steps)
	}
}

func (w *Walk) compare(t testing.TB, step int, checks []ratelimit.Check, d, m ratelimit.Decision, got, want []ratelimit.Result) {
	t.Helper()
	if d.Allowed == m.Allowed && d.Retry == m.Retry && d.At == m.At && equal(got, want, len(checks)) {
		return
	}
	t.Fatalf("step %d at %d, checks %+v:\nstore %+v\nmodel %+v\nresults (-model +store):\n%s",
		step, w.now, checks, d, m, cmp.Diff(want[:len(checks)], got[:len(checks)]))
}

func equal(a, b []ratelimit.Result, n int) bool {
	for i := range n {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
