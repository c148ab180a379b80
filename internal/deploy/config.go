package deploy

import (
	"errors"
	"slices"
	"strings"
	"time"

	"mainstay.dev/mainstay/internal/setting"
)

// Config is the app section: what runs behind the edge and how its copies are
// brought up, judged and taken down.
type Config struct {
	Run    Command       `yaml:"run" doc:"The command that starts the app: a shell line, or a list of words that no shell sees. It must serve HTTP on 127.0.0.1, on the port that the environment variable PORT names, and stay in the foreground."`
	Dir    string        `yaml:"dir" doc:"The folder in which the command runs; absent, the folder in which mainstay was started."`
	Health Health        `yaml:"health" doc:"How to tell that the app is fit to serve."`
	Drain  time.Duration `yaml:"drain" doc:"How long the old color may finish its requests after a switch, before it is told to stop."`
	Grace  time.Duration `yaml:"grace" doc:"How long the app may take to end after SIGTERM, before SIGKILL."`

	Image   string   `yaml:"image" doc:"A container image to run instead of a command." planned:"the docker driver"`
	Targets []string `yaml:"targets" doc:"Addresses of copies that somebody else runs." planned:"the targets driver"`
	Watch   Watch    `yaml:"watch" doc:"How a new color is compared with the old one after the switch." planned:"watching a deploy and rolling back"`
}

// Health says how a copy of the app is probed, from its start to its end.
type Health struct {
	Path         string        `yaml:"path" doc:"The path to GET: fit is an answer of 200 to 399. Absent, the app is fit when GET / gets any HTTP answer below 500."`
	Interval     time.Duration `yaml:"interval" doc:"The time between two probes; a copy that is starting is probed at least five times a second."`
	Timeout      time.Duration `yaml:"timeout" doc:"How long one probe may take."`
	HealthyAfter int           `yaml:"healthy_after" doc:"How many good probes in a row make a copy healthy."`
	// UnhealthyAfter is about saying so: the traffic stays where it is, since
	// the copy is the only one there is.
	UnhealthyAfter int           `yaml:"unhealthy_after" doc:"How many bad probes in a row make a healthy copy unhealthy."`
	StartWithin    time.Duration `yaml:"start_within" doc:"How long a copy may take from its start until it is healthy."`
}

// Watch compares colors after a switch.
type Watch struct {
	For          time.Duration   `yaml:"for" doc:"How long the new color is watched." planned:"watching a deploy and rolling back"`
	Control      setting.Percent `yaml:"control" doc:"The share of traffic that stays on the old color meanwhile." planned:"watching a deploy and rolling back"`
	MaxErrorRate setting.Percent `yaml:"max_error_rate" doc:"The error rate above which the switch is undone." planned:"watching a deploy and rolling back"`
	MaxP95       time.Duration   `yaml:"max_p95" doc:"The 95th percentile above which the switch is undone." planned:"watching a deploy and rolling back"`
}

// SetDefaults fills c before the file is read into it.
func (c *Config) SetDefaults() {
	c.Health = Health{
		Interval:       time.Second,
		Timeout:        2 * time.Second,
		HealthyAfter:   2,
		UnhealthyAfter: 3,
		StartWithin:    time.Minute,
	}
	c.Drain = 30 * time.Second
	c.Grace = 10 * time.Second
}

// Validate reports every mistake in c. An empty Run is none: the command may come
// from the command line.
func (c Config) Validate(ps *setting.Problems) {
	if len(c.Run) > 0 {
		c.Run.validate("run", ps)
	}
	c.Health.validate(ps)
	if c.Drain < 0 {
		ps.Add("drain", "must not be negative", "try 30s")
	}
	if c.Grace < 0 {
		ps.Add("grace", "must not be negative", "try 10s")
	}
}

func (h Health) validate(ps *setting.Problems) {
	if h.Path != "" && !strings.HasPrefix(h.Path, "/") {
		ps.Add("health.path", "must start with a slash", "write /"+h.Path)
	}
	if strings.ContainsFunc(h.Path, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' }) {
		ps.Add("health.path", "must not hold spaces, control characters or a #", "escape them, as %20")
	}
	positive(ps, "health.interval", h.Interval, "1s")
	positive(ps, "health.timeout", h.Timeout, "2s")
	positive(ps, "health.start_within", h.StartWithin, "60s")
	atLeastOne(ps, "health.healthy_after", h.HealthyAfter, "2")
	atLeastOne(ps, "health.unhealthy_after", h.UnhealthyAfter, "3")
}

func positive(ps *setting.Problems, path string, d time.Duration, try string) {
	if d <= 0 {
		ps.Add(path, "must be positive", "try "+try)
	}
}

func atLeastOne(ps *setting.Problems, path string, n int, try string) {
	if n < 1 {
		ps.Add(path, "must be at least 1", "try "+try)
	}
}

// A Command is a program and its arguments. In the file it is a list of words, or
// one shell line, which /bin/sh runs.
type Command []string

// DecodeScalar takes a shell line.
func (c *Command) DecodeScalar(line string) error {
	if strings.TrimSpace(line) == "" {
		return errors.New("a command must not be empty; write one as npm start")
	}
	*c = Command{"/bin/sh", "-c", line}
	return nil
}

// String is the command as a person would type it.
func (c Command) String() string {
	if len(c) == 3 && c[0] == "/bin/sh" && c[1] == "-c" {
		return c[2]
	}
	words := make([]string, len(c))
	for i, w := range c {
		words[i] = quote(w)
	}
	return strings.Join(words, " ")
}

// quote puts a word in single quotes where a shell would need them.
func quote(w string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("_-./:=,@%+", r)
	}
	if w != "" && !strings.ContainsFunc(w, func(r rune) bool { return !plain(r) }) {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}

func (c Command) equal(d Command) bool { return slices.Equal(c, d) }

func (c Command) validate(path string, ps *setting.Problems) {
	switch {
	case len(c) == 0 || c[0] == "":
		ps.Add(path, "must name a program first", "write it as npm start, or as [npm, start]")
	case slices.ContainsFunc(c, func(w string) bool { return strings.ContainsRune(w, 0) }):
		ps.Add(path, "must not hold a zero byte", "")
	}
}
