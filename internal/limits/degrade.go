package limits

import (
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
}

// SetDefaults fills in what the file leaves out.
func (d *Degrade) SetDefaults() { *d = Degrade{Warn: 0.8, Delay: time.Second, Waiting: 1000} }

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
