package deploy

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"mainstay.dev/mainstay/internal/deploy/internal/containers"
	"mainstay.dev/mainstay/internal/setting"
	"mainstay.dev/mainstay/internal/traffic"
)

// Config is the app section: what runs behind the edge and how its copies are
// brought up, judged and taken down.
type Config struct {
	Run     Command       `yaml:"run" doc:"The command that starts the app: a shell line, or a list of words that no shell sees. It must serve HTTP on 127.0.0.1, on the port that the environment variable PORT names, and stay in the foreground."`
	Targets []string      `yaml:"targets" doc:"Addresses of copies that somebody else runs, as host:port, instead of a command. They are probed, and never started or stopped; mainstay deploy --targets names those of the next release."`
	Release Release       `yaml:"release" doc:"Where mainstay deploy --release finds releases, and how many are kept."`
	Dir     string        `yaml:"dir" doc:"The folder in which the command runs; absent, the folder in which mainstay was started. A symbolic link is followed once, when a release is deployed."`
	Health  Health        `yaml:"health" doc:"How to tell that the app is fit to serve."`
	Drain   time.Duration `yaml:"drain" doc:"How long a color that is taken down may finish its requests before it is told to stop."`
	Grace   time.Duration `yaml:"grace" doc:"How long the app may take to end after SIGTERM, before SIGKILL."`

	Warm        Warm        `yaml:"warm" doc:"How a new color is warmed up before it is verified."`
	Smoke       []Smoke     `yaml:"smoke" doc:"Requests that a new color must answer as expected before it gets any traffic."`
	Hooks       []Hook      `yaml:"hooks" doc:"Commands and webhooks that are run, or told, as a deploy goes on."`
	Gates       Gates       `yaml:"gates" doc:"What must be in order before a deploy begins, and again before it switches. mainstay deploy --force --why goes on all the same; the history keeps that."`
	Switch      Switch      `yaml:"switch" doc:"How the traffic moves to a new color."`
	Preview     Preview     `yaml:"preview" doc:"How chosen requests see the new color of a deploy at work before, and while, it gets traffic."`
	Watch       Watch       `yaml:"watch" doc:"How a new color is compared with the old one after the switch: errors and p95 of its requests, errors of its queries and Claude calls, what those calls cost and how many there are, and errors in its log. What is worse is rolled back."`
	Settle      Settle      `yaml:"settle" doc:"What becomes of the old color once a deploy has settled."`
	Maintenance Maintenance `yaml:"maintenance" doc:"What mainstay maintenance on answers."`

	Image  string            `yaml:"image" doc:"A container image to run, as ghcr.io/acme/app:1.4. app.run then replaces what the image itself would run."`
	Docker containers.Config `yaml:"docker" doc:"How the containers of app.image are run."`
}

// Release says where releases are.
type Release struct {
	Dir  string `yaml:"dir" doc:"The folder with a folder for each release, as /srv/app/releases; mainstay deploy --release 42 then runs app.run in its folder 42."`
	Keep int    `yaml:"keep" doc:"How many releases that ran are kept there; older ones that no color uses are removed when a deploy has settled. 0: nothing is removed."`
}

// Health says how a copy of the app is probed, from its start to its end.
type Health struct {
	Path         string        `yaml:"path" doc:"The path to GET. Absent, the app is fit when GET / gets any HTTP answer below 500."`
	Status       string        `yaml:"status" doc:"The statuses that are good, as 200 or 200-299; absent, 200-399. It counts only with a path."`
	Contains     string        `yaml:"contains" doc:"Text that the first 64 KiB of the answer must hold."`
	Header       string        `yaml:"header" doc:"A header that the answer must have, as X-Ready or X-Ready: yes."`
	Interval     time.Duration `yaml:"interval" doc:"The time between two probes; a copy that is starting is probed at least five times a second."`
	Timeout      time.Duration `yaml:"timeout" doc:"How long one probe may take."`
	HealthyAfter int           `yaml:"healthy_after" doc:"How many good probes in a row make a copy healthy."`
	// With two colors the traffic goes to the other one; with one it stays.
	UnhealthyAfter int           `yaml:"unhealthy_after" doc:"How many bad probes in a row make a healthy copy unhealthy."`
	StartWithin    time.Duration `yaml:"start_within" doc:"How long a copy may take from its start until it is healthy."`
}

// Warm says how a color is warmed up.
type Warm struct {
	Paths    []string      `yaml:"paths" doc:"Paths to GET from the new color, one after the other; their answers count for nothing."`
	Requests int           `yaml:"requests" doc:"How many such requests in all."`
	Mirror   int           `yaml:"mirror" doc:"How many real GET and HEAD requests are sent to the new color, too, its answers thrown away."`
	Within   time.Duration `yaml:"within" doc:"How long warming up by requests may take, and how long requests are mirrored."`
}

// Smoke is a request that a new color must answer as expected.
type Smoke struct {
	Path     string            `yaml:"path" doc:"The path to ask for, with its query."`
	Method   string            `yaml:"method" doc:"The method; absent, GET."`
	Headers  map[string]string `yaml:"headers" doc:"Headers to send."`
	Body     string            `yaml:"body" doc:"The body to send."`
	Status   string            `yaml:"status" doc:"The statuses that are good, as 200 or 200-299; absent, 200-399."`
	Contains string            `yaml:"contains" doc:"Text that the first 1 MiB of the answer must hold."`
	Header   string            `yaml:"header" doc:"A header that the answer must have, as Content-Type or Content-Type: text/html."`
	Timeout  time.Duration     `yaml:"timeout" doc:"How long the answer may take."`
}

// SetDefaults fills s before the file is read into it.
func (s *Smoke) SetDefaults() { s.Timeout = 10 * time.Second }

// Hook is a command or a webhook.
type Hook struct {
	Name    string         `yaml:"name" doc:"What it is called in the record; absent, on and what it runs."`
	On      string         `yaml:"on" doc:"When: verifying, settled, rolled_back, frozen or failed. One on verifying can fail the deploy; the others are told only."`
	Run     Command        `yaml:"run" doc:"A command, run in the folder of the release with the environment of the new color and MAINSTAY_PHASE, _COLOR, _TARGET, _ADDRESS, _VERSION and _NUMBER. Its exit code must be 0."`
	URL     setting.Secret `yaml:"url" doc:"Or an address that gets a POST with the deploy as JSON, and must answer 200 to 299."`
	Timeout time.Duration  `yaml:"timeout" doc:"How long it may take."`
}

// SetDefaults fills h before the file is read into it.
func (h *Hook) SetDefaults() { h.Timeout = 30 * time.Second }

func (h Hook) name() string {
	switch {
	case h.Name != "":
		return h.Name
	case len(h.Run) > 0:
		return h.On + ": " + h.Run.String()
	}
	return h.On + ": webhook"
}

// Gates are what must be in order before a switch.
type Gates struct {
	ErrorBudget ErrorBudget `yaml:"error_budget" doc:"Whether too many requests fail already: then no release is switched to that could hide it or add to it."`
}

// ErrorBudget says how many requests may fail.
type ErrorBudget struct {
	Objective setting.Percent `yaml:"objective" doc:"The share of requests that must go well, as 99.9%; the rest is the budget. 0%: this gate is open."`
	Window    time.Duration   `yaml:"window" doc:"The time that is looked at, at most a day; a twelfth of it, at its end, must burn as well, so that the gate opens soon after all is well again."`
	Burn      float64         `yaml:"burn" doc:"How many times as fast as the objective allows the budget must burn for the gate to close. At least 10 requests must have failed."`
}

// Switch says how the traffic moves.
type Switch struct {
	Steps  []setting.Percent `yaml:"steps" doc:"The shares of the traffic that the new color gets one after the other, as [10%, 50%]; the last, 100%, need not be written. Absent, everything at once."`
	Every  time.Duration     `yaml:"every" doc:"How long each step but the last is watched."`
	Sticky Sticky            `yaml:"sticky" doc:"What keeps a client with its color while both have traffic."`
}

// Sticky keeps a client with a color.
type Sticky struct {
	By   string `yaml:"by" doc:"cookie, header, address, or, of who is asking, user or workspace; absent, nothing does."`
	Name string `yaml:"name" doc:"Of the cookie, or of the header."`
}

// Preview lets chosen requests see a color before others do.
type Preview struct {
	Header string         `yaml:"header" doc:"A request header that asks for the new color."`
	Secret setting.Secret `yaml:"secret" doc:"The value that it must have."`
	Host   string         `yaml:"host" doc:"A host name whose requests all go to the new color."`
}

func (p Preview) on() bool { return p.Host != "" || p.Header != "" }

// Watch compares colors after a switch.
type Watch struct {
	For          time.Duration   `yaml:"for" doc:"How long the new color is watched after the last step; 0: it is not."`
	Control      setting.Percent `yaml:"control" doc:"The share of traffic that stays on the old color meanwhile. At 0% the new color is compared with the last ten minutes of the old one before the switch, or with as much as is known of them."`
	MinSamples   int             `yaml:"min_samples" doc:"How many requests the new color must have had before it is judged by their number."`
	MaxErrorRate setting.Percent `yaml:"max_error_rate" doc:"The error rate above which the switch is undone whatever the old color does; 0%: only the comparison counts."`
	MaxP95       time.Duration   `yaml:"max_p95" doc:"The 95th percentile above which the switch is undone whatever the old color does; 0s: only the comparison counts."`
}

// Settle says what becomes of the old color.
type Settle struct {
	Old   string        `yaml:"old" doc:"keep: it runs on, probed, takes over if the new one fails, and makes a rollback one pointer swap; that costs the memory of a second copy, until the next deploy or mainstay settle. stop: it is stopped. update: it is replaced by a copy of the new release, which stands by."`
	After time.Duration `yaml:"after" doc:"How long after the deploy has settled the old color is stopped or updated."`
}

// The words of Settle.Old.
const (
	settleKeep   = "keep"
	settleStop   = "stop"
	settleUpdate = "update"
)

// Maintenance is the mode in which nobody is served.
type Maintenance struct {
	Page string `yaml:"page" doc:"An HTML file to answer browsers with, at most 1 MiB; absent, a plain page."`
}

// SetDefaults fills c before the file is read into it.
func (c *Config) SetDefaults() {
	c.Docker.SetDefaults()
	c.Health = Health{
		Interval:       time.Second,
		Timeout:        2 * time.Second,
		HealthyAfter:   2,
		UnhealthyAfter: 3,
		StartWithin:    time.Minute,
	}
	c.Drain = 30 * time.Second
	c.Grace = 10 * time.Second
	c.Warm.Within = 10 * time.Second
	c.Gates.ErrorBudget = ErrorBudget{Window: time.Hour, Burn: 14}
	c.Switch.Every = 30 * time.Second
	c.Watch.MinSamples = 50
	c.Settle.Old = settleKeep
}

// Validate reports every mistake in c. An empty Run is none: the command may come
// from the command line.
func (c Config) Validate(ps *setting.Problems) {
	if len(c.Run) > 0 {
		c.Run.validate("run", ps)
	}
	validateTargets(c.Targets, ps)
	if len(c.Targets) > 0 && c.Settle.Old == settleUpdate {
		ps.Add("settle.old", "cannot be update for copies that somebody else runs", "try keep, or stop")
	}
	if c.Release.Keep < 0 || c.Release.Keep == 1 {
		ps.Add("release.keep", "must be 0, or 2 or more", "try 5")
	}
	if c.Release.Keep > 0 && c.Release.Dir == "" {
		ps.Add("release.dir", "is missing though release.keep is given", "name the folder with the releases")
	}
	c.Health.validate(ps)
	if c.Drain < 0 {
		ps.Add("drain", "must not be negative", "try 30s")
	}
	if c.Grace < 0 {
		ps.Add("grace", "must not be negative", "try 10s")
	}
	c.Warm.validate(ps)
	for i, s := range c.Smoke {
		s.validate(fmt.Sprintf("smoke[%d]", i), ps)
	}
	for i, h := range c.Hooks {
		h.validate(fmt.Sprintf("hooks[%d]", i), ps)
	}
	c.Gates.ErrorBudget.validate("gates.error_budget", ps)
	c.Switch.validate(ps)
	if (c.Preview.Header == "") != (c.Preview.Secret == "") {
		ps.Add("preview", "needs a header and a secret together", "give both, or a host")
	}
	if c.Watch.Control > 0.9 {
		ps.Add("watch.control", "must not be above 90%", "try 10%")
	}
	atLeastOne(ps, "watch.min_samples", c.Watch.MinSamples, "50")
	oneOf(ps, "settle.old", c.Settle.Old, settleKeep, settleStop, settleUpdate)
}

func validateTargets(at []string, ps *setting.Problems) {
	for i, a := range at {
		path := fmt.Sprintf("targets[%d]", i)
		host, port, err := net.SplitHostPort(a)
		n, perr := strconv.Atoi(port)
		switch {
		case err != nil || perr != nil || host == "" || n < 1 || n > 65535 || strings.ContainsAny(a, " /@?#"):
			ps.Add(path, fmt.Sprintf("%q is not an address", a), "write it as host:port, as 10.0.0.5:3008")
		case slices.Contains(at[:i], a):
			ps.Add(path, a+" is there twice", "remove it")
		}
	}
	if len(at) > maxTargets {
		ps.Add("targets", fmt.Sprintf("must not be more than %d", maxTargets), "")
	}
}

const maxTargets = 100

func (h Health) validate(ps *setting.Problems) {
	if h.Path != "" {
		checkPath("health.path", h.Path, ps)
	}
	checkStatus("health.status", h.Status, ps)
	positive(ps, "health.interval", h.Interval, "1s")
	positive(ps, "health.timeout", h.Timeout, "2s")
	positive(ps, "health.start_within", h.StartWithin, "60s")
	atLeastOne(ps, "health.healthy_after", h.HealthyAfter, "2")
	atLeastOne(ps, "health.unhealthy_after", h.UnhealthyAfter, "3")
}

func (w Warm) validate(ps *setting.Problems) {
	for i, p := range w.Paths {
		checkPath(fmt.Sprintf("warm.paths[%d]", i), p, ps)
	}
	if w.Requests > 0 && len(w.Paths) == 0 {
		ps.Add("warm.paths", "must name what to ask for", "try [/]")
	}
	if w.Requests < 0 || w.Requests > 100_000 {
		ps.Add("warm.requests", "must be 0 to 100000", "try 20")
	}
	if w.Mirror < 0 {
		ps.Add("warm.mirror", "must not be negative", "try 100")
	}
	positive(ps, "warm.within", w.Within, "10s")
}

func (s Smoke) validate(at string, ps *setting.Problems) {
	checkPath(setting.Join(at, "path"), s.Path, ps)
	checkStatus(setting.Join(at, "status"), s.Status, ps)
	positive(ps, setting.Join(at, "timeout"), s.Timeout, "10s")
}

func (h Hook) validate(at string, ps *setting.Problems) {
	oneOf(ps, setting.Join(at, "on"), h.On, string(Verifying), string(Settled), string(RolledBack), string(Frozen), string(Failed))
	switch {
	case (len(h.Run) > 0) == (h.URL != ""):
		ps.Add(at, "needs either run or url", "try run: ./smoke.sh")
	case len(h.Run) > 0:
		h.Run.validate(setting.Join(at, "run"), ps)
	default:
		if u, err := url.Parse(h.URL.Reveal()); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			ps.Add(setting.Join(at, "url"), "must be an http or https address", "write it as https://hooks.example.com/deploys")
		}
	}
	positive(ps, setting.Join(at, "timeout"), h.Timeout, "30s")
}

func (b ErrorBudget) validate(at string, ps *setting.Problems) {
	if b.Objective == 0 {
		return // open
	}
	if b.Objective < 0 || b.Objective >= 1 {
		ps.Add(setting.Join(at, "objective"), "must be below 100%", "try 99.9%")
	}
	if b.Window < time.Minute || b.Window > 24*time.Hour {
		ps.Add(setting.Join(at, "window"), "must be between a minute and a day", "try 1h")
	}
	if b.Burn < 1 {
		ps.Add(setting.Join(at, "burn"), "must be at least 1", "try 14")
	}
}

func (s Switch) validate(ps *setting.Problems) {
	if _, err := shares(s.Steps); err != nil {
		ps.Add("switch.steps", err.Error(), "try [10%, 50%]")
	}
	switch s.Sticky.By {
	case traffic.StickyCookie, traffic.StickyHeader:
		if s.Sticky.Name == "" {
			ps.Add("switch.sticky.name", "must name the "+s.Sticky.By, "try mainstay-color")
		}
	default:
		oneOf(ps, "switch.sticky.by", s.Sticky.By, "", traffic.StickyCookie, traffic.StickyHeader, traffic.StickyAddress, traffic.StickyUser, traffic.StickyWorkspace)
	}
}

// shares turns steps into whole percents that grow up to 100.
func shares(steps []setting.Percent) ([]int, error) {
	var out []int
	for _, s := range steps {
		n := int(math.Round(float64(s) * 100))
		if n < 1 || n > 100 || len(out) > 0 && n <= out[len(out)-1] {
			return nil, errors.New("must be shares from 1% to 100% that grow")
		}
		out = append(out, n)
	}
	if len(out) == 0 || out[len(out)-1] != 100 {
		out = append(out, 100)
	}
	if len(out) > 20 {
		return nil, errors.New("must not be more than 20")
	}
	return out, nil
}

func checkPath(at, path string, ps *setting.Problems) {
	if !strings.HasPrefix(path, "/") {
		ps.Add(at, "must start with a slash", "write /"+path)
	}
	if strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' }) {
		ps.Add(at, "must not hold spaces, control characters or a #", "escape them, as %20")
	}
}

func checkStatus(at, s string, ps *setting.Problems) {
	if _, _, err := statuses(s); err != nil {
		ps.Add(at, err.Error(), "write it as 200 or 200-299")
	}
}

// statuses reads a range of HTTP statuses; empty is 200 to 399.
func statuses(s string) (low, high int, err error) {
	if s == "" {
		return 200, 399, nil
	}
	from, to, ranged := strings.Cut(s, "-")
	if !ranged {
		to = from
	}
	low, e1 := strconv.Atoi(strings.TrimSpace(from))
	high, e2 := strconv.Atoi(strings.TrimSpace(to))
	if e1 != nil || e2 != nil || low < 100 || high > 599 || low > high {
		return 0, 0, errors.New("must be one status, or a range of them")
	}
	return low, high, nil
}

func oneOf(ps *setting.Problems, at, v string, words ...string) {
	if !slices.Contains(words, v) {
		words = slices.DeleteFunc(words, func(w string) bool { return w == "" })
		ps.Add(at, fmt.Sprintf("must not be %q", v), "try "+strings.Join(words, ", "))
	}
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
