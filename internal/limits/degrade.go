package limits

import (
	"slices"
	"strconv"
	"time"

	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/ratelimit"
)

// Degrade is the ladder that a caller walks down as it uses up its limits, before it
// is refused.
type Degrade struct {
	Warn    setting.Percent `yaml:"warn" doc:"Used share of a limit from which answers carry X-RateLimit-Warning. 0%: none do."`
	Slow    setting.Percent `yaml:"slow" doc:"Used share from which requests are delayed. 0%: none are."`
	Delay   time.Duration   `yaml:"delay" doc:"The delay of a request that uses a limit up; from slow on it grows to that."`
	Waiting int             `yaml:"waiting" doc:"How many requests may be delayed at once, and a hundredth of it of one caller (10 at least); one more is answered 503, code shed."`
	Cheaper setting.Percent `yaml:"cheaper" doc:"Used share from which the app and the Claude plane are asked to do with less: by the request header Mainstay-Degrade, and in Mainstay-Identity. 0%: they are not."`
	Stale   Stale           `yaml:"stale" doc:"The last step before a refusal: an answer that the app gave before, perhaps to somebody else, if its header permits that."`
}

// Stale is the step on which a kept answer takes the place of a refusal.
type Stale struct {
	For     time.Duration `yaml:"for" doc:"How long after it ceased to be fresh a kept answer may be given; less where the app says so by stale-if-error or stale-while-revalidate, and not at all where it forbids it. 0s: no answer is kept."`
	Routes  []string      `yaml:"routes" doc:"Classes of limits.routes whose answers are kept; those of all requests if empty."`
	IfError bool          `yaml:"if_error" doc:"Also give a kept answer where the app gives none, or answers 500, 502, 503 or 504."`
	Memory  setting.Bytes `yaml:"memory" doc:"Memory for kept answers, on each node."`
	Largest setting.Bytes `yaml:"largest" doc:"Largest body of an answer that is kept; a 16th of memory at most."`
}

// SetDefaults fills in what the file leaves out.
func (d *Degrade) SetDefaults() {
	*d = Degrade{Warn: 0.8, Delay: time.Second, Waiting: 1000, Stale: Stale{Memory: 64e6, Largest: 1e6}}
}

// Validate reports every mistake.
func (d *Degrade) Validate(ps *setting.Problems) {
	if d.Delay <= 0 || d.Delay > 30*time.Second {
		ps.Add("delay", "must be above 0s and 30s at most", "try 1s")
	}
	if d.Waiting < 1 || d.Waiting > 100_000 {
		ps.Add("waiting", "must be between 1 and 100000", "try 1000")
	}
	last := setting.Percent(0)
	for _, s := range []struct {
		key   string
		share setting.Percent
	}{{"warn", d.Warn}, {"slow", d.Slow}, {"cheaper", d.Cheaper}} {
		if s.share > 0 && s.share < last {
			ps.Add(s.key, "comes before the step above it", "let warn, slow and cheaper grow in this order")
		}
		last = max(last, s.share)
	}
	var stale setting.Problems
	d.Stale.validate(&stale)
	ps.Below("stale", stale)
}

// maxStale is the longest stale use that makes sense.
const maxStale = 30 * 24 * time.Hour

func (s *Stale) validate(ps *setting.Problems) {
	if s.For < 0 || s.For > maxStale {
		ps.Add("for", "must be between 0s and 30d", "try 1h, or 0s for none")
	}
	if s.For == 0 && (s.IfError || len(s.Routes) > 0) {
		ps.Add("for", "is missing, so that no answer is kept though other keys are given", "try 1h")
	}
	if s.Memory < 1e6 || s.Memory > 64e9 {
		ps.Add("memory", "must be between 1MB and 64GB", "try 64MB")
		return
	}
	if s.Largest < 1e3 || s.Largest > s.Memory/16 {
		ps.Add("largest", "must be between 1KB and a 16th of memory", "try "+(s.Memory/64).String())
	}
}

// Ladder is the ladder in force.
func (g *Gate) Ladder() Degrade { return g.policy.Load().cfg.Degrade }

// Keeps reports whether answers are kept for the step stale at all.
func (v *Verdict) Keeps() bool { return v.policy != nil && v.policy.cfg.Degrade.Stale.For > 0 }

// Stale is the step that puts a kept answer in place of a refusal, as it holds for the
// request; nil: it has none.
func (v *Verdict) Stale() *Stale {
	if !v.Keeps() || v.Denied {
		return nil
	}
	s := &v.policy.cfg.Degrade.Stale
	if len(s.Routes) > 0 && !slices.Contains(s.Routes, v.Route) {
		return nil
	}
	return s
}

// A Step is the rung on which a caller stands.
type Step uint8

// The steps; each comes with those before it.
const (
	Full Step = iota // nothing is amiss
	Warned
	Slowed
	Cheaper
	steps
)

func (s Step) String() string { return [...]string{"", "warn", "slow", "cheaper"}[min(s, Cheaper)] }

// used is the share that an admitted caller has used of the limit of which it has
// used most, and the limit. What is spaced and what counts those that run fills up
// again at once, and tells nothing; nor does what is in shadow.
func (v *Verdict) used() (share float64, most *Rule) {
	for i := range v.Rules {
		r := &v.Rules[i]
		l := &r.Check.Limit
		if r.Check.Shadow || l.Algorithm == ratelimit.GCRA || l.Algorithm == ratelimit.Concurrency || l.Max <= 0 {
			continue
		}
		if u := float64(l.Max-r.Remaining) / float64(l.Max); most == nil || u > share {
			share, most = u, r
		}
	}
	return share, most
}

// Step is where the ladder has the caller.
func (v *Verdict) Step() Step {
	if !v.Allowed || v.policy == nil {
		return Full
	}
	share, _ := v.used()
	d, at := &v.policy.cfg.Degrade, Full
	for s, from := range [...]setting.Percent{Warned: d.Warn, Slowed: d.Slow, Cheaper: d.Cheaper} {
		if from > 0 && share >= float64(from) {
			at = Step(s)
		}
	}
	return at
}

// Delay is how long the request has to wait; 0: not at all.
func (v *Verdict) Delay() time.Duration {
	if v.Step() < Slowed {
		return 0
	}
	d := &v.policy.cfg.Degrade
	share, _ := v.used()
	if d.Slow == 0 || d.Slow >= 1 {
		return 0
	}
	part := (share - float64(d.Slow)) / (1 - float64(d.Slow))
	return time.Duration(min(max(part, 0), 1) * float64(d.Delay))
}

// Waiting bounds the requests that are delayed at once: all, and those of a caller.
func (v *Verdict) Waiting() (all, each int) {
	if v.policy == nil {
		return 0, 0
	}
	all = v.policy.cfg.Degrade.Waiting
	return all, min(max(all/100, 10), all)
}

// Warning is the value of X-RateLimit-Warning: the limit, and the used share in
// percent. Empty: there is nothing to warn of.
func (v *Verdict) Warning() string {
	if v.Step() == Full {
		return ""
	}
	share, rule := v.used()
	return rule.Name + ";used=" + strconv.Itoa(int(share*100))
}
