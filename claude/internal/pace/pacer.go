package pace

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// Config is the section claude.pacing.
type Config struct {
	Enabled    bool              `yaml:"enabled" doc:"Policy deadline: keep calls within the rate limits that the API's answers tell of, by key and class of models: what would be refused waits in line."`
	Headroom   setting.Percent   `yaml:"headroom" doc:"Share of each limit that is left unused, for clocks and networks that are not exact."`
	Queue      int               `yaml:"queue" doc:"Calls that may wait in one line; one more is answered 429 at once."`
	Priorities map[string]string `yaml:"priorities" doc:"Who goes first in a line: high, normal or low, by caller (key:1a2b3c4d5e6f, as the log shows it) or color (@green). High has four times the share of normal, and normal four times that of low; the request header mainstay-priority can lower a call's own."`
}

// SetDefaults fills in what an absent key means.
func (c *Config) SetDefaults() { *c = Config{Enabled: true, Headroom: 0.02, Queue: 10_000} }

// Validate notes every mistake.
func (c Config) Validate(ps *setting.Problems) {
	if c.Headroom < 0 || c.Headroom > 0.9 {
		ps.Add("headroom", "must be from 0% to 90%", "try 2%")
	}
	if c.Queue < 1 || c.Queue > 1_000_000 {
		ps.Add("queue", "must be from 1 to 1000000", "try 10000")
	}
	for who, word := range c.Priorities {
		if _, ok := weights[word]; !ok {
			ps.Add("priorities."+who, "must be high, normal or low", "use normal")
		}
	}
}

var weights = map[string]float64{"high": 4, "normal": 1, "low": 0.25}

// Weight is the share of a caller, of which asked, if it is a priority, can lower it.
func (c Config) Weight(caller, color, asked string) (weight float64, name string) {
	name = "normal"
	if len(c.Priorities) == 0 && asked == "" {
		return weights[name], name
	}
	for _, who := range []string{"@" + color, caller} {
		if given := c.Priorities[who]; given != "" {
			name = given
		}
	}
	asked = strings.ToLower(asked)
	if w, ok := weights[asked]; ok && w < weights[name] {
		name = asked
	}
	return weights[name], name
}

// A Pacer holds the lanes. Its methods may be called from many goroutines; the zero
// Pacer is ready and has the defaults.
type Pacer struct {
	rules  atomic.Pointer[rules]
	mu     sync.Mutex
	lanes  map[[2]string]*Lane
	owners map[string]string // of keys, as far as the answers have told
}

// Obey takes over cfg for what comes from now on.
func (p *Pacer) Obey(cfg Config) {
	r := &rules{share: 1 - float64(cfg.Headroom), most: cfg.Queue}
	p.rules.Store(r)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.lanes {
		l.mu.Lock()
		l.rules = r
		l.mu.Unlock()
	}
}

// mostLanes bounds how many there are: callers name keys and models.
const mostLanes = 256

// Lane returns the lane of a key and a model; nil: there are too many, and this call
// is not paced.
func (p *Pacer) Lane(key, class string) *Lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	owner := p.owners[key]
	at := [2]string{key, class}
	if owner != "" {
		at[0] = owner
	}
	if l := p.lanes[at]; l != nil {
		return l
	}
	if p.lanes == nil {
		p.lanes = map[[2]string]*Lane{}
	}
	if len(p.lanes) >= mostLanes && !p.forget() {
		return nil
	}
	r := p.rules.Load()
	if r == nil {
		var cfg Config
		cfg.SetDefaults()
		r = &rules{share: 1 - float64(cfg.Headroom), most: cfg.Queue}
	}
	l := &Lane{Key: strings.Clone(at[0]), Class: strings.Clone(class), owner: owner, rules: r, window: coldStart, ratio: 1, used: time.Now()}
	p.lanes[[2]string{l.Key, l.Class}] = l
	return l
}

// mostOwner is the length of the longest name of an owner.
const mostOwner = 128

// Owned notes whom a key belongs to, as an answer to it tells (an organisation, and its
// workspace): the limits are its owner's, so that all its keys share one lane. A lane
// that the key had for itself becomes its owner's, or, where that has one already, takes
// no new calls. told is the lane of the call that was answered.
func (p *Pacer) Owned(key, organisation, workspace string, told *Lane) {
	if organisation == "" || len(organisation)+len(workspace) > mostOwner || told == nil || told.is(organisation, workspace) {
		return
	}
	owner := "org:" + organisation
	if workspace != "" {
		owner += "/" + workspace
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.owners[key]
	if before == owner {
		return
	}
	if p.owners == nil {
		p.owners = map[string]string{}
	}
	if before == "" && len(p.owners) >= mostLanes {
		return // whoever makes up keys pays for it with lanes of their own
	}
	p.owners[strings.Clone(key)] = owner
	for at, l := range p.lanes {
		if at[0] != key {
			continue
		}
		delete(p.lanes, at)
		if theirs := [2]string{owner, at[1]}; p.lanes[theirs] == nil {
			l.mu.Lock()
			l.Key, l.owner = owner, owner
			l.mu.Unlock()
			p.lanes[theirs] = l
		}
	}
}

// is reports whether the lane is that of an owner already.
func (l *Lane) is(organisation, workspace string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest, ok := strings.CutPrefix(strings.TrimPrefix(l.owner, "org:"), organisation)
	if !ok {
		return false
	}
	return rest == "" && workspace == "" || len(rest) == len(workspace)+1 && rest[0] == '/' && rest[1:] == workspace
}

// forget drops the lane that has been idle for longest.
func (p *Pacer) forget() bool {
	var oldest *Lane
	var since time.Time
	for _, l := range p.lanes {
		l.mu.Lock()
		idle, used := l.flying == 0 && l.line.n == 0, l.used // its names change under the pacer's lock only
		l.mu.Unlock()
		if idle && (oldest == nil || used.Before(since)) {
			oldest, since = l, used
		}
	}
	if oldest != nil {
		delete(p.lanes, [2]string{oldest.Key, oldest.Class})
	}
	return oldest != nil
}

// Fast is the class of calls in fast mode, which have limits of their own
// (https://platform.claude.com/docs/en/build-with-claude/fast-mode).
func Fast(class string) string { return class + " fast" }

// Class is the class of models that share a limit: family and generation
// (https://docs.claude.com/en/api/rate-limits).
func Class(model string) string {
	name := model
	if i := strings.LastIndex(name, "claude-"); i >= 0 { // also us.anthropic.claude-…
		name = name[i:]
	}
	for _, family := range [...]string{"opus", "sonnet", "haiku"} {
		at := strings.Index(name, family)
		if at < 0 {
			continue
		}
		for part := range strings.FieldsFuncSeq(name, func(r rune) bool { return r < '0' || r > '9' }) {
			if len(part) < 3 { // not a date
				return family + "-" + part
			}
		}
		return family
	}
	return name
}

// A Standing is how a lane stands.
type Standing struct {
	Key     string    `json:"key"`
	Class   string    `json:"class"`
	Waiting int       `json:"waiting"`
	Flying  int       `json:"in_flight"`
	Waited  int64     `json:"waited"`   // calls that had to wait so far
	Oldest  float64   `json:"oldest_s"` // how long the first of those who wait has done so
	Limits  []Allowed `json:"limits,omitempty"`
}

// Allowed is how one limit stands.
type Allowed struct {
	Name  string  `json:"name"`  // requests, input-tokens, output-tokens; of the Priority Tier priority-…
	Limit float64 `json:"limit"` // a minute
	Left  float64 `json:"left"`
	Used  float64 `json:"used"` // 0 to 1: of what may be saved up
}

// Standings of all lanes, the busiest first.
func (p *Pacer) Standings() []Standing {
	p.mu.Lock()
	lanes := make([]*Lane, 0, len(p.lanes))
	for _, l := range p.lanes {
		lanes = append(lanes, l)
	}
	p.mu.Unlock()
	all := make([]Standing, 0, len(lanes))
	for _, l := range lanes {
		all = append(all, l.standing())
	}
	slices.SortFunc(all, func(a, b Standing) int {
		return cmp.Or(cmp.Compare(b.Waiting, a.Waiting), cmp.Compare(b.Flying, a.Flying), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Class, b.Class))
	})
	return all
}

func (l *Lane) standing() Standing {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	s := Standing{Key: l.Key, Class: l.Class, Waiting: l.line.n, Flying: l.flying, Waited: l.waited}
	if t := l.line.oldest(); !t.IsZero() {
		s.Oldest = now.Sub(t).Seconds()
	}
	for i := range l.limits {
		if b := &l.limits[i]; b.known() {
			b.fill(now, l.rules)
			left := max(b.level, 0)
			s.Limits = append(s.Limits, Allowed{Name: names[i], Limit: b.limit, Left: left, Used: 1 - left/b.most})
		}
	}
	for i := range l.prior {
		if b := &l.prior[i]; b.known() {
			s.Limits = append(s.Limits, Allowed{Name: priorNames[i], Limit: b.limit, Left: b.level, Used: 1 - b.level/b.limit})
		}
	}
	return s
}

// Limits are the names of the limits.
func Limits() []string { return append(names[:], priorNames[:]...) }

// Used is the largest share that any of all has used of a limit.
func Used(all []Standing, limit string) (used float64) {
	for _, s := range all {
		for _, l := range s.Limits {
			if l.Name == limit {
				used = max(used, l.Used)
			}
		}
	}
	return used
}
